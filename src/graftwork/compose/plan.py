"""From what a call asks for to an explicit plan: the route, the rows it repeats, and the head of every row.

Plans are derived from names and sizes alone, so equal calls share one; nothing is walked again until a part is added or
removed. A call that needs no gradient may run folded (`execution`): its plan is made again when a weight has changed.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from graftwork.compose.answer import head_of
from graftwork.compose.fold import Folded, fold
from graftwork.compose.grammar import as_composition
from graftwork.compose.inputs import ROWS, SENSED
from graftwork.compose.legacy import marked, program
from graftwork.compose.lower import lanes_of, lanes_of_rows
from graftwork.compose.parts import Parts
from graftwork.compose.route import BatchRoute, Program, route
from graftwork.compose.tree import BatchSplit, Composition, Parallel, has, show
from graftwork.errors import AdapterError, CompositionError

NO_HEAD = "none"
EXECUTIONS = ("reference", "folded")
_KEPT = 256  # plans kept; a plan is a few index tensors


@dataclass(frozen=True)
class Plan:
    """What one forward does. heads: one name per output row, None for the base's own output."""

    route: BatchRoute | None
    heads: tuple[str, ...] | None
    trees: tuple[Composition, ...]
    rows: int
    folds: tuple[Folded, ...] = ()  # what its route runs folded
    words: Tensor | None = None  # embeddings of another vocabulary, (V', D)

    @property
    def sources(self) -> Tensor | None:
        """The source row of each output row, (rows,), or None when rows are not repeated."""
        return None if self.route is None else self.route.sources

    def speaking(self, words: Tensor | None) -> "Plan":
        """The same plan with embeddings of another vocabulary, (V', D); with None, this one."""
        return self if words is None else replace(self, words=words)

    def repeat(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Repeat the rows of every input as Parallel asks: (B, ...) -> (rows, ...)."""
        if self.sources is None:
            return inputs
        one_for_all = int(self.sources.max()) > 0  # a batch of several rows: what has one row is the same for each
        return {
            key: value if one_for_all and value.shape[0] == 1 else value.index_select(0, self.sources.to(value.device))
            for key, value in inputs.items()
        }

    def further(self, extra: Mapping[str, Any] | None, batch: int) -> dict[str, Any]:
        """Further arguments of the base with the rows of their tensors, (B, ...) or (1, ...), repeated.

        Raises AdapterError for a tensor with other rows than the batch, where rows are repeated.
        """
        extra = extra or {}
        tensors = {key: value for key, value in extra.items() if isinstance(value, Tensor)}
        if self.sources is None or not tensors:
            return dict(extra)
        for key, value in tensors.items():
            if value.dim() == 0 or value.shape[0] not in (1, batch):
                raise AdapterError(
                    f"extra holds the tensor {key!r} of shape {tuple(value.shape)}, which has no row for each of the "
                    f"{batch} rows that Parallel repeats"
                )
        return dict(extra) | self.repeat(tensors)

    @property
    def prompted(self) -> bool:
        """Whether rows get longer than what the model is given."""
        return self.route is not None and self.route.prompt is not None

    def undoing(self, site: int | None) -> Callable[[Tensor], Tensor] | None:
        """What undoes the change at the embed site, for all rows, or None where there is no such site."""
        route = self.route
        return None if route is None or site is None else route.inverse_of(site, range(route.batch))

    def lengthen(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inputs with a mask for rows that prompts make longer.

        How many tokens an image makes is not known here: no mask is made for it, and its rows must have equally long
        prompts. Raises AdapterError for positions given by hand, CompositionError for images with unequal prompts.
        """
        if self.route is None or not self.prompted:
            return inputs
        if "position_ids" in inputs:
            raise AdapterError("position_ids were given for rows that a prompt makes longer; leave them out")
        lead = next(key for key in ROWS if key in inputs)
        mask = inputs.get("attention_mask")
        if mask is None and lead in SENSED:
            self.route.check_even()
            return inputs
        given = inputs[lead]
        rows, tokens = given.shape[:2]
        mask = torch.ones(rows, tokens, dtype=torch.long, device=given.device) if mask is None else mask
        return inputs | {"attention_mask": self.route.lengthened(mask, fill=1, pad=0)}

    def places(self, like: Tensor) -> Tensor | None:
        """Where the T tokens of a text are in rows that prompts made longer, (B, T); like (B, T, ...). Else None."""
        if self.route is None or not self.prompted:
            return None
        rows, tokens = like.shape[:2]
        numbers = torch.arange(tokens, device=like.device).expand(rows, tokens)
        longer = self.route.lengthened(numbers, fill=-1, pad=-1)  # (B, T'), the tokens still in their order
        return (longer >= 0).nonzero()[:, 1].view(rows, tokens)


class Planner:
    """Makes and keeps the plans of one model.

    normed: for every site, whether a norm follows its residual add. depths: for every site, its layer across stacks.

    execution: "reference", or "folded" for calls outside of training that need no gradient of a part.
    """

    def __init__(
        self,
        parts: Parts,
        normed: Sequence[bool | None],
        execution: str = "reference",
        depths: Sequence[int] = (),
    ) -> None:
        self._parts = parts
        self._normed = tuple(normed)
        self._depths = tuple(depths)
        self.execution = execution
        self._plans: OrderedDict[tuple[Any, ...], Plan] = OrderedDict()
        self._programs: dict[Composition, Program] = {}
        self._folds: dict[Composition, tuple[Folded | None, ...]] = {}
        self._turn = threading.Lock()  # calls from several threads share the plans

    def __getstate__(self) -> dict[str, Any]:
        return {
            "parts": self._parts,
            "normed": self._normed,
            "execution": self.execution,
            "depths": self._depths,
        }  # derived data does not travel, and locks cannot

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["parts"], state["normed"], state["execution"], state["depths"])  # type: ignore[misc]

    def choose(self, execution: str) -> None:
        """Set how calls that need no gradient run. Raises AdapterError for a name that is not known."""
        if execution not in EXECUTIONS:
            raise AdapterError(f"execution {execution!r} is unknown; there are {', '.join(EXECUTIONS)}")
        self.execution = execution

    def forget(self) -> None:
        """Drop every plan: a part was added, replaced or removed."""
        with self._turn:
            self._plans.clear()
            self._programs.clear()
            self._folds.clear()

    def plan(
        self,
        setup: Any,
        head: str | Sequence[str | None] | None,
        default_head: str | None,
        batch: int,
        skip: Sequence[int] = (),
    ) -> Plan:
        """The plan of a call: `setup` a composition, or a list with one per row; skip: layers that run without.

        Raises CompositionError or AdapterError for what does not fit the batch or is not there.
        """
        per_row = isinstance(setup, list | tuple)
        tree = tuple(map(as_composition, setup)) if per_row else as_composition(setup)
        heads = head if isinstance(head, str) or head is None else tuple(head)
        folded = self._may_fold()
        key = (tree, per_row, heads, default_head, batch, folded, tuple(skip))
        with self._turn:
            if key in self._plans and not any(one.stale for one in self._plans[key].folds):
                self._plans.move_to_end(key)
                return self._plans[key]
            trees = tree if isinstance(tree, tuple) else (tree,)
            run = self._runner(frozenset(skip), folded)
            self._plans[key] = plan = self._made(trees, per_row, heads, default_head, batch, run)
            if len(self._plans) > _KEPT:
                self._plans.popitem(last=False)
            return plan

    def _made(
        self,
        trees: tuple[Composition, ...],
        per_row: bool,
        head: str | tuple[str | None, ...] | None,
        default_head: str | None,
        batch: int,
        runner: Callable[[Composition, list[Folded]], Program],
    ) -> Plan:
        if batch < 1:
            raise CompositionError("a batch needs at least one row")
        for tree in dict.fromkeys(trees):
            self._parts.check(tree)
        trees = tuple(marked(tree) if self._parts.as_adapters(tree) else tree for tree in trees)
        distinct = tuple(dict.fromkeys(trees))
        if per_row and len(trees) != batch:
            raise CompositionError(f"adapters= names {len(trees)} compositions for a batch of {batch} rows")
        whole = len(distinct) == 1 and not has(distinct[0], Parallel) and not has(distinct[0], BatchSplit)
        if whole:
            lanes = None
        elif per_row:
            lanes = lanes_of_rows(trees)
        else:
            lanes = lanes_of(trees[0], batch)
        ran = tuple(tree for _, tree in lanes) if lanes is not None else (distinct[0],) * batch
        inside = self._parts.inside  # what the base computes by itself: no adapter, or the one that is merged into it
        idle = len(ran) == batch and all(tree == inside for tree in ran)
        if not idle and inside is not None:
            self._parts.need_unmerged(f"{', '.join(map(show, distinct))} cannot run, only {inside!r} for every row can")
        folds: list[Folded] = []
        made = None
        if not idle:
            made = route(lanes, distinct[0], batch, lambda tree: runner(tree, folds))
        sources = [source for source, _ in lanes] if lanes is not None else list(range(batch))
        answering = self._heads(ran, sources, head, default_head, batch)
        return Plan(made, answering, tuple(dict.fromkeys(ran)), len(ran), tuple(folds))

    def _runner(self, skip: frozenset[int], folded: bool) -> Callable[[Composition, list[Folded]], Program]:
        """What makes the program of a tree: folded or not, with nothing in the layers to skip."""

        def run(tree: Composition, used: list[Folded]) -> Program:
            made = self._folded(used, tree) if folded else self._program(tree)
            if not skip:
                return made
            return tuple(None if depth in skip else node for node, depth in zip(made, self._depths, strict=True))

        return run

    def _may_fold(self) -> bool:
        if self.execution == "reference" or self._parts.training:
            return False
        return not torch.is_grad_enabled() or not any(weight.requires_grad for weight in self._parts.parameters())

    def _program(self, tree: Composition) -> Program:
        if tree not in self._programs:
            self._programs[tree] = program(tree, len(self._normed), self._parts)
        return self._programs[tree]

    def _folded(self, used: list[Folded], tree: Composition) -> Program:
        """The program of a tree folded at every site, again where a weight has changed; `used` collects its folds."""
        if self._parts.as_adapters(tree):
            return self._program(tree)
        old = self._folds.get(tree)
        if old is None or any(one is not None and one.stale for one in old):
            sites = enumerate(self._normed)
            self._folds[tree] = tuple(fold(tree, site, self._parts, normed=normed) for site, normed in sites)
        used += [one for one in self._folds[tree] if one is not None]
        return tuple(None if one is None else one.node for one in self._folds[tree])

    def _heads(
        self,
        ran: Sequence[Composition],
        sources: Sequence[int],
        head: str | tuple[str | None, ...] | None,
        default_head: str | None,
        batch: int,
    ) -> tuple[str, ...] | None:
        if isinstance(head, tuple) and len(head) != batch:
            raise AdapterError(f"head= names {len(head)} heads for a batch of {batch} rows")
        known: Mapping[str, object] = self._parts.head_configs
        chosen: list[str | None] = []
        for source, tree in zip(sources, ran, strict=True):
            named = head[source] if isinstance(head, tuple) else head
            if named is None:
                named = head_of(tree, list(known), default_head)
            elif named != NO_HEAD:
                self._parts.head(named)
            chosen.append(None if named == NO_HEAD else named)
        answered = [name for name in chosen if name is not None]
        if not answered:
            return None
        if len(answered) < len(chosen):
            rows = [row for row, name in enumerate(chosen) if name is None]
            listed = ", ".join(show(ran[row]) for row in rows[:5])
            raise AdapterError(
                f"rows {rows} ({listed}) have no head while others of the batch have one; ask for them apart"
            )
        return tuple(answered)
