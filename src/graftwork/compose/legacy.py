"""Compositions as AdapterHub's `adapters` 1.3.0 computes them, for packages that say `semantics: adapters-1`.

A state walks through the tree: the hidden states h, and what a member's output is added to. A *pre-step* replaces both
by what the flags of one adapter ask for, given h, r and LN; a member turns h into its output; a *post-step* with the
flags of the last adapter leaves the site. Where that differs from `reference.py`:

    Fuse(Stack(a, b), c)    fuses what the last member of the stack says; the stack's pre-steps read what was normed
    Fuse of parallel ones   adds r to the sum, and the post-step adds it again
    Stack under a router    one pre-step with its first adapter, then its own
    Fuse of gated ones      attends to what they say without their gates
    Stack of LoRAs          the second one reads what the first one says: B₂A₂B₁A₁x
    Fuse over missing members  fuses those that a layer has
    embeddings, prompts, ReFT  only the first adapter of the tree counts

What that library computes wrongly is computed rightly here too: an Average is a mean, rows of a batch keep their own
flags, and a parallel adapter in a Stack adds to what the others changed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol, cast

from torch import Tensor

from graftwork.compose import lengthen
from graftwork.compose.reference import Member, Modules, Node, bind
from graftwork.compose.tree import (
    Average,
    BatchSplit,
    Block,
    Composition,
    Fuse,
    Parallel,
    Split,
    Stack,
    fusions,
    leaves,
)
from graftwork.core.adapter import Invertible, Prefix, Prompt
from graftwork.core.bottleneck import Bottleneck
from graftwork.core.fusion import Fusion
from graftwork.core.lora import LoRA
from graftwork.core.quirks import Unscaled, View
from graftwork.core.reft import Reft
from graftwork.core.site import NO_DELTA, Delta, Positions, Reading
from graftwork.core.union import Union


class LegacyModules(Modules, Protocol):
    """Modules, and what is known of where they were trained."""

    def as_adapters(self, tree: Composition) -> bool:
        """Whether a composition is to be read as `adapters` 1.3.0 reads it."""
        ...

    def view(self, site: int) -> View | None:
        """How that library reads a site, or None where it reads it as it is."""
        ...

    def counts_prefixes(self) -> bool:
        """Whether that library's relative positions count prefixes on this model."""
        ...


def program(tree: Composition, sites: int, modules: LegacyModules) -> tuple[Node | None, ...]:
    """The composition at every site, in the order of site indices."""
    if not modules.as_adapters(tree):
        return tuple(bind(tree, site, modules) for site in range(sites))
    return tuple(_bind(tree, site, modules) for site in range(sites))


def marked(tree: Composition) -> Composition:
    """The tree with every block that stands right under a router put into a Stack of its own: there it is stepped into
    twice, and after lowering nothing else would tell."""
    if not isinstance(tree, Block):
        return tree
    router = isinstance(tree, Parallel | BatchSplit | Split)
    children = [marked(child) for child in tree.children]
    children = [Stack(child) if router and isinstance(child, Block) else child for child in children]
    if isinstance(tree, BatchSplit):
        return BatchSplit(*children, batch_sizes=tree.batch_sizes)
    if isinstance(tree, Split):
        return Split(*children, splits=tree.splits)
    if isinstance(tree, Average):
        return Average(*children, weights=tree.weights)
    if isinstance(tree, Fuse):
        return Fuse(*children, name=tree.label)
    return Parallel(*children) if isinstance(tree, Parallel) else Stack(*children)


def _bind(tree: Composition, site: int, modules: LegacyModules) -> Member | None:
    found = {name: modules.adapter(name, site) for name in leaves(tree)}
    members = {name: _alone(module) for name, module in found.items() if module is not None}
    if not members:
        return None
    if any(isinstance(member, Invertible | Prompt | Reft) for member in members.values()):
        first, seen = members.get(leaves(tree)[0]), modules.view(site)
        if isinstance(seen, Unscaled) and isinstance(first, Invertible):
            return cast(Member, _Smaller(first, seen))
        return cast("Member | None", first)
    view, native = modules.view(site), bind(tree, site, modules)
    if isinstance(tree, str):
        native = native if view is None else cast(Member, _Viewed(cast(Member, native), view))
    if isinstance(native, lengthen.Prefixes | Prefix):
        if isinstance(native, lengthen.Prefixes):  # there every prefix goes in front of those before it
            native = lengthen.Prefixes(native.members[::-1])
        return cast(Member, _Counted(native) if modules.counts_prefixes() else native)
    if isinstance(tree, str):
        return native
    if all(isinstance(member, LoRA) for member in members.values()) and isinstance(tree, Stack):
        return cast(Member, _Chain(tuple(cast(LoRA, members[name]) for name in leaves(tree) if name in members)))
    if all(isinstance(member, Bottleneck) for member in members.values()):
        layers = {fuse.name: modules.fusion(fuse.name, site) for fuse in fusions(tree)}
        machine = _Machine(tree, cast(Mapping[str, Bottleneck], members), layers)
        return cast(Member, machine if view is None else _Viewed(machine, view))
    return native


def _alone(module: object) -> object:
    while isinstance(module, Union) and len(module.members) == 1:
        module = module.members[0]
    return module


@dataclass(frozen=True, slots=True)
class _Viewed:
    """A node that sees a site in another way."""

    node: Node
    view: View

    def __call__(self, reading: Reading, delta: Delta) -> Delta:
        return self.node(self.view(reading), delta)


