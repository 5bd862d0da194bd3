"""`graftwork train`: a recipe to a package."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from graftwork.cli.options import AsJson, Root
from graftwork.cli.printing import emit
from graftwork.cli.registry import open_registry
from graftwork.recipe import settings
from graftwork.train.report import lines, table
from graftwork.workflow import push, read_recipe, train

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def command(
    recipe: Annotated[Path, typer.Argument(help="a recipe file")],
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="change one value, as in --set training.epochs=3; repeatable")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the newest whole checkpoint")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an earlier run in the output folder")] = False,
    push_as: Annotated[
        str | None, typer.Option("--push", help="push the package to the registry under this name")
    ] = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Train an adapter from a recipe and write it as a package.

    \b
    Examples:
      graftwork train examples/support_desk/intent.yaml --push intent
      graftwork train recipe.yaml --set training.epochs=3 --set training.seed=1
    """
    registry = open_registry(root)
    read = read_recipe(recipe, settings(changes or []))
    said = " ".join(["graftwork", *sys.argv[1:]])
    result = train(
        read, registry, resume=resume, overwrite=overwrite, progress=False if as_json else None, command=said
    )
    pushed = push(result, registry, push_as) if push_as else None
    if as_json:
        written = json.loads((result.folder / "result.json").read_text("utf8"))
        emit(written | {"folder": str(result.folder), "pushed": pushed})
        return
    Console().print(table([result]))
    for line in [*lines(result), *([f"pushed as {pushed}"] if pushed else [])]:
        typer.echo(line)
