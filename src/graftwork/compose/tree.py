"""Compositions as plain frozen data: which adapters, in what order. No torch, no weights, only names.

    Stack(hi, ner)            one after another                    (Pfeiffer et al. 2020, MAD-X)
    Fuse(a, b, name=ab)       attention over members               (Pfeiffer et al. 2021, AdapterFusion)
    Average(a:0.7, b:0.3)     weighted mean of the changes         (shares always sum to 1)
    Parallel(a, b)            the row once per member              (Rücklé et al. 2021, AdapterDrop)
    Split(a:16, b:48)         the first 16 tokens to a, the next 48 to b
    BatchSplit(a:2, b:6)      the first 2 rows to a, the next 6 to b
    a                         one adapter;  `none` (None in Python) is no adapter at all

A leaf is a `str`, "no adapter" is `None`; a block holds leaves and blocks, so a composition is used like a name. `show`
prints a composition, `grammar.parse` reads it back. Nesting that has no meaning is refused here, with the reason.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias, Union

from graftwork.errors import CompositionError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*(@[A-Za-z0-9._-]+)?")
NONE = "none"
DEEPEST = 32  # how many blocks may stand inside each other

Composition: TypeAlias = Union[str, "Stack", "Fuse", "Average", "Parallel", "Split", "BatchSplit", None]


def check_name(name: str) -> str:
    """Return `name` if it may name an adapter, a fusion or a head, else raise CompositionError."""
    if not isinstance(name, str) or not NAME.fullmatch(name) or name == NONE:
        raise CompositionError(
            f"{name!r} is not a name: begin with a letter or digit, go on with letters, digits and - _ . / "
            f"(an @version may follow); {NONE!r} is taken, it means no adapter"
        )
    return name


class Block:
    """What the six blocks share: children, checks at construction, and how they print."""

    children: tuple[Composition, ...]
    refuses: ClassVar[dict[str, str]] = {}  # what has no meaning anywhere below ("none": a silent member) -> why

    def _settle(self, children: Sequence[Composition]) -> None:
        kind = type(self).__name__
        if not children:
            raise CompositionError(f"{kind} needs at least one member")
        for child in children:
            _check_member(child)
            for refused, why in self.refuses.items():
                if (not leaves(child)) if refused == NONE else has(child, BLOCKS[refused]):
                    raise CompositionError(f"{kind} cannot hold {show(child)}: {why}")
        if 1 + max(map(_depth, children)) > DEEPEST:
            raise CompositionError(f"this {kind} would be nested deeper than {DEEPEST} blocks")
        object.__setattr__(self, "children", tuple(children))

    def __str__(self) -> str:
        return f"{type(self).__name__}({', '.join(self._arguments())})"

    def _arguments(self) -> Iterator[str]:
        return map(show, self.children)


_ONE_PARALLEL = "one Parallel in a composition decides how often a row is repeated; write the branches out instead"


@dataclass(frozen=True, init=False, repr=False)
class Stack(Block):
    """One member after another; each reads what the earlier ones have changed. order: "any" as `order.py` says."""

    children: tuple[Composition, ...]
    order: Literal["any"] | None

    def __init__(self, *children: Composition, order: Literal["any"] | None = None) -> None:
        self._settle(children)
        object.__setattr__(self, "order", order)
        if order not in (None, "any"):
            raise CompositionError(f"Stack has order {order!r}; it is 'any', or left out")
        if sum(has(child, Parallel) for child in children) > 1:
            raise CompositionError(f"{self} holds more than one Parallel: {_ONE_PARALLEL}")

    __repr__ = Block.__str__

    def _arguments(self) -> Iterator[str]:
        yield from map(show, self.children)
        if self.order:
            yield f"order={self.order}"


@dataclass(frozen=True, init=False, repr=False)
class Fuse(Block):
    """AdapterFusion over the members; `name` tells apart several fusions over the same members."""

    children: tuple[Composition, ...]
    label: str | None

    refuses: ClassVar[dict[str, str]] = {
        NONE: "fusion attends to what its members say, and no adapter says nothing",
        **dict.fromkeys(
            ("Parallel", "Split", "BatchSplit"),
            "a fusion is trained for one fixed list of members; put the routing outside, one Fuse per branch",
        ),
    }

    def __init__(self, *children: Composition, name: str | None = None) -> None:
        self._settle(children)
        object.__setattr__(self, "label", None if name is None else check_name(name))

    __repr__ = Block.__str__

    @property
    def name(self) -> str:
        """The fusion's name: its own, else the last leaf of each member, joined by commas (AdapterHub's rule)."""
        return self.label or ",".join(leaves(child)[-1] for child in self.children)

    def _arguments(self) -> Iterator[str]:
        yield from map(show, self.children)
        if self.label:
            yield f"name={self.label}"


class _Weighted(Block):
    """A block whose members each carry a number, written `member:number`."""

    def _numbers(self) -> Sequence[float] | None:
        raise NotImplementedError

    def _arguments(self) -> Iterator[str]:
        numbers = self._numbers()
        if numbers is None:
            return map(show, self.children)
        return (f"{show(child)}:{number!r}" for child, number in zip(self.children, numbers, strict=True))


@dataclass(frozen=True, init=False, repr=False)
class Average(_Weighted):
    """The weighted mean of what the members would change. Weights are shares: they are divided by their sum."""

    children: tuple[Composition, ...]
    weights: tuple[float, ...] | None

    refuses: ClassVar[dict[str, str]] = {"Parallel": "an average has one result, Parallel has several"}

    def __init__(self, *children: Composition, weights: Sequence[float] | None = None) -> None:
        self._settle(children)
        if weights is not None:
            _check_count(self, weights, "weights")
            numeric = all(isinstance(weight, int | float) and math.isfinite(weight) for weight in weights)
            if not numeric or not math.isfinite(sum(weights)) or abs(sum(weights)) < 1e-12:
                raise CompositionError(f"weights {list(weights)} must be finite numbers and must not sum to zero")
            weights = tuple(map(float, weights))
        object.__setattr__(self, "weights", weights)

    __repr__ = Block.__str__

    def _numbers(self) -> Sequence[float] | None:
        return self.weights

    @property
    def shares(self) -> tuple[float, ...]:
        """One share per member; they sum to 1."""
        weights = self.weights or (1.0,) * len(self.children)
        total = sum(weights)
        return tuple(weight / total for weight in weights)


@dataclass(frozen=True, init=False, repr=False)
class Parallel(Block):
    """Every row once per member: N members turn B rows into N·B, the first B of them for the first member."""

    children: tuple[Composition, ...]

    def __init__(self, *children: Composition) -> None:
        self._settle(children)

    __repr__ = Block.__str__


@dataclass(frozen=True, init=False, repr=False)
class Split(_Weighted):
    """Consecutive runs of tokens, one per member; `splits` are the lengths and must sum to the sequence length."""

    children: tuple[Composition, ...]
    splits: tuple[int, ...]

    refuses: ClassVar[dict[str, str]] = dict.fromkeys(
        ("Parallel", "BatchSplit"), "tokens of one row cannot be repeated or sent to other rows"
    )

    def __init__(self, *children: Composition, splits: Sequence[int]) -> None:
        self._settle(children)
        object.__setattr__(self, "splits", _check_sizes(self, splits, "splits"))
        for child, size in zip(self.children, self.splits, strict=True):
            if isinstance(child, Split) and sum(child.splits) != size:
                raise CompositionError(
                    f"{child} covers {sum(child.splits)} tokens but stands where {size} are split off"
                )

    __repr__ = Block.__str__

    def _numbers(self) -> Sequence[float]:
        return self.splits


@dataclass(frozen=True, init=False, repr=False)
class BatchSplit(_Weighted):
    """Consecutive runs of rows, one per member; `batch_sizes` are the counts and must sum to the batch."""

    children: tuple[Composition, ...]
    batch_sizes: tuple[int, ...]

    def __init__(self, *children: Composition, batch_sizes: Sequence[int]) -> None:
        self._settle(children)
        object.__setattr__(self, "batch_sizes", _check_sizes(self, batch_sizes, "batch_sizes"))
        for child, size in zip(self.children, self.batch_sizes, strict=True):
            if isinstance(child, BatchSplit) and sum(child.batch_sizes) != size:
                raise CompositionError(
                    f"{child} covers {sum(child.batch_sizes)} rows but stands where {size} are split off"
                )

    __repr__ = Block.__str__

    def _numbers(self) -> Sequence[float]:
        return self.batch_sizes


BLOCKS: dict[str, type[Block]] = {kind.__name__: kind for kind in (Stack, Fuse, Average, Parallel, Split, BatchSplit)}


def show(composition: Composition) -> str:
    """The composition as text; `parse(show(c)) == c`."""
    return NONE if composition is None else str(composition)


def leaves(composition: Composition) -> tuple[str, ...]:
    """The adapter names in the order of writing, with repeats."""
    if composition is None:
        return ()
    if isinstance(composition, str):
        return (composition,)
    return tuple(name for child in composition.children for name in leaves(child))


def fusions(composition: Composition) -> tuple[Fuse, ...]:
    """Every Fuse in the tree, outermost first."""
    if composition is None or isinstance(composition, str):
        return ()
    inner = tuple(fuse for child in composition.children for fuse in fusions(child))
    return (composition, *inner) if isinstance(composition, Fuse) else inner


def names(composition: Composition) -> frozenset[str]:
    """Every adapter and fusion in the tree."""
    return frozenset(leaves(composition)).union(fuse.name for fuse in fusions(composition))


def has(composition: Composition, kind: type[Block]) -> bool:
    """Whether a block of that kind stands anywhere in the composition."""
    if composition is None or isinstance(composition, str):
        return False
    return isinstance(composition, kind) or any(has(child, kind) for child in composition.children)


def top(composition: Composition) -> str | None:
    """The name whose head answers: the last leaf of a Stack, the fusion's own name, the leaf itself, else None."""
    if isinstance(composition, Stack):
        return top(composition.children[-1])
    if isinstance(composition, Fuse):
        return composition.name
    return composition if isinstance(composition, str) else None


def _check_member(child: object) -> None:
    if isinstance(child, str):
        check_name(child)
    elif child is not None and not isinstance(child, Block):
        blocks = ", ".join(BLOCKS)
        raise CompositionError(f"{child!r} cannot stand in a composition: use a name, None, or one of {blocks}")


def _depth(composition: Composition) -> int:
    return 1 + max(map(_depth, composition.children)) if isinstance(composition, Block) else 0


def _check_count(block: Block, numbers: Sequence[float], word: str) -> None:
    if len(numbers) != len(block.children):
        kind = type(block).__name__
        raise CompositionError(f"{kind} has {len(block.children)} members but {len(numbers)} {word}: {list(numbers)}")


def _check_sizes(block: Block, sizes: Sequence[int], word: str) -> tuple[int, ...]:
    _check_count(block, sizes, word)
    for size in sizes:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise CompositionError(
                f"{type(block).__name__} {word} {list(sizes)}: each must be a whole number of at least 1"
            )
    return tuple(sizes)
