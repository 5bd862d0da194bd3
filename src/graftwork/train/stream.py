"""Plain text as training rows: tokenised once, mapped from the disk, and handed out in blocks.

    lines  ──tokenised──►  ids end to end       block k = frame start · ids[k·n : (k+1)·n] · frame end

with n = max_seq_length less the frame. Lines follow one another with the separator of the
vocabulary after each, and are cut into blocks of one length, each framed as the tokenizer frames a text (FULL-SENTENCES
of Liu et al. 2019; `group_texts` of transformers' run_mlm cuts as well, but frames lines and not blocks, and loses what
is left over of every thousand lines). No row is padded but the last.

Ids lie in $GRAFTWORK_HOME/cache/text/<key>/ids with a seal; the key is what they follow from: the text, the lines that
are held out, and the vocabulary. They are the same for every length and task, so that runs share them.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils.data import Dataset

from graftwork.errors import DataError
from graftwork.registry.durable import locked, named, place, sibling
from graftwork.registry.store import default_root
from graftwork.tasks.encoded import IGNORED
from graftwork.tasks.task import Redraw
from graftwork.tasks.text import TextEncoder
from graftwork.train.checkpoint import is_whole, seal
from graftwork.train.plain import PlainText

_IDS, _LOCK = "ids", "lock"

Numbers = numpy.ndarray[Any, Any]


def cache_root(environment: Mapping[str, str]) -> Path:
    """Where the ids of a person's texts lie: $GRAFTWORK_HOME/cache/text, else ~/.graftwork/cache/text."""
    return default_root(environment).parent / "cache" / "text"


@dataclass(frozen=True)
class Stream:
    """The ids of a text (tokens,), and how a block of them is framed: ids before and after, n between."""

    ids: Numbers
    before: tuple[int, ...]
    after: tuple[int, ...]
    content: int  # n

    def __len__(self) -> int:
        """How many blocks there are; the last may be shorter."""
        return -(-len(self.ids) // self.content)

    @property
    def width(self) -> int:
        """T, pieces of a whole block."""
        return len(self.before) + self.content + len(self.after)

    def gather(self, blocks: Numbers, filler: int) -> tuple[Numbers, Numbers]:
        """Blocks (B,) as ids and mask (B, T), or shorter where all of them are."""
        starts = blocks * self.content
        counts = numpy.minimum(len(self.ids) - starts, self.content)[:, None]  # (B, 1)
        inner = numpy.arange(int(counts.max()))[None, :]
        real = inner < counts
        begin, width = len(self.before), inner.shape[1]
        ids = numpy.full((len(blocks), begin + width + len(self.after)), filler, dtype=numpy.int64)
        ids[:, :begin] = self.before
        ids[:, begin : begin + width] = numpy.where(
            real, self.ids[numpy.where(real, starts[:, None] + inner, 0)], filler
        )
        ends = begin + counts  # of the text; what closes a block comes right after it
        rows = numpy.arange(len(blocks))[:, None]
        ids[rows, ends + numpy.arange(len(self.after))[None, :]] = self.after
        mask = numpy.arange(ids.shape[1])[None, :] < ends + len(self.after)
        return ids, mask.astype(numpy.int64)


def tokenised(text: PlainText, encoder: TextEncoder, cache: Path) -> Stream:
    """The pieces of a text, from the cache or made now. Raises DataError for none, UserError for the disk."""
    between = _separator(encoder)
    before, after = _frame(encoder)
    highest = max(encoder.tokenizer.get_vocab().values())  # ids may have gaps: it can lie beyond their number
    kind = numpy.dtype(numpy.uint16 if highest < 1 << 16 else numpy.uint32)
    key = hashlib.sha256(json.dumps([text.digest, encoder.digest, between, kind.str]).encode()).hexdigest()[:40]
    folder = cache / key
    with named(cache):
        cache.mkdir(parents=True, exist_ok=True)
        with locked(cache / _LOCK):
            if not is_whole(folder):
                _make(folder, text, encoder, between, kind)
    if not (folder / _IDS).stat().st_size:
        raise DataError(f"{text.path}: gives no piece at all with the tokenizer of this base")
    ids = numpy.memmap(folder / _IDS, dtype=kind, mode="r")
    return Stream(ids, before, after, encoder.max_length - len(before) - len(after))


def _make(folder: Path, text: PlainText, encoder: TextEncoder, between: tuple[int, ...], kind: Any) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for torn in folder.parent.glob(".*"):
        shutil.rmtree(torn, ignore_errors=True)
    fresh = sibling(folder)
    fresh.mkdir()
    try:
        with (fresh / _IDS).open("xb") as file:
            for lines in text.batches():
                found = _pieces(encoder, lines) if lines else []
                parts = chain.from_iterable((*line, *between) for line in found if line)
                numpy.fromiter(parts, dtype=kind).tofile(file)
        seal(fresh)
        place(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _pieces(encoder: TextEncoder, lines: list[str]) -> list[list[int]]:
    found = encoder.tokenizer(
        lines,
        add_special_tokens=False,
        truncation=False,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return found["input_ids"]  # type: ignore[no-any-return]


def _separator(encoder: TextEncoder) -> tuple[int, ...]:
    """What stands after a line: the piece that separates, else the one that ends a text, else nothing."""
    candidates = (encoder.tokenizer.sep_token_id, encoder.tokenizer.eos_token_id)
    return next(((int(one),) for one in candidates if one is not None), ())


def _frame(encoder: TextEncoder) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The pieces that the tokenizer puts before and after a text, found by asking for one."""
    (inner,) = _pieces(encoder, ["a"])
    whole = encoder.text("a").input_ids
    start = next(at for at in range(len(whole)) if list(whole[at : at + len(inner)]) == inner)
    return whole[:start], whole[start + len(inner) :]


class TextBlocks(Dataset[dict[str, Tensor]]):
    """The blocks of a text as a data set. redraw: hides pieces, anew in every epoch; without it every piece is asked
    for (causal)."""

    def __init__(self, stream: Stream, encoder: TextEncoder, redraw: Redraw | None) -> None:
        self._stream, self._redraw, self._epoch = stream, redraw, 0
        self._filler = encoder.pad_id
        self._typed = "token_type_ids" in encoder.tokenizer.model_input_names

    def __len__(self) -> int:
        return len(self._stream)

    def set_epoch(self, epoch: int) -> None:
        """Hand out the blocks as they are in this epoch."""
        self._epoch = epoch

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return self.__getitems__([row])

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """input_ids, attention_mask, perhaps token_type_ids, labels: (B, T)."""
        chosen = numpy.asarray(rows)
        ids, mask = map(torch.from_numpy, self._stream.gather(chosen, self._filler))
        batch = {"input_ids": ids, "attention_mask": mask}
        if self._typed:
            batch["token_type_ids"] = torch.zeros_like(ids)
        if self._redraw is not None:
            return self._redraw(batch, chosen, self._epoch)
        return batch | {"labels": ids.masked_fill(mask == 0, IGNORED)}
