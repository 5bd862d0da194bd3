"""The reference executor: the definition of every composition in plain PyTorch, one member after another.

    Stack(a, b):       Δ₁ = a(read(0));  Δ = Δ₁ + b(read(Δ₁))
    Average(a, b; w):  Δ = Σ wᵢ aᵢ(read(0)),  Σ wᵢ = 1
    Fuse(a, b, c):     Δ = V·Σ αᵢ uᵢ,  αᵢ = softmaxᵢ(q(h)·k(uᵢ)),  uᵢ = what member i alone says

The oracle of every other executor, and what training uses. A composition bound to one site is a `Node`: called with a
reading and the change so far, it returns its own change, exactly as an adapter does. What it *says* is that change
before it is settled into the stream; the two differ only for members whose flags move the stream to where they write.
Members that have no module at a site are left out of it; routing blocks never arrive here (`route.py` lowers them).
Prefixes and prompts lengthen instead of changing; `lengthen.py` says what they compose with.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from torch import Tensor

from graftwork.compose.lengthen import join
from graftwork.compose.tree import Average, Composition, Fuse, Stack, leaves, show
from graftwork.core.adapter import Adapter, Invertible
from graftwork.core.fusion import Fusion
from graftwork.core.site import NO_DELTA, Delta, Reading
from graftwork.errors import CompositionError, RoutingError


class Node(Protocol):
    """Anything that changes the stream at one site: an adapter, or a composition of them."""

    def __call__(self, reading: Reading, delta: Delta) -> Delta:
        """The node's own change, given what was changed before."""
        ...


class Member(Node, Protocol):
    """A node that can be a member of a fusion."""

    def change(self, reading: Reading, delta: Delta) -> Tensor:
        """What the node says, (B, T, D), before it is settled into the stream."""
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
    members: Sequence[Member]

    def __call__(self, reading: Reading, delta: Delta) -> Delta:
        return _in_turn(self.members, reading, delta)

    def change(self, reading: Reading, delta: Delta) -> Tensor:
        """What the earlier members change, and what the last one says on top of that."""
        earlier = _in_turn(self.members[:-1], reading, delta)
        said = self.members[-1].change(reading, delta.plus(earlier))
        for part in (earlier.before, earlier.after):
            said = said if part is None else part + said
        return said


@dataclass(frozen=True, slots=True)
class _Average:
    members: Sequence[tuple[float, Member]]

    def __call__(self, reading: Reading, delta: Delta) -> Delta:
        own = NO_DELTA
        for share, member in self.members:
            own = own.plus(member(reading, delta).times(share))
        return own

    def change(self, reading: Reading, delta: Delta) -> Tensor:
        """The average of what the members say."""
        (share, first), *others = self.members
        said = first.change(reading, delta) * share
        for share, member in others:
            said = said + member.change(reading, delta) * share
        return said


@dataclass(frozen=True, slots=True)
class _Fuse:
    fusion: Fusion
    members: Sequence[Member]
    last: Adapter  # its flags say what the query reads, and where the result is written

    def __call__(self, reading: Reading, delta: Delta) -> Delta:
        return self.last.settle(reading, delta, self.change(reading, delta))

    def change(self, reading: Reading, delta: Delta) -> Tensor:
        """The attended mean of what the members say."""
        config, last = self.fusion.config, self.last
        said = [member.change(reading, delta) for member in self.members]
        query = last.read(reading, delta, before_norm=config.query_before_ln)
        residual = last.carried(reading, delta) if config.residual_before else None
        return self.fusion(query, said, residual)  # type: ignore[no-any-return]


def undo(node: Node, hidden: Tensor) -> Tensor | None:
    """What undoes a node of an embed site, (B, T, D), or None where nothing of it can be or needs to be undone.

    A Stack is undone from its end. Raises CompositionError for a mixture of invertible adapters.
    """
    if isinstance(node, _Stack):
        undone = None
        for member in reversed(node.members):
            changed = undo(member, hidden)
            hidden, undone = (hidden, undone) if changed is None else (changed, changed)
        return undone
    if isinstance(node, _Average | _Fuse):
        mixed = [member for _, member in node.members] if isinstance(node, _Average) else node.members
        if any(undo(member, hidden) is not None for member in mixed):
            raise CompositionError(
                "a mixture of invertible adapters has no exact inverse, which a language-modelling head needs; "
                "Stack them, or answer with a head of another kind"
            )
        return None
    return node.inverse(hidden) if isinstance(node, Invertible) and node.undone_at_head else None


def _in_turn(members: Sequence[Member], reading: Reading, delta: Delta) -> Delta:
    own = NO_DELTA
    for member in members:
        change = member(reading, delta)
        own, delta = own.plus(change), delta.plus(change)
    return own


def bind(tree: Composition, site: int, modules: Modules) -> Member | None:
    """The composition at one site, or None where none of it has a module there."""
    if tree is None:
        return None
    if isinstance(tree, str):
        return modules.adapter(tree, site)
    members = [bind(child, site, modules) for child in tree.children]
    present = [member for member in members if member is not None]
    if not present:
        return None
    joined = join(tree, present)
    if joined is not None:
        return cast(Member, joined)
    if isinstance(tree, Stack):
        return present[0] if len(present) == 1 else _Stack(present)
    if isinstance(tree, Average):
        return _Average([(share, node) for share, node in zip(tree.shares, members, strict=True) if node is not None])
    if isinstance(tree, Fuse):
        fusion, last = modules.fusion(tree.name, site), _last(tree, site, modules)
        # a fusion is trained over all of its members: where one is missing it has no meaning
        if fusion is None or last is None or len(present) < len(members):
            return None
        return _Fuse(fusion, fusion.attended(present), last)
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
