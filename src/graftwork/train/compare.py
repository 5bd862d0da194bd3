"""Methods beside each other on one recipe: a run for each method and seed, and a row for each method.

    <folder>/<name>-<method>-seed-<seed>/    an ordinary run (folder.py): finished ones are read back, others go on
    <folder>/compare.json, .md, .png         the rows, as data, as a table and as a picture; written after every run

Every run has a process of its own (apart.py), so that memory is its own and a run that fails, or that the base cannot
take, is a row with its reason while the others go on. Scores are those of the test rows, of dev where there are none,
and a mean over seeds. The interval is Student's over seeds, at 95 %: what training again may change, not what other
test rows would; with two or three seeds it is as wide as it should be.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from graftwork.errors import Conflict
from graftwork.recipe import Recipe, override
from graftwork.registry.durable import is_torn, replace_file
from graftwork.registry.store import Registry
from graftwork.strict_json import load_json
from graftwork.train.apart import Apart
from graftwork.train.comparison import Row, Run, as_json, draw, page, row_of
from graftwork.train.data import load_data
from graftwork.train.devices import need_one_process
from graftwork.train.folder import named
from graftwork.train.methods import recipes_of
from graftwork.train.run import How

OWN = ("compare.json", "compare.md", "compare.png")


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
    line about every run that has ended.

    Raises RecipeError, DataError and Conflict before anything is written.
    """
    need_one_process(recipe)
    how = how or How(resume=True)
    place = Path(f"{recipe.output}-compare" if folder is None else folder)
    made = _seeded(recipes_of(recipe, methods, changes), seeds or [recipe.training.seed], place)
    _check(place, [one.recipe for one in made])
    load_data(recipe)  # what is wrong with the rows is wrong with every run
    prices = {} if how.overwrite else _prices(place)
    done: list[Run] = []
    rows: list[Row] = []
    with Apart() as apart:
        for run in made:
            answer = apart.run(run.recipe, registry, how, priced=run.method not in prices)
            if answer.get("price"):
                prices[run.method] = answer["price"]
            done.append(Run(run.method, run.recipe, answer))
            rows = [row_of(method, done, prices.get(method)) for method in dict.fromkeys(one.method for one in done)]
            with named(place):
                place.mkdir(parents=True, exist_ok=True)
                replace_file(Path(place, OWN[0]), as_json(rows))
                replace_file(Path(place, OWN[1]), page(f"{recipe.name}: methods compared", rows, how.command).encode())
            told(_line(done[-1]))
    with named(place):
        if why := draw(recipe.name, rows, Path(place, OWN[2])):
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
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    strangers = [name for name in there if not (name in OWN or known.fullmatch(name) or is_torn(name, OWN))]
    if strangers:
        raise Conflict(f"{folder}: holds files that are no comparison's ({', '.join(strangers[:5])}); choose another")


def _prices(folder: Path) -> dict[str, Any]:
    """What was measured before, by method."""
    file = folder / OWN[0]
    if not file.is_file():
        return {}
    rows: Any = load_json(file.read_bytes(), str(file))
    return {row["method"]: row["price"] for row in rows if row["price"]}


def _line(run: Run) -> str:
    """One line about a run that has ended."""
    if "error" in run.answer:
        return f"{run.recipe.name}: {run.answer['error']}"
    result = run.answer["result"]
    main = result["main"]
    scores = ", ".join(f"{split} {found[main]:.4f}" for split, found in result["scores"].items())
    return f"{run.recipe.name}: {main} {scores}, {result['seconds']:.0f} s"
