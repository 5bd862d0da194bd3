"""The order of training rows, decided by (seed, epoch) and nothing else: batches of similar length, or a plain shuffle.

Shuffle all rows; cut the shuffled rows into pools of POOL batches; sort each pool by length; cut it into batches;
shuffle the batches. A batch then holds rows of nearly one length, so little is padded, and each epoch still mixes anew.
Rows that fill no whole batch come last. Because global random state is neither read nor changed, a run that goes on in
the middle of an epoch meets the rows that it would have met unbroken. Knows lengths, not rows.

Rows of one length, of which there may be more than a list could hold (`train/stream.py`), are shuffled without a list:
place i becomes P(i), a permutation by four Feistel rounds (Luby & Rackoff 1988) over the next power of four, applied
until it falls inside (cycle walking: Black & Rogaway 2002).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy
from torch.utils.data import Sampler

from graftwork.tasks.masking import mixed

POOL = 50  # batches that are sorted together: more means less padding and less mixing
_AT_ONCE, _ROUNDS = 8192, 4

Numbers = numpy.ndarray[Any, Any]


class _ByEpoch(Sampler[int]):
    """An order for every epoch. told: is told every epoch that is chosen, for rows that are others in each."""

    def __init__(self, seed: int, epoch: int, told: Callable[[int], None] | None) -> None:
        self._seed, self._told = seed, told
        self.set_epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Take the order of this epoch from the next iteration on."""
        self._epoch = epoch
        if self._told is not None:
            self._told(epoch)


class LengthGroupedSampler(_ByEpoch):
    """Every index once an epoch; each run of `batch_size` indices is a batch. `set_epoch` chooses the order."""

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int,
        epoch: int = 0,
        told: Callable[[int], None] | None = None,
    ) -> None:
        if batch_size < 1 or seed < 0 or epoch < 0:
            raise ValueError(f"batch_size {batch_size} must be at least 1, seed {seed} and epoch {epoch} at least 0")
        self._lengths = numpy.asarray(lengths, dtype=numpy.int64)  # (rows,)
        self._batch_size = batch_size
        super().__init__(seed, epoch, told)

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        random = numpy.random.default_rng([self._seed, self._epoch])
        shuffled = random.permutation(len(self._lengths))
        whole = len(shuffled) - len(shuffled) % self._batch_size
        pool = POOL * self._batch_size
        grouped = [self._by_length(shuffled[start : min(start + pool, whole)]) for start in range(0, whole, pool)]
        batches = numpy.concatenate([*grouped, shuffled[:0]]).reshape(-1, self._batch_size)  # (batches, batch_size)
        order = [*random.permutation(batches).ravel(), *shuffled[whole:]]
        return iter([int(row) for row in order])

    def _by_length(self, rows: "numpy.ndarray[tuple[int], numpy.dtype[numpy.int64]]") -> list[int]:
        return list(rows[numpy.argsort(self._lengths[rows], kind="stable")])


class ShuffledSampler(_ByEpoch):
    """Every one of `count` indices once an epoch, in an order that needs no memory. `set_epoch` chooses it."""

    def __init__(self, count: int, seed: int, epoch: int = 0, told: Callable[[int], None] | None = None) -> None:
        if count < 1 or seed < 0 or epoch < 0:
            raise ValueError(f"count {count} must be at least 1, seed {seed} and epoch {epoch} at least 0")
        self._count = count
        self._half = numpy.uint64(max(1, -(-(count - 1).bit_length() // 2)))  # bits of half a number
        super().__init__(seed, epoch, told)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        # mixed before the epoch comes in, or seed 0 in epoch 1 would have the order of seed 1 in epoch 0
        keys, (state,) = [], mixed(numpy.array([self._seed], dtype=numpy.uint64))
        for number in (self._epoch, *range(_ROUNDS)):
            (state,) = mixed(numpy.array([state ^ numpy.uint64(number)], dtype=numpy.uint64))
            keys.append(state)
        for start in range(0, self._count, _AT_ONCE):
            yield from self._places(numpy.arange(start, min(start + _AT_ONCE, self._count)), keys[1:]).tolist()

    def _places(self, numbers: Numbers, keys: Sequence[Any]) -> Numbers:
        found = self._permuted(numbers.astype(numpy.uint64), keys)
        while (outside := found >= self._count).any():
            found[outside] = self._permuted(found[outside], keys)
        return found

    def _permuted(self, numbers: Numbers, keys: Sequence[Any]) -> Numbers:
        mask = (numpy.uint64(1) << self._half) - numpy.uint64(1)
        left, right = numbers >> self._half, numbers & mask
        for key in keys:
            left, right = right, left ^ (mixed(right ^ key) & mask)
        return (left << self._half) | right
