"""Hidden states of many texts in one file, memory-mapped: real tokens only, end to end, and a folder that is bounded.

    <root>/<key>/states        (tokens of all texts, D), bytes of one dtype
    <root>/<key>/sealed.json   size and sha256, written last (`train/checkpoint.py`)

A batch of any rows gets them back padded with zeros, which no real token looks at. A key says everything that the
states follow from, so an entry never changes. An entry that a crash tore or a disk bent is not whole and is made anew.
Where there is no room, what was used longest ago goes first; who has it open keeps it, for POSIX keeps the bytes. One
process at a time makes entries.
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from torch import Tensor

from graftwork.registry.durable import locked, named, place, sibling
from graftwork.registry.store import default_root
from graftwork.train.checkpoint import is_whole, seal

Numbers = numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.int64]]
_FILE, _LOCK = "states", "lock"
MOST = 16 * 10**9  # bytes of all entries where a recipe says auto, and a quarter of what the disk could give


def cache_root(environment: Mapping[str, str]) -> Path:
    """Where a person's states lie: $GRAFTWORK_HOME/cache/prefix, else ~/.graftwork/cache/prefix."""
    return default_root(environment).parent / "cache" / "prefix"


@dataclass(frozen=True)
class Layout:
    """Texts of these lengths (texts,) end to end, each token D numbers of one dtype."""

    lengths: Numbers
    width: int
    dtype: torch.dtype

    @property
    def starts(self) -> Numbers:
        """Where each text begins, (texts,)."""
        starts: Numbers = numpy.cumsum(self.lengths) - self.lengths
        return starts

    @property
    def tokens(self) -> int:
        """Of all texts."""
        return int(self.lengths.sum())

    @property
    def bytes(self) -> int:
        """Of all states."""
        return self.tokens * self.width * self.dtype.itemsize


class States:
    """The states of some texts: those of `layout` from the text number `first` on."""

    def __init__(self, table: Tensor, layout: Layout, first: int = 0) -> None:
        self._table = table  # (tokens, D)
        self._lengths, self._starts = layout.lengths[first:], layout.starts[first:]

    def places(self, texts: Numbers, width: int) -> tuple[Tensor, Tensor]:
        """Where the tokens of texts (n,) lie in the table, (n, width), and which of them are real."""
        count = numpy.arange(width)[None, :]
        lengths = self._lengths[texts][:, None]
        inside = numpy.minimum(count, lengths - 1)
        return torch.from_numpy(self._starts[texts][:, None] + inside), torch.from_numpy(count < lengths)

    def gather(self, texts: Numbers, width: int) -> Tensor:
        """The states of texts (n,), padded with zeros to a width: (n, width, D)."""
        places, real = self.places(texts, width)
        found = self._table.index_select(0, places.flatten()).view(len(texts), width, -1)
        return found.masked_fill_(~real.unsqueeze(-1), 0)

    def put(self, texts: Numbers, states: Tensor) -> None:
        """Keep what real tokens of texts (n,) have, of states (n, width, D)."""
        places, real = self.places(texts, states.shape[1])
        self._table.index_copy_(0, places[real], states.to("cpu", self._table.dtype)[real])


class Store:
    """Entries under one root that together take at most so many bytes. Raises UserError for what the disk refuses."""

    def __init__(self, root: Path, most: int | None = None) -> None:
        self.root = root
        self.most = most

    @property
    def room(self) -> int:
        """The most bytes that an entry can have: of all that is allowed, and the disk has or other entries hold."""
        held = sum(_size(folder) for folder in self._entries())
        above = next(path for path in (self.root, *self.root.parents) if path.is_dir())
        could = shutil.disk_usage(above).free + held
        return min(could, MOST, could // 4) if self.most is None else min(could, self.most)

    def open(self, key: str, layout: Layout, fill: Callable[[States], None]) -> Tensor:
        """The table (tokens, D) of a key; where there is none that is whole, `fill` makes it."""
        with named(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            with locked(self.root / _LOCK):
                folder = self.root / key
                if not (is_whole(folder) and (folder / _FILE).stat().st_size == layout.bytes):
                    self._make(folder, layout, fill)
                os.utime(folder)
                return _table(folder / _FILE, layout)

    def _make(self, folder: Path, layout: Layout, fill: Callable[[States], None]) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self._make_room(layout.bytes)
        fresh = sibling(folder)
        fresh.mkdir()
        try:
            with (fresh / _FILE).open("xb") as file:
                # what the disk cannot give is told now; later it would be a signal
                os.posix_fallocate(file.fileno(), 0, max(layout.bytes, 1))
                os.truncate(file.fileno(), layout.bytes)
                fill(States(_table(fresh / _FILE, layout, write=True), layout))
                os.fsync(file.fileno())
            seal(fresh)
            place(fresh, folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def _make_room(self, wanted: int) -> None:
        """Remove what was not finished, then what was used longest ago, until there is room."""
        for path in self.root.glob(".*"):
            shutil.rmtree(path, ignore_errors=True)
        entries = sorted(self._entries(), key=lambda folder: folder.stat().st_mtime_ns)
        while entries and wanted > self.room - sum(map(_size, entries)):
            shutil.rmtree(entries.pop(0))

    def _entries(self) -> Sequence[Path]:
        found = self.root.iterdir() if self.root.is_dir() else ()
        return [path for path in found if path.is_dir() and not path.name.startswith(".")]


def _size(folder: Path) -> int:
    try:
        return sum(path.stat().st_size for path in folder.iterdir())
    except FileNotFoundError:  # another process makes room
        return 0


def _table(file: Path, layout: Layout, write: bool = False) -> Tensor:
    """The file as a tensor (tokens, D), mapped; what is written to one that is not for writing stays in memory."""
    count = layout.tokens * layout.width
    flat = torch.from_file(str(file), shared=write, size=count, dtype=layout.dtype)
    return flat.view(layout.tokens, layout.width)
