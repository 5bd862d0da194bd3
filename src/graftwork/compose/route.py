"""Routing: groups of rows and tokens that share one program, made before the forward starts.

`lower.py` says which composition each row and token runs; here equal ones become a group, and the groups answer what
hooks ask: the change at a site, positions in front of keys and values, prompts, what undoes the embeddings' change.
Sites see groups only, and the rows that run in banks (`bank_route.py`), where there are any.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from graftwork.compose.bank_route import Banked, Seating
from graftwork.compose.direct import direct_of
from graftwork.compose.lengthen import Prompts, merge_positions, merge_rows
from graftwork.compose.lower import Lane, runs_of
from graftwork.compose.reference import Node, undo
from graftwork.compose.tree import Composition
from graftwork.core.adapter import Prompt
from graftwork.core.site import NO_DELTA, Delta, Direct, Positions, Reading, Tokens, narrow
from graftwork.errors import CompositionError

Program: TypeAlias = tuple[Node | None, ...]  # one node or None per site


@dataclass(frozen=True)
class Group:
    """Rows (n,) and a run of tokens that share one program; None means all of them."""

    rows: Tensor | None
    tokens: Tokens
    program: Program
    _placed: dict[tuple[torch.device, int], Tensor] = field(default_factory=dict, compare=False, repr=False)

    @property
    def whole(self) -> bool:
        """Whether it is all rows and all tokens, however many the model makes of them."""
        return self.rows is None and self.tokens is None

    def rows_on(self, device: torch.device, copies: int) -> Tensor | None:
        """The rows on a device, each repeated `copies` times in place (beams, returned sequences), (n·copies,)."""
        if self.rows is None:
            return None
        key = (device, copies)
        if key not in self._placed:
            offsets = torch.arange(copies)
            self._placed[key] = (self.rows.unsqueeze(1) * copies + offsets).flatten().to(device)
        return self._placed[key]


@dataclass(frozen=True)
class BatchRoute:
    """The route of one batch: its groups, and which source row each lane repeats (None: each row once, in order).

    prompt: the site where rows get longer than what the model is given, or None. banked: the rows of no group.
    """

    groups: tuple[Group, ...]
    batch: int
    tokens: int | None
    sources: Tensor | None
    prompt: int | None = None
    banked: Banked | None = None

    @cached_property
    def direct(self) -> Mapping[int, Direct]:
        """Site -> the shorter way through it (`direct.py`), where all rows go one way."""
        if self.banked is None and len(self.groups) == 1 and self.groups[0].whole:
            ways = {site: direct_of(node) for site, node in enumerate(self.groups[0].program) if node is not None}
            return {site: way for site, way in ways.items() if way is not None}
        return {} if self.banked is None or self.groups else self.banked.direct(self.batch)

    def runs_at(self, site: int) -> bool:
        """Whether a row has a module at a site."""
        banked = self.banked is not None and self.banked.runs_at(site)
        return banked or any(group.program[site] is not None for group in self.groups)

    def delta(self, site: int, reading: Reading) -> Delta | None:
        """The change at a site, (B, T, D); None where no row has a module."""
        of_groups = self._of_groups(site, reading)
        if self.banked is None or not self.banked.runs_at(site):
            return of_groups
        copies = self._copies(reading.like.shape[0])
        self._check_tokens(reading)
        change = self.banked.delta(site, reading, copies)
        return change if of_groups is None else change.plus(of_groups)  # other rows: zero in one of them

    def _of_groups(self, site: int, reading: Reading) -> Delta | None:
        if len(self.groups) == 1 and self.groups[0].whole:  # what most calls are, asked at every site
            node = self.groups[0].program[site]
            return None if node is None else node(reading, NO_DELTA)
        active = [group for group in self.groups if group.program[site] is not None]
        if not active:
            return None
        copies = self._copies(reading.like.shape[0])
        self._check_tokens(reading)
        before: Tensor | None = None
        after: Tensor | None = None
        for group in active:
            node = group.program[site]
            assert node is not None
            rows = group.rows_on(reading.like.device, copies)
            change = node(reading.narrow(rows, group.tokens), NO_DELTA)
            before = _placed(before, change.before, rows, group.tokens, reading.like)
            after = _placed(after, change.after, rows, group.tokens, reading.like)
        return Delta(before, after)

    def _check_tokens(self, reading: Reading) -> None:
        if self.tokens is not None and reading.like.shape[1] != self.tokens:
            raise CompositionError(
                f"Split covers {self.tokens} tokens, but the sequence at this site has {reading.like.shape[1]}"
            )

    def positions(self, site: int, reading: Reading) -> Positions | None:
        """What is put in front of keys and values at a kv site, or None."""
        parts: list[tuple[Tensor | None, Positions]] = []
        for group, node, rows in self._rows(site, reading.output):
            found = node.positions(reading.narrow(rows, None))
            if group.whole:
                return found  # type: ignore[no-any-return]
            parts.append((rows, found))
        return merge_positions(parts, reading.output.shape[0]) if parts else None

    def prompted(self, site: int, embeddings: Tensor) -> Tensor | None:
        """Embeddings with prompts among them, or None."""
        return self._longer(site, embeddings, lambda node, own: node.put(own))

    def lengthened(self, row: Tensor, fill: int, pad: int) -> Tensor:
        """A mask or labels (B, T) for rows with prompts: `fill` where these are, `pad` in front of shorter rows."""
        if self.prompt is None:
            return row
        longer = self._longer(self.prompt, row, lambda node, own: node.lengthened(own, fill), pad)
        return row if longer is None else longer

    @property
    def prompt_lengths(self) -> tuple[int, ...]:
        """How many tokens prompts put in front of the rows: each number once, 0 where a row has none."""
        if self.prompt is None:
            return (0,)
        nodes = [group.program[self.prompt] for group in self.groups]
        found = {0 if node is None else cast(Prompt | Prompts, node).length for node in nodes}
        everyone = any(group.rows is None for group in self.groups)
        rows = {row for group in self.groups if group.rows is not None for row in group.rows.tolist()}
        return tuple(sorted(found | (set() if everyone or len(rows) == self.batch else {0})))

    def check_even(self) -> None:
        """Raise CompositionError where rows have prompts of different lengths, or only some have one."""
        lengths = self.prompt_lengths
        if len(lengths) > 1:
            raise CompositionError(
                f"rows with prompts of {', '.join(map(str, lengths))} tokens cannot share a batch of images: the model "
                "takes no mask that would hide what fills up the shorter ones; call once for each length"
            )

    def inverse(self, site: int, hidden: Tensor) -> Tensor | None:
        """What undoes the change at an embed site, on (B, T, D) before the vocabulary, or None."""
        undone: Tensor | None = None
        for group, node, rows in self._rows(site, hidden):
            found = undo(node, narrow(hidden, rows, None))
            if group.whole or found is None:
                undone = found if group.whole else undone
                continue
            undone = hidden.clone() if undone is None else undone
            undone[slice(None) if rows is None else rows] = found
        return undone

    def inverse_of(self, site: int, rows: Sequence[int]) -> Callable[[Tensor], Tensor] | None:
        """What undoes the change at an embed site for some rows (n,), a function of their hidden states (n, T, D)."""
        if all(group.program[site] is None for group in self.groups):
            return None
        part = self if list(rows) == list(range(self.batch)) else self._some(rows)  # beams follow their row

        def undone(hidden: Tensor) -> Tensor:
            found = part.inverse(site, hidden)
            return hidden if found is None else found

        return undone

    def _some(self, rows: Sequence[int]) -> "BatchRoute":
        place = {row: number for number, row in enumerate(rows)}
        own: list[Group] = []
        for group in self.groups:
            members = None if group.rows is None else [place[row] for row in group.rows.tolist() if row in place]
            if members is None or members:
                own.append(replace(group, rows=None if members is None else torch.tensor(members), _placed={}))
        return BatchRoute(tuple(own), len(rows), self.tokens, None)

    def _longer(self, site: int, rows: Tensor, put: Callable[[Any, Tensor], Tensor], pad: int = 0) -> Tensor | None:
        parts = []
        for group, node, own in self._rows(site, rows):
            longer = put(node, narrow(rows, own, None))
            if group.whole:
                return longer
            parts.append((own, longer))
        return merge_rows(parts, rows.shape[0], rows, pad) if parts else None

    def _rows(self, site: int, like: Tensor) -> Iterator[tuple[Group, Any, Tensor | None]]:
        """The groups with a node at a site that belongs to whole rows, and their rows."""
        for group in self.groups:
            node = group.program[site]
            if node is None:
                continue
            if group.tokens is not None:
                raise CompositionError(
                    "a Split sends the tokens of a row to different adapters, but prefixes, prompts and the inverse of "
                    "an invertible adapter belong to whole rows; use BatchSplit, or a composition a row"
                )
            copies = 1 if group.whole else self._copies(like.shape[0])
            yield group, node, group.rows_on(like.device, copies)

    def _copies(self, rows: int) -> int:
        copies, left = divmod(rows, self.batch)
        if left or not copies:
            raise CompositionError(
                f"the route is for {self.batch} rows, but the model runs {rows} here; where a model computes something "
                "once for all rows (DeBERTa with share_att_key its relative positions, by the linears of query and "
                "key), rows of one batch cannot have different adapters: call once for each"
            )
        return copies


def _placed(
    whole: Tensor | None, part: Tensor | None, rows: Tensor | None, tokens: Tokens, like: Tensor
) -> Tensor | None:
    """Write a part (n, t, D) into the whole (B, T, D), which begins as zeros."""
    if part is None:
        return whole
    whole = torch.zeros_like(like) if whole is None else whole
    if rows is None:
        whole[:, tokens or slice(None)] = part
    elif tokens is None:
        whole[rows] = part
    else:
        whole[rows, tokens] = part
    return whole


def route(
    lanes: Sequence[Lane] | None,
    whole: Composition,
    batch: int,
    program: Callable[[Composition], Program],
    seating: Seating | None = None,
) -> BatchRoute:
    """The route of a batch from its lanes; `lanes` None means every row runs `whole`, which has no row routing.

    seating: what became of the lanes that can run in banks; the others are groups.
    """
    banked = None if seating is None else seating.banked
    trees: dict[Composition, list[int]] = {}
    for lane, (_, tree) in enumerate(lanes or ()):
        if seating is None or lane in seating.others:
            trees.setdefault(tree, []).append(lane)
    if lanes is None:
        trees[whole] = []
    groups: list[Group] = []
    tokens: set[int] = set() if banked is None else banked.tokens
    count = batch if lanes is None else len(lanes)
    for tree, members in trees.items():
        rows = None if lanes is None or len(members) == count else torch.tensor(members)
        runs = runs_of(tree)
        start = 0
        for length, part in runs:
            run = None if length is None else slice(start, start + length)
            start += length or 0
            groups.append(Group(rows, run, program(part)))
        if start:
            tokens.add(start)
    if len(tokens) > 1:
        raise CompositionError(f"the Splits of one batch cover {sorted(tokens)} tokens; its rows are equally long")
    sources = [source for source, _ in lanes or ()]
    same = lanes is None or sources == list(range(batch))
    nodes = ((site, node) for group in groups for site, node in enumerate(group.program))
    prompt = next((site for site, node in nodes if isinstance(node, Prompts) or hasattr(node, "put")), None)
    repeated = None if same else torch.tensor(sources)
    return BatchRoute(tuple(groups), count, next(iter(tokens), None), repeated, prompt, banked)
