"""The slots of the items of a batch: as numbers, for a call that may look at them, or as data of a compiled graph.

An *item* is a row of T tokens, or a single token; slot 0 means that it has nothing to run.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

Run: TypeAlias = tuple[int, int, int]  # (slot, first item, last item + 1)


@dataclass(frozen=True, eq=False)
class Routing:
    """The slot of each of n items, which lie side by side; what backends need of it is made once."""

    slots: tuple[int, ...]
    _placed: dict[torch.device, Tensor] = field(default_factory=dict, repr=False)
    _ordered: "dict[torch.device, tuple[Routing, Tensor, Tensor]]" = field(default_factory=dict, repr=False)
    _bounds: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)
    _views: dict[tuple[int, torch.Size], list[Tensor]] = field(default_factory=dict, repr=False)
    ways: dict[object, Any] = field(default_factory=dict, repr=False)  # kind of call -> what does it

    def on(self, device: torch.device) -> Tensor:
        """The slots as a tensor, (n,)."""
        if device not in self._placed:
            self._placed[device] = torch.tensor(self.slots, device=device)
        return self._placed[device]

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """Items side by side that share a slot."""
        return _runs(self.slots)

    @cached_property
    def consecutive(self) -> bool:
        """Whether the slots are s, s + 1, s + 2, …"""
        return self.slots == tuple(range(self.slots[0], self.slots[0] + len(self.slots)))

    @cached_property
    def distinct(self) -> int:
        """How many slots there are."""
        return len(set(self.slots))

    @cached_property
    def idle(self) -> bool:
        """Whether some items have nothing to run: their slot is 0."""
        return 0 in self.slots

    def ordered(self, device: torch.device) -> "tuple[Routing, Tensor, Tensor]":
        """The items in the order of their slots, the indices (n,) that put them there, and those that put them back."""
        if device not in self._ordered:
            order = sorted(range(len(self.slots)), key=self.slots.__getitem__)
            there = torch.tensor(order)
            routing = Routing(tuple(self.slots[item] for item in order))
            self._ordered[device] = routing, there.to(device), there.argsort().to(device)
        return self._ordered[device]

    def bounds(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Of each run its slot, and the item after its last one, (runs,)."""
        if device not in self._bounds:
            slots, _, ends = zip(*self.runs, strict=True)
            self._bounds[device] = torch.tensor(slots, device=device), torch.tensor(ends, device=device)
        return self._bounds[device]

    def views(self, weight: Tensor) -> list[Tensor]:
        """The matrix or bias of each run."""
        key = weight.data_ptr(), weight.shape  # a slab that has grown lies elsewhere
        if key not in self._views:
            self._views[key] = [weight[slot] for slot, _, _ in self.runs]
        return self._views[key]

    def only_used(self, change: Tensor | None) -> Tensor | None:
        """A change (B, T, D) without what came of items that have nothing to run."""
        if change is None:
            return None
        return _only_used(change, self.on(change.device))


def _runs(slots: Sequence[int]) -> tuple[Run, ...]:
    runs, start = [], 0
    for slot, items in groupby(slots):
        stop = start + len(list(items))
        runs.append((slot, start, stop))
        start = stop
    return tuple(runs)


@dataclass(frozen=True, eq=False)
class Traced:
    """The slots of n items as a tensor alone, (n,): data to a graph that torch.compile traces, whatever is in it."""

    slots: Tensor
    idle: ClassVar[bool] = True  # it may be, in some call

    def only_used(self, change: Tensor | None) -> Tensor | None:
        """As `Routing.only_used`."""
        return None if change is None else _only_used(change, self.slots)


def _only_used(change: Tensor, slots: Tensor) -> Tensor:
    items = change.view(len(slots), -1, change.shape[-1])
    return torch.where((slots > 0).view(-1, 1, 1), items, 0.0).view(change.shape)
