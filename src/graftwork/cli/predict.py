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
from graftwork.schema.sections import DataSection
from graftwork.train.records import read_records
from graftwork.workflow import open_engine, predict

app = typer.Typer(add_completion=False, rich_markup_mode=None)
TABLES = (".csv", ".parquet")  # whose rows are read as those of a recipe are


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
    """The rows of a file or of standard input, images by their paths from here. Raises DataError."""
    if str(data) == "-":
        return list(_read(sys.stdin.buffer.read(), "standard input"))
    if data.suffix.lower() in TABLES:
        found = read_records(DataSection(train=str(data)), "train")
        if found.problems:
            raise DataError(found.problems)
        rows = [record.fields for record in found.rows]
    else:
        try:
            rows = list(_read(data.read_bytes(), str(data)))
        except OSError as error:
            raise DataError(f"{data}: cannot be read: {error.strerror}") from error
    return [
        row | {"image": str(data.parent / row["image"])} if isinstance(row.get("image"), str) else row for row in rows
    ]


def _read(content: bytes, where: str) -> Iterable[dict[str, Any]]:
    """A line that begins with { is a JSON row, any other is a text; lines end at line feeds alone, as texts may hold
    other separators."""
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            text = line.decode("utf-8").strip()
            row = json.loads(text) if text.startswith(("{", "[{")) else {"text": text}
        except UnicodeDecodeError as error:
            raise DataError(f"{where}, line {number}: not UTF-8 text (byte {error.start} of the line)") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}, line {number}: not valid JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f'{where}, line {number}: a row is an object such as {{"text": ...}}; write one a line')
        if text:
            yield row
