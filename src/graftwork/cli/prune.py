"""`graftwork prune`: a fusion with fewer members in each layer, by what it attends to on a file of rows."""

from typing import Annotated

import typer

from graftwork.cli.options import AsJson, Model, Root
from graftwork.cli.printing import emit, table
from graftwork.cli.registry import open_registry
from graftwork.workflow import open_engine, prune

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def command(
    fusion: Annotated[str, typer.Argument(help="a fusion's package: name, name@3 or name@alias")],
    data: Annotated[str, typer.Option("--data", "-d", help="rows to measure on, its training set say")],
    keep: Annotated[int, typer.Option("--keep", "-k", help="how many members stay in each layer")] = 2,
    name: Annotated[str | None, typer.Option(help="of the new package [default: <fusion>-<keep>]")] = None,
    model: Model = "minilm",
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Keep the members that a fusion attends to most, layer by layer, and store it as a new package.

    \b
    Examples:
      graftwork prune mix@1 --data train.jsonl
      graftwork prune mix@1 --data train.jsonl --keep 1 --name mix-small
    """
    reference, found = prune(open_engine(model, open_registry(root), too_long="truncate"), fusion, data, keep, name)
    rows = [
        {"site": site, **dict(zip(found.attention.members, shares, strict=True)), "kept": list(found.kept[site])}
        for site, shares in found.attention.sites.items()
    ]
    if as_json:
        emit({"reference": reference, "digest": found.package.digest, "tokens": found.attention.tokens, "sites": rows})
        return
    table(rows, ["site", *found.attention.members, "kept"])
    typer.echo(f"\n{reference}: mean attention over {found.attention.tokens:,} tokens of {data}; members count from 0")
