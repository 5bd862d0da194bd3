"""LoRA: a frozen linear with a trained change of low rank (Hu et al. 2021, arXiv 2106.09685).

    y + s·B·A·dropout(x),  s = alpha/r           A: (r, inputs), B: (width, r);  r·(inputs + width) parameters

B is zero at birth, so the model is the base to the last bit. With a gate g (UniPELT) the change is g·B·A·x: the gate
stands in the place of s, as in AdapterHub. Two LoRAs in a Stack read the same x, so their changes add in any order.
Knows nothing of layers, names, files or compositions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from graftwork.core.adapter import NO_GROUND, Ground
from graftwork.core.initial import generator_of, new_gate, opened
from graftwork.core.linear import LinearAdapter, LowRankConfig
from graftwork.core.site import Delta, Reading, Site
from graftwork.errors import AdapterError


@dataclass(frozen=True, kw_only=True)
class LoRAConfig(LowRankConfig):
    """Every choice of LoRA; defaults and names are AdapterHub's. `o` of attn_matrices is the attention's output."""

    kind: ClassVar[str] = "lora"

    def problems(self) -> list[str]:
        """What is wrong with the fields of the method itself."""
        return self.rank_problems()

    def share(self, sites: Sequence[Site]) -> nn.Module | None:
        """Nothing: every site has weights of its own."""
        return None

    def build(self, site: Site, ground: Ground = NO_GROUND) -> "LoRA | None":
        """The module for a site, freshly initialised in float32, or None where this configuration has none."""
        return LoRA(self, site) if self.adapts(site) else None


class LoRA(LinearAdapter):
    """A change of low rank at one linear."""

    def __init__(self, config: LowRankConfig, site: Site) -> None:
        super().__init__()
        generator = generator_of(config.init_weights_seed, site.index)
        self.dropout = config.dropout
        self.scale = config.scale(site)
        self.a, self.b = config.factors(site, generator)
        self.gate = new_gate(site.inputs, generator) if config.use_gating else None

    def change(self, reading: Reading, delta: Delta) -> Tensor:
        """s·B·A·x, (B, T, D)."""
        x = reading.residual.to(self.a.dtype)
        u = functional.linear(functional.linear(functional.dropout(x, self.dropout, self.training), self.a), self.b)
        u = u * (self.scale if self.gate is None else opened(self.gate, x))
        return u.to(reading.output.dtype)

    def weight_change(self) -> Tensor:
        """s·B·A, (D, inputs): what a merge adds to the frozen weight. Raises AdapterError for a gate."""
        if self.gate is not None:
            raise AdapterError("a gated LoRA changes each row differently: it is no change of the weight")
        return self.scale * (self.b @ self.a)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The linear that computes what the frozen one and this do: W + s·B·A, (D, inputs), and its bias, (D,)."""
        return weight + self.weight_change().to(weight), bias
