"""`graftwork train`: a recipe to a package, or several recipes to packages in one run."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from graftwork.cli.options import AsJson, Root
from graftwork.cli.printing import emit
from graftwork.cli.registry import open_registry
from graftwork.errors import GoalMissed, GraftworkError, RecipeError
from graftwork.recipe import Recipe, settings
from graftwork.registry.store import check_name
from graftwork.train.outcome import TrainResult
from graftwork.train.report import lines, table, written
from graftwork.train.run import How
from graftwork.workflow import push, read_recipes, read_sweep, said_once, speaks, train, train_sweep, train_together

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def command(
    recipes: Annotated[list[Path], typer.Argument(help="a recipe file, or several with --together", metavar="RECIPE")],
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="change one value, as in --set training.epochs=3; repeatable")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the newest whole checkpoint")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an earlier run in the output folder")] = False,
    push_as: Annotated[
        str | None, typer.Option("--push", help="push the package to the registry under this name")
    ] = None,
    together: Annotated[
        bool, typer.Option("--together", help="train recipes, or a sweep, over one base in one run")
    ] = False,
    sweep: Annotated[
        list[str] | None,
        typer.Option("--sweep", help="train one recipe with each of several values; repeatable"),
    ] = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Train an adapter from a recipe and write it as a package.

    \b
    Examples:
      graftwork train examples/support_desk/intent.yaml --push intent
      graftwork train recipe.yaml --set training.epochs=3 --set training.seed=1
      graftwork train sst2.yaml trec.yaml --together
      graftwork train recipe.yaml --sweep adapter.reduction_factor=2,8,16,64 --sweep training.seed=0,1,2
    """
    registry, given = open_registry(root), settings(changes or [])
    said = " ".join(["graftwork", *sys.argv[1:]])
    progress = False if as_json else None
    one, choices = _read(recipes, given, sweep or [], together, push_as)
    if choices and len(recipes) == 1:
        how = How(resume=resume, overwrite=overwrite, command=said)
        swept = train_sweep(
            one, choices, given=given, registry=registry, how=how, progress=progress, together=together or None
        )
        _show([one.name for one in swept.recipes], swept.results, as_json, *swept.told())
        return
    if choices or together:
        read = read_recipes(recipes, given, sweep or [])
        found = train_together(
            read, registry=registry, resume=resume, overwrite=overwrite, progress=progress, command=said
        )
        _show([one.name for one in read], found, as_json)
        return
    result = train(one, registry, resume=resume, overwrite=overwrite, progress=progress, command=said)
    if speaks():
        _tell(result, push(result, registry, push_as) if push_as else None, as_json)


def _tell(result: TrainResult, pushed: str | None, as_json: bool) -> None:
    """Print what became of one recipe."""
    if as_json:
        emit(written(result) | {"pushed": pushed})
        return
    Console().print(table([result]))
    for line in [*lines(result), *([f"pushed as {pushed}"] if pushed else [])]:
        typer.echo(line)


def _read(
    recipes: list[Path], given: dict[str, Any], sweep: list[str], together: bool, push_as: str | None
) -> tuple[Recipe, dict[str, Sequence[Any]]]:
    """The first recipe and what is swept over. Raises RecipeError, UserError, which one of several processes says."""
    with said_once():
        one, choices = read_sweep(recipes[0], given, sweep)
        _check(len(recipes), together or bool(choices), push_as)
    return one, choices


def _check(count: int, several: bool, push_as: str | None) -> None:
    """Raise RecipeError for options that do not go together."""
    if count > 1 and not several:
        raise RecipeError(f"{count} recipes: say --together to train them in one run, or train one after another")
    if push_as:
        check_name(push_as)
    if push_as and several:
        raise RecipeError("--push names one package, and this trains several; push each with graftwork registry push")


def _show(names: Sequence[str], found: Sequence[TrainResult | GraftworkError], as_json: bool, *below: str) -> None:
    """Print what became of each recipe, with some lines below. Raises GoalMissed that names those that failed."""
    failed = {name: str(one) for name, one in zip(names, found, strict=True) if isinstance(one, GraftworkError)}
    done = [one for one in found if not isinstance(one, GraftworkError)]
    if as_json:
        emit([*map(written, done), *({"name": name, "error": error} for name, error in failed.items())])
    elif done:
        Console().print(table(done))
        typer.echo("\n".join(below), nl=bool(below))
    if failed:
        raise GoalMissed("\n".join(f"{name}: {error}" for name, error in failed.items()))
