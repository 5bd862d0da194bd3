"""Which program a composition runs: the reference's, or one that is folded for inference.

    reference   one member after another; whatever needs a gradient runs so, and a model in train mode
    folded      each composition as one wide bottleneck a site (`fold.py`)
    auto        folded where no gradient is needed

The one place that turns a tree into a program, and the trees of a batch into a route. Folded weights are a snapshot:
they are made when a composition is first run, and again when a weight of it has changed since. Knows nothing of heads
and of how a call names what it wants; that is `plan.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch

from graftwork.compose.fold import Folded, fold
from graftwork.compose.legacy import program
from graftwork.compose.lower import Lane
from graftwork.compose.parts import Parts
from graftwork.compose.route import BatchRoute, Program, route
from graftwork.compose.tree import Composition, names
from graftwork.compose.trunk import Fork, fork_of
from graftwork.errors import AdapterError

EXECUTIONS = ("auto", "reference", "folded")
Manner: TypeAlias = Literal["reference", "folded"]  # how one call runs


@dataclass(frozen=True)
class Batch:
    """What a batch runs: a composition a lane, or with lanes None `whole` on all rows; nothing in the layers `skip`."""

    lanes: Sequence[Lane] | None
    whole: Composition
    rows: int
    skip: frozenset[int]
    manner: Manner


@dataclass(frozen=True)
class Routed:
    """The route of a batch, and what was folded for it."""

    route: BatchRoute
    folds: tuple[Folded, ...] = ()

    @property
    def stale(self) -> bool:
        """Whether a weight has changed since it was folded: the route is to be made again."""
        return any(one.stale for one in self.folds)


class Executors:
    """The programs of one model's compositions.

    normed: for every site, whether a norm follows its residual add. depths: for every site, its layer across stacks.
    """

    def __init__(
        self, parts: Parts, normed: Sequence[bool | None], depths: Sequence[int], execution: str = "reference"
    ) -> None:
        self._parts = parts
        self.normed, self.depths = tuple(normed), tuple(depths)
        self.execution = execution
        self._programs: dict[Composition, Program] = {}
        self._folds: dict[Composition, tuple[Folded | None, ...]] = {}

    @property
    def execution(self) -> str:
        """How calls that need no gradient run: one of EXECUTIONS. Raises AdapterError when set to anything else."""
        return self._execution

    @execution.setter
    def execution(self, name: str) -> None:
        if name not in EXECUTIONS:
            raise AdapterError(f"execution {name!r} is unknown; there are {', '.join(EXECUTIONS)}")
        self._execution = name

    def manner(self) -> Manner:
        """How a call runs now."""
        if self.execution == "reference" or self._parts.training:
            return "reference"
        if torch.is_grad_enabled() and any(weight.requires_grad for weight in self._parts.parameters()):
            return "reference"
        return "folded"

    def forget(self, name: str | None = None) -> None:
        """Drop the programs of compositions with the adapter or fusion of that name; None: of all."""
        for kept in (self._programs, self._folds):
            for tree in [tree for tree in kept if name is None or name in names(tree)]:
                del kept[tree]

    def routed(self, batch: Batch) -> Routed:
        """The route of a batch."""
        several = len({tree for _, tree in batch.lanes or ()}) > 1
        return self._mixed(batch) if several else self._by_group(batch)

    def _mixed(self, batch: Batch) -> Routed:
        """The route of a batch with several compositions."""
        return self._by_group(batch)

    def _by_group(self, batch: Batch) -> Routed:
        """One group of rows after another, each with a program of its own."""
        folds: list[Folded] = []

        def run(tree: Composition) -> Program:
            made = self._folded(tree, folds) if batch.manner == "folded" else self._referred(tree)
            return self._without(batch.skip, made)

        made = route(batch.lanes, batch.whole, batch.rows, run)
        return Routed(made, tuple(folds))

    def forked(self, batch: Batch, made: Routed) -> Fork | None:
        """Where rows become lanes inside the model, or None for at its entry; made: the route of the lanes."""

        def refer(tree: Composition) -> Program:
            return self._without(batch.skip, self._referred(tree))

        def below(lanes: Sequence[Lane]) -> BatchRoute:  # of trees that `made` has too: its folds are those of both
            return self.routed(replace(batch, lanes=lanes, whole=lanes[0][1], rows=len(lanes))).route

        return fork_of(batch.lanes, made.route, self.depths, refer, below)

    def _without(self, skip: frozenset[int], made: Program) -> Program:
        if not skip:
            return made
        return tuple(None if depth in skip else node for depth, node in zip(self.depths, made, strict=True))

    def _referred(self, tree: Composition) -> Program:
        if tree not in self._programs:
            self._programs[tree] = program(tree, len(self.normed), self._parts)
        return self._programs[tree]

    def _folded(self, tree: Composition, used: list[Folded]) -> Program:
        """The program of a tree folded at every site, again where a weight has changed; `used` collects its folds."""
        if self._parts.as_adapters(tree):
            return self._referred(tree)
        old = self._folds.get(tree)
        if old is None or any(one is not None and one.stale for one in old):
            sites = enumerate(self.normed)
            self._folds[tree] = tuple(fold(tree, site, self._parts, normed=normed) for site, normed in sites)
        used += [one for one in self._folds[tree] if one is not None]
        return tuple(None if one is None else one.node for one in self._folds[tree])
