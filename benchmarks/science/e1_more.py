"""E1 on more tasks and by more methods: rows for whoever wants them; no claim hangs on them.

    python benchmarks/science/e1_more.py [--quick] [--minutes N] [--seeds 0,1,2] [--only task=cola] [--page]

Snips, CoLA, tweet emotion and AG News by every method of E1, at the rate and length that E1 found best on TREC, by
parallel bottlenecks as `seq_bn`, and by (IA)³.
"""

from collections.abc import Sequence

import e1_parity as e1
import room
import rows as book
from room import Asked, Study, main, page, scored
from rows import Key, Row, matching
from telling import matched, paired, shown, spread

TASKS = ("snips", "cola", "tweet_emotion", "ag_news_small")
ROWS = 2000  # training rows of a task at most, as in E1
LIKE = {"par_bn": "seq_bn", "ia3": ""}  # further methods: whose rate and length they take
IA3_RATE = 3e-3  # of Liu et al. 2022 for T-Few; not tuned
ADAPTERS = {
    "par_bn": {"adapter.variant": "par_bn", "adapter.reduction_factor": 8},
    "ia3": {"adapter.variant": "ia3", "training.epochs": 10},
}


def plan(found: Sequence[Row], asked: Asked) -> list[Key]:
    """Task after task, and seed after seed."""
    tasks = TASKS[:1] if asked.quick else TASKS
    return [
        {"task": task, "method": method, "seed": seed}
        for task in tasks
        for seed in asked.seeds
        for method in (*e1.RATES, *LIKE)
    ]


def work(key: Key, asked: Asked) -> Row:
    """Train and score one cell."""
    task, method, seed = str(key["task"]), str(key["method"]), int(key["seed"])
    room.TASKS.setdefault(task, ("classification", task))
    own = {"training.seed": seed, **ADAPTERS.get(method, room.METHODS.get(method, {}))}
    if (like := LIKE.get(method, method)) in e1.RATES:
        choice = chosen(like, asked)
        own["training.learning_rate"] = choice.rate
        own |= {"training.epochs": e1.LONGER[like]} if choice.longer else {}
    else:
        own["training.learning_rate"] = IA3_RATE
    rows = room.drawn(room.rows_of(task, "train"), ROWS, 0, asked)
    return scored(task, room.recipe(task, own, name=f"{task}-{method}", asked=asked, train_rows=rows), asked)


def chosen(method: str, asked: Asked) -> e1.Choice:
    """What E1 found best on TREC. Raises LookupError before its rows are there."""
    choice = e1.chosen(book.read(room.RESULTS / "e1_parity.jsonl"), e1.FIRST, method, asked)
    if choice is None and not asked.quick:
        raise LookupError(f"no learning rate of {method}: run benchmarks/science/e1_parity.py --only task={e1.FIRST}")
    return choice or e1.Choice(e1.RATES[method][0])


def told(found: Sequence[Row], asked: Asked) -> str:
    """The page."""
    lines = []
    for task in dict.fromkeys(row["key"]["task"] for row in found):
        full = book.by_seed(matching(found, task=task, method="full"))
        for method in dict.fromkeys(row["key"]["method"] for row in matching(found, task=task)):
            own = book.by_seed(matching(found, task=task, method=method))
            pairs = matched(full, own)
            scores = spread([row["test"] for row in own.values()])
            lines.append([task, method, str(len(own)), scores, shown(paired([pairs])) if pairs else ""])
    return "# E1, more tasks and methods\n\n" + page.table(["task", "method", "seeds", "test", "points to full"], lines)


STUDY = Study("e1_more", plan, work, told)

if __name__ == "__main__":
    main(STUDY)
