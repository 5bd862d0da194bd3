"""`graftwork attention`: what a fusion attends to over a file of rows, by layer, member and label."""

from pathlib import Path
from typing import Annotated

import typer

from graftwork.cli.options import AsJson, Model, Root
from graftwork.cli.printing import emit, table
from graftwork.cli.registry import open_registry
from graftwork.errors import UserError
from graftwork.train.attention import by_label, by_site, draw, findings
from graftwork.workflow import attention, open_engine

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def command(
    fusion: Annotated[str, typer.Argument(help="a fusion's package: name, name@3 or name@alias")],
    data: Annotated[str, typer.Argument(help="labelled rows: .jsonl, .csv or .parquet")],
    picture: Annotated[Path | None, typer.Option(help="draw a heat map into this file (.png)")] = None,
    model: Model = "minilm",
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Say what a fusion attends to: the mean over tokens of each member's share, by layer and by label.

    \b
    Examples:
      graftwork attention mix@1 dev.jsonl
      graftwork attention mix dev.jsonl --picture attention.png
    """
    found = attention(open_engine(model, open_registry(root), too_long="truncate"), fusion, data)
    if picture is not None and (reason := _drawn(found, fusion, picture)):
        raise UserError(reason)
    if as_json:
        emit({"fusion": fusion, "data": data, **found})
        return
    table(by_site(found), ["site", *found["members"], "entropy"])
    if labels := by_label(found):
        typer.echo("\nmean over layers, by label")
        table(labels, ["label", *found["members"]])
    typer.echo(f"\nmean over {found['tokens']:,} tokens of {data}; entropy 1: every token attends to all alike")
    for sentence in findings(found, fusion):
        typer.echo(sentence)


def _drawn(found: dict[str, object], fusion: str, picture: Path) -> str:
    try:
        return draw(found, f"attention of {fusion}", picture)
    except OSError as error:
        raise UserError(f"{picture}: the picture cannot be written: {error.strerror}") from error
