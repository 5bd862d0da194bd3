"""`graftwork predict`: answers for rows from a file, from the command line or from standard input."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from graftwork.cli.options import AsJson, Head, Model, Root
from graftwork.cli.printing import emit
from graftwork.cli.registry import open_registry
from graftwork.errors import DataError
from graftwork.workflow import open_engine, predict, questions, questions_of

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def command(
    adapters: Annotated[str | None, typer.Argument(help="a package or composition; a row's own goes before it")] = None,
    text: Annotated[list[str] | None, typer.Option("--text", "-t", help="a text to answer; repeatable")] = None,
    data: Annotated[
        Path | None, typer.Option("--data", "-d", help="rows: .jsonl, .txt, .csv, .parquet; - is standard input")
    ] = None,
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
    rows: list[dict[str, Any]] = [{"text": one} for one in text or []]
    if data is not None:
        piped = str(data) == "-"
        rows += questions(sys.stdin.buffer.read(), "standard input") if piped else questions_of(data)
    if not rows:
        raise DataError("there is nothing to answer: give --text, or --data with a file of rows")
    answers = predict(open_engine(model, open_registry(root)), rows, adapters, head)
    if as_json:
        emit(answers)
    else:
        typer.echo("\n".join(json.dumps(answer, ensure_ascii=False) for answer in answers))
    if any("error" in answer for answer in answers):
        raise typer.Exit(1)
