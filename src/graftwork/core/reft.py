"""ReFT: an edit of a block's output at a few positions, in a low-rank subspace (Wu et al. 2024, arXiv 2404.03592).

    LoReFT   x + Rᵀ(f(W·x + b) - R·x)            W, R: (r, D), R with orthonormal rows
    NoReFT   the same with any R                 DiReFT   x + Rᵀ·f(W·x + b)

x is the stream that leaves the layer, at the first and last so many real tokens of a row (those that the mask calls
real); elsewhere nothing changes. One unit edits the first positions and one the last, or one unit both (tied_weights);
where they overlap the last wins. f is the identity unless non_linearity names one. Dropout is on the edited state. The
edit is not neutral at birth. It is written where it becomes the layer's output: behind the norm after the residual add
(post-LN) or on the branch (Gemma), else before the add.

What is saved of R is a plain (r, D) matrix; its rows are made orthonormal on the way (Gram-Schmidt, which leaves
orthonormal rows as they are), in float32 at least. Knows nothing of layers, names, files or compositions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from graftwork.core.activations import ACTIVATIONS, activation
from graftwork.core.adapter import NO_GROUND, Ground
from graftwork.core.initial import blank, blank_linear, generator_of
from graftwork.core.linear import is_rank
from graftwork.core.options import (
    goes_to,
    is_count,
    is_share,
    place_problems,
    seed_problems,
    settle_places,
    switch_problems,
)
from graftwork.core.site import Delta, Reading, Site, Uses
from graftwork.errors import AdapterError


@dataclass(frozen=True, kw_only=True)
class ReftConfig:
    """Every choice of ReFT; names are those of AdapterHub's ReftConfig, defaults those of its LoReftConfig.

    layers: "all", or the layers (across stacks) that it edits. prefix_positions, suffix_positions: how many real tokens
    from the start and from the end. Raises AdapterError for a value out of range.
    """

    layers: Literal["all"] | tuple[int, ...] = "all"
    prefix_positions: int = 3
    suffix_positions: int = 0
    r: int = 1
    orthogonality: bool = True
    tied_weights: bool = False
    subtract_projection: bool = True
    dropout: float = 0.05
    non_linearity: str | None = None
    init_weights_seed: int | None = None
    leave_out: tuple[int, ...] = ()
    stacks: tuple[str, ...] = ()

    kind: ClassVar[str] = "reft"
    where: ClassVar[str] = "the output of a layer (ffn)"

    def __post_init__(self) -> None:
        settle_places(self)
        layers = self.layers
        checks = (
            (layers == "all" or (isinstance(layers, tuple) and all(map(is_count, layers))), f"layers {layers!r} must "
             "be 'all' or a list of layer numbers"),
            (is_count(self.prefix_positions), f"prefix_positions {self.prefix_positions!r} must be a whole number"),
            (is_count(self.suffix_positions), f"suffix_positions {self.suffix_positions!r} must be a whole number"),
            (self.prefix_positions or self.suffix_positions, "needs one of prefix_positions, suffix_positions"),
            (is_rank(self.r), f"r {self.r!r} must be a whole number from 1"),
            (is_share(self.dropout), f"dropout {self.dropout!r} must be in [0, 1)"),
            (self.non_linearity is None or str(self.non_linearity).lower() in ACTIVATIONS, "non_linearity "
             f"{self.non_linearity!r} is unknown; there are {', '.join(ACTIVATIONS)}"),
        )  # fmt: skip
        problems = [problem for fine, problem in checks if not fine] + seed_problems(self.init_weights_seed)
        problems += switch_problems(self, ("orthogonality", "tied_weights", "subtract_projection"))
        problems += place_problems(self)
        if problems:
            raise AdapterError("reft adapter: " + "; ".join(problems))

    def adapts(self, site: Site) -> bool:
        """Whether this configuration means a site, which must be the end of a layer."""
        wanted = self.layers == "all" or site.depth in self.layers
        return site.kind == "ffn" and wanted and goes_to(self, site)

    def share(self, sites: Sequence[Site]) -> nn.Module | None:
        """Nothing: every layer has weights of its own."""
        return None

    def build(self, site: Site, ground: Ground = NO_GROUND) -> "Reft | None":
        """The module for a layer, freshly initialised in float32, or None where this configuration has none.

        Raises AdapterError for a rank above the width of the stream.
        """
        if not self.adapts(site):
            return None
        if self.r > site.width:
            raise AdapterError(f"reft adapter: r {self.r} is more than the {site.width} directions of {site.name}")
        return Reft(self, site)


class Reft(nn.Module):
    """The units of one layer."""

    edits_block = True  # what is added inside the block is there before
    uses = Uses(parts=False, after=True)  # of a sub-layer

    def __init__(self, config: ReftConfig, site: Site) -> None:
        super().__init__()
        generator = generator_of(config.init_weights_seed, site.index)
        self.config = config
        tied = config.tied_weights
        self.prefix = Unit(config, site.width, generator) if config.prefix_positions or tied else None
        self.suffix = Unit(config, site.width, generator) if config.suffix_positions and not tied else None

    def read(self, reading: Reading, delta: Delta, *, before_norm: bool = False) -> Tensor:
        """The stream that leaves the layer, (B, T, D); before_norm: h₀ + Δ."""
        return reading.hidden(delta) if before_norm else reading.stream(delta)

    def change(self, reading: Reading, delta: Delta) -> Tensor:
        """What the edit adds to the stream, (B, T, D): zero but at the edited positions."""
        x = reading.stream(delta)
        first, last = _ends(x, reading.mask, self.config.prefix_positions, self.config.suffix_positions)
        change = torch.zeros_like(x)
        if first is not None and self.prefix is not None:
            change = torch.where(first, self.prefix(x) - x, change)
        if last is not None:
            unit = self.prefix if self.suffix is None else self.suffix
            assert unit is not None
            change = torch.where(last, unit(x) - x, change)
        return change.to(reading.like.dtype)

    def carried(self, reading: Reading, delta: Delta) -> Tensor:
        """The stream, (B, T, D)."""
        return reading.stream(delta)

    def settle(self, reading: Reading, delta: Delta, change: Tensor) -> Delta:
        """The change where it becomes one of the layer's output: behind the last norm, that nothing norms it again."""
        has_norm = reading.norm is not None or reading.inner is not None
        return Delta(after=change) if has_norm else Delta(before=change)

    def forward(self, reading: Reading, delta: Delta) -> Delta:
        """What the edit changes, given what others changed before: reads (B, T, D) tensors, returns (B, T, D)."""
        return self.settle(reading, delta, self.change(reading, delta))


