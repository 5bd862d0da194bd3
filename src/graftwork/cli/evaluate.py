"""`graftwork evaluate`: scores of packages and compositions on a file of labelled rows, and how sure they are."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from graftwork.cli.options import AsJson, Head, Model, Root, need_writable
from graftwork.cli.printing import emit
from graftwork.cli.registry import open_registry
from graftwork.cli.standings import as_data, as_tables
from graftwork.errors import UserError
from graftwork.evaluate import Standing
from graftwork.workflow import evaluate_several, open_engine

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def command(
    adapters: Annotated[list[str], typer.Argument(help="packages (name@version) or compositions: 'Stack(hi, ner)'")],
    data: Annotated[str, typer.Option("--data", "-d", help="labelled rows: .jsonl, .csv or .parquet")],
    model: Model = "minilm",
    head: Head = None,
    against: Annotated[str | None, typer.Option(help="the one to hold the others against [default: the first]")] = None,
    details: Annotated[bool, typer.Option("--details", help="also by label, confusion and calibration")] = False,
    answers: Annotated[Path | None, typer.Option(help="write the answers here, one JSON object a row")] = None,
    resamples: Annotated[int, typer.Option(min=100, help="draws of the rows for the 95 % intervals")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="of these draws")] = 0,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Score packages and compositions on a file of rows, with 95 % intervals, and the differences paired by row.

    \b
    Examples:
      graftwork evaluate intent@1 --data examples/support_desk/intent/test.jsonl --details
      graftwork evaluate intent@1 intent@2 --data test.jsonl --answers answers.jsonl
      graftwork evaluate intent@1 'Average(intent@1, intent@2)' --head intent@1 --data test.jsonl --json
    """
    if answers is not None:
        need_writable(answers, "the answers")
    engine = open_engine(model, open_registry(root), too_long="truncate")
    found = evaluate_several(engine, adapters, data, head=head, against=against, resamples=resamples, seed=seed)
    if answers is not None:
        _write(answers, found)
    if as_json:
        emit({"data": data, "resamples": resamples, "seed": seed} | as_data(found))
    else:
        as_tables(found, data, resamples, seed, details)


def _write(file: Path, found: list[Standing]) -> None:
    """One JSON object a row: the answer of the only system; of several {"row", "answers": {composition: answer}}."""
    systems = [standing.evaluation for standing in found]
    rows: list[Any] = list(systems[0].answers)
    if len(systems) > 1:
        rows = [
            {"row": number, "answers": {system.composition: system.answers[number - 1] for system in systems}}
            for number in range(1, len(rows) + 1)
        ]
    try:
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf8")
    except OSError as error:
        raise UserError(f"{file}: the answers cannot be written: {error.strerror}") from error
