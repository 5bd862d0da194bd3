"""Methods beside each other on one recipe: a run for each method and seed, and a row for each method.

    <folder>/<name>-<method>-seed-<seed>/    an ordinary run (folder.py): finished ones are read back, others go on
    <folder>/compare.json, .md, .png         the rows, as data, as a table and as a picture; written after every run

Every run has a process of its own (apart.py), so that memory is its own and a run that fails, or that the base cannot
take, is a row with its reason while the others go on. Rows of an earlier comparison in the folder stay, each until its
method has run again with the seeds that it is of. Scores are those of the test rows, of dev where there are none, and a
mean over seeds. The interval is Student's over seeds, at 95 %: what training again may change, not what other
test rows would; with two or three seeds it is as wide as it should be.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from graftwork.errors import Conflict
from graftwork.recipe import Recipe, override
from graftwork.registry.durable import named, replace_file, strangers
from graftwork.registry.store import Registry
from graftwork.train.apart import Apart
from graftwork.train.comparison import Row, Run, as_json, draw, from_json, page, row_of
from graftwork.train.data import Data, load_data
from graftwork.train.devices import need_one_process
from graftwork.train.folder import RunFolder
from graftwork.train.job import asked_for
from graftwork.train.methods import recipes_of
from graftwork.train.run import How
from graftwork.train.stages import recipes_among

OWN = ("compare.json", "compare.md", "compare.png")
SEED = "recipe.training.seed"  # in run.json
OTHER = {"recipe.model.name": "another base", "recipe.task.kind": "another task", "data": "other data"}


def compare(
    recipe: Recipe,
    methods: Sequence[str],
    *,
    folder: Path | str | None = None,
    seeds: Sequence[int] = (),
    changes: Mapping[str, Mapping[str, Any]] | None = None,
    registry: Registry | None = None,
    how: How | None = None,
    told: Callable[[str], None] = print,
) -> list[Row]:
    """Train a recipe by every method and seed, and return a row for each method, in the order given.

    folder: of the runs and the rows; left out, `<output>-compare`. seeds: left out, the recipe's own. changes: method
    -> dotted keys, after those of the recipe's `compare`. how: overwrite trains again what is finished. told: gets a
    line about every run that has ended. The files have the rows of earlier methods, too.

    Raises RecipeError, DataError and Conflict before anything is written.
    """
    need_one_process(recipe)
    how = how or How(resume=True)
    place = Path(f"{recipe.output}-compare" if folder is None else folder)
    made = _seeded(recipes_of(recipe, methods, changes), seeds or [recipe.training.seed], place)
    _check(place, [one.recipe for one in made])
    data = load_data(recipe)  # what is wrong with the rows is wrong with every run
    before = _before(place)
    _alike(recipe, data, place, [row for row in before.values() if row.method not in methods])
    for one in made if not how.overwrite else ():
        if not recipes_among(one.recipe):  # a first stage puts its packages in their place
            RunFolder(one.recipe.output).check_asked(asked_for(one.recipe))
    prices = {row.method: row.price for row in before.values() if not (how.overwrite and row.method in methods)}
    done: list[Run] = []
    with Apart() as apart:
        for run in made:
            answer = apart.run(run.recipe, registry, how, priced=not prices.get(run.method))
            if answer.get("price"):
                prices[run.method] = answer["price"]
            done.append(Run(run.method, run.recipe, answer))
            rows = [row_of(method, done, prices.get(method)) for method in dict.fromkeys(one.method for one in done)]
            table = _table(place, before, rows, {one.method for one in made[len(done) :]})
            with named(place):
                place.mkdir(parents=True, exist_ok=True)
                replace_file(Path(place, OWN[0]), as_json(table))
                replace_file(Path(place, OWN[1]), page(f"{recipe.name}: methods compared", table, how.command).encode())
            told(_line(done[-1]))
    with named(place):
        if why := draw(recipe.name, table, Path(place, OWN[2])):
            told(why)
    return rows


def _seeded(recipes: Mapping[str, Recipe], seeds: Sequence[int], folder: Path) -> list[Run]:
    """Every recipe with every seed, seed by seed, so that what is stopped has whole seeds."""
    made = []
    for seed in dict.fromkeys(seeds):
        for method, recipe in recipes.items():
            name = f"{recipe.name}-{_word(method)}-seed-{seed}"
            own = {"name": name, "output": str(folder / name.replace("/", "-")), "training.seed": seed}
            made.append(Run(method, override(recipe, own, source=f"compare.{method}"), {}))
    return made


def _word(method: str) -> str:
    """A method as part of a name."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", method).strip("-.")