@dataclass(frozen=True, slots=True)
class _Smaller:
    """An invertible adapter of embeddings that are multiplied after it; a head undoes it as it is."""

    node: Invertible
    view: Unscaled

    @property
    def undone_at_head(self) -> bool:
        """Whether a language-modelling head undoes it."""
        return self.node.undone_at_head

    def __call__(self, reading: Reading, delta: Delta) -> Delta:
        return cast(Node, self.node)(self.view(reading), delta).times(self.view.factor)

    def inverse(self, hidden: Tensor) -> Tensor:
        """That of the adapter, (B, T, D) -> (B, T, D)."""
        return self.node.inverse(hidden)


@dataclass(frozen=True, slots=True)
class _Counted:
    """Prefixes whose positions the attention counts."""

    node: Prefix | lengthen.Prefixes

    def positions(self, reading: Reading) -> Positions:
        return replace(self.node.positions(reading), counted=True)


@dataclass(frozen=True, slots=True)
class _Chain:
    """LoRAs of a stack, each reading what the one before says."""

    members: tuple[LoRA, ...]

    def __call__(self, reading: Reading, delta: Delta) -> Delta:
        said = self.members[0].change(reading, delta)
        for member in self.members[1:]:
            said = member.change(replace(reading, residual=said, summed=None), delta)
        return Delta(before=said)


@dataclass(frozen=True, slots=True)
class _State:
    """Where the walk is: h, what a member's output is added to, and what came out of the last bottleneck."""

    hidden: Tensor
    carried: Tensor
    up: Tensor | None = None
    last: Bottleneck | None = None


@dataclass(frozen=True, slots=True)
class _Machine:
    """A tree of bottlenecks at one sub-layer site."""

    tree: Composition
    members: Mapping[str, Bottleneck]
    fusions: Mapping[str, Fusion | None]

    def __call__(self, reading: Reading, delta: Delta) -> Delta:
        state = self._walk(self.tree, _State(reading.output, reading.residual), reading)
        last = state.last
        if last is None:
            return NO_DELTA
        out = state.hidden + reading.output if last.config.is_parallel else state.hidden
        if not last.writes_after:
            return Delta(before=out - reading.output)
        change = out - reading.stream(NO_DELTA)
        return Delta(before=change) if reading.norm is None else Delta(after=change)

    def _walk(self, tree: Composition, state: _State, reading: Reading) -> _State:
        if isinstance(tree, str):
            return self._member(tree, state) if tree in self.members else state
        if isinstance(tree, Stack):
            return self._stack(tree, state, reading)
        if isinstance(tree, Fuse):
            return self._fuse(tree, state, reading)
        if isinstance(tree, Average):
            state = self._step(tree, state, reading)
            ends = [self._walk(child, state, reading) for child in tree.children]
            hidden = sum(share * end.hidden for share, end in zip(tree.shares, ends, strict=True))
            return replace(ends[-1], hidden=cast(Tensor, hidden), carried=state.carried)
        return state

    def _stack(self, tree: Stack, state: _State, reading: Reading) -> _State:
        routed = len(tree.children) == 1 and isinstance(tree.children[0], Block)
        for child in tree.children:
            if routed or isinstance(child, str):
                if isinstance(child, str) and self._adds_beside(child, state):
                    state = self._beside(child, state, reading)
                    continue
                state = self._step(child, state, reading)
            state = self._walk(child, state, reading)
        return state

    def _adds_beside(self, name: str, state: _State) -> bool:
        member = self.members.get(name)
        return member is not None and member.config.is_parallel and state.last is not None

    def _beside(self, name: str, state: _State, reading: Reading) -> _State:
        """A parallel adapter after others: it adds to what they changed (that library would lose it)."""
        member, last = self.members[name], cast(Bottleneck, state.last)
        said = member.finish(member.propose(reading.residual), reading.residual, None)
        return replace(state, hidden=state.hidden + said, last=last)

    def _step(self, tree: Composition, state: _State, reading: Reading) -> _State:
        """The pre-step with the flags of the first adapter of a tree."""
        first = next((self.members[name] for name in leaves(tree) if name in self.members), None)
        if first is None:
            return state
        hidden, carried, _ = _before(first, state, reading)
        return replace(state, hidden=hidden, carried=carried)

    def _member(self, name: str, state: _State) -> _State:
        member, x = self.members[name], state.hidden
        up = member.propose(x)
        inside = member.config.adapter_residual_before_ln and not member.config.is_parallel
        out = member.finish(up, x, state.carried if inside else None)
        return replace(state, hidden=out if member.config.is_parallel else state.carried + out, up=up, last=member)

    def _fuse(self, tree: Fuse, state: _State, reading: Reading) -> _State:
        layer = self.fusions[tree.name]
        last = next((self.members[name] for name in reversed(leaves(tree)) if name in self.members), None)
        if layer is None or last is None:
            return state
        hidden, carried, normed = _before(last, state, reading)
        early = layer.config.query_before_ln and not last.config.is_parallel
        query = state.hidden if early else normed
        start = replace(state, hidden=hidden, carried=carried)
        ends = [self._walk(child, start, reading) for child in layer.attended(tree.children)]
        ups = [end.up for end in ends if end.up is not None]
        fused = layer(query, ups, carried if layer.config.residual_before else None)
        return replace(start, hidden=fused + carried, last=last)


def _before(member: Bottleneck, state: _State, reading: Reading) -> tuple[Tensor, Tensor, Tensor]:
    """h, what is carried and what a query reads after the pre-step of one adapter."""
    here = replace(reading, output=state.hidden, summed=None)
    hidden = member.read(here, NO_DELTA)
    carried = reading.residual if member.config.is_parallel else member.carried(here, NO_DELTA)
    return hidden, carried, hidden
