"""Plain text of any size: its lines, a chunk at a time, never wholly in memory.

A line is a sentence or a paragraph; blank lines are nothing. A text is read through once (`scan`), so that it is known
how many lines there are, that all of it is UTF-8, and by its digest which text it is. Knows no tokenizers.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from graftwork.errors import DataError

CHUNK = 1 << 20
HELD_OUT, MOST_HELD = 0.1, 1000  # the share of lines that become dev where no file is named, and at most so many
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class PlainText:
    """A file of lines. lines: those that are not blank; held: the numbers, from 0, of those that are left out.

    size: bytes that are read, and tokenised, at once.
    """

    path: Path
    lines: int
    sha256: str  # of the file
    size: int = CHUNK
    held: tuple[int, ...] = ()

    def __len__(self) -> int:
        return self.lines - len(self.held)

    @property
    def digest(self) -> str:
        """sha256 of what is read of it."""
        return hashlib.sha256(f"{self.sha256} {list(self.held)}".encode()).hexdigest()

    def batches(self) -> Iterator[list[str]]:
        """The lines that are not held out, about `size` bytes of them at a time."""
        held, number = set(self.held), 0
        for lines in _lines(self.path, self.size):
            yield [line for at, line in enumerate(lines, number) if at not in held]
            number += len(lines)

    def hold_out(self, seed: int) -> tuple["PlainText", list[str]]:
        """The text without a tenth of its lines (at most MOST_HELD), drawn by seed, and those lines. Needs two."""
        count = min(MOST_HELD, max(1, round(HELD_OUT * self.lines)))
        drawn = set(random.Random(seed).sample(range(self.lines), count))
        found, number = [], 0
        for lines in _lines(self.path, self.size):
            found += [line for at, line in enumerate(lines, number) if at in drawn]
            number += len(lines)
        return replace(self, held=tuple(sorted(drawn))), found


def scan(path: Path, size: int = CHUNK) -> PlainText:
    """Read a file through once, as `PlainText` says. Raises DataError for what is not UTF-8, or has no line."""
    digest, count = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            for block in iter(lambda: file.read(size), b""):
                digest.update(block)
        for lines in _lines(path, size):
            count += len(lines)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not count:
        raise DataError(f"{path}: holds no line of text")
    return PlainText(path, count, digest.hexdigest(), size)


def _lines(path: Path, size: int) -> Iterator[list[str]]:
    """Lines without blank ones, about `size` bytes at a time. A line longer than that comes in parts, cut at a space.

    Split at line feeds only, as JSON lines are. Raises DataError for what is not UTF-8.
    """
    number = 1
    with path.open("rb") as file:
        rest = file.read(len(_BOM)).removeprefix(_BOM)
        while block := file.read(size):
            *lines, rest = (rest + block).split(b"\n")
            yield _said(lines, path, number)
            number += len(lines)
            if len(rest) > size:
                cut = rest.rfind(b" ") + 1 or _boundary(rest, size)
                yield _said([rest[:cut]], path, number)
                rest = rest[cut:]
        yield _said(rest.split(b"\n"), path, number)


def _boundary(data: bytes, place: int) -> int:
    """The beginning of the character that the byte at a place belongs to."""
    return next((at for at in range(place, place - 4, -1) if data[at] & 0xC0 != 0x80), place)


def _said(lines: Sequence[bytes], path: Path, number: int) -> list[str]:
    try:
        return [text for line in lines if (text := line.decode().strip())]
    except UnicodeDecodeError:
        pass
    for at, line in enumerate(lines, number):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{path}:{at}: not UTF-8 text (byte {error.start} of the line); save it as UTF-8") from None
    raise AssertionError("one line is not UTF-8")
