"""Files and data sets -> records: raw fields, each record with the place it came from ("train.jsonl:12").

JSON Lines, CSV and plain text are read by line, so that a damaged line has a number; Parquet and the Hub go through
`datasets`, which also knows the names behind class numbers. Nothing is raised for a damaged record: it becomes a
problem, and reading goes on. Knows no tasks: which fields a record must have is asked in data.py.
"""

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graftwork.schema.sections import DataSection, HubSource


@dataclass(frozen=True)
class Record:
    """One row as its source has it. `only_text`: the source knows no numbers (CSV)."""

    place: str
    fields: dict[str, Any]
    only_text: bool = False


@dataclass
class Records:
    """All records of one split, and what was wrong with the others. `source`: the file, or hub id and split."""

    source: str
    rows: list[Record] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read_records(data: DataSection, split: str) -> Records:
    """The records of `train`, `dev` or `test`, which the recipe must name; what is wrong is in their `problems`."""
    named = str(getattr(data, split))
    if data.hub is not None:
        return _hub(data.hub, named)
    path, found = Path(named), Records(named)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        found.problems.append(f"{named}: unknown kind of file {path.suffix!r}; known are {', '.join(READERS)}")
        return found
    try:
        reader(path, found)
    except (OSError, ValueError, RuntimeError, LookupError) as error:  # what pyarrow and datasets raise for bad files
        found.problems.append(f"{named}: cannot be read: {_reason(error)}")
    if not found.rows and not found.problems:
        found.problems.append(f"{named}: holds no rows")
    return found


def lines_of(content: bytes) -> list[bytes]:
    """The lines of a file without its byte order mark, which end at line feeds alone: text may hold other separators,
    such as U+2028."""
    return content.removeprefix(b"\xef\xbb\xbf").split(b"\n")


def _jsonl(path: Path, found: Records) -> None:
    for number, line in enumerate(lines_of(path.read_bytes()), 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            value = json.loads(line.decode("utf-8"), object_pairs_hook=_once)
        except UnicodeDecodeError as error:
            found.problems.append(f"{place}: not UTF-8 text (byte {error.start} of the line)")
        except json.JSONDecodeError as error:
            found.problems.append(f"{place}: not JSON: {error.msg} (column {error.colno}); each line is one object")
        except (ValueError, RecursionError) as error:
            found.problems.append(f"{place}: not a usable object: {_reason(error)}")
        else:
            if isinstance(value, dict):
                found.rows.append(Record(place, value))
            else:
                kind = type(value).__name__
                found.problems.append(f'{place}: a row is an object such as {{"text": ...}}, this line is a {kind}')


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys stand there once. Raises ValueError."""
    if twice := _twice(key for key, _ in pairs):
        raise ValueError(f"the key {twice!r} stands there twice")
    return dict(pairs)


def _csv(path: Path, found: Records) -> None:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, [])
            if twice := _twice(header):
                found.problems.append(f"{path}:1: the column {twice!r} stands there twice")
                return
            for cells in reader:
                place = f"{path}:{reader.line_num}"
                if cells and len(cells) != len(header):
                    found.problems.append(
                        f"{place}: {len(cells)} cells under {len(header)} columns; quote cells with commas"
                    )
                elif cells:
                    found.rows.append(Record(place, dict(zip(header, cells, strict=True)), only_text=True))
        except csv.Error as error:
            found.problems.append(f"{path}:{reader.line_num}: not CSV: {error}")


def _parquet(path: Path, found: Records) -> None:
    import pyarrow.parquet
    from datasets import Features

    table = pyarrow.parquet.read_table(path)
    names = _class_names(Features.from_arrow_schema(table.schema))
    found.rows += [_named(f"{path}: row {number}", row, names) for number, row in enumerate(table.to_pylist(), 1)]


def _txt(path: Path, found: Records) -> None:
    # A line a row; to train on, a text is streamed instead (`train/stream.py`).
    for number, line in enumerate(lines_of(path.read_bytes()), 1):
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            found.problems.append(f"{path}:{number}: not UTF-8 text (byte {error.start} of the line)")
        else:
            found.rows += [Record(f"{path}:{number}", {"text": text}, only_text=True)] if text else []


READERS: dict[str, Callable[[Path, Records], None]] = {
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
    ".txt": _txt,
}


def _hub(hub: HubSource, split: str) -> Records:
    import datasets

    called = f"{hub.id}{f' ({hub.config})' if hub.config else ''}, split {split}"
    found = Records(called)
    try:
        rows = datasets.load_dataset(hub.id, hub.config, split=split, revision=hub.revision)
        names = _class_names(rows.features)
        found.rows += [_named(f"{called}, row {number}", row, names) for number, row in enumerate(rows, 1)]
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        found.problems.append(f"{called}: cannot be loaded: {_reason(error)}; check data.hub, or name files instead")
    if not found.rows and not found.problems:
        found.problems.append(f"{called}: holds no rows")
    return found


def _class_names(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """The names behind the class numbers of a column, or of the lists in a column."""
    inner = {column: getattr(feature, "feature", feature) for column, feature in features.items()}
    return {column: feature.names for column, feature in inner.items() if getattr(feature, "names", None)}


def _named(place: str, row: Mapping[str, Any], names: Mapping[str, list[str]]) -> Record:
    def name(known: list[str], value: Any) -> Any:
        if isinstance(value, list):
            return [name(known, one) for one in value]
        # -1 is how data sets mark a row without a label
        return known[value] if isinstance(value, int) and 0 <= value < len(known) else None

    return Record(place, {column: name(names[column], v) if column in names else v for column, v in row.items()})


def _twice(keys: Iterable[str]) -> str | None:
    return next((key for key, count in Counter(keys).items() if count > 1), None)


def _reason(error: BaseException) -> str:
    """The first line of what another library says."""
    text = str(getattr(error, "strerror", None) or error).strip() or type(error).__name__
    return text.splitlines()[0]
