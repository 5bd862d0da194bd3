"""AdapterDrop in training (Rücklé et al. 2021, 2010.11918): the lowest n layers of a step run without adapters.

    robust        training.drop: random        n ~ U{0, …, L-1}, drawn anew for every optimiser step
                  training.drop: [low, high]   n ~ U{low, …, high}
    specialised   adapter.leave_out: [0, 1]    always the same n: no adapters there, in training or in the package

L-1 is the paper's bound, so that one layer at least trains in each step; the notebook of `adapters` stops at L-2. n
follows from (seed, step) alone: a resumed run meets the same ones. Batches that share a step share its n. What is
dropped gets no gradient and no step of the optimiser, and there is no graph below the lowest adapter that runs, so that
the backward ends there. Scoring during training drops nothing; the curve at the end says what each n costs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy

from graftwork.compose.parts import SHARED
from graftwork.errors import RecipeError
from graftwork.model import AdapterModel

_DRAWS = 2010_11918  # apart from what else is drawn from a run's seed


@dataclass(frozen=True)
class Drop:
    """How many of the lowest layers each step drops: from `low` to `high`, both included."""

    low: int
    high: int
    seed: int

    def layers(self, step: int) -> range:
        """The layers without adapters in an optimiser step, counted from 0: 0 … n-1, encoder first."""
        draw = numpy.random.default_rng([_DRAWS, self.seed, step])
        return range(int(draw.integers(self.low, self.high + 1)))

    @property
    def counts(self) -> range:
        """The numbers of dropped layers, from 1, that training prepared for or passed over."""
        return range(1, self.high + 1)


def plan_drop(model: AdapterModel, asked: Literal["random"] | tuple[int, int] | None, seed: int) -> Drop | None:
    """What a recipe's `training.drop` comes to on a model whose parts are chosen for training.

    Raises RecipeError where layers have no order, or nothing would train in some step, or something in none.
    """
    if asked is None:
        return None
    if len(model.backbone.family.stacks) > 1 and not model.config.is_encoder_decoder:
        raise RecipeError(
            f"training.drop: {_said(asked)}: the base has several towers, and no lowest layers of all; remove it"
        )
    depths = sorted(depth for depth in trained_layers(model) if depth >= 0)
    if not depths:
        raise RecipeError(
            f"training.drop: {_said(asked)}: what trains is in no layer, so there is nothing to drop; remove it"
        )
    low, high = (0, depths[-1]) if asked == "random" else asked
    if high > depths[-1]:
        raise RecipeError(
            f"training.drop: {_said(asked)}: the highest layer with something that trains is {depths[-1]}, and with "
            f"{high} dropped no adapter would run; end the range at {depths[-1]} or below"
        )
    if low > depths[0]:
        never = ", ".join(str(depth) for depth in range(low))
        raise RecipeError(
            f"training.drop: {_said(asked)}: what is in layer {depths[0]} would never train; begin the range at "
            f"{depths[0]} or below, or set adapter.leave_out: [{never}]"
        )
    return Drop(low, high, seed)


def trained_layers(model: AdapterModel) -> set[int]:
    """The layers, counted across stacks, that hold something that trains; -1 is before the first."""
    parts = model.parts
    depths = {site.name: site.depth for site in model.backbone.sites}
    return {
        depths[place]
        for table in ("adapters", "fusions")
        for name in parts.records(table)
        if any(
            weight.requires_grad for module in parts.modules_of(table, name).values() for weight in module.parameters()
        )
        for place in parts.modules_of(table, name)
        if place != SHARED
    }


def _said(asked: str | Sequence[int]) -> str:
    return asked if isinstance(asked, str) else str(list(asked))