class Unit(nn.Module):
    """One edit: source (W, b) and projection (R)."""

    def __init__(self, config: ReftConfig, width: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.config = config
        self.source = blank_linear(width, config.r)
        self.projection = blank(config.r, width)
        bound = 1 / math.sqrt(width)  # of torch's own linears
        for tensor in (self.source.weight, self.source.bias, self.projection):
            nn.init.uniform_(tensor, -bound, bound, generator=generator)
        if config.orthogonality:
            with torch.no_grad():
                self.projection.copy_(orthonormal(self.projection))
        self.activation = nn.Identity() if config.non_linearity is None else activation(config.non_linearity)

    def forward(self, x: Tensor) -> Tensor:
        """The edited state, (B, T, D) -> (B, T, D)."""
        rows = orthonormal(self.projection) if self.config.orthogonality else self.projection
        x = x.to(rows.dtype)
        says: Tensor = self.activation(self.source(x))
        if self.config.subtract_projection:
            says = says - functional.linear(x, rows)
        return functional.dropout(x + says @ rows, self.config.dropout, self.training)


def orthonormal(rows: Tensor) -> Tensor:
    """Orthonormal rows that span what the given ones span, (r, D) -> (r, D); orthonormal rows stay as they are."""
    exact = rows.to(torch.promote_types(rows.dtype, torch.float32))
    lower = torch.linalg.cholesky(exact @ exact.T)  # rows = lower · result: Gram-Schmidt, without a loop
    result: Tensor = torch.linalg.solve_triangular(lower, exact, upper=False)
    return result.to(rows.dtype)


def _ends(x: Tensor, mask: Tensor | None, first: int, last: int) -> tuple[Tensor | None, Tensor | None]:
    """Which tokens are among the first and the last so many real ones of their row, (B or 1, T, 1) each.

    A mask that is longer than x speaks of earlier tokens too, which a cache holds.
    """
    if mask is None:
        mask = torch.ones(1, x.shape[1], dtype=torch.bool, device=x.device)
    real = mask.to(torch.long)
    count = real.cumsum(dim=1)
    rest = count[:, -1:] - count + real
    real, count, rest = (tensor[:, -x.shape[1] :, None] for tensor in (real.bool(), count, rest))
    return real & (count <= first) if first else None, real & (rest <= last) if last else None
