"""A sweep carried out: one recipe with several values, trained together where that pays, and laid beside each other.

    <output>-reduction_factor-2-seed-0/     an ordinary run for every combination
    <output>-sweep/                         sweep.json, .md, .png: a row a combination, seeds averaged

Together pays where a step has few tokens, for a forward of many small batches costs more in calls than in arithmetic
(benchmarks/results/together.md): the rule is at most FEW pieces in the batch of one recipe. Elsewhere, and where
recipes cannot share a forward, they train one after another; the results are the same. A combination that cannot be, or
a run that a library ends (out of memory), is then a row with its reason while the others go on.

Chosen is what has the best mean dev score, of equals the smallest; the gap says what the widest has more on the test
rows. With several seeds it is paired by seed, with Student's interval.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from types import MappingProxyType
from typing import Any

from graftwork.build import open_encoder, recipe_task
from graftwork.errors import Conflict, GraftworkError, RecipeError, UserError, told
from graftwork.recipe import Recipe
from graftwork.registry.durable import named, remove_torn, replace_file, strangers
from graftwork.registry.store import Registry
from graftwork.train.comparison import Row, Run, draw, interval, page, row_of
from graftwork.train.data import load_data
from graftwork.train.devices import need_one_process
from graftwork.train.folder import RunFolder, encoded
from graftwork.train.outcome import TrainResult
from graftwork.train.report import written
from graftwork.train.run import How, train
from graftwork.train.sweep import combined, expand, label
from graftwork.train.together import SHARED, check, train_together

FEW = 128  # pieces in a batch
SAMPLED = 100  # rows whose length says how long rows are
OWN = ("sweep.json", "sweep.md", "sweep.png")


@dataclass(frozen=True)
class Gap:
    """What the widest has more than the chosen: of `split`, with Student's interval over seeds where there are some."""

    chosen: str
    widest: str
    value: float
    low: float | None
    high: float | None
    split: str
    metric: str

    def __str__(self) -> str:
        if self.chosen == self.widest:
            return f"chosen on dev: {self.chosen}, which is the widest"
        around = "" if self.low is None else f" ({self.low:+.4f} to {self.high:+.4f})"
        return (
            f"chosen on dev: {self.chosen}; the widest, {self.widest}, has {self.value:+.4f}{around} {self.metric} of "
            f"{self.split} beside it"
        )


@dataclass(frozen=True)
class Swept:
    """The recipes of a sweep, what became of each, a row for each combination, and where the rows lie.

    notes: what else there is to say of it, such as why there is no picture.
    """

    recipes: Sequence[Recipe]
    results: Sequence[TrainResult | GraftworkError]
    rows: Sequence[Row]
    gap: Gap | None
    together: bool
    folder: Path
    notes: Sequence[str] = ()

    @property
    def found(self) -> list[str]:
        """What the rows come to, in paragraphs of their page."""
        return [*([str(self.gap)] if self.gap else []), *self.notes]

    def told(self) -> list[str]:
        """What it came to, in lines."""
        how = "together" if self.together else "one after another"
        return [*self.found, f"trained {how}; beside each other: {self.folder}"]


def sweep(
    recipe: Recipe,
    choices: Mapping[str, Sequence[Any]],
    *,
    given: Mapping[str, Any] = MappingProxyType({}),
    registry: Registry | None = None,
    how: How | None = None,
    progress: bool | None = None,
    together: bool | None = None,
) -> Swept:
    """Train a recipe with every combination of choices. given: as for `expand`. together: left out, where it pays.

    Raises UserErrors before anything is written, where they are wrong with all; what fails otherwise fails alone.
    """
    need_one_process(recipe)
    how = how or How()
    recipes, folder = expand(recipe, choices, given=given), Path(f"{recipe.output}-sweep")
    _check(folder)
    for one in recipes:
        RunFolder(one.output).check(resume=how.resume, overwrite=how.overwrite)
    call: dict[str, Any] = {
        "registry": registry,
        "resume": how.resume,
        "overwrite": how.overwrite,
        "progress": progress,
        "command": how.command,
    }
    results, shared = _trained(recipes, together, call)
    labels = [label(setting) for setting in combined(choices)]
    rows = _rows(labels, recipes, results)
    return _write(Swept(recipes, results, rows, gap(rows), shared, folder), recipe.name, how.command)


def _check(folder: Path) -> None:
    """Raise Conflict for a folder that is none, or holds something else than a sweep's rows."""
    if folder.exists() and not folder.is_dir():
        raise Conflict(f"{folder}: is not a folder; move it away, or choose another output")
    if others := strangers(folder, OWN):
        raise Conflict(f"{folder}: holds files that are no sweep's ({', '.join(others[:5])}); move them away")


