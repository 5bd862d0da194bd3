"""`graftwork evaluate`: scores of a package or a composition on a file of labelled rows."""

import json
from pathlib import Path
from typing import Annotated

import typer

from graftwork.cli.options import Adapters, AsJson, Head, Model, Root
from graftwork.cli.printing import emit, table
from graftwork.cli.registry import open_registry
from graftwork.workflow import evaluate, open_engine

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def command(
    adapters: Adapters,
    data: Annotated[str, typer.Option("--data", "-d", help="labelled rows: .jsonl, .csv or .parquet")],
    model: Model = "minilm",
    head: Head = None,
    answers: Annotated[Path | None, typer.Option(help="write the answers here, one JSON object a line")] = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Score a package or a composition on a file of rows.

    \b
    Examples:
      graftwork evaluate intent@1 --data examples/support_desk/intent/test.jsonl
      graftwork evaluate 'Average(intent@1, intent@2)' --head intent@1 --data test.jsonl --json
    """
    engine = open_engine(model, open_registry(root), too_long="truncate")
    found = evaluate(engine, adapters, data, head=head)
    if answers is not None:
        answers.write_text("".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in found.answers), "utf8")
    if as_json:
        emit({"composition": found.composition, "rows": len(found.answers), "main": found.main, "scores": found.scores})
        return
    typer.echo(f"{found.composition} on {len(found.answers)} rows of {data}")
    table([{"score": name, "value": value} for name, value in found.scores.items()], ["score", "value"])
