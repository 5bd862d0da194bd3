"""Rows for training: records with the fields of their task, checked against it, all problems at once.

    classification   {"text", "label"}                  label: text
    pair             {"text", "text_pair", "label"}     label: text
    regression       {"text", "label"}                  label: a finite number; "text_pair" in all rows or in none
    tagging          {"tokens", "tags"}                 two lists of text, equally long
    multilabel       {"text", "labels"}                 labels: a list of text, perhaps empty
    multiple_choice  {"text", "choices", "label"}       label: the number of a choice, or its text
    question_answering  {"text", "text_pair", "answers"}   answers: texts that stand in text_pair, perhaps none
    dependency_parsing  {"tokens", "heads", "tags"}     heads: words from 1, 0 the root; tags: the relations
    masked_lm, causal_lm  {"text"}
    seq2seq_lm       {"text", "target"}                 target: text
    image_classification  {"image", "label"}         image: a path that starts at the data file's folder
    similarity       {"text", "text_pair"}              and "label", a number, in all rows or in none

A `.txt` file has a text a line; as the training text of a language model it is not read here (`train/stream.py`).

Other fields are dropped. Knows nothing of tokenizers, tensors or batches.
"""

import hashlib
import json
import os
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftwork.errors import DataError
from graftwork.recipe import Recipe
from graftwork.schema.conflicts import FIELDS, LANGUAGE_KINDS, OPTIONAL, SPLITS, WITHOUT_LABELS, is_plain_text
from graftwork.schema.problems import nearest, shown
from graftwork.schema.sections import DataSection
from graftwork.tasks.words import span_of
from graftwork.train.fields import CHECKS, from_text, number
from graftwork.train.plain import PlainText, scan
from graftwork.train.records import Record, Records, read_records

Row = dict[str, Any]

HELD_OUT = 0.1  # share of train that becomes dev where a recipe names none
LISTED = 20  # problems that an error lists before it only counts
_BIO = re.compile(r"O|[BIES]-.+")  # E and S: the same scheme with marked ends, which seqeval reads too


@dataclass(frozen=True)
class Data:
    """The rows of one recipe.

    `labels`: what may be predicted, in order; empty for a regression. `digest`: sha256 of all rows as they are here.
    `notes`: what was decided for the user, in sentences.
    """

    train: tuple[Row, ...] | PlainText
    dev: tuple[Row, ...]
    test: tuple[Row, ...]
    labels: tuple[str, ...]
    digest: str
    notes: tuple[str, ...] = ()


def load_data(recipe: Recipe) -> Data:
    """Every split of a recipe, checked; a tenth of train, drawn by `training.seed`, is held out where no dev is named.

    Raises DataError with every problem of every split.
    """
    if streams(recipe):
        return _load_text(recipe)
    kind, given = recipe.task.kind, [split for split in SPLITS if getattr(recipe.data, split) is not None]
    read = {split: read_records(recipe.data, split) for split in given}
    rows, problems = _rows(read, recipe.data, kind)
    labels, unknown = _labels(rows, read, kind, recipe.task.labels)
    problems += unknown
    if "dev" not in given and not problems and len(rows["train"]) < 2:
        problems.append(f"{read['train'].source}: one row cannot be split; name a file as data.dev, or give more rows")
    _refuse(problems)
    parts = {split: tuple(row for _, row in found) for split, found in rows.items()}
    notes = []
    if "dev" not in given:
        parts["train"], parts["dev"], note = _hold_out(parts["train"], recipe.training.seed)
        notes.append(note)
    ordered = {split: parts.get(split, ()) for split in SPLITS}
    return Data(**ordered, labels=labels, digest=digest(ordered), notes=tuple(notes))


def streams(recipe: Recipe) -> bool:
    """Whether a recipe trains a language model on plain text, which is not read into memory."""
    return recipe.task.kind in LANGUAGE_KINDS and recipe.data.hub is None and is_plain_text(recipe.data.train)


