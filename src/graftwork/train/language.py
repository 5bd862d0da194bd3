"""Target-language-ready task adapters (Parovic et al. 2023, 2306.02767): another language lies below in every step.

In MAD-X a task adapter reads one source language adapter in training and another one when it is carried to a target
language. Here it is trained over all of them in turn, with the source's labels: of K compositions each stretch of K
optimiser steps runs every one once, in an order drawn from (seed, stretch) alone, so that a resumed run meets the same.
Between the steps the first one is active, with which dev rows are scored.
"""

from collections.abc import Sequence

import numpy

from graftwork.compose.tree import Composition
from graftwork.model import AdapterModel

_DRAWS = 2306_02767  # apart from what else is drawn from a run's seed


class Cycle:
    """Makes one of several compositions active for each optimiser step."""

    def __init__(self, model: AdapterModel, compositions: Sequence[Composition], seed: int) -> None:
        self._model, self._compositions, self._seed = model, compositions, seed

    def at(self, step: int) -> Composition:
        """The composition of an optimiser step, counted from 0."""
        stretch, place = divmod(step, len(self._compositions))
        order = numpy.random.default_rng([_DRAWS, self._seed, stretch]).permutation(len(self._compositions))
        return self._compositions[int(order[place])]

    def begin(self, step: int) -> None:
        """Make that of an optimiser step active: before its items are counted, which prompts add to."""
        self._model.set_active_adapters(self.at(step))

    def end(self) -> None:
        """Make the first one active, at the end of a step."""
        self._model.set_active_adapters(self._compositions[0])
