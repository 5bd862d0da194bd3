"""The setups that execution is measured in: what each runs, what it should cost, and what arithmetic says it must.

A setup is a name: `seq_bn`, `stack3`, `fuse8`, `parallel8_drop5`. Numbers in names are free: `fuse5` is a Fuse of five.
Costs are ratios to the frozen base. Two floors are counted, for the layers alone: multiplications of matrix products,
which bind where many tokens share a weight, and weights read, which bind where few do. Knows the standard library only.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

DEFAULT = (
    "base", "seq_bn", "double_seq_bn", "par_bn", "lora", "stack2", "stack3", "fuse3", "fuse8", "average3", "mixed8",
    "parallel8", "parallel8_drop5", "idle",
)  # fmt: skip
# how an adapter of each method is configured, the same on all sides: widths D/16, LoRA of rank 8 on query and value
METHODS = {
    "seq_bn": "seq_bn[reduction_factor=16]",
    "double_seq_bn": "double_seq_bn[reduction_factor=16]",
    "par_bn": "par_bn[reduction_factor=16]",
    "lora": "lora[r=8,alpha=8]",
}
REDUCTION, RANK = 16, 8
BLOCKS = {"stack": "Stack", "fuse": "Fuse", "average": "Average", "parallel": "Parallel"}
NAME = re.compile(r"(stack|fuse|average|mixed|parallel)([1-9][0-9]*)(?:_drop([1-9][0-9]*))?")


@dataclass(frozen=True)
class Setup:
    """One setup. kind: "base", "idle", "one", "mixed" or a block; drop: lowest layers without adapters."""

    name: str
    kind: str
    method: str = "seq_bn"
    members: int = 1
    drop: int = 0

    @property
    def adapters(self) -> tuple[str, ...]:
        """The adapters that take part, by name."""
        return tuple(f"{self.method}_{number}" for number in range(self.members))

    def expression(self) -> str | None:
        """The composition of the whole batch, as graftwork reads it; None for the base alone and for mixed rows."""
        if self.kind == "one":
            return self.adapters[0]
        if self.kind in BLOCKS:
            return f"{BLOCKS[self.kind]}({', '.join(self.adapters)})"
        return None

    def rows(self, count: int) -> list[str]:
        """The adapter of every row of a mixed batch."""
        return [self.adapters[row % self.members] for row in range(count)]


class Floors(NamedTuple):
    """What a setup must cost beside the base: by multiplications, and by weights read."""

    multiplications: float
    weights: float


class Shape(NamedTuple):
    """A batch on an encoder with feed-forward blocks of 4·width."""

    rows: int
    tokens: int
    layers: int = 12
    width: int = 768

    def __str__(self) -> str:
        return f"{self.rows}x{self.tokens}"


def parse(name: str) -> Setup:
    """A setup by name. Raises ValueError for one that is none."""
    if name in ("base", "idle"):
        return Setup(name, name)
    if name in METHODS:
        return Setup(name, "one", name)
    found = NAME.fullmatch(name)
    if found is None or (found[3] and found[1] != "parallel"):
        raise ValueError(
            f"no setup {name!r}; there are {', '.join(DEFAULT)}, and stack, fuse, average, mixed and parallel take any "
            "number"
        )
    return Setup(name, found[1], members=int(found[2]), drop=int(found[3] or 0))


def shaped(setup: Setup, shape: Shape) -> Shape:
    """The batch that a setup is measured on: a Parallel repeats one text, the others run all rows."""
    return shape._replace(rows=1) if setup.kind == "parallel" else shape


def floors(setup: Setup, shape: Shape) -> Floors:
    """What arithmetic says a setup costs, folded, trunk shared; norms and elementwise work are not counted."""
    layers, width = shape.layers, shape.width
    layer = 12 * width * width
    attended = layer + 2 * width * shape.tokens  # scores and mixing of values, for each token
    one = _weights(setup, width)
    weights = one * (min(setup.members, shape.rows) if setup.kind == "mixed" else 1)
    if setup.kind != "parallel":
        return Floors(1 + one / attended, 1 + weights / layer)
    adapted = max(0, layers - setup.drop)
    shared = min(layers, setup.drop + 1)  # the first site lies at the end of its layer
    repeated = shared + setup.members * (layers - shared)
    multiplied = (repeated * attended + adapted * setup.members * one) / (layers * attended)
    return Floors(multiplied, 1 + adapted * setup.members * one / (layers * layer))


def _weights(setup: Setup, width: int) -> int:
    """What one layer's part of a setup holds, folded: for each token as many multiplications."""
    bottleneck = max(1, width // REDUCTION)
    one = 2 * width * bottleneck
    if setup.kind in ("base", "idle"):
        return 0
    if setup.method == "lora":
        return 2 * 2 * width * RANK
    if setup.method == "double_seq_bn":
        return 2 * one
    if setup.kind == "fuse":
        return 3 * setup.members * width * bottleneck + setup.members * width
    return one * (setup.members if setup.kind in ("stack", "average") else 1)


# (setup, tokens of a row) -> the ratio to stay under, on the BERT-base shape with 8 rows
GOALS = {
    ("seq_bn", 64): 1.02, ("seq_bn", 1): 1.03,
    ("double_seq_bn", 64): 1.035, ("double_seq_bn", 1): 1.035,
    ("stack2", 64): 1.04, ("stack2", 1): 1.04,
    ("stack3", 64): 1.06, ("stack3", 1): 1.06,
    ("fuse3", 64): 1.06, ("fuse3", 1): 1.07,
    ("fuse8", 64): 1.15, ("fuse8", 1): 1.15,
    ("mixed8", 64): 1.04, ("mixed8", 1): 1.07,
}  # fmt: skip
DISPATCH = Shape(1, 8, 12, 64)  # where the time goes into calls, not into arithmetic
DISPATCH_GOALS = {"seq_bn": 1.25, "idle": 1.05}


def goal(setup: str, shape: Shape) -> float | None:
    """What a setup's ratio is to stay under at a shape; None where nothing was promised."""
    if shape == DISPATCH:
        return DISPATCH_GOALS.get(setup)
    promised = (shape.rows, shape.layers, shape.width) == (8, 12, 768)
    return GOALS.get((setup, shape.tokens)) if promised else None
