"""Which pieces of a text are hidden in an epoch of masked language modelling (Devlin et al. 2019, §3.1).

A share of the pieces of every row is chosen; of those, 8 in 10 become the mask, 1 in 10 any piece of the vocabulary,
and 1 in 10 stay; all of them are to be told. Chosen are the pieces with the lowest of the numbers h(seed, epoch, row,
place), where h is SplitMix64 (Steele et al. 2014) put through each in turn. So neither the rest of a batch nor what was
drawn before matters: a run that goes on sees what it would have seen unbroken. Special pieces are never chosen, nor is
anything of a text that came with masks. Knows ids, no texts. No loop over rows or pieces.
"""

from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor

from graftwork.tasks.encoded import IGNORED

Numbers = numpy.ndarray[Any, Any]
BECOME_MASKS, BECOME_OTHERS = 0.8, 0.1


@dataclass(frozen=True)
class Masking:
    """mask: its id. words: the size of the vocabulary. special: ids that are never hidden. share: of the pieces."""

    mask: int
    words: int
    special: tuple[int, ...]
    share: float
    seed: int

    def __call__(self, batch: dict[str, Tensor], rows: Numbers, epoch: int) -> dict[str, Tensor]:
        """The batch with some input_ids (B, T) hidden, and labels (B, T): what stood there, IGNORED elsewhere."""
        ids = batch["input_ids"].numpy()
        free = ~numpy.isin(ids, self.special) & (batch["attention_mask"].numpy() > 0)
        free &= ~(ids == self.mask).any(axis=1, keepdims=True)
        wanted = numpy.where(free.any(axis=1), numpy.maximum(1, numpy.rint(self.share * free.sum(axis=1))), 0)  # (B,)
        draw = numpy.where(free, self._chances(rows, ids.shape[1], epoch, 0), 2.0)
        order = draw.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")  # the rank of each place
        hidden = order < wanted[:, None]
        fate = self._chances(rows, ids.shape[1], epoch, 1)
        other = (self._chances(rows, ids.shape[1], epoch, 2) * self.words).astype(ids.dtype)
        seen = numpy.where(hidden & (fate < BECOME_MASKS), self.mask, ids)
        swapped = hidden & (fate >= BECOME_MASKS) & (fate < BECOME_MASKS + BECOME_OTHERS)
        seen = numpy.where(swapped, other, seen)
        labels = numpy.where(hidden, ids, IGNORED)
        return batch | {"input_ids": torch.from_numpy(seen), "labels": torch.from_numpy(labels)}

    def _chances(self, rows: Numbers, places: int, epoch: int, use: int) -> Numbers:
        """(B, T) numbers in [0, 1) that follow from seed, epoch, row, place and what they are for."""
        state = mixed(numpy.array([self.seed], dtype=numpy.uint64))
        for number in (epoch, use):
            state = mixed(state ^ numpy.uint64(number))
        by_row = mixed(state ^ numpy.asarray(rows).astype(numpy.uint64))[:, None]
        drawn: Numbers = mixed(by_row ^ numpy.arange(places, dtype=numpy.uint64)[None, :])
        return (drawn >> numpy.uint64(11)).astype(numpy.float64) * 2.0**-53


def mixed(state: Numbers) -> Numbers:
    """SplitMix64: the next state, and its bits mixed."""
    z = state + numpy.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
    return z ^ (z >> numpy.uint64(31))
