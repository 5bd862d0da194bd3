"""Which program a composition runs: the reference's, or one that is folded for inference.

    reference   one member after another; whatever needs a gradient runs so, and a model in train mode
    folded      each composition as one wide bottleneck a site (`fold.py`)
    banked      each row or token by the weights in its slot (`bank.py`); what has none, folded
    auto        one composition for all rows folded, several banked; by the reference where a gradient is needed

The one place that turns a tree into a program, and the trees of a batch into a route. Folded weights are a snapshot:
they are made when a composition is first run, and again when a weight of it has changed since. Knows nothing of heads
and of how a call names what it wants; that is `plan.py`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, cast

import torch

from graftwork.compose.agree import agrees
from graftwork.compose.bank_route import seat
from graftwork.compose.banks import Banks
from graftwork.compose.fold import Folded, fold
from graftwork.compose.legacy import program
from graftwork.compose.lower import Lane
from graftwork.compose.parts import Parts
from graftwork.compose.reference import Node
from graftwork.compose.route import BatchRoute, Program, route
from graftwork.compose.tree import Composition, names
from graftwork.compose.trunk import Fork, fork_of
from graftwork.compose.watch import Watch
from graftwork.errors import AdapterError

EXECUTIONS = ("auto", "reference", "folded", "banked")
Manner: TypeAlias = Literal["auto", "reference", "folded", "banked"]  # how one call runs

_ROOM = 1 << 30  # bytes that folded weights may take in any case; beyond, `_SHARE` times what the adapters take
_SHARE = 4
_PLAIN_NODE = 512  # bytes of a node that holds no weights, about


@dataclass(frozen=True)
class Batch:
    """What a batch runs: a composition a lane, or with lanes None `whole` on all rows; nothing in the layers `skip`."""

    lanes: Sequence[Lane] | None
    whole: Composition
    rows: int
    skip: frozenset[int]
    manner: Manner


@dataclass(frozen=True, eq=False)
class Made:
    """What one composition runs: its program, the folds that are in it, and the weights that those were made of."""

    tree: Composition
    manner: Manner
    program: Program
    folds: tuple[Folded, ...] = ()
    watch: Watch = field(default_factory=Watch, repr=False)

    @property
    def bytes(self) -> int:
        """Of memory, about."""
        return _PLAIN_NODE * len(self.program) + sum(one.plan.bytes for one in self.folds)


@dataclass(frozen=True)
class Routed:
    """The route of a batch, the programs of its groups, and what folded weights in it and in slots were made of."""

    route: BatchRoute
    made: tuple[Made, ...] = ()
    watches: tuple[Watch, ...] = field(default=(), repr=False)

    @property
    def stale(self) -> bool:
        """Whether a weight has changed since it was folded: the route is to be made again."""
        return any(watch.stale for watch in self.watches)


class Executors:
    """The programs of one model's compositions.

    normed: for every site, whether a norm follows its residual add. depths: for every site, its layer across stacks.
    """

    def __init__(
        self, parts: Parts, normed: Sequence[bool | None], depths: Sequence[int], execution: str = "auto"
    ) -> None:
        self._parts = parts
        self.normed, self.depths = tuple(normed), tuple(depths)
        self.execution = execution
        self._made: dict[tuple[Composition, Manner], Made] = {}
        self._held: dict[str, list[tuple[dict[str, Any], str]]] = {}  # name -> where its parameters are
        self.banks = Banks(parts, self.normed)
        self._bytes, self._room = 0, 0  # of all that is made; how many there may be, 0 where that is not known

    @property
    def execution(self) -> str:
        """How calls that need no gradient run: one of EXECUTIONS. Raises AdapterError when set to anything else."""
        return self._execution

    @execution.setter
    def execution(self, name: str) -> None:
        if name not in EXECUTIONS:
            raise AdapterError(f"execution {name!r} is unknown; there are {', '.join(EXECUTIONS)}")
        self._execution = name

    def manner(self, trees: Iterable[Composition]) -> Manner:
        """How a call with these compositions runs now: by the reference where one of their weights may get a gradient.

        Gradients of what is before and after them, embeddings and heads, pass through folded weights as well.
        """
        if self.execution == "reference" or self._parts.training:
            return "reference"
        if torch.is_grad_enabled() and any(map(self._learns, frozenset().union(*map(names, trees)))):
            return "reference"
        return cast(Manner, self.execution)

    def forget(self, name: str | None = None) -> None:
        """Drop the programs of compositions with the adapter or fusion of that name; None: of all."""
        self._room = 0
        for key in [key for key in self._made if name is None or name in names(key[0])]:
            self._bytes -= self._made.pop(key).bytes
        self._held = {key: held for key, held in self._held.items() if name not in (None, key)}
        self.banks.forget(name)

    def trim(self, routes: Sequence[Routed | None]) -> int:
        """How many of these routes, the most recent first, may be kept: those whose programs there is room for."""
        if self._bytes <= _ROOM or self._bytes <= self._most():
            return len(routes)
        kept: dict[tuple[Composition, Manner], Made] = {}
        total, count = 0, 0
        for one in routes:
            new = {(made.tree, made.manner): made for made in one.made} if one is not None else {}
            total += sum(made.bytes for key, made in new.items() if key not in kept)
            if count and total > self._most():  # what runs now stays, however large it is
                break
            kept |= new
            count += 1
        self._made, self._bytes = kept, sum(made.bytes for made in kept.values())
        return count

    def routed(self, batch: Batch) -> Routed:
        """The route of a batch: rows that have slots, and groups of the others, each with a program of its own."""
        lanes = batch.lanes
        used: list[Made] = []
        if batch.manner == "banked" and lanes is None:
            lanes = [(row, batch.whole) for row in range(batch.rows)]
        several = lanes is not None and len({tree for _, tree in lanes}) > 1
        seating = None
        if lanes is not None and (batch.manner == "banked" or (batch.manner == "auto" and several)):
            skipped = frozenset(site for site, depth in enumerate(self.depths) if depth in batch.skip)
            seating = seat(lanes, self.banks, skipped)

        def run(tree: Composition) -> Program:
            used.append(made := self._program(tree, batch.manner))
            return self._without(batch.skip, made.program)

        made = route(lanes, batch.whole, batch.rows, run, seating)
        watches = [one.watch for one in used]
        watches += [] if seating is None else [one.watch for one in seating.seats]
        return Routed(made, tuple(used), tuple(watches))

    def forked(self, batch: Batch, made: Routed) -> Fork | None:
        """Where rows become lanes inside the model, or None for at its entry; made: the route of the lanes."""

        def refer(tree: Composition) -> Program:
            return self._without(batch.skip, self._program(tree, "reference").program)

        def below(lanes: Sequence[Lane]) -> BatchRoute:  # of trees that `made` has too: its folds are those of both
            return self.routed(replace(batch, lanes=lanes, whole=lanes[0][1], rows=len(lanes))).route

        return fork_of(batch.lanes, made.route, self.depths, refer, below)

    def _without(self, skip: frozenset[int], made: Program) -> Program:
        if not skip:
            return made
        return tuple(None if depth in skip else node for depth, node in zip(self.depths, made, strict=True))

    def _program(self, tree: Composition, manner: Manner) -> Made:
        """The program of a tree, made again where a weight that was folded into it has changed."""
        manner = "reference" if manner == "reference" else "folded"
        old = self._made.get((tree, manner))
        if old is not None and not old.watch.stale:
            return old
        if manner == "folded":
            made = self._folded(tree)
        else:
            made = Made(tree, manner, program(tree, len(self.normed), self._parts))
        self._bytes += made.bytes - (0 if old is None else old.bytes)
        self._made[tree, manner] = made
        return made

    def _folded(self, tree: Composition) -> Made:
        """Folded where our meaning is that of whoever trained it, else as `legacy.py` has it."""
        foreign = self._parts.as_adapters(tree)
        count = len(self.normed)
        nodes: list[Node | None] = list(program(tree, count, self._parts)) if foreign else [None] * count
        folds: list[Folded] = []
        for site, normed in enumerate(self.normed):
            if foreign and not agrees(tree, site, self._parts):
                continue
            one = fold(tree, site, self._parts, normed=normed, own=True, thrifty=True)
            if one is not None:
                nodes[site] = one.node
                folds.append(one)
        return Made(tree, "folded", tuple(nodes), tuple(folds), Watch.joined(one.watch for one in folds))

    def _learns(self, name: str) -> bool:
        """Whether a weight of the adapter or fusion of that name may get a gradient."""
        if name not in self._held:
            tables = [table for table in ("adapters", "fusions") if name in self._parts.records(table)]
            modules = [module for table in tables for module in self._parts.modules_of(table, name).values()]
            inner = [one for module in modules for one in module.modules()]
            self._held[name] = [(one._parameters, key) for one in inner for key in one._parameters]
        held = (weights.get(key) for weights, key in self._held[name])
        return any(weight is not None and weight.requires_grad for weight in held)

    def _most(self) -> int:
        if not self._room:
            tables = (self._parts.adapters, self._parts.fusions)
            taken = sum(weight.nbytes for table in tables for weight in table.parameters())
            self._room = max(_ROOM, _SHARE * taken)
        return self._room