def _load_text(recipe: Recipe) -> Data:
    seed, problems, notes = recipe.training.seed, list[str](), list[str]()
    rows: dict[str, tuple[Row, ...]] = {"dev": (), "test": ()}
    for split in rows:
        if getattr(recipe.data, split) is not None:
            try:
                rows[split] = tuple(read_split(recipe.data, split, recipe.task.kind))
            except DataError as error:
                problems += error.problems
    try:
        text = scan(Path(recipe.data.train))
    except DataError as error:
        raise DataError([*error.problems, *problems]) from None
    if recipe.data.dev is None and len(text) < 2:
        problems.append(f"{text.path}: one line cannot be split; name a file as data.dev, or give more lines")
    _refuse(problems)
    if recipe.data.dev is None:
        text, held = text.hold_out(seed)
        rows["dev"] = tuple({"text": line} for line in held)
        notes.append(f"no dev data named: {len(held)} of {text.lines} lines of train are held out as dev (seed {seed})")
    total = hashlib.sha256(f"{text.digest} {digest(rows)}".encode()).hexdigest()
    return Data(text, rows["dev"], rows["test"], (), total, tuple(notes))


def read_split(data: DataSection, split: str, kind: str) -> list[Row]:
    """The rows of one split of a recipe's `data`, for a kind of task. Raises DataError with every problem of it."""
    if getattr(data, split, None) is None:
        raise DataError(f"data.{split}: the recipe names no such split; known are {', '.join(SPLITS)}")
    read = {split: read_records(data, split)}
    rows, problems = _rows(read, data, kind)
    problems += _not_bio(rows[split]) if kind == "tagging" else []
    _refuse(problems)
    return [row for _, row in rows[split]]


def digest(splits: Mapping[str, Iterable[Row]]) -> str:
    """sha256 over the rows of each split, in order: the same for the same rows, wherever they were read from."""
    total = hashlib.sha256()
    for split, rows in splits.items():
        total.update(f"{split}\n".encode())
        for row in rows:
            if "image" in row:  # what it shows counts, not where it lies
                row = row | {"image": hashlib.sha256(Path(row["image"]).read_bytes()).hexdigest()}
            total.update(json.dumps(row, sort_keys=True, separators=(",", ":")).encode() + b"\n")
    return total.hexdigest()


_Placed = tuple[str, Row]  # where a row stands, for messages about it


def _rows(read: Mapping[str, Records], data: DataSection, kind: str) -> tuple[dict[str, list[_Placed]], list[str]]:
    """Records -> rows with exactly the fields of their task."""
    fields = FIELDS[kind]
    optional = OPTIONAL.get(kind)
    column = data.columns.get(optional, optional)  # type: ignore[call-overload]
    if optional and not any(column in record.fields for found in read.values() for record in found.rows):
        fields = tuple(field for field in fields if field != optional)
    rows: dict[str, list[_Placed]] = {split: [] for split in read}
    problems: list[str] = []
    for split, found in read.items():
        problems += found.problems
        for record in found.rows:
            row, wrong = _row(record, fields, data.columns, kind)
            if "image" in row:
                row["image"] = os.path.join(os.path.dirname(found.source), row["image"])
                missing = [] if os.path.isfile(row["image"]) else [f"no such file {row['image']!r}"]
                wrong += [f"{record.place}: image: {one}; paths start at the data file's folder" for one in missing]
            problems += wrong
            if not wrong:
                rows[split].append((record.place, row))
    return rows, problems


def _row(record: Record, fields: Sequence[str], columns: Mapping[Any, str], kind: str) -> tuple[Row, list[str]]:
    row: Row = {}
    wrong: list[str] = []
    for field in fields:
        column = columns.get(field, field)
        if column not in record.fields:
            has = ", ".join(map(str, record.fields)) or "nothing"
            wrong.append(
                f"{record.place}: {column}: missing; the row has {has}; name their column in data.columns.{field}"
            )
            continue
        check = number if field == "label" and kind in ("regression", "similarity") else CHECKS[field]
        try:
            row[field] = check(from_text(record.fields[column], check) if record.only_text else record.fields[column])
        except ValueError as error:
            wrong.append(f"{record.place}: {column}: {shown(record.fields[column])} {error}")
    if not wrong:
        wrong += [f"{record.place}: {problem}" for problem in _together(row)]
    return row, wrong


