"""Random compositions: every block, nested wherever it has a meaning, over given names.

    rows(names, tokens=6)                what one row may run: no Parallel, no BatchSplit
    compositions(names, batch=4)         anything that a whole batch may run

A Fuse gets a name that depends on its members, so that equal fusions share one module and different ones never do.
"""

import hashlib
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st

from graftwork.compose.tree import Average, BatchSplit, Composition, Fuse, Parallel, Split, Stack, has, leaves, show

Draw = Any


@dataclass(frozen=True)
class _Place:
    """What may stand here: how many more levels, over how many rows and tokens (None: unknown, so no such block)."""

    depth: int
    batch: int | None
    tokens: int | None
    parallel: bool
    none: bool = True


def rows(names: tuple[str, ...], tokens: int | None = None, depth: int = 3) -> st.SearchStrategy[Composition]:
    """Compositions that one row may run."""
    return _trees(names, _Place(depth, None, tokens, parallel=False))


def compositions(
    names: tuple[str, ...], batch: int | None = None, tokens: int | None = None, depth: int = 3, parallel: bool = True
) -> st.SearchStrategy[Composition]:
    """Compositions that a batch may run; BatchSplit and Split only where the counts are given."""
    return _trees(names, _Place(depth, batch, tokens, parallel))


@st.composite
def _trees(draw: Draw, names: tuple[str, ...], place: _Place) -> Composition:
    return _tree(draw, names, place)


def _tree(draw: Draw, names: tuple[str, ...], place: _Place) -> Composition:
    kinds = ["name", "name", *(["none"] if place.none else [])]
    if place.depth:
        kinds += ["Stack", "Stack", "Average", "Fuse"]
        kinds += ["Split"] if place.tokens else []
        kinds += ["BatchSplit"] if place.batch else []
        kinds += ["Parallel"] if place.parallel else []
    kind = draw(st.sampled_from(kinds))
    inner = replace(place, depth=place.depth - 1)
    if kind == "name":
        return draw(st.sampled_from(names))
    if kind == "none":
        return None
    if kind == "Stack":
        return Stack(*_stacked(draw, names, inner))
    if kind == "Average":
        members = _members(draw, names, replace(inner, parallel=False))
        return Average(*members, weights=draw(st.none() | st.just(_weights(draw, len(members)))))
    if kind == "Fuse":
        members = [_speaking(draw, names, inner) for _ in range(draw(st.integers(1, 3)))]
        return Fuse(*members, name="f-" + hashlib.sha1(show(Stack(*members)).encode()).hexdigest()[:8])
    if kind == "Parallel":
        return Parallel(*_members(draw, names, inner))
    if kind == "Split":
        parts = _partition(draw, place.tokens or 1)
        apart = replace(inner, batch=None, parallel=False)
        return Split(*(_tree(draw, names, replace(apart, tokens=part)) for part in parts), splits=parts)
    parts = _partition(draw, place.batch or 1)
    return BatchSplit(*(_tree(draw, names, replace(inner, batch=part)) for part in parts), batch_sizes=parts)


def _members(draw: Draw, names: tuple[str, ...], place: _Place) -> list[Composition]:
    return [_tree(draw, names, place) for _ in range(draw(st.integers(1, 3)))]


def _stacked(draw: Draw, names: tuple[str, ...], place: _Place) -> list[Composition]:
    members: list[Composition] = []
    for _ in range(draw(st.integers(1, 3))):
        free = place.parallel and not any(has(member, Parallel) for member in members)
        members.append(_tree(draw, names, replace(place, parallel=free)))
    return members


def _speaking(draw: Draw, names: tuple[str, ...], place: _Place) -> Composition:
    """A member of a fusion: arithmetic over at least one adapter."""
    tree = _tree(draw, names, replace(place, batch=None, tokens=None, parallel=False, none=False))
    return tree if leaves(tree) else draw(st.sampled_from(names))


def _weights(draw: Draw, count: int) -> list[float]:
    return draw(st.lists(st.floats(0.125, 4, width=16), min_size=count, max_size=count))


def _partition(draw: Draw, whole: int) -> list[int]:
    cuts = sorted(draw(st.sets(st.integers(1, whole - 1), max_size=2))) if whole > 1 else []
    return [end - start for start, end in zip([0, *cuts], [*cuts, whole], strict=True)]
