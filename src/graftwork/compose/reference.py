"""The reference executor: the definition of every composition in plain PyTorch, one member after another.

    Stack(a, b):       Δ₁ = a(read(0));  Δ = Δ₁ + b(read(Δ₁))
    Average(a, b; w):  Δ = Σ wᵢ aᵢ(read(0)),  Σ wᵢ = 1
    Fuse(a, b, c):     Δ = V·Σ αᵢ uᵢ,  αᵢ = softmaxᵢ(q(h)·k(uᵢ)),  uᵢ = the change of member i alone

The oracle of every other executor, and what training uses. A composition bound to one site is a `Node`: called with a
reading and the change so far, it returns its own change, exactly as an adapter does. Members that have no module at a
site are left out of it; routing blocks never arrive here (`route.py` lowers them).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from torch import Tensor

from graftwork.compose.tree import Average, Composition, Fuse, Stack, leaves, show
from graftwork.core.fusion import Fusion
from graftwork.core.kinds import Adapter
from graftwork.core.site import NO_DELTA, Delta, Reading
from graftwork.errors import RoutingError


class Node(Protocol):
    """Anything that changes the stream at one site: an adapter, or a composition of them."""

    def __call__(self, reading: Reading, delta: Delta) -> Delta:
        """The node's own change, given what was changed before."""
        ...


class Modules(Protocol):
    """Where the modules of named members are found."""

    def adapter(self, name: str, site: int) -> Adapter | None:
        """The module of adapter `name` at a site, None where it has none."""
        ...

    def fusion(self, name: str, site: int) -> Fusion | None:
        """The fusion layer `name` at a site, None where not all of its members have a module."""
        ...


@dataclass(frozen=True, slots=True)
class _Stack:
    members: Sequence[Node]

    def __call__(self, reading: Reading, delta: Delta) -> Delta:
        own = NO_DELTA
        for member in self.members:
            change = member(reading, delta)
            own, delta = own.plus(change), delta.plus(change)
        return own


@dataclass(frozen=True, slots=True)
class _Average:
    members: Sequence[tuple[float, Node]]

    def __call__(self, reading: Reading, delta: Delta) -> Delta:
        own = NO_DELTA
        for share, member in self.members:
            own = own.plus(member(reading, delta).times(share))
        return own


@dataclass(frozen=True, slots=True)
class _Fuse:
    fusion: Fusion
    members: Sequence[Node | Adapter]
    last: Adapter  # its flags say what the query reads, and where the result is written

    def __call__(self, reading: Reading, delta: Delta) -> Delta:
        config, last = self.fusion.config, self.last
        changes = [_alone(member, reading, delta) for member in self.members]
        before_norm = config.query_before_ln and not last.config.is_parallel  # a parallel adapter reads no norm
        query = reading.hidden(delta) if before_norm else last.read(reading, delta)
        residual = last.carried(reading, delta) if config.residual_before else None
        return last.settle(reading, delta, self.fusion(query, changes, residual))


def _alone(member: Node | Adapter, reading: Reading, delta: Delta) -> Tensor:
    if not isinstance(member, _Stack | _Average | _Fuse):  # a leaf: of tensors, or of symbols (formula.py)
        return cast(Adapter, member).change(reading, delta)
    change = member(reading, delta)
    parts = [part for part in (change.before, change.after) if part is not None]
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def bind(tree: Composition, site: int, modules: Modules) -> Node | None:
    """The composition at one site, or None where none of it has a module there."""
    if tree is None:
        return None
    if isinstance(tree, str):
        return modules.adapter(tree, site)
    members = [bind(child, site, modules) for child in tree.children]
    present = [member for member in members if member is not None]
    if not present:
        return None
    if isinstance(tree, Stack):
        return present[0] if len(present) == 1 else _Stack(present)
    if isinstance(tree, Average):
        return _Average([(share, node) for share, node in zip(tree.shares, members, strict=True) if node is not None])
    if isinstance(tree, Fuse):
        fusion, last = modules.fusion(tree.name, site), _last(tree, site, modules)
        # a fusion is trained over all of its members: where one is missing it has no meaning
        if fusion is None or last is None or len(present) < len(members):
            return None
        return _Fuse(fusion, present, last)
    raise RoutingError(f"{show(tree)} is routing and cannot be executed at a site; it must be lowered first")


def _last(tree: Composition, site: int, modules: Modules) -> Adapter | None:
    for name in reversed(leaves(tree)):
        module = modules.adapter(name, site)
        if module is not None:
            return module
    return None


def program(tree: Composition, sites: int, modules: Modules) -> tuple[Node | None, ...]:
    """The composition at every site, in the order of site indices."""
    return tuple(bind(tree, site, modules) for site in range(sites))