def _together(row: Row) -> list[str]:
    """What is wrong with the fields of a row beside each other. A choice named by its text becomes its number."""
    found = [
        f"{len(row['tokens'])} tokens but {len(row[field])} {field}; give one {field[:-1]} for each token"
        for field in ("tags", "heads")
        if field in row and len(row["tokens"]) != len(row[field])
    ]
    if "heads" in row:
        count = len(row["tokens"])
        found += [
            f"heads: {head} is no word, 1 to {count}, and not 0" for head in row["heads"] if not 0 <= head <= count
        ]
    if "choices" in row:
        numbers = [str(place) for place in range(len(row["choices"]))]
        if row["label"] not in numbers and row["label"] in row["choices"]:
            row["label"] = str(row["choices"].index(row["label"]))
        found += [] if row["label"] in numbers else [f"label: {row['label']!r} is no choice; say 0 to {numbers[-1]}"]
    for answer in row.get("answers", ()):
        if span_of(answer, row["text_pair"]) is None:
            found.append(f"answers: {shown(answer)} does not stand in text_pair")
    return found


def _labels(
    rows: Mapping[str, Sequence[_Placed]], read: Mapping[str, Records], kind: str, fixed: Sequence[str] | None
) -> tuple[tuple[str, ...], list[str]]:
    """The labels of a task, and the rows of any split that have another one."""
    if kind in WITHOUT_LABELS:
        return (), []
    if kind == "multiple_choice":
        return _choice_labels(rows)
    field = FIELDS[kind][-1]
    labels = tuple(fixed) if fixed else tuple(sorted({label for _, row in rows["train"] for label in _in(row, field)}))
    if len(labels) < 2:
        # Of a damaged file it cannot be said that it holds too few labels.
        whole = not read["train"].problems and len(rows["train"]) == len(read["train"].rows)
        alone = (
            f"{read['train'].source}: {field}: every row has {', '.join(map(repr, labels))}; there is nothing to learn"
        )
        return labels, [alone] if whole else []
    whose = "task.labels" if fixed else "train"
    few = ", ".join(labels[:10]) + (f" and {len(labels) - 10} more" if len(labels) > 10 else "")
    problems, known = [], set(labels)
    for found in rows.values():
        for place, row in found:
            for label in dict.fromkeys(_in(row, field)):
                if label not in known:
                    close = nearest(label, labels)
                    meant = f"; did you mean {close}? If not, list" if close else "; correct it, or list"
                    problems.append(
                        f"{place}: {field}: {label!r} is not a label of {whose} ({few}){meant} it in task.labels"
                    )
    # A wrong prefix elsewhere is no label of train and was reported as that.
    return labels, problems + (_not_bio(rows["train"]) if kind == "tagging" else [])


def _choice_labels(rows: Mapping[str, Sequence[_Placed]]) -> tuple[tuple[str, ...], list[str]]:
    """The numbers of the choices, "0", "1", ...; the rows that have another number of them."""
    counts = [len(row["choices"]) for _, row in rows["train"]]
    count = max(counts, key=counts.count, default=0)
    problems = [
        f"{place}: choices: {len(row['choices'])} of them, where most rows have {count}; all rows need as many"
        for found in rows.values()
        for place, row in found
        if len(row["choices"]) != count
    ]
    return tuple(str(number) for number in range(count)), problems


def _in(row: Row, field: str) -> list[str]:
    value = row[field]
    return value if isinstance(value, list) else [value]


def _not_bio(rows: Sequence[_Placed]) -> list[str]:
    """Tags with a wrong prefix, where tags are BIO: some are O and some begin with B-."""
    seen = {tag for _, row in rows for tag in row["tags"]}
    if "O" not in seen or not any(tag.startswith("B-") for tag in seen):
        return []
    return [
        f"{place}: tags: {tag!r} among BIO tags; a tag is O, or B- or I- and a kind"
        for place, row in rows
        for tag in dict.fromkeys(row["tags"])
        if not _BIO.fullmatch(tag)
    ]


def _hold_out(rows: tuple[Row, ...], seed: int) -> tuple[tuple[Row, ...], tuple[Row, ...], str]:
    count = max(1, round(HELD_OUT * len(rows)))
    drawn = set(random.Random(seed).sample(range(len(rows)), count))
    kept = tuple(row for index, row in enumerate(rows) if index not in drawn)
    note = f"no dev data named: {count} of {len(rows)} rows of train are held out as dev (seed {seed})"
    return kept, tuple(rows[index] for index in sorted(drawn)), note


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        more = [f"... and {len(problems) - LISTED} more problems"] if len(problems) > LISTED else []
        raise DataError([*problems[:LISTED], *more])
