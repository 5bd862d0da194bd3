"""E8: which layers of a trained adapter matter? Every contiguous span of them removed, without training again.

    python benchmarks/science/e8_layers.py [--quick] [--minutes N] [--seeds 0,1,2] [--page]

Houlsby et al. 2019, section 3.5: on BERT-base removing all adapters falls to the majority class, removing those of one
layer costs 2 % at most, and the lower layers cost less than the upper ones. Here the adapter is a `seq_bn` at
E1's rate for five epochs on TREC, one for each seed; the head stays as it was trained.
"""

from collections.abc import Sequence
from functools import lru_cache
from statistics import mean

import e1_parity
import room
from room import Asked, Study, main, page
from rows import Key, Row, by_seed, matching
from telling import matched, paired, shown, study_page

from graftwork.model import AdapterModel
from graftwork.recipe import Recipe
from graftwork.tasks.bootstrap import Interval
from graftwork.train.outcome import TrainResult

TASK, METHOD = "trec", "seq_bn"
LAYERS = 6
NONE = (0, -1)  # the empty span: nothing removed
SPANS = [(first, last) for first in range(LAYERS) for last in range(first, LAYERS)]
ALL, LOWEST = 20.0, 1.0  # points: removing all costs at least, removing layer 0 at most


def plan(found: Sequence[Row], asked: Asked) -> list[Key]:
    """Nothing removed and every span, seed after seed."""
    spans = [NONE, (0, 0), (0, 5)] if asked.quick else [NONE, *SPANS]
    return [{"task": TASK, "seed": seed, "first": first, "last": last} for seed in asked.seeds for first, last in spans]


def work(key: Key, asked: Asked) -> Row:
    """Score the adapter of a seed without the layers first … last."""
    made, result, model = _opened(int(key["seed"]), asked)
    span = range(int(key["first"]), int(key["last"]) + 1)
    return room.answered(TASK, made, result, model, asked, skip_layers=span)


@lru_cache(maxsize=1)  # the spans of a seed come one after another
def _opened(seed: int, asked: Asked) -> tuple[Recipe, TrainResult, AdapterModel]:
    made = e1_parity.best(TASK, METHOD, seed, asked)
    result = room.trained(made)
    return made, result, room.opened(made, result)


def cost(found: Sequence[Row], first: int, last: int) -> Interval:
    """What removing a span costs in points, over the seeds that have it and the undropped one; paired."""
    whole = by_seed(matching(found, first=NONE[0], last=NONE[1]))
    return paired([matched(by_seed(matching(found, first=first, last=last)), whole)])


def result(found: Sequence[Row], asked: Asked) -> str:
    """What the rows say to the bar."""
    seeds = {row["key"]["seed"] for row in matching(found, first=0, last=LAYERS - 1)}
    if not seeds or not matching(found, first=0, last=0):
        return ""
    everything, lowest = cost(found, 0, LAYERS - 1), cost(found, 0, 0)
    alone = ", ".join(f"{cost(found, layer, layer).value:.1f}" for layer in range(LAYERS) if matching(
        found, first=layer, last=layer))  # fmt: skip
    halves = [(0, LAYERS // 2 - 1), (LAYERS // 2, LAYERS - 1)]
    low, high = (shown(cost(found, *span)) if matching(found, first=span[0], last=span[1]) else "" for span in halves)
    held = "is met" if everything.value >= ALL and lowest.value <= LOWEST else "is not met"
    return (
        f"Over {len(seeds)} seed(s) removing all costs {shown(everything)} points and layer 0 alone "
        f"{shown(lowest)}; the bar {held}. One layer at a time, from the lowest: {alone}."
        + (f" The lower half together costs {low}, the upper half {high}." if low and high else "")
    )


def told(found: Sequence[Row], asked: Asked) -> str:
    """The page, with the heat map as a picture and a table."""
    whole = mean(row["test"] for row in matching(found, first=NONE[0], last=NONE[1]))
    lines = [
        [f"{first}"] + [_cell(found, first, last) for last in range(LAYERS)] for first in range(LAYERS)
    ]  # fmt: skip
    note = page.heat(
        asked.folder / "e8_layers.svg", "Points lost by removing layers first … last", "last layer", "first layer",
        [[cost(found, first, last).value if matching(found, first=first, last=last) else None
          for last in range(LAYERS)] for first in range(LAYERS)],
    )  # fmt: skip
    return study_page(
        STUDY, found, asked,
        f"Points of accuracy lost on the TREC test set, mean over seeds with its 95 % paired bootstrap interval; with "
        f"nothing removed {100 * whole:.2f}. Rows: the first layer removed; columns: the last.",
        page.table(["first", *(f"to {last}" for last in range(LAYERS))], lines),
        note or "![heat map](e8_layers.svg)",
    )  # fmt: skip


def _cell(found: Sequence[Row], first: int, last: int) -> str:
    return shown(cost(found, first, last)) if matching(found, first=first, last=last) else ""


STUDY = Study(
    "e8_layers", plan, work, told,
    claim="Lower layers' adapters matter least: taking them away from a trained adapter costs little, taking all away "
    "costs everything (Houlsby et al. 2019, figure 6).",
    design="TREC, a `seq_bn` m=48 at E1's rate for 5 epochs (three seeds); all 21 contiguous spans of the six layers "
    "run without adapters, by `skip_layers`; nothing is trained again.",
    bar="Removing all costs at least 20 points; removing layer 0 alone at most 1.",
    result=result,
)  # fmt: skip

if __name__ == "__main__":
    main(STUDY)
