"""What an experiment found, as rows: one JSON object a line, a line a finished cell, never edited by hand.

    {"key": {"task": "trec", "method": "full", "rate": 5e-05, "seed": 0}, "dev": 0.96, "test": 0.95,
     "right": "f7ff", "items": 16, ...}

`key` says which cell it is. `right` says of every test item whether it was answered rightly, so that systems can be
compared item by item without running anything again: bits as hex, the first item in the highest bit; in tagging a list
of [right words, words] a sentence. Knows no models and no training.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy

from graftwork.tasks.scorer import Scorer, share, summed

Key = Mapping[str, str | int | float]
Row = dict[str, Any]
SCORE = "score"  # what a row's scorer calls the share of right items


def read(file: Path) -> list[Row]:
    """Every row of a file, in order; none where there is no file. Raises ValueError for a line that is no row."""
    if not file.is_file():
        return []
    rows = []
    for number, line in enumerate(file.read_text("utf8").splitlines(), start=1):
        try:
            rows.append(json.loads(line))
            rows[-1]["key"]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{file}:{number}: is no row of an experiment ({error}); take the line out") from None
    return rows


def append(file: Path, row: Row) -> None:
    """Add a row at the end of a file, on disk when this returns."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf8") as lines:
        lines.write(json.dumps(row, separators=(",", ":"), allow_nan=False) + "\n")
        lines.flush()
        os.fsync(lines.fileno())


def name(key: Key) -> str:
    """A key as text, the same for the same key: `task=trec method=full rate=5e-05 seed=0`, its parts sorted."""
    return " ".join(f"{part}={key[part]}" for part in sorted(key))


def matching(rows: Sequence[Row], **parts: str | int | float) -> list[Row]:
    """The rows whose key has these parts."""
    return [row for row in rows if all(row["key"].get(part) == value for part, value in parts.items())]


def by_seed(rows: Sequence[Row]) -> dict[int, Row]:
    """The rows of one system by the seeds of their keys."""
    return {row["key"]["seed"]: row for row in rows}


def pack(right: Sequence[bool]) -> str:
    """One bit an item as hex, the first item in the highest bit of the first digit."""
    return numpy.packbits(numpy.asarray(right, dtype=bool)).tobytes().hex()


def unpack(packed: str, items: int) -> "numpy.ndarray[Any, Any]":
    """What `pack` was given, as (items,) booleans. Raises ValueError for another number of bits."""
    held = numpy.frombuffer(bytes.fromhex(packed), dtype=numpy.uint8)
    if len(held) != (items + 7) // 8:
        raise ValueError(f"{len(packed)} hex digits do not hold {items} items")
    return numpy.unpackbits(held)[:items].astype(bool)


def scorer(row: Row) -> Scorer:
    """The row's test score for any weights of the test items; `scorer(row).once()[SCORE]` is row["test"]."""
    if isinstance(row["right"], str):
        right = unpack(row["right"], row["items"])
        table = numpy.stack([right, numpy.ones(len(right))], axis=1)  # (items, 2)
    else:
        table = numpy.asarray(row["right"], dtype=numpy.float64)
    return summed(table, lambda right, of: {SCORE: share(right, of)})
