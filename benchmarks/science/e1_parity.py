"""E1: do adapters match full fine-tuning? Four tasks, five ways to train, three seeds.

    python benchmarks/science/e1_parity.py [--quick] [--minutes N] [--seeds 0,1,2] [--only task=trec] [--page]

Houlsby et al. 2019 report 80.0 on GLUE for adapters and 80.4 for full fine-tuning, at 3.6 % of the parameters a task.
On TREC, with seed 0, every method tries its learning rates, and the best of them for twice as long; on the other tasks
the two rates that were best there, for as long as was best there. It goes on with what is best on dev. Test rows
take part in no choice. One bottleneck variant, the better on dev over all tasks, is held against full fine-tuning: the
mean over tasks and seeds of the difference, with a paired interval over test items and seeds.
"""

from collections.abc import Mapping, Sequence
from statistics import mean
from types import MappingProxyType
from typing import Any, NamedTuple

import room
import rows as book
from room import METHODS, Asked, Study, main, page, scored
from rows import Key, Row, matching
from telling import matched, paired, shown, spread, study_page

from graftwork.recipe import Recipe
from graftwork.tasks.bootstrap import Interval

TASKS = ("trec", "sst2", "mrpc", "ud_pos")
FIRST = TASKS[0]  # where rates and lengths are tried; the two best rates of those are on every other task
RATES = {
    "full": (5e-5, 1e-4, 2e-5, 2e-4),
    "seq_bn": (1e-3, 2e-3, 5e-4),
    "double_seq_bn": (5e-4, 1e-3, 3e-4, 2e-3),
    "lora": (1e-3, 2e-3, 5e-4),
    "head": (3e-3, 1e-2, 1e-3, 5e-4),
}
LONGER = {"full": 6, "seq_bn": 10, "double_seq_bn": 10, "lora": 10}  # epochs tried beside those of room.METHODS
BOTTLENECKS = ("seq_bn", "double_seq_bn")
ROWS = dict.fromkeys(("sst2", "mrpc", "ud_pos"), 2000)  # training rows, drawn by seed 0 for all methods and seeds
DEV_ROWS = {"ud_pos": 500}  # of its 1,896, which would take a third of the time
BAR, LOW = -0.4, -1.0  # points: of the mean difference, and of the lower end of its interval
SHARE = 0.04  # of the base's parameters, at most


class Choice(NamedTuple):
    """What a method goes on with: its rate, and whether for the LONGER epochs."""

    rate: float
    longer: bool = False


def plan(found: Sequence[Row], asked: Asked) -> list[Key]:
    """Where something is tried, that with the first seed; then what is chosen."""
    cells: list[Key] = []
    for task in (FIRST, TASKS[-1]) if asked.quick else TASKS:  # classes, and tags
        for method in RATES:
            cells += [cell(task, method, choice, asked.seeds[0]) for choice in tried(found, task, method, asked)]
        choices = {method: chosen(found, task, method, asked) for method in RATES}
        known = [
            cell(task, method, choice, seed)
            for seed in asked.seeds
            for method, choice in choices.items()
            if choice is not None
        ]
        cells += [key for key in known if key not in cells]
    return cells


def cell(task: str, method: str, choice: Choice, seed: int) -> Key:
    """The key of a cell; it names the epochs where they are not those of room.METHODS."""
    epochs = {"epochs": LONGER[method]} if choice.longer else {}
    return {"task": task, "method": method, "rate": choice.rate, **epochs, "seed": seed}


def work(key: Key, asked: Asked) -> Row:
    """Train and score one cell."""
    return scored(str(key["task"]), recipe(key, asked), asked)


def recipe(key: Key, asked: Asked, more: Mapping[str, Any] = MappingProxyType({}), name: str = "") -> Recipe:
    """The recipe of a cell; with changes, under a name, for other experiments."""
    task, method = str(key["task"]), str(key["method"])
    own = {"training.learning_rate": key["rate"], "training.seed": key["seed"]}
    own |= {"training.epochs": key["epochs"]} if "epochs" in key else {}
    own |= dict(more)
    train, dev = (
        room.drawn(room.rows_of(task, split), counts[task], 0, asked) if task in counts else None
        for split, counts in (("train", ROWS), ("dev", DEV_ROWS))
    )
    name = name or f"{task}-{method}"
    return room.recipe(task, METHODS[method], own, name=name, asked=asked, train_rows=train, dev_rows=dev)


