"""What a trained fusion attends to: by layer, member and label, as plain data, a table and a picture; and what to make
of it.

How strongly a fusion chooses is told by each token's own attention, the mean of -Σᵢ αᵢ log αᵢ / log K over tokens: 1 is
a plain average of the members. Shares alone do not tell: where half of the tokens listen to one member alone and half
to the other, the shares are even and the fusion has chosen. The picture needs matplotlib, the [plots] extra.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from graftwork.tasks.kinds import numbers_classes
from graftwork.train.job import Job
from graftwork.train.plots import can_draw, missing, save

UNIFORM = 0.98  # mean entropy of the tokens' attention from which a layer is said not to choose
ENOUGH = 0.9  # share of the attention from which the two most attended members are said to be enough
KEPT = 2  # members, of which that is asked: what Rücklé et al. 2021 kept of 8
PANELS = 8  # of the picture: all rows, and labels
MISSING = missing("picture of the attention")


def measured(job: Job) -> dict[str, Any]:
    """What the fusion of a job attends to on its dev rows, as `FusionAttention.told`; empty where texts are said."""
    if job.task.speaks:
        return {}
    model, name, training = job.model, job.setup.name, job.model.training
    model.eval()
    try:
        return model.fusion_attention(name, _batches(job), adapters=job.setup.composition).told(job.task.labels)
    finally:
        model.train(training)


def by_site(attention: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for every layer: its site, a share a member, and the entropy."""
    return [
        {"site": site, **dict(zip(attention["members"], shares, strict=True)), "entropy": attention["entropy"][site]}
        for site, shares in attention["sites"].items()
    ]


def by_label(attention: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for every label: the mean over layers of each member's share."""
    return [
        {"label": label, **dict(zip(attention["members"], _over_sites(sites), strict=True))}
        for label, sites in attention["labels"].items()
    ]


def lines(attention: Mapping[str, Any]) -> Iterator[str]:
    """The table as lines of a report; none where nothing was measured."""
    if not attention:
        return
    yield f"attention over {attention['tokens']:,} tokens of dev, and how evenly a token spreads it (1: to all alike):"
    for row in by_site(attention):
        shares = ", ".join(f"{member} {row[member]:.2f}" for member in attention["members"])
        yield f"  {row['site']}: {shares}; {row['entropy']:.2f}"
    for row in by_label(attention)[:20]:
        shares = ", ".join(f"{member} {row[member]:.2f}" for member in attention["members"])
        yield f"  label {row['label']}, mean over layers: {shares}"


def held(attention: Mapping[str, Any], count: int = KEPT) -> float:
    """The share of the attention that the `count` most attended members of each layer have, the mean over layers."""
    return mean(float(sum(sorted(shares)[-count:])) for shares in attention["sites"].values())


def findings(attention: Mapping[str, Any], name: str) -> Iterator[str]:
    """What to make of it, in sentences: nothing is chosen, or few members would do."""
    if not attention:
        return
    count = len(attention["members"])
    lowest = min(attention["entropy"].values())
    if lowest > UNIFORM:
        yield (
            f"the attention of fusion {name} is uniform: in no layer is its tokens' mean entropy below {UNIFORM} of "
            f"that of an even spread (lowest {lowest:.4f}), so it is a plain average of its members; train it "
            "longer or with a higher learning rate, or compose an Average"
        )
    most = held(attention)
    if count > KEPT and most >= ENOUGH:
        yield (
            f"the {KEPT} most attended of {count} members get {most:.0%} of the attention: graftwork prune {name} "
            f"--data <rows> --keep {KEPT} makes a fusion without the others"
        )


def draw(attention: Mapping[str, Any], title: str, file: Path) -> str:
    """Write a heat map, layers by members, of all rows and of the first labels; "" or the reason why there is none."""
    if not can_draw():
        return MISSING
    from matplotlib.figure import Figure

    members, sites = attention["members"], list(attention["sites"])
    panels = [("all rows", attention["sites"]), *attention["labels"].items()][:PANELS]
    size = (2.2 + (0.8 + 0.5 * len(members)) * len(panels), 1.8 + 0.35 * len(sites))
    figure = Figure(figsize=size, layout="constrained")
    drawn = None
    for place, (label, shares) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), place)
        drawn = axes.imshow([shares[site] for site in sites], vmin=0, vmax=1, cmap="viridis", aspect="auto")
        axes.set_title(str(label), fontsize=9, parse_math=False)  # a label may be "$$"
        axes.set_xticks(range(len(members)), members, rotation=60, ha="right", fontsize=8)
        axes.set_yticks(range(len(sites)), sites if place == 1 else [""] * len(sites), fontsize=8)
    figure.colorbar(drawn, ax=figure.axes, shrink=0.8) if drawn is not None else None
    save(figure, title, file)
    return ""


def _batches(job: Job) -> Iterator[dict[str, Tensor]]:
    """The dev rows as the model reads them, texts (B, T), with the labels that are class numbers."""
    rows, size = job.sets["dev"], job.recipe.training.eval_batch_size
    for start in range(0, len(rows), size):
        batch = rows.__getitems__(range(start, min(start + size, len(rows))))
        read = {key: value for key, value in batch.items() if key not in ("labels", "word_starts", "entering")}
        if not job.task.reads_images:  # (B, T), or (B, C, T) where a row has several texts
            read = {key: value.flatten(0, -2) for key, value in read.items()}
        labels = {"labels": batch["labels"]} if numbers_classes(job.task) else {}
        yield {key: value.to(job.model.device) for key, value in {**read, **labels}.items()}


def _over_sites(sites: Mapping[str, Sequence[float]]) -> list[float]:
    found: list[float] = torch.tensor(list(sites.values()), dtype=torch.float64).mean(dim=0).tolist()
    return found
