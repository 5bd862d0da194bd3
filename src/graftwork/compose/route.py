"""Routing: from compositions over rows and tokens to groups that share one program, before the forward starts.

BatchSplit and per-row compositions assign rows, Split assigns tokens, Parallel repeats rows. Each distributes over the
arithmetic blocks: Stack(l, BatchSplit(a:1, b:1)) is Stack(l, a) on row 0 and Stack(l, b) on row 1. What is left is a
list of *lanes* (source row, composition without routing over rows), and for each a list of runs of tokens. Sites see
groups only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TypeAlias

import torch
from torch import Tensor

from graftwork.compose.reference import Node
from graftwork.compose.tree import Average, BatchSplit, Composition, Parallel, Split, Stack, has, show
from graftwork.core.site import NO_DELTA, Delta, Reading, Tokens
from graftwork.errors import CompositionError

Program: TypeAlias = tuple[Node | None, ...]  # one node or None per site
Lane: TypeAlias = tuple[int, Composition]  # (source row, what runs on it)


def lanes_of(tree: Composition, batch: int) -> list[Lane]:
    """Lower the row routing of one composition over `batch` rows: branch by branch, in each the rows in order.

    Raises CompositionError where a BatchSplit does not cover the rows.
    """
    return _ordered(_branches(tree, batch))


def lanes_of_rows(trees: Sequence[Composition]) -> list[Lane]:
    """Lower the row routing of one composition per row, in the same order. Raises CompositionError as `lanes_of`."""
    return _ordered([_branches(tree, 1)[0] for tree in trees])


def _ordered(branches: Sequence[Sequence[Composition]]) -> list[Lane]:
    # a row with fewer branches than another is left out of the later ones
    depth = max(map(len, branches))
    return [(source, row[at]) for at in range(depth) for source, row in enumerate(branches) if at < len(row)]


def _branches(tree: Composition, batch: int) -> list[list[Composition]]:
    """For each row, the compositions that run on its copies."""
    if not has(tree, Parallel) and not has(tree, BatchSplit):
        return [[tree]] * batch
    if isinstance(tree, BatchSplit):
        if sum(tree.batch_sizes) != batch:
            raise CompositionError(f"{tree} covers {sum(tree.batch_sizes)} rows, but the batch has {batch}")
        parts = zip(tree.children, tree.batch_sizes, strict=True)
        return [row for child, size in parts for row in _branches(child, size)]
    assert isinstance(tree, Parallel | Stack | Average)  # the only blocks that may hold routing over rows
    per_child = [_branches(child, batch) for child in tree.children]
    rows = list(zip(*per_child, strict=True))  # for each row, one list of branches per child
    if isinstance(tree, Parallel):
        return [[branch for child in row for branch in child] for row in rows]
    return [[_rebuilt(tree, choice) for choice in _broadcast(row)] for row in rows]


def _broadcast(row: Sequence[list[Composition]]) -> list[tuple[Composition, ...]]:
    copies = max(len(child) for child in row)  # at most one child has several: a Stack holds one Parallel
    return list(zip(*(child * copies if len(child) == 1 else child for child in row), strict=True))


def _rebuilt(tree: Stack | Average, children: tuple[Composition, ...]) -> Composition:
    return Stack(*children) if isinstance(tree, Stack) else Average(*children, weights=tree.weights)


def runs_of(tree: Composition) -> list[tuple[int | None, Composition]]:
    """Lower the token routing: (length, composition without Split); length None means all tokens."""
    if not has(tree, Split):
        return [(None, tree)]
    if isinstance(tree, Split):
        runs: list[tuple[int | None, Composition]] = []
        for child, size in zip(tree.children, tree.splits, strict=True):
            inner = runs_of(child)
            total = sum(length for length, _ in inner if length is not None)
            if inner[0][0] is not None and total != size:
                raise CompositionError(f"{show(child)} covers {total} tokens but stands where {size} are split off")
            runs += inner if inner[0][0] is not None else [(size, child)]
        return runs
    assert isinstance(tree, Stack | Average)  # the only other blocks that may hold a Split
    per_child = [runs_of(child) for child in tree.children]
    ends = [_ends(runs) for runs in per_child if runs[0][0] is not None]
    if len({stops[-1] for stops in ends}) > 1:
        raise CompositionError(
            f"{tree}: its Splits cover {sorted({stops[-1] for stops in ends})} tokens, not one number"
        )
    cuts = sorted({stop for stops in ends for stop in stops})
    starts = [0, *cuts[:-1]]
    return [
        (stop - start, _rebuilt(tree, tuple(_at(runs, start) for runs in per_child)))
        for start, stop in zip(starts, cuts, strict=True)
    ]


def _ends(runs: Sequence[tuple[int | None, Composition]]) -> list[int]:
    return list(accumulate(length for length, _ in runs if length is not None))


def _at(runs: Sequence[tuple[int | None, Composition]], token: int) -> Composition:
    if runs[0][0] is None:
        return runs[0][1]
    return next(tree for (_, tree), end in zip(runs, _ends(runs), strict=True) if token < end)


@dataclass(frozen=True)
class Group:
    """Rows (n,) and a run of tokens that share one program; None means all of them."""

    rows: Tensor | None
    tokens: Tokens
    program: Program
    _placed: dict[tuple[torch.device, int], Tensor] = field(default_factory=dict, compare=False, repr=False)

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
    """The route of one batch: its groups, and which source row each lane repeats (None: each row once, in order)."""

    groups: tuple[Group, ...]
    batch: int
    tokens: int | None
    sources: Tensor | None

    def delta(self, site: int, reading: Reading) -> Delta | None:
        """The change at a site, (B, T, D); None where no group has a module."""
        active = [group for group in self.groups if group.program[site] is not None]
        if not active:
            return None
        copies = self._copies(reading.output.shape[0])
        if self.tokens is not None and reading.output.shape[1] != self.tokens:
            raise CompositionError(
                f"Split covers {self.tokens} tokens, but the sequence at this site has {reading.output.shape[1]}"
            )
        before: Tensor | None = None
        after: Tensor | None = None
        for group in active:
            node = group.program[site]
            assert node is not None
            rows = group.rows_on(reading.output.device, copies)
            if rows is None and group.tokens is None:
                return node(reading, NO_DELTA)
            change = node(reading.narrow(rows, group.tokens), NO_DELTA)
            before = _placed(before, change.before, rows, group.tokens, reading.output)
            after = _placed(after, change.after, rows, group.tokens, reading.output)
        return Delta(before, after)

    def _copies(self, rows: int) -> int:
        copies, left = divmod(rows, self.batch)
        if left or not copies:
            raise CompositionError(f"the route is for {self.batch} rows, but the model runs {rows}")
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
    lanes: Sequence[Lane] | None, whole: Composition, batch: int, program: Callable[[Composition], Program]
) -> BatchRoute:
    """The route of a batch from its lanes; `lanes` None means every row runs `whole`, which has no row routing."""
    trees: dict[Composition, list[int]] = {}
    for lane, (_, tree) in enumerate(lanes or ()):
        trees.setdefault(tree, []).append(lane)
    if lanes is None:
        trees[whole] = []
    groups: list[Group] = []
    tokens: set[int] = set()
    count = batch if lanes is None else len(lanes)
    for tree, members in trees.items():
        rows = None if len(trees) == 1 else torch.tensor(members)
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
    return BatchRoute(tuple(groups), count, next(iter(tokens), None), None if same else torch.tensor(sources))
