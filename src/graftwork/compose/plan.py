"""From what a call asks for to an explicit plan: the route, the rows it repeats, and the head of every row.

Plans are derived from names and sizes alone, so equal calls share one; nothing is walked again until a part is added or
removed.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from graftwork.compose.answer import head_of
from graftwork.compose.grammar import as_composition
from graftwork.compose.parts import Parts
from graftwork.compose.reference import program
from graftwork.compose.route import BatchRoute, Program, lanes_of, lanes_of_rows, route
from graftwork.compose.tree import BatchSplit, Composition, Parallel, has, show
from graftwork.errors import AdapterError, CompositionError

NO_HEAD = "none"
_KEPT = 256  # plans kept; a plan is a few index tensors


@dataclass(frozen=True)
class Plan:
    """What one forward does. heads: one name per output row, None for the base's own output."""

    route: BatchRoute | None
    heads: tuple[str, ...] | None
    trees: tuple[Composition, ...]
    rows: int

    @property
    def sources(self) -> Tensor | None:
        """The source row of each output row, (rows,), or None when rows are not repeated."""
        return None if self.route is None else self.route.sources

    def repeat(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Repeat the rows of every input as Parallel asks: (B, ...) -> (rows, ...)."""
        if self.sources is None:
            return inputs
        one_for_all = int(self.sources.max()) > 0  # a batch of several rows: what has one row is the same for each
        return {
            key: value if one_for_all and value.shape[0] == 1 else value.index_select(0, self.sources.to(value.device))
            for key, value in inputs.items()
        }


class Planner:
    """Makes and keeps the plans of one model."""

    def __init__(self, parts: Parts, sites: int) -> None:
        self._parts = parts
        self._sites = sites
        self._plans: OrderedDict[tuple[Any, ...], Plan] = OrderedDict()
        self._programs: dict[Composition, Program] = {}
        self._turn = threading.Lock()  # calls from several threads share the plans

    def __getstate__(self) -> dict[str, Any]:
        return {"_parts": self._parts, "_sites": self._sites}  # derived data does not travel, and locks cannot

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_parts"], state["_sites"])  # type: ignore[misc]

    def forget(self) -> None:
        """Drop every plan: a part was added, replaced or removed."""
        with self._turn:
            self._plans.clear()
            self._programs.clear()

    def plan(self, setup: Any, head: str | Sequence[str | None] | None, default_head: str | None, batch: int) -> Plan:
        """The plan of a call: `setup` a composition, or a list with one per row.

        Raises CompositionError or AdapterError for what does not fit the batch or is not there.
        """
        per_row = isinstance(setup, list | tuple)
        tree = tuple(map(as_composition, setup)) if per_row else as_composition(setup)
        heads = head if isinstance(head, str) or head is None else tuple(head)
        key = (tree, per_row, heads, default_head, batch)
        with self._turn:
            if key in self._plans:
                self._plans.move_to_end(key)
                return self._plans[key]
            plan = self._made(tree if isinstance(tree, tuple) else (tree,), per_row, heads, default_head, batch)
            self._plans[key] = plan
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
    ) -> Plan:
        if batch < 1:
            raise CompositionError("a batch needs at least one row")
        distinct = tuple(dict.fromkeys(trees))
        for tree in distinct:
            self._parts.check(tree)
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
        idle = len(ran) == batch and all(tree is None for tree in ran)
        made = None if idle else route(lanes, distinct[0], batch, self._program)
        sources = [source for source, _ in lanes] if lanes is not None else list(range(batch))
        return Plan(made, self._heads(ran, sources, head, default_head, batch), tuple(dict.fromkeys(ran)), len(ran))

    def _program(self, tree: Composition) -> Program:
        if tree not in self._programs:
            self._programs[tree] = program(tree, self._sites, self._parts)
        return self._programs[tree]

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