def tried(found: Sequence[Row], task: str, method: str, asked: Asked) -> list[Choice]:
    """What a method tries on a task, as far as the rows so far tell."""
    if task == FIRST:
        rates = RATES[method][:1] if asked.quick else RATES[method]
        best = _best(found, FIRST, method, [Choice(rate) for rate in rates], asked)
        longer = [Choice(best.rate, True)] if best and method in LONGER and not asked.quick else []
        return [Choice(rate) for rate in rates] + longer
    length = chosen(found, FIRST, method, asked)
    if length is None:
        return []
    own = {one.rate: _dev(found, FIRST, method, one, asked) or 0.0
           for one in tried(found, FIRST, method, asked) if not one.longer}  # fmt: skip
    rates = sorted(own, key=lambda rate: -own[rate])[:2]  # sorted is stable: the earlier in RATES where two are level
    return [Choice(rate, length.longer) for rate in rates]


def chosen(found: Sequence[Row], task: str, method: str, asked: Asked) -> Choice | None:
    """What is best on dev of what was tried, None before all is: the earlier in RATES, fewer epochs, where two are
    level."""
    choices = tried(found, task, method, asked)
    more = task == FIRST and method in LONGER and not asked.quick
    return None if more and not choices[-1].longer else _best(found, task, method, choices, asked)


def _best(found: Sequence[Row], task: str, method: str, choices: Sequence[Choice], asked: Asked) -> Choice | None:
    """The best on dev; None before all have rows."""
    scores = {one: _dev(found, task, method, one, asked) for one in choices}
    known = {one: score for one, score in scores.items() if score is not None}
    return max(known, key=lambda one: known[one]) if known and len(known) == len(scores) else None


def _dev(found: Sequence[Row], task: str, method: str, choice: Choice, asked: Asked) -> float | None:
    """The dev score of a choice with the first seed."""
    wanted = book.name(cell(task, method, choice, asked.seeds[0]))
    return next((row["dev"] for row in matching(found, method=method) if book.name(row["key"]) == wanted), None)


def runs(found: Sequence[Row], task: str, method: str, asked: Asked) -> dict[int, Row]:
    """The rows of what was chosen, by seed."""
    choice = chosen(found, task, method, asked)
    if choice is None:
        return {}
    rows = matching(found, task=task, method=method, rate=choice.rate)
    seeds = book.by_seed([row for row in rows if ("epochs" in row["key"]) == choice.longer])
    return dict(sorted(seeds.items()))


def rate_of(task: str, method: str, asked: Asked) -> float:
    """The rate that is best, for other experiments: from rows beside theirs, else from the ones kept here.

    Raises LookupError before the grid of E1 is run.
    """
    for folder in (asked.folder, room.RESULTS):
        choice = chosen(book.read(folder / "e1_parity.jsonl"), task, method, asked)
        if choice is not None:
            return choice.rate
    if asked.quick:
        return RATES[method][0]
    raise LookupError(f"no learning rate of {method} on {task}: run benchmarks/science/e1_parity.py --only task={task}")


def best(
    task: str, method: str, seed: int, asked: Asked, more: Mapping[str, Any] = MappingProxyType({}), name: str = ""
) -> Recipe:
    """The recipe of a seed at the best rate, for the usual epochs, changed where another experiment wants it."""
    return recipe(cell(task, method, Choice(rate_of(task, method, asked)), seed), asked, more, name)


def variant(found: Sequence[Row], tasks: Sequence[str], asked: Asked) -> str:
    """The bottleneck that is better on dev, over tasks and seeds."""
    return max(BOTTLENECKS, key=lambda method: mean(
        mean(row["dev"] for row in runs(found, task, method, asked).values()) for task in tasks
    ))  # fmt: skip


def gap(found: Sequence[Row], tasks: Sequence[str], method: str, asked: Asked, against: str = "full") -> Interval:
    """method - against in points, over tasks and the seeds that both have."""
    return paired([matched(runs(found, task, against, asked), runs(found, task, method, asked)) for task in tasks])


def whole(found: Sequence[Row], asked: Asked) -> list[str]:
    """The tasks whose grids are done."""
    return [task for task in TASKS if all(runs(found, task, method, asked) for method in RATES)]