def pays(recipes: Sequence[Recipe]) -> bool:
    """Whether recipes can train together, and their batches have few enough pieces to pay. Raises DataError."""
    if len(recipes) < 2:
        return False
    try:
        check(recipes)
    except RecipeError:
        return False
    first = recipes[0]
    data = load_data(first)
    task = recipe_task(first, data.labels)
    if task.reads_images or task.speaks:
        return False
    encoder = open_encoder(first.model.name, first.training.max_seq_length, "truncate")
    pieces = mean(row.length for row in task.encode(data.dev[:SAMPLED], encoder))
    return max(one.training.batch_size for one in recipes) * pieces <= FEW


def gap(rows: Sequence[Row]) -> Gap | None:
    """The widest beside what was chosen; None where nothing has a score, or all that trained is as wide.

    Of several as wide, with other learning rates say, the one that is best on dev. A combination that lost a seed is
    neither as long as there are whole ones: the mean over what is left of it leaves out its worst.
    """
    scored = [row for row in rows if row.score is not None and row.dev is not None]
    known = [row for row in scored if row.error is None] or scored
    if len({row.parameters for row in known}) < 2:
        return None
    chosen = min(known, key=lambda row: (-(row.dev or 0.0), row.parameters or 0))
    widest = max(known, key=lambda row: (row.parameters or 0, row.dev or 0.0))
    more = [widest.seeds[seed] - chosen.seeds[seed] for seed in chosen.seeds if seed in widest.seeds]
    low, high = interval(more)
    return Gap(chosen.method, widest.method, mean(more), low, high, chosen.split, chosen.metric) if more else None


def _trained(
    recipes: Sequence[Recipe], together: bool | None, given: Mapping[str, Any]
) -> tuple[Sequence[TrainResult | GraftworkError], bool]:
    """What became of each recipe, and whether they trained together; what is asked for is not tried another way."""
    if together is not False:
        try:
            if together or pays(recipes):
                return train_together(recipes, **given), True
        except UserError:  # nothing was written; one after another it is seen whose error it is
            if together:
                raise
        except GraftworkError:
            raise
        except Exception:  # a library's, of the forward that all share: each goes on from where it was
            if together:
                raise
            given = {**given, "resume": True, "overwrite": False}
    found = [_alone(recipe, given) for recipe in recipes]
    if isinstance(found[0], UserError) and all(type(one) is type(found[0]) for one in found):
        raise found[0]  # wrong with all: there are no rows
    return found, False


def _alone(recipe: Recipe, given: Mapping[str, Any]) -> TrainResult | GraftworkError:
    try:
        return train(recipe, **given)
    except Exception as error:  # a library's too: told in a row, as the others go on
        return told(error)


def _rows(
    labels: Sequence[str], recipes: Sequence[Recipe], results: Sequence[TrainResult | GraftworkError]
) -> list[Row]:
    runs = [
        Run(name, recipe, {"error": str(one)} if isinstance(one, GraftworkError) else _answer(one))
        for name, recipe, one in zip(labels, recipes, results, strict=True)
    ]
    shared = {name for name, one in zip(labels, results, strict=True) if isinstance(one, TrainResult) and _shared(one)}
    return [_own(row_of(name, runs), name in shared) for name in dict.fromkeys(labels)]


def _shared(result: TrainResult) -> bool:
    """Whether a run had its steps together with others', in this call or one before it."""
    return any(note.startswith(SHARED) for note in result.notes)


def _own(row: Row, shared: bool) -> Row:
    """A row without what is not its own: the process held earlier runs, and trained together the others' steps."""
    return replace(row, memory=None, device=None, seconds=None if shared else row.seconds)


def _answer(result: TrainResult) -> dict[str, Any]:
    return {"result": written(result), "size": result.size}


def _write(found: Swept, name: str, command: str) -> Swept:
    """Write the rows, and return what was found with a note where there is no picture."""
    how = "trained together" if found.together else "trained one after another"
    contents = {
        "rows": [asdict(row) for row in found.rows],
        "gap": None if found.gap is None else asdict(found.gap),
        "together": found.together,
    }
    with named(found.folder):
        found.folder.mkdir(parents=True, exist_ok=True)
        remove_torn(found.folder, OWN)
        replace_file(found.folder / OWN[0], encoded(contents))
        if why := draw(name, found.rows, found.folder / OWN[2]):
            found = replace(found, notes=(*found.notes, why))
        text = page(f"{name}: a sweep, {how}", found.rows, command, *found.found)
        replace_file(found.folder / OWN[1], text.encode())
    return found
