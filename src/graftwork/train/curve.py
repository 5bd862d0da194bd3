"""The training curve as a picture: loss above, dev score below, over steps. Needs matplotlib, the [plots] extra."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graftwork.train.plots import can_draw, missing, save

MISSING = missing("training curve")


def draw(history: Sequence[Mapping[str, Any]], metric: str, title: str, file: Path) -> str:
    """Write the curve as a PNG and return "", or return the reason why there is none."""
    if not can_draw():
        return MISSING
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    losses = [(point["step"], point["loss"]) for point in history if "loss" in point]
    dev = [(point["step"], point["dev"]) for point in history if "dev" in point]
    above.plot(*zip(*losses, strict=True), color="tab:blue", label="train") if losses else None
    above.plot([step for step, _ in dev], [scores["loss"] for _, scores in dev], "o-", color="tab:orange", label="dev")
    above.set_ylabel("loss")
    above.legend()
    below.plot([step for step, _ in dev], [scores[metric] for _, scores in dev], "o-", color="tab:green")
    below.set_ylabel(f"dev {metric}")
    below.set_xlabel("step")
    for axes in (above, below):
        axes.grid(alpha=0.3)
    save(figure, title, file)
    return ""