def result(found: Sequence[Row], asked: Asked) -> str:
    """What the rows say to the bar."""
    tasks = whole(found, asked)
    if not tasks:
        return ""
    best = variant(found, tasks, asked)
    seen = gap(found, tasks, best, asked)
    first = [next(iter(runs(found, task, best, asked).values()))["parameters"] for task in tasks]
    share = max(one["trained"] / one["base"] for one in first)
    held = "is met" if seen.value >= BAR and seen.low >= LOW and share <= SHARE else "is not met"
    seeds = min(len(runs(found, task, method, asked)) for task in tasks for method in (best, "full"))
    left = [task for task in TASKS if task not in tasks]
    rest = [method for method in RATES if method not in ("full", best)]
    others = "; ".join(f"{method} {shown(gap(found, tasks, method, asked))}" for method in rest)
    return (
        f"The bottleneck chosen on dev is `{best}` ({share:.2%} of the base at most, head included). Over "
        f"{', '.join(tasks)} and {seeds} seed(s) it is **{shown(seen)}** points from full fine-tuning; the bar {held}"
        f"{' on these; still to run: ' + ', '.join(left) if left else ''}. The others: {others}."
    )


def told(found: Sequence[Row], asked: Asked) -> str:
    """The page."""
    lines = []
    for task in whole(found, asked):
        for method in RATES:
            own = runs(found, task, method, asked)
            first = next(iter(own.values()))
            trains, of = first["parameters"]["trained"], first["parameters"]["base"]
            more = "" if method == "full" else shown(gap(found, [task], method, asked))
            lines.append([
                task, method, f"{first['key']['rate']:g}", _epochs(first), str(len(own)),
                spread([row["dev"] for row in own.values()]), spread([row["test"] for row in own.values()]), more,
                f"{trains:,} ({trains / of:.2%})",
            ])  # fmt: skip
    head = ["task", "method", "rate", "epochs", "seeds", "dev", "test", "points to full", "trained, with head"]
    return study_page(
        STUDY, found, asked,
        "Accuracy in percent, of words in ud_pos; mean and standard deviation over seeds. Points to full: paired by "
        "seed and test item, with the 95 % bootstrap interval over items and seeds.",
        page.table(head, lines),
        f"## Everything tried, seed {asked.seeds[0]}",
        _grid(matching(found, seed=asked.seeds[0])),
    )  # fmt: skip


def _grid(found: Sequence[Row]) -> str:
    lines = []
    for row in found:
        task, method, rate = (row["key"][part] for part in ("task", "method", "rate"))
        score, cpu = f"{100 * row['dev']:.2f}", f"{row['cpu']:.0f} s"
        lines.append([task, method, f"{rate:g}", _epochs(row), score, f"{row['best_epoch']:g}", cpu])
    return page.table(
        ["task", "method", "rate", "epochs", "dev", "best epoch", "CPU, of the process that ended it"], lines
    )


def _epochs(row: Row) -> str:
    usual = METHODS[row["key"]["method"]].get("training.epochs", room.BASE["training.epochs"])
    return str(row["key"].get("epochs", usual))


STUDY = Study(
    "e1_parity", plan, work, told,
    claim=(
        "Adapters match full fine-tuning with a few percent of the parameters (Houlsby et al. 2019: 80.0 against "
        "80.4 on GLUE at 3.6 %)."
    ),
    design=(
        "TREC, and 2,000 training rows of SST-2, MRPC and UD-English POS, drawn once, × full, seq_bn m=48, "
        "double_seq_bn m=64 with its layer norms trained, LoRA r=8, head only × 3 seeds. On TREC, with seed 0, every "
        "method tries three or four learning rates, and the best of them for twice the epochs (5 and 10; full 3 and 6; "
        "head 20 alone); on the others the two rates that were best there, for as long as was best there. It goes on "
        "with what is best on dev. The best epoch on dev is kept; test rows take part in no choice. Mixed "
        "precision (bf16), batches of 32, at most 128 pieces, mean pooling, dropout of the base active except for "
        "head."
    ),
    bar=(
        f"Mean over tasks and seeds of (the bottleneck that is better on dev - full) ≥ {BAR} points at ≤ "
        f"{SHARE:.0%} of the parameters, lower end of its 95 % interval ≥ {LOW:g}."
    ),
    result=result,
)  # fmt: skip

if __name__ == "__main__":
    main(STUDY)
