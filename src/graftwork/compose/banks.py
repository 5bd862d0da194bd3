"""Which units of a model are in which slot: put there when a batch first needs them, again when a weight has changed.

The row of a mixed batch runs a *sequence of levels*: the members of the Stack at its top, each a unit with a slot. What
is no unit (another method than a bottleneck, or a composition that does not fold to one wide bottleneck at every site)
runs as a group of rows, beside the banks. Knows nothing of batches.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from graftwork.compose.bank import Bank, Lease
from graftwork.compose.bank_slab import Structure, Unbankable, structure, width_class
from graftwork.compose.fold import Folded, fold
from graftwork.compose.parts import Parts
from graftwork.compose.plain import Plain
from graftwork.compose.tree import Composition, Stack, names, show
from graftwork.compose.watch import Watch
from graftwork.compose.wide import Wide

_Nodes: TypeAlias = list[Plain | Wide | None]  # by site
_Structures: TypeAlias = list[Structure | None]
_KEPT = 1024  # units that keep their slot while no plan uses them


@dataclass(frozen=True)
class Seated:
    """A unit in its slot, and the weights that it was made of."""

    lease: Lease
    watch: Watch


class Banks:
    """The banks of one model. normed: for every site, whether a norm follows its residual add.

    slots: how many to make in a bank at first; it grows when they are not enough.
    """

    def __init__(self, parts: Parts, normed: Sequence[bool | None], slots: int = 8) -> None:
        self._parts = parts
        self._normed = tuple(normed)
        self.slots = slots
        self.banks: list[Bank] = []
        self._seated: OrderedDict[Composition, Seated] = OrderedDict()
        self.refused: dict[Composition, str] = {}  # what has no slot, and why
        self._named: dict[str, set[Composition]] = {}  # name -> the units with it in either of these

    def reserve(self, slots: int) -> None:
        """Have room for that many units in every bank, those to come included."""
        self.slots = max(slots, self.slots)
        for bank in self.banks:
            bank.reserve(slots)

    def levels(self, tree: Composition) -> tuple[Seated, ...] | None:
        """The units of a row in the order in which they run; None where one of them has no slot."""
        if self._parts.as_adapters(tree):
            return None  # read by the reference, and as a whole: a Stack is not its members in turn there
        found = []
        for unit in _stacked(tree):
            seat = self._seat(unit)
            if seat is None:
                return None
            found.append(seat)
        return tuple(found)

    def forget(self, name: str | None = None) -> None:
        """Free the slots of units with the adapter or fusion of that name; None: of all."""
        if name is None:
            self._seated.clear()
            self.refused.clear()
            self._named.clear()
            self.banks = []
        for unit in list(self._named.get(name or "", ())):  # not all units: one of a thousand goes as one of two does
            self._drop(unit)

    def _drop(self, unit: Composition) -> None:
        self._seated.pop(unit, None)
        self.refused.pop(unit, None)
        for name in names(unit):
            self._named[name].discard(unit)
            if not self._named[name]:
                del self._named[name]

    def _seat(self, unit: Composition) -> Seated | None:
        old = self._seated.get(unit)
        if old is not None and not old.watch.stale:
            self._seated.move_to_end(unit)
            return old
        del old
        self._seated.pop(unit, None)  # frees its slot, unless a forward still runs with it
        if unit in self.refused:
            return None
        for name in names(unit):
            self._named.setdefault(name, set()).add(unit)
        try:
            seat = self._seated[unit] = self._placed(unit)
        except Unbankable as reason:
            self.refused[unit] = str(reason)
            return None
        while len(self._seated) > _KEPT:
            self._drop(next(iter(self._seated)))
        return seat

    def _placed(self, unit: Composition) -> Seated:
        watch, nodes, structures = self._folded(unit)
        bank = next((one for one in self.banks if one.fits(nodes, structures)), None)
        if bank is None:
            bank = Bank(len(self._normed), self.slots)
            self.banks.append(bank)
        return Seated(bank.put(show(unit), nodes), watch)

    def _folded(self, unit: Composition) -> tuple[Watch, _Nodes, _Structures]:
        folds: list[Folded] = []
        nodes: _Nodes = []
        structures: _Structures = []
        for site, normed in enumerate(self._normed):
            one = fold(unit, site, self._parts, normed=normed, width=width_class)
            if one is None:
                nodes.append(None)
                structures.append(None)
                continue
            structures.append(structure(one.node))
            assert isinstance(one.node, Plain | Wide)  # what has a structure
            nodes.append(one.node)
            folds.append(one)
        if not folds:
            raise Unbankable("it has no module at any site")
        return Watch.joined(one.watch for one in folds), nodes, structures


def _stacked(tree: Composition) -> Iterator[Composition]:
    """The members of the Stack at the top, with those of Stacks in it; a tree that is none is its own one member."""
    if isinstance(tree, Stack):
        for child in tree.children:
            yield from _stacked(child)
    elif tree is not None:
        yield tree