def _check(folder: Path, recipes: Sequence[Recipe]) -> None:
    """Raise Conflict for a folder that holds something else, or methods whose runs would lie in one place."""
    if folder.exists() and not folder.is_dir():
        raise Conflict(f"{folder}: is not a folder; choose another one")
    outputs = [recipe.output for recipe in recipes]
    twice = sorted({output for output in outputs if outputs.count(output) > 1})
    if twice:
        raise Conflict(f"{twice[0]}: is the folder of two methods; give them names that differ in letters and digits")
    known = re.compile(r".+-seed-[0-9]+")
    others = [name for name in strangers(folder, OWN) if not known.fullmatch(name)]
    if others:
        raise Conflict(f"{folder}: holds files that are no comparison's ({', '.join(others[:5])}); choose another")


def _before(folder: Path) -> dict[str, Row]:
    """The rows of an earlier comparison, by method. Raises Conflict for a file that holds something else."""
    file = folder / OWN[0]
    try:
        return {row.method: row for row in from_json(file.read_bytes())} if file.is_file() else {}
    except ValueError:
        raise Conflict(f"{file}: is not the table of a comparison; remove it, or choose another folder") from None


def _alike(recipe: Recipe, data: Data, folder: Path, rows: Sequence[Row]) -> None:
    """Raise Conflict where rows to stay beside those of a recipe are of another base, task or other data."""
    runs = {row.method: _runs(folder, row)[0].run for row in rows if row.folders}
    there = {method: json.loads(run.read_bytes()) for method, run in runs.items() if run.is_file()}
    digests = {seed: _digest(recipe, data, seed) for seed in {run.get(SEED, 0) for run in there.values()}}
    own = {"recipe.model.name": recipe.model.name, "recipe.task.kind": recipe.task.kind}
    asked = {method: own | {"data": digests[run.get(SEED, 0)]} for method, run in there.items()}
    for key, what in OTHER.items():
        if others := [method for method, run in there.items() if run.get(key) != asked[method][key]]:
            raise Conflict(f"{folder / OWN[0]}: holds rows of {what} ({', '.join(others)}); choose another folder")


def _runs(folder: Path, row: Row) -> list[RunFolder]:
    """The folders of a row's runs, which lie in that of the comparison, wherever one worked when they were made."""
    return [RunFolder(folder / Path(place).name) for place in row.folders]


def _digest(recipe: Recipe, data: Data, seed: int) -> str:
    """That of a recipe's rows as a run with a seed has them: where no dev rows are named, every seed has its own."""
    if recipe.data.dev is not None or seed == recipe.training.seed:
        return data.digest
    return load_data(override(recipe, {"training.seed": seed})).digest


def _table(folder: Path, before: Mapping[str, Row], rows: Sequence[Row], unfinished: Collection[str]) -> list[Row]:
    """The rows of before, and these in their places or after them.

    One that lacks seeds is not put there yet, and never where they failed while the runs of before are still there.
    """
    now = {}
    for row in rows:
        old = before.get(row.method)
        whole = old is None or old.seeds.keys() <= row.seeds.keys()
        if whole or not (row.method in unfinished or (row.error and _there(folder, before[row.method]))):
            now[row.method] = row
    return [*{**before, **now}.values()]


def _there(folder: Path, row: Row) -> bool:
    """Whether a row's runs are."""
    return bool(row.folders) and all(run.finished for run in _runs(folder, row))


def _line(run: Run) -> str:
    """One line about a run that has ended."""
    if "error" in run.answer:
        return f"{run.recipe.name}: {run.answer['error']}"
    result = run.answer["result"]
    main = result["main"]
    scores = ", ".join(f"{split} {found[main]:.4f}" for split, found in result["scores"].items())
    return f"{run.recipe.name}: {main} {scores}, {result['seconds']:.0f} s"
