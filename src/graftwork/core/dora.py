"""DoRA: a frozen weight taken apart into length and direction, both trained (Liu et al. 2024, arXiv 2402.09353).

    W' = m ⊙ (W + s·B·A) / ‖W + s·B·A‖            norm of each output's row; m: (width,), at birth ‖W‖
    y' = W'·x + bias                               s = alpha/r;  r·(inputs + width) + width parameters

At birth W' is W to the last bit. As in the paper (§4.3) no gradient flows through the norm, and the bias is not scaled.
With dropout, W reads x and B·A reads dropout(x).

AdapterHub computes another function, which its files need (variant "adapters"): the norm is that of W + B·A without s
and has gradients, the bias is scaled with the rest, and a gate may stand in the place of s.
Knows nothing of layers, names, files or compositions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from graftwork.core.adapter import NO_GROUND, Ground
from graftwork.core.initial import generator_of, new_gate, opened
from graftwork.core.linear import LinearAdapter, LowRankConfig
from graftwork.core.site import Delta, Reading, Site
from graftwork.errors import AdapterError

VARIANTS = ("paper", "adapters")


@dataclass(frozen=True, kw_only=True)
class DoRAConfig(LowRankConfig):
    """Every choice of DoRA; names are AdapterHub's. variant: "paper", or "adapters" for AdapterHub's files."""

    variant: Literal["paper", "adapters"] = "paper"

    kind: ClassVar[str] = "dora"

    def problems(self) -> list[str]:
        """What is wrong with the fields of the method itself."""
        found = self.rank_problems()
        if self.variant not in VARIANTS:
            found.append(f"variant {self.variant!r} is not one of {', '.join(VARIANTS)}")
        if self.use_gating and self.variant == "paper":
            found.append("use_gating would give every row a norm of its own; only variant 'adapters' has a gate")
        return found

    def share(self, sites: Sequence[Site]) -> nn.Module | None:
        """Nothing: every site has weights of its own."""
        return None

    def build(self, site: Site, ground: Ground = NO_GROUND) -> "DoRA | None":
        """The module for a site, freshly initialised, or None where this configuration has none.

        Raises AdapterError without the frozen weight, whose norms are where the magnitude begins.
        """
        if not self.adapts(site):
            return None
        if ground.weight is None:
            raise AdapterError(f"dora adapter: {site.name} offers no weight to take the magnitude from")
        return DoRA(self, site, ground.weight)


class DoRA(LinearAdapter):
    """Magnitude and direction at one linear, whose frozen weight comes from `weight` at birth."""

    def __init__(self, config: DoRAConfig, site: Site, weight: Callable[[], Tensor]) -> None:
        super().__init__()
        generator = generator_of(config.init_weights_seed, site.index)
        self.name = site.name
        self.is_paper = config.variant == "paper"
        self.dropout = config.dropout
        self.scale = config.scale(site)
        self.a, self.b = config.factors(site, generator)
        self.magnitude = nn.Parameter(_norms(weight().detach()))
        self.gate = new_gate(site.inputs, generator) if config.use_gating else None

    def change(self, reading: Reading, delta: Delta) -> Tensor:
        """W'·x - W·x, (B, T, D); in AdapterHub's variant m/‖W + B·A‖ ⊙ (y + s·B·A·x) - y."""
        if reading.weight is None:
            raise AdapterError(f"dora adapter: {self.name} offers no weight to take the direction from")
        weight, x = reading.weight(), reading.residual.to(self.a.dtype)
        ratio = self._ratio(weight)
        u = functional.linear(functional.linear(functional.dropout(x, self.dropout, self.training), self.a), self.b)
        u = u * (self.scale if self.gate is None else opened(self.gate, x))
        frozen = functional.linear(x, weight.to(x.dtype)) if self.is_paper else reading.output.to(x.dtype)
        return ((ratio - 1) * frozen + ratio * u).to(reading.output.dtype)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """W' (D, inputs) and the bias (D,), scaled in AdapterHub's variant. Raises AdapterError for a gate."""
        if self.gate is not None:
            raise AdapterError("a gated DoRA changes each row differently: it is no change of the weight")
        ratio = self._ratio(weight).to(weight)
        turned = ratio[:, None] * (weight + (self.scale * (self.b @ self.a)).to(weight))
        return turned, bias if self.is_paper or bias is None else ratio * bias

    def _ratio(self, weight: Tensor) -> Tensor:
        """m/‖W + s·B·A‖, (D,)."""
        if self.is_paper:
            with torch.no_grad():
                norm = _norms(weight, self.scale * (self.b @ self.a))
        else:
            norm = _norms(weight, self.b @ self.a)
        ratio: Tensor = self.magnitude / norm.to(self.magnitude.dtype)
        return ratio


def _norms(weight: Tensor, change: Tensor | None = None) -> Tensor:
    """The length of each output's row, (D, inputs) -> (D,), in float32 at least: a small change must not be lost."""
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    norms: Tensor = torch.linalg.vector_norm(weight if change is None else weight + change.to(weight.dtype), dim=1)
    return norms
