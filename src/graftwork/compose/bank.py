"""Banks: the folded weights of many adapters in common slabs, so that what a row runs is a number in a tensor.

    unit       what one slot holds: an adapter, an Average or a Fuse, folded at every site (`fold.py`)
    bank       slots for units that differ in nothing but their weights: a slab a site (`bank_slab.py`), a unit has one
               slot in all of them

Slot 0 holds zeros everywhere and belongs to nobody. Slabs are made ahead and grow by doubling; adding, replacing and
evicting moves data into a slot and nothing else.

A slot is used through a *lease*. It is given to another unit only when the last holder of the lease is gone, so that a
forward that has begun ends with the weights it began with; its generation is counted up, and a lease of an earlier one
is an error. Knows nothing of batches and routes.
"""

import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from graftwork.compose.bank_slab import Slab, Structure, slot_weights
from graftwork.compose.plain import Plain
from graftwork.compose.wide import Wide
from graftwork.errors import RoutingError

_FIRST = 8  # slots of a bank that was not told how many it will need


@dataclass(frozen=True, eq=False, weakref_slot=True, slots=True)
class Lease:
    """The right to use a slot as long as somebody holds this. unit: whose weights are in it."""

    bank: "Bank"
    unit: str
    number: int
    generation: int

    def release(self) -> None:
        """Give the slot back before the last holder is gone."""
        self.bank.take_back(self.number, self.generation)

    @property
    def slot(self) -> int:
        """The number of the slot. Raises RoutingError where another unit has it by now."""
        now = self.bank.generations[self.number]
        if now != self.generation:
            raise RoutingError(
                f"slot {self.number} was leased for {self.unit} in generation {self.generation} and is in generation "
                f"{now}: its weights are gone; lease it again"
            )
        return self.number


class Bank:
    """Slots for units of one structure at every site. `slots`: how many to make at first, without the empty slot 0.

    A unit that has no module at a site has zeros there, in the slabs that others need.
    """

    def __init__(self, sites: int, slots: int = _FIRST) -> None:
        self.slabs: list[Slab | None] = [None] * sites
        self.generations = [0] * (1 + slots)  # odd where a slot is in use: counted up when it is given and taken back
        self._free = deque(range(1, 1 + slots))

    @property
    def slots(self) -> int:
        """S, the empty slot counted."""
        return len(self.generations)

    @property
    def used(self) -> int:
        """How many slots hold the weights of somebody."""
        return self.slots - 1 - len(self._free)

    @property
    def device(self) -> torch.device:
        """Where its first slab is."""
        weights = (slot_weights(slab.node)[0] for slab in self.slabs if slab is not None)
        return next(weights).device

    @property
    def nbytes(self) -> int:
        """Of all slabs."""
        return sum(slab.nbytes for slab in self.slabs if slab is not None)

    @property
    def gated(self) -> bool:
        """Whether a unit reads more than one token of a row at a time."""
        return any(slab is not None and slab.gated for slab in self.slabs)

    def fits(self, unit: Sequence[Plain | Wide | None], structures: Sequence[Structure | None]) -> bool:
        """Whether a unit differs from the others in its weights alone, sites without a module aside."""
        for node, own, slab in zip(unit, structures, self.slabs, strict=True):
            if node is None or slab is None:
                if slab is not None and slab.moves:
                    return False  # zeros would move the stream there
            elif own != slab.structure:
                return False
        return True

    def put(self, name: str, unit: Sequence[Plain | Wide | None]) -> Lease:
        """Give a unit that fits a free slot, and make more where there is none."""
        with torch.no_grad(), torch.inference_mode(False):  # slabs outlive the call that needs them first
            if not self._free:
                self._grow(2 * self.slots)
            slot = self._free.popleft()
            for site, node in enumerate(unit):
                slab = self.slabs[site]
                if node is not None and slab is None:
                    slab = self.slabs[site] = Slab(node, self.slots)
                    self._clear_others(slab)
                if slab is not None:
                    slab.clear(slot) if node is None else slab.write(slot, node)
        self.generations[slot] += 1
        lease = Lease(self, name, slot, self.generations[slot])
        weakref.finalize(lease, self.take_back, slot, lease.generation).atexit = False
        return lease

    def take_back(self, slot: int, generation: int) -> None:
        """Free a slot whose lease is gone; nothing where that has been done."""
        if self.generations[slot] == generation:
            self.generations[slot] += 1
            self._free.appendleft(slot)  # the next unit takes its place

    def _clear_others(self, slab: Slab) -> None:
        """Zeros at a site where the units so far had nothing."""
        for slot, generation in enumerate(self.generations):
            if generation % 2:
                slab.clear(slot)

    def reserve(self, slots: int) -> None:
        """Have room for that many units; nothing where there is."""
        if slots >= self.slots:
            with torch.no_grad(), torch.inference_mode(False):
                self._grow(1 + slots)

    def _grow(self, new: int) -> None:
        old = self.slots
        for slab in self.slabs:
            if slab is not None:
                slab.grow(new)
        self.generations += [0] * (new - old)
        self._free.extend(range(old, new))
