"""Rows from files, asked of an engine: answers, scores of compositions, and systems held against each other."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graftwork.compose.tree import Parallel, has, show
from graftwork.errors import AdapterError, CompositionError, DataError, UserError
from graftwork.evaluate import ONE_BY_ONE, Evaluation, Standing, held_against, standings
from graftwork.schema.sections import DataSection
from graftwork.serve.engine import Engine
from graftwork.serve.outcomes import failure
from graftwork.tasks.bootstrap import RESAMPLES
from graftwork.tasks.task import refuse
from graftwork.train.data import read_split
from graftwork.train.records import lines_of, read_records

FIELDS = (
    "text",
    "text_pair",
    "tokens",
    "choices",
    "target",
    "image",
    "image_base64",
    "max_new_tokens",
)  # what a row may be asked with; everything else in a file is not sent

TABLES = (".csv", ".parquet")


def rows_of(file: str, kind: str) -> list[dict[str, Any]]:
    """The labelled rows of a file, for a kind of task. Raises UserError where there is none, DataError."""
    if not Path(file).is_file():
        raise UserError(f"{file}: no such file; give rows as .jsonl, .csv, .parquet or .txt")
    return read_split(DataSection.model_validate({"train": str(Path(file).resolve())}), "train", kind)


def questions_of(file: Path) -> list[dict[str, Any]]:
    """The rows of a file to be answered, labelled or not, images by their paths from here.

    .csv and .parquet are read as a recipe's rows are, anything else as `questions`. Raises DataError.
    """
    if file.suffix.lower() in TABLES:
        found = read_records(DataSection(train=str(file)), "train")
        refuse(found.problems)
        rows = [record.fields for record in found.rows]
    else:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error.strerror}") from error
        rows = questions(content, str(file))
    return [
        row | {"image": str(file.parent / row["image"])} if isinstance(row.get("image"), str) else row for row in rows
    ]


def questions(content: bytes, where: str) -> list[dict[str, Any]]:
    """The rows of a text: a line that begins with { is a JSON row, any other is a text. Raises DataError."""
    rows = []
    for number, line in enumerate(lines_of(content), start=1):
        try:
            text = line.decode("utf-8").strip()
            row = json.loads(text) if text.startswith(("{", "[{")) else {"text": text}
        except UnicodeDecodeError as error:
            raise DataError(f"{where}, line {number}: not UTF-8 text (byte {error.start} of the line)") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}, line {number}: not valid JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f'{where}, line {number}: a row is an object such as {{"text": ...}}; write one a line')
        rows += [row] if text else []
    return rows


def evaluate(engine: Engine, adapters: str | None, file: str, *, head: str | None = None) -> Evaluation:
    """Score a composition on a file of labelled rows. Raises DataError for rows that cannot be answered, UserErrors."""
    return _evaluated(engine, [(adapters, head)], file)[0]


def evaluate_several(
    engine: Engine,
    compositions: Sequence[str],
    file: str,
    *,
    head: str | None = None,
    against: str | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Standing]:
    """Score compositions on one file of labelled rows, each with how sure it is, and held against one of them.

    head: of those that leave it open; of the only one, whatever it says itself. against: the one named, else the first.
    Rows and all, they are asked together, so that what they share is computed once. Raises as `evaluate`.
    """
    heads = [head] if len(compositions) == 1 else [_open_head(engine, one, head) for one in compositions]
    if head is not None and head not in heads:
        raise UserError(f"head {head} is for a composition that leaves it open, and each of these has its own")
    found = _evaluated(engine, list(zip(compositions, heads, strict=True)), file, against)
    return standings(found, against=against, resamples=resamples, seed=seed)


def predict(
    engine: Engine, rows: Sequence[Mapping[str, Any]], adapters: str | None, head: str | None = None
) -> list[dict[str, Any]]:
    """One answer or error per row, in order; a row's own "adapters" and "head" go before the ones given here."""
    asking: list[dict[str, Any]] = []
    failed: dict[int, dict[str, Any]] = {}
    for place, row in enumerate(rows):
        try:
            asking.append({**asked(row, adapters, head), **_own(row)})
        except DataError as error:
            failed[place] = failure(error, engine.registry.root)
    answers = iter(engine.answer(asking) if asking else ())
    return [failed[place] if place in failed else next(answers) for place in range(len(rows))]


def _open_head(engine: Engine, adapters: str, head: str | None) -> str | None:
    """The head, where a composition does not say which answers."""
    try:
        engine.task(adapters)
    except AdapterError:
        return head
    return None


def _evaluated(
    engine: Engine, systems: Sequence[tuple[str | None, str | None]], file: str, against: str | None = None
) -> list[Evaluation]:
    """Compositions, each with a head or None, on one file of rows, which are asked together.

    What is wrong with the compositions, or with the one that the others are held against, is said before rows are read.
    """
    exact = [engine.exact(adapters) for adapters, _ in systems]
    for (adapters, _), tree in zip(systems, exact, strict=True):
        if has(tree, Parallel):
            raise CompositionError(f"{adapters}: {ONE_BY_ONE}")
    held_against(
        [(str(adapters), show(tree), head) for (adapters, head), tree in zip(systems, exact, strict=True)], against
    )
    tasks = [engine.task(*system) for system in systems]
    kinds = {task.kind: str(adapters) for task, (adapters, _) in zip(tasks, systems, strict=True)}
    if len(kinds) > 1:
        said = ", ".join(f"{adapters} for {kind}" for kind, adapters in kinds.items())
        raise UserError(f"one file is scored by one kind of task, and these are several: {said}; evaluate them apart")
    rows = rows_of(file, tasks[0].kind)
    for task, (adapters, _) in dict(zip(tasks, systems, strict=True)).items():
        found = [(number, task.problems(row, with_labels=True)) for number, row in enumerate(rows, start=1)]
        whose = f"{file}, for {adapters}" if len(systems) > 1 else file
        refuse([f"{whose}, row {number}: {problem}" for number, problems in found for problem in problems])
    answers = engine.answer([asked(row, *system) for system in systems for row in rows])
    made = []
    for place, (task, (adapters, _)) in enumerate(zip(tasks, systems, strict=True)):
        own = answers[place * len(rows) : (place + 1) * len(rows)]
        refuse([f"{file}, row {n}: {a['error']['message']}" for n, a in enumerate(own, start=1) if "error" in a])
        scorer = task.scorer(own, rows)
        given, composition, head = str(adapters or "none"), str(own[0]["adapters"]), str(own[0]["head"])
        details = task.details(own, rows)
        made.append(Evaluation(given, composition, head, task.main_score, scorer.once(), own, details, scorer))
    return made


def asked(row: Mapping[str, Any], adapters: str | None, head: str | None) -> dict[str, Any]:
    """What an engine is asked of a row: its fields, without labels, and who answers. Raises DataError."""
    fields = {key: row[key] for key in FIELDS if row.get(key) is not None}
    if isinstance(fields.get("image"), str):  # an engine opens no files
        fields["image"] = _bytes(fields["image"])
    return {**fields, "adapters": adapters, **({} if head is None else {"head": head})}


def _bytes(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(
            f"image {path!r} cannot be read: {error.strerror}; paths start at the file of the rows"
        ) from None


def _own(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("adapters", "head") if key in row}
