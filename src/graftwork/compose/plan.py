"""From what a call asks for to an explicit plan: the route, the rows it repeats, and the head of every row.

Plans are derived from names and sizes alone, so equal calls share one; nothing is walked again until a part of it is
added or removed. Which program a composition runs is `execute.py`'s to say: a plan that holds folded weights is made
again when one has changed.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from graftwork.compose.answer import head_of
from graftwork.compose.execute import Batch, Executors, Manner, Routed
from graftwork.compose.grammar import as_composition
from graftwork.compose.inputs import ROWS, SENSED
from graftwork.compose.legacy import marked
from graftwork.compose.lower import Lanes, lowered
from graftwork.compose.parts import Parts
from graftwork.compose.route import BatchRoute
from graftwork.compose.tree import Composition, names, show
from graftwork.compose.trunk import Fork, Forked, shares
from graftwork.core.backbone import Backbone
from graftwork.core.site import Route
from graftwork.errors import AdapterError, CompositionError

NO_HEAD = "none"
_KEPT = 256  # plans kept; a plan is a few index tensors


class _Key(NamedTuple):
    """What a call asks for."""

    trees: tuple[Composition, ...]
    per_row: bool
    heads: str | tuple[str | None, ...] | None
    default_head: str | None
    batch: int
    skip: frozenset[int]
    manner: Manner
    rows: tuple[int, ...] | None = None  # of Lanes

    @property
    def open(self) -> bool:
        """Whether it depends on which heads there are who answers."""
        return self.heads is None or (isinstance(self.heads, tuple) and None in self.heads)


@dataclass(frozen=True)
class Plan:
    """What one forward does. heads: one name per output row, None for the base's own output."""

    routed: Routed | None
    heads: tuple[str, ...] | None
    trees: tuple[Composition, ...]
    rows: int
    words: Tensor | None = None  # embeddings of another vocabulary, (V', D)
    fork: Fork | None = None  # where rows become lanes inside the model; None: at its entry
    skip: frozenset[int] = frozenset()  # layers, across stacks, that run without adapters

    @property
    def route(self) -> BatchRoute | None:
        """Who changes what; None where nothing does."""
        return None if self.routed is None else self.routed.route

    @property
    def stale(self) -> bool:
        """Whether it is to be made again: a weight has changed that was folded for it."""
        return self.routed is not None and self.routed.stale

    @property
    def names(self) -> frozenset[str]:
        """Every adapter, fusion and head in it."""
        return frozenset(self.heads or ()).union(*map(names, self.trees))

    @property
    def sources(self) -> Tensor | None:
        """The source row of each output row, (rows,), or None when rows are not repeated."""
        return None if self.route is None else self.route.sources

    def speaking(self, words: Tensor | None) -> "Plan":
        """The same plan with embeddings of another vocabulary, (V', D); with None, this one."""
        return self if words is None else replace(self, words=words)

    def on(self, backbone: Backbone, extra: Mapping[str, Any] | None) -> "Plan":
        """The plan as this model can run it now: with rows repeated at the entry where it cannot share them."""
        fork = None if self.fork is None else self.fork.on(backbone)
        whole = not extra and (self.heads or backbone.model is backbone.trunk)
        if fork is not None and not (whole and fork.entered and shares(backbone)):
            fork = None
        return self if fork is self.fork else replace(self, fork=fork)

    @property
    def running(self) -> Route | None:
        """The route of one forward, made for it alone where rows become lanes inside."""
        return self.route if self.fork is None else Forked(self.fork)

    def lanes(self, made: Any) -> Any:
        """What was made for rows that become lanes inside, with a row for each lane; anything else as it is."""
        return made if self.fork is None else self.fork.whole(made)

    def repeat(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Repeat the rows of every input as Parallel asks: (B, ...) -> (rows, ...); none where they fork inside."""
        if self.sources is None or self.fork is not None:
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
    execution: how calls that need no gradient run (`compose/execute.py`).
    """

    def __init__(
        self,
        parts: Parts,
        normed: Sequence[bool | None],
        execution: str = "auto",
        depths: Sequence[int] = (),
    ) -> None:
        self._parts = parts
        self.executors = Executors(parts, normed, depths, execution)
        self._plans: OrderedDict[_Key, Plan] = OrderedDict()
        self._turn = threading.Lock()  # calls from several threads share the plans

    def __getstate__(self) -> dict[str, Any]:
        made = self.executors
        # derived data does not travel, and locks cannot
        return {"parts": self._parts, "normed": made.normed, "execution": made.execution, "depths": made.depths}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["parts"], state["normed"], state["execution"], state["depths"])  # type: ignore[misc]

    def reserve(self, slots: int) -> None:
        """Make room for that many adapters in every bank, now and to come."""
        with self._turn:
            self.executors.banks.reserve(slots)

    def forget(self, name: str | None = None) -> None:
        """Drop what was made with the adapter, fusion or head of that name, which was added, replaced or removed.

        None: drop everything. Where a call leaves its head open, any head may be the one that answers.
        """
        with self._turn:
            for key in [key for key, plan in self._plans.items() if name is None or key.open or name in plan.names]:
                del self._plans[key]
            self.executors.forget(name)

    def plan(
        self,
        setup: Any,
        head: str | Sequence[str | None] | None,
        default_head: str | None,
        batch: int,
        skip: Sequence[int] = (),
    ) -> Plan:
        """The plan of a call: `setup` a composition, a list with one per row, or Lanes; skip: layers that run without.

        Raises CompositionError or AdapterError for what does not fit the batch or is not there.
        """
        rows = None
        if isinstance(setup, Lanes):
            setup.check(batch)
            rows, setup = tuple(setup.rows), tuple(setup.compositions)
            rows = None if rows == tuple(range(batch)) else rows
        per_row = isinstance(setup, list | tuple)
        trees = tuple(map(as_composition, setup)) if per_row else (as_composition(setup),)
        heads = head if isinstance(head, str) or head is None else tuple(head)
        with self._turn:
            manner = self.executors.manner(trees)
            key = _Key(trees, per_row, heads, default_head, batch, frozenset(skip), manner, rows)
            kept = self._plans.get(key)
            if kept is not None and not kept.stale:
                self._plans.move_to_end(key)
                return kept
            made = self._made(key)
            self._plans.pop(key, None)
            self._plans[key] = made
            most = self.executors.trim([plan.routed for plan in reversed(self._plans.values())])
            while len(self._plans) > min(most, _KEPT):
                self._plans.popitem(last=False)
            return made

    def _made(self, asked: "_Key") -> Plan:
        trees, batch = asked.trees, asked.batch
        if batch < 1:
            raise CompositionError("a batch needs at least one row")
        for tree in dict.fromkeys(trees):
            self._parts.check(tree)
        trees = tuple(marked(tree) if self._parts.as_adapters(tree) else tree for tree in trees)
        distinct = tuple(dict.fromkeys(trees))
        lanes = lowered(trees, asked.rows, asked.per_row, batch)
        ran = tuple(tree for _, tree in lanes) if lanes is not None else (distinct[0],) * batch
        inside = self._parts.inside  # what the base computes by itself: no adapter, or the one that is merged into it
        idle = len(ran) == batch and all(tree == inside for tree in ran)
        if not idle and inside is not None:
            self._parts.need_unmerged(f"{', '.join(map(show, distinct))} cannot run, only {inside!r} for every row can")
        entries = range(len(ran)) if lanes is None or asked.rows else [source for source, _ in lanes]
        work = Batch(lanes, distinct[0], batch, asked.skip, asked.manner)
        made = None if idle else self.executors.routed(work)
        fork = None if made is None else self.executors.forked(work, made)
        answering = self._heads(ran, entries, asked.heads, asked.default_head, len(asked.rows or range(batch)))
        return Plan(made, answering, tuple(dict.fromkeys(ran)), len(ran), fork=fork, skip=asked.skip)

    def _heads(
        self,
        ran: Sequence[Composition],
        entries: Sequence[int],
        head: str | tuple[str | None, ...] | None,
        default_head: str | None,
        batch: int,
    ) -> tuple[str, ...] | None:
        if isinstance(head, tuple) and len(head) != batch:
            raise AdapterError(f"head= names {len(head)} heads for a batch of {batch} rows")
        known: Mapping[str, object] = self._parts.head_configs
        chosen: list[str | None] = []
        for entry, tree in zip(entries, ran, strict=True):
            named = head[entry] if isinstance(head, tuple) else head
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
