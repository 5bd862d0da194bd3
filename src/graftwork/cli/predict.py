"""`graftwork predict`: answers for rows from a file, from the command line or from standard input."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from graftwork.cli.options import AsJson, Head, Model, Root
from graftwork.cli.printing import emit
from graftwork.cli.registry import open_registry
from graftwork.errors import DataError
from graftwork.workflow import open_engine, predict

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def command(
    adapters: Annotated[str | None, typer.Argument(help="a package or composition; a row's own goes before it")] = None,
    text: Annotated[list[str] | None, typer.Option("--text", "-t", help="a text to answer; repeatable")] = None,
    data: Annotated[Path | None, typer.Option("--data", "-d", help="rows as .jsonl; - reads standard input")] = None,
    model: Model = "minilm",
    head: Head = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Answer rows, in order: one JSON object a line, or one list. Exit code 1 when a row could not be answered.

    \b
    Examples:
      graftwork predict intent --text "where is my order"
      graftwork predict --data rows.jsonl          each row names its own "adapters"
      echo "paisa wapas chahiye" | graftwork predict 'Fuse(intent, sentiment, name=desk)' --data -
    """
    rows = [*({"text": one} for one in text or []), *(_rows(data) if data is not None else [])]
    if not rows:
        raise DataError("there is nothing to answer: give --text, or --data with a file of rows")
    answers = predict(open_engine(model, open_registry(root)), rows, adapters, head)
    if as_json:
        emit(answers)
    else:
        typer.echo("\n".join(json.dumps(answer, ensure_ascii=False) for answer in answers))
    if any("error" in answer for answer in answers):
        raise typer.Exit(1)


def _rows(data: Path) -> list[dict[str, Any]]:
    if str(data) == "-":
        return list(_read(sys.stdin, "standard input"))
    try:
        rows = list(_read(data.read_text("utf8").splitlines(), str(data)))
        return [
            row | {"image": str(data.parent / row["image"])} if isinstance(row.get("image"), str) else row
            for row in rows
        ]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{data}: cannot be read: {error}") from error


def _read(lines: Iterable[str], where: str) -> Iterable[dict[str, Any]]:
    """A line that begins with { is a JSON row, any other is a text."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if not line.lstrip().startswith("{"):
            yield {"text": line.strip()}
            continue
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}, line {number}: not valid JSON: {error}") from error
