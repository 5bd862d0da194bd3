"""`graftwork compare`: one recipe by several methods, in one table."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from graftwork.cli.options import Root, need_writable
from graftwork.cli.printing import table
from graftwork.cli.registry import open_registry
from graftwork.errors import GoalMissed, RecipeError
from graftwork.recipe import is_methods, override, settings
from graftwork.train.comparison import COLUMNS, as_json, cells, scored
from graftwork.train.methods import listed, whose
from graftwork.train.run import How
from graftwork.workflow import compare, read_recipe

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def command(
    recipe: Annotated[Path, typer.Argument(help="a recipe file", metavar="RECIPE")],
    methods: Annotated[str, typer.Option("--methods", help="names or config strings: seq_bn,lora[r=4],full")],
    seeds: Annotated[str | None, typer.Option("--seeds", help="0,1,2 [default: the recipe's own]")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="change one value of all, or of one: lora:training.epochs=3; repeatable"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder of runs and table [default: <output>-compare]")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the rows here, too, as JSON")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="train again what is finished")] = False,
    root: Root = None,
) -> None:
    """Train one recipe by several methods, each at its own learning rate, and show scores, sizes and costs.

    A run for each method and seed; finished ones are read back, so a comparison can be stopped and gone on with.

    \b
    Examples:
      graftwork compare examples/trec.yaml --methods seq_bn,lora,full,head_only
      graftwork compare recipe.yaml --methods seq_bn,double_seq_bn,par_bn --seeds 0,1,2 --json rows.json
      graftwork compare recipe.yaml --methods lora,full --set lora:training.learning_rate=1e-3 --set training.epochs=2
    """
    registry, read = open_registry(root), read_recipe(recipe)
    if json_file is not None:
        need_writable(json_file, "the rows")
    names = listed(methods)
    common, own = _changes(changes or [], names)
    after = {key: value for key, value in common.items() if is_methods(key)}  # also where methods bring their own
    rows = compare(
        override(read, common) if common else read,
        names,
        registry=registry,
        folder=out,
        seeds=_seeds(seeds),
        changes={name: after for name in names if after} | {name: after | some for name, some in own.items()},
        how=How(resume=not overwrite, overwrite=overwrite, command=" ".join(["graftwork", *sys.argv[1:]])),
        told=lambda line: typer.echo(line, err=True),
    )
    if json_file is not None:
        json_file.write_bytes(as_json(rows))
    typer.echo(scored(rows))
    found = [cells(row) for row in rows]
    table(found, [column for column in COLUMNS if any(row.get(column) for row in found)])
    if failed := [f"{row.method}: {row.error}" for row in rows if row.error]:
        raise GoalMissed("\n".join(failed))


def _changes(given: list[str], names: list[str]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The settings of all methods, and those of each: `lora:training.epochs=3`. Raises RecipeError."""
    common: list[str] = []
    own: dict[str, list[str]] = {}
    for setting in given:
        method = whose(setting, names)
        bare = common if method is None else own.setdefault(method, [])
        bare.append(setting if method is None else setting.removeprefix(f"{method}:"))
    return settings(common), {method: settings(some, source=f"--set {method}:") for method, some in own.items()}


def _seeds(given: str | None) -> list[int]:
    """`0,1,2` as numbers. Raises RecipeError."""
    parts = [part.strip() for part in given.split(",")] if given else []
    if wrong := [part for part in parts if not part.isdecimal()]:
        raise RecipeError(f"--seeds {given}: {wrong[0]!r} is no seed; write whole numbers by commas, as in 0,1,2")
    return [int(part) for part in parts]
