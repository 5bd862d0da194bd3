"""E9: are adapters better than full fine-tuning where labels are few? 100, 500 and 1,000 labels, five seeds.

    python benchmarks/science/e9_small.py [--quick] [--minutes N] [--seeds 0,1,2,3,4] [--only task=snips] [--page]

He et al. 2021 and UniPELT (Mao et al. 2022) find adapters ahead in low-resource tasks. A seed draws the labelled rows
too, the same for every method, and a fifth as many dev rows (20 at least); so intervals hold for labels drawn anew.
Learning rates: those that E1 chose on SST-2. 160 steps at most whatever the number of labels, fewer where dev scores
have not risen for a quarter of them or more; the same for all methods.
"""

from collections.abc import Sequence

import e1_parity
import room
from room import METHODS, Asked, Study, main, page
from rows import Key, Row, by_seed, matching
from telling import matched, paired, shown, spread, study_page

from graftwork.tasks.bootstrap import Interval

TASKS = ("sst2", "snips")
LABELS = (100, 500, 1000)
COMPARED = ("full", "seq_bn", "lora")
EPOCHS = {100: 40, 500: 10, 1000: 5}
PATIENCE = {100: 10, 500: 4, 1000: 2}  # epochs without a better dev score that end a run
SEEDS = (0, 1, 2, 3, 4)


def plan(found: Sequence[Row], asked: Asked) -> list[Key]:
    """Few labels first, all methods of a seed side by side."""
    labels, tasks = (LABELS[:1], TASKS[:1]) if asked.quick else (LABELS, TASKS)
    seeds = SEEDS if asked.seeds == room.SEEDS else asked.seeds
    return [
        {"task": task, "labels": count, "method": method, "seed": seed}
        for count in labels for task in tasks for seed in (seeds[:1] if asked.quick else seeds) for method in COMPARED
    ]  # fmt: skip


def work(key: Key, asked: Asked) -> Row:
    """Draw the rows, train, score."""
    task, method = str(key["task"]), str(key["method"])
    count, seed = int(key["labels"]), int(key["seed"])
    labelled = room.drawn(room.rows_of(task, "train"), count, seed, asked)
    few = room.drawn(room.rows_of(task, "dev"), max(20, count // 5), seed, asked)
    own = {
        "training.learning_rate": e1_parity.rate_of("sst2", method, asked),
        "training.seed": seed,
        "training.epochs": EPOCHS[count],
        "training.early_stopping_patience": PATIENCE[count],
        "training.logging_steps": 1000,
    }
    name = f"{task}-e9-{method}"
    made = room.recipe(task, METHODS[method], own, name=name, asked=asked, train_rows=labelled, dev_rows=few)
    return room.scored(task, made, asked)


def runs(found: Sequence[Row], task: str, count: int, method: str) -> dict[int, Row]:
    """The rows of one cell of the table, by seed."""
    return by_seed(matching(found, task=task, labels=count, method=method))


def gap(found: Sequence[Row], cells: Sequence[tuple[str, int]], method: str) -> Interval:
    """method - full in points, over (task, labels) and the seeds that both have."""
    return paired([matched(runs(found, *one, "full"), runs(found, *one, method)) for one in cells])


def known(found: Sequence[Row]) -> list[tuple[str, int]]:
    """The (task, labels) that have a seed of every method."""
    cells = [(task, count) for task in TASKS for count in LABELS]
    return [one for one in cells if set.intersection(*(set(runs(found, *one, method)) for method in COMPARED))]


def result(found: Sequence[Row], asked: Asked) -> str:
    """What the rows say."""
    said, ahead = [], []
    for count in LABELS:
        if cells := [cell for cell in known(found) if cell[1] == count]:
            gaps = {method: gap(found, cells, method) for method in COMPARED[1:]}
            tasks, others = ", ".join(task for task, _ in cells), "; ".join(f"{m} {shown(g)}" for m, g in gaps.items())
            said.append(f"with {count} labels ({tasks}) {others}")
            ahead += [f"{method} with {count}" for method, own in gaps.items() if own.low > 0]
    seen = f"Ahead beyond the interval: {', '.join(ahead)}" if ahead else "Nowhere is one ahead, so it is not seen here"
    return f"Points above full fine-tuning: {', '.join(said)}. {seen}." if said else ""


def told(found: Sequence[Row], asked: Asked) -> str:
    """The page."""
    lines = []
    for task, count in known(found):
        for method in COMPARED:
            own = runs(found, task, count, method)
            more = "" if method == "full" else shown(gap(found, [(task, count)], method))
            lines.append([task, str(count), method, str(len(own)), spread([row["test"] for row in own.values()]), more])
    return study_page(
        STUDY, found, asked,
        "Accuracy on the whole test set in percent, mean and standard deviation over seeds; points to full with their "
        "95 % bootstrap interval over test items and seeds.",
        page.table(["task", "labels", "method", "seeds", "test", "points to full"], lines),
    )  # fmt: skip


STUDY = Study(
    "e9_small", plan, work, told,
    claim="With few labels adapters do better than full fine-tuning (He et al. 2021; Mao et al. 2022).",
    design="100, 500 and 1,000 labels of SST-2 and snips × full, seq_bn m=48, LoRA r=8 × 5 seeds; a seed draws the "
    "rows too, the same for every method, and a fifth as many dev rows, 20 at least. Learning rates as E1 chose them "
    f"on SST-2; {', '.join(f'{EPOCHS[count]} epochs for {count} labels' for count in LABELS)}, ended after "
    f"{', '.join(map(str, PATIENCE.values()))} without a better dev score, the same for all methods, the best on dev "
    "kept.",
    bar="None: reported with intervals.",
    result=result,
)  # fmt: skip

if __name__ == "__main__":
    main(STUDY)
