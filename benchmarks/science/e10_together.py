"""E10: does training many adapters in one run give what training them one after another gives, and what does it save?

    python benchmarks/science/e10_together.py [--quick] [--minutes N] [--seeds 0,1,2] [--only set=widths] [--page]

Eight widths of `seq_bn` on TREC (reduction factors 2 to 128) and one adapter for each task of this room, 400 training
and 200 dev rows each, three epochs, in batches of 4 and of 32; by `train` one after another and by `train_together` in
one run. The base rests (`base_dropout: false`), so that both ways are the same arithmetic and differ by rounding and
what it does to close decisions. Seconds are those of the wall and of all processors, of everything that belongs to a
run: reading, training, scoring dev, packages. The learning rate is one for all, for nothing is compared but the two
ways.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import mean, stdev
from typing import Any

import room
from room import Asked, Study, main, page
from rows import Key, Row, by_seed, matching
from telling import matched, study_page

from graftwork import recipe as recipes
from graftwork.errors import GraftworkError
from graftwork.recipe import Recipe
from graftwork.train.outcome import TrainResult
from graftwork.train.run import train
from graftwork.train.together import train_together

FACTORS = (2, 4, 8, 16, 32, 64, 96, 128)
ROWS, DEV_ROWS, EPOCHS, RATE = 400, 200, 3, 1e-3
BATCHES = (4, 32)
WAYS = ("apart", "together")
WITHIN = 1.0  # points that the mean of a set may differ by


def plan(found: Sequence[Row], asked: Asked) -> list[Key]:
    """Both ways of a set beside each other, widths first; seed after seed."""
    sets, batches = (("widths",), BATCHES[:1]) if asked.quick else (("widths", "tasks"), BATCHES)
    return [
        {"set": name, "batch": batch, "way": way, "seed": seed}
        for seed in asked.seeds
        for name in sets
        for batch in batches
        for way in WAYS
    ]


def work(key: Key, asked: Asked) -> Row:
    """Train a set one way, and score every adapter of it."""
    made = _recipes(key, asked)
    run: Callable[[], Sequence[TrainResult | GraftworkError]] = (
        (lambda: [train(one, progress=False) for _, one in made])
        if key["way"] == "apart"
        else (lambda: train_together([one for _, one in made], progress=False))
    )
    for _, one in made:
        shutil.rmtree(one.output, ignore_errors=True)  # what is timed begins at nothing
    wall, processors = time.perf_counter(), time.process_time()
    results = run()
    taken = {"wall": time.perf_counter() - wall, "processors": time.process_time() - processors}
    scores: dict[str, dict[str, Any]] = {}
    for (task, one), result in zip(made, results, strict=True):
        if isinstance(result, GraftworkError):
            raise result
        tested = room.answered(task, one, result, room.opened(one, result), asked)
        scores[one.name] = {"dev": result.scores["dev"][result.main], **tested}
        shutil.rmtree(one.output)
    return {
        "dev": mean(score["dev"] for score in scores.values()),
        "test": mean(score["test"] for score in scores.values()),
        "adapters": scores,
        **{name: round(seconds, 1) for name, seconds in taken.items()},
    }


def _recipes(key: Key, asked: Asked) -> list[tuple[str, Recipe]]:
    """The recipes of a set, each with its task."""
    changes = {"training.batch_size": key["batch"], "training.seed": key["seed"], "training.learning_rate": RATE,
               "training.base_dropout": False, "training.epochs": EPOCHS, "training.max_seq_length": 64,
               "training.bf16": False}  # fmt: skip
    counts = room.QUICK_ROWS if asked.quick else {"train": ROWS, "dev": DEV_ROWS}
    factors = FACTORS[-2:] if asked.quick else FACTORS
    wanted = [("trec", factor) for factor in factors] if key["set"] == "widths" else [(task, 16) for task in room.TASKS]
    made = []
    for task, factor in wanted:
        rows, dev = (room.drawn(room.rows_of(task, split), counts[split], 0, asked) for split in ("train", "dev"))
        own = {**changes, "adapter.variant": "seq_bn", "adapter.reduction_factor": factor}
        name = f"{task}-r{factor}-{key['way']}"
        told = replace(asked, quick=False) if asked.quick else asked
        one = room.recipe(task, own, name=name, asked=told, train_rows=rows, dev_rows=dev)
        made.append((task, recipes.override(one, room.QUICK) if asked.quick else one))
    return made


def result(found: Sequence[Row], asked: Asked) -> str:
    """What the rows say: differences of scores beside the noise of seeds, and times."""
    said = []
    for name, batch in _sets(found):
        pairs = _pairs(found, name, batch)
        if not pairs:
            continue
        apart, shared = ([row["test"] for row in side] for side in zip(*pairs, strict=True))
        differences = [100 * (b - a) for a, b in zip(apart, shared, strict=True)]
        noise = f", where seeds differ by {100 * stdev(apart):.2f}" if len(apart) > 1 else ""
        wall, cpu = (mean(row_a[clock] / row_b[clock] for row_a, row_b in pairs) for clock in ("wall", "processors"))
        met = "is met" if abs(mean(differences)) <= WITHIN else "is not met"
        said.append(
            f"{name}, batches of {batch}: the mean test score together is {mean(differences):+.2f} points from apart "
            f"({len(pairs)} seed(s){noise}; the bar {met}); together {wall:.2f} times as fast by the wall, {cpu:.2f} "
            "by the processors"
        )
    return ". ".join(said) + "." if said else ""


def told(found: Sequence[Row], asked: Asked) -> str:
    """The page."""
    lines = []
    for name, batch in _sets(found):
        for apart, shared in _pairs(found, name, batch):
            worst = max(
                abs(apart["adapters"][one]["test"] - other["test"])
                for one, other in zip(sorted(apart["adapters"]), _by_name(shared), strict=True)
            )
            lines.append([
                name, str(batch), str(apart["key"]["seed"]), f"{100 * apart['test']:.2f}",
                f"{100 * shared['test']:.2f}",
                f"{100 * worst:.2f}", f"{apart['wall']:.0f} s, {apart['processors']:.0f} s",
                f"{shared['wall']:.0f} s, {shared['processors']:.0f} s",
                f"{apart['wall'] / shared['wall']:.2f}, {apart['processors'] / shared['processors']:.2f}",
            ])  # fmt: skip
    head = ["set", "batch", "seed", "test apart", "test together", "largest difference", "apart: wall, processors",
            "together", "times as fast"]  # fmt: skip
    return study_page(STUDY, found, asked, page.table(head, lines))


def _by_name(row: Row) -> list[dict[str, Any]]:
    return [score for _, score in sorted(row["adapters"].items())]


def _sets(found: Sequence[Row]) -> list[tuple[str, int]]:
    return list(dict.fromkeys((row["key"]["set"], row["key"]["batch"]) for row in found))


def _pairs(found: Sequence[Row], name: str, batch: int) -> list[tuple[Row, Row]]:
    """The two ways of a set, seed by seed, where both are there."""
    return matched(*(by_seed(matching(found, set=name, batch=batch, way=way)) for way in WAYS))


STUDY = Study(
    "e10_together", plan, work, told,
    claim="Many adapters over one frozen base can be trained in one run: the same adapters, for less time.",
    design="TREC × 8 widths of seq_bn, and one adapter for each task of this room; 400 training and 200 dev rows each, "
    "3 epochs, batches of 4 and of 32, the base at rest; one after another and in one run, 3 seeds.",
    bar=f"Mean test score of a set within {WITHIN:g} points of training apart; times are told.",
    result=result,
)  # fmt: skip

if __name__ == "__main__":
    main(STUDY)
