"""Lowering: from compositions over rows and tokens to lanes and runs, before a route is made.

BatchSplit and per-row compositions assign rows, Split assigns tokens, Parallel repeats rows. Each distributes over the
arithmetic blocks: Stack(l, BatchSplit(a:1, b:1)) is Stack(l, a) on row 0 and Stack(l, b) on row 1. What is left is a
list of *lanes* (source row, composition without routing over rows), and for each a list of runs of tokens. A call may
also say the lanes itself. Knows names and numbers only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeAlias

from graftwork.compose.tree import Average, BatchSplit, Composition, Parallel, Split, Stack, has, show
from graftwork.errors import CompositionError

Lane: TypeAlias = tuple[int, Composition]  # (source row, what runs on it)


@dataclass(frozen=True)
class Lanes:
    """What a call asks for where rows have several answers, each a lane of its own: `adapters=Lanes([0, 0, 1], [...])`.

    rows: the row of each lane, every row of the batch among them. compositions: of each lane, in any spelling, without
    a Parallel. Answers, and a list of heads, are in the order of the lanes.
    """

    rows: Sequence[int]
    compositions: Sequence[Any]

    def check(self, batch: int) -> None:
        """Raise CompositionError unless every lane is of one of `batch` rows, and every row has one."""
        if len(self.rows) != len(self.compositions):
            raise CompositionError(f"Lanes names {len(self.rows)} rows and {len(self.compositions)} compositions")
        if wrong := sorted(set(self.rows) ^ set(range(batch))):
            raise CompositionError(
                f"Lanes names the rows {sorted(set(self.rows))} of a batch with rows 0 to {batch - 1}; "
                f"it must name each of them and no other: see {wrong}"
            )


def lowered(trees: Sequence[Composition], rows: Sequence[int] | None, per_row: bool, batch: int) -> list[Lane] | None:
    """The lanes of a call: of one composition for the batch, of one per row, or of one for each of `rows`.

    None where every row runs the one composition as it is. Raises CompositionError for what does not fit the batch.
    """
    if rows is not None:
        if parallel := next((tree for tree in trees if has(tree, Parallel)), None):
            raise CompositionError(f"{show(parallel)}: a lane is one answer; give each branch a lane of its own")
        return [(rows[lane], tree) for lane, tree in lanes_of_rows(trees)]
    if per_row and len(trees) != batch:
        raise CompositionError(f"adapters= names {len(trees)} compositions for a batch of {batch} rows")
    one = trees[0]
    if len(set(trees)) == 1 and not has(one, Parallel) and not has(one, BatchSplit):
        return None
    return lanes_of_rows(trees) if per_row else lanes_of(one, batch)


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
