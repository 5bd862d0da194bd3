"""The processes of one run, as torchrun started them: what one has, the others are told; errors are one error.

The first process alone writes and speaks. What may fail is done by all and agreed on, or done by the first one and told
to the others: either all go on or all raise the same error, which one of them says. What trains is whole and equal in
all of them; its gradients are averaged in one message an optimiser step. One process alone is a run as well: then
nothing is sent. Knows no models, recipes or rows.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, distributed

from graftwork.errors import GraftworkError

MESSAGE = 25_000_000  # numbers of one message, which are held twice
Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """How many there are, and which of them this one is, counted from 0."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are other processes."""
        return self.count > 1

    def gathered(self, value: Value) -> list[Value]:
        """What every process has, in their order."""
        if not self.several:
            return [value]
        found: list[Any] = [None] * self.count
        distributed.all_gather_object(found, value)
        return found

    def told(self, value: Value) -> Value:
        """What the first process has."""
        if not self.several:
            return value
        held: list[Any] = [value if self.first else None]
        distributed.broadcast_object_list(held, src=0)
        return held[0]  # type: ignore[no-any-return]

    def agreed(self, work: Callable[[], Value]) -> Value:
        """What some work gives here, once it has succeeded in all processes; else all raise the first one's error."""
        if not self.several:
            return work()
        made, failed = _tried(work)
        self.fail(next((error for error in self.gathered(failed) if error is not None), None))
        return made  # type: ignore[return-value]

    def from_first(self, work: Callable[[], Value]) -> Value:
        """What some work gives in the first process, where alone it is done; all raise its error."""
        if not self.several:
            return work()
        made, failed = self.told(_tried(work) if self.first else (None, None))
        self.fail(failed)
        return made  # type: ignore[return-value]

    def make_equal(self, parameters: Iterable[Tensor]) -> None:
        """Give all processes the first one's numbers."""
        for parameter in parameters if self.several else ():
            distributed.broadcast(parameter.data, src=0)

    def average(self, parameters: Sequence[Tensor]) -> None:
        """Average gradients over all processes; where one has none it counts as 0, where none has one there is none."""
        if not self.several:
            return
        for bunch in _bunches(parameters):
            parts = [torch.zeros_like(one) if one.grad is None else one.grad for one in bunch]
            there = torch.tensor([float(one.grad is not None) for one in bunch])
            sums = torch.cat([part.flatten().float() for part in (*parts, there.to(parts[0].device))])
            distributed.all_reduce(sums)
            *means, there = torch.split(sums / self.count, [*(one.numel() for one in bunch), len(bunch)])
            for one, mean, share in zip(bunch, means, there.tolist(), strict=True):
                one.grad = mean.view_as(one).to(one.dtype) if share else None

    def one_then_all(self, work: Callable[[], Value]) -> Value:
        """Some work that is done once and found done by the others: the first process begins, and they follow."""
        made, failed = _tried(work) if self.first else (None, None)
        self.fail(self.told(failed))
        return self.agreed(lambda: cast(Value, made) if self.first else work())

    def fail(self, error: GraftworkError | None) -> None:
        """Raise an error that is raised in all processes, where there is one; the first one says it."""
        if error is not None:
            error.said_elsewhere = not self.first
            raise error

    def wait(self) -> None:
        """Until all are here."""
        if self.several:
            distributed.barrier()


def _tried(work: Callable[[], Value]) -> tuple[Value | None, GraftworkError | None]:
    try:
        return work(), None
    except GraftworkError as error:
        return None, error


def _bunches(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters of one message each: at most MESSAGE numbers, or one parameter that has more."""
    bunch: list[Tensor] = []
    for parameter in parameters:
        if bunch and sum(one.numel() for one in bunch) + parameter.numel() > MESSAGE:
            yield bunch
            bunch = []
        bunch.append(parameter)
    if bunch:
        yield bunch
