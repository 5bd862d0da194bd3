"""BitFit: the biases of the frozen linears are trained (Ben Zaken et al. 2022, arXiv 2106.10199).

    y + b                                           b: (width,), zero at birth: the base to the last bit

`width` parameters a linear that has a bias, of attention and feed-forward block alike; a linear without one stays as it
is, so models without biases (Llama, T5) have no BitFit. The paper trains the biases of the norms too: those that stand
before a linear say nothing that its own bias does not, and those that end a sub-layer (post-LN models) are left out
here, as in its variant that trains the linears' only, which does as well. Merged, it costs nothing.
Knows nothing of layers, names, files or compositions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from graftwork.core.adapter import NO_GROUND, Ground
from graftwork.core.linear import LinearAdapter, LinearConfig
from graftwork.core.site import Delta, Reading, Site


@dataclass(frozen=True, kw_only=True)
class BitFitConfig(LinearConfig):
    """Which linears' biases: all of them by default; the names of the choices are those of AdapterHub's LoRAConfig."""

    intermediate_lora: bool = True
    gate_lora: bool = True
    output_lora: bool = True
    attn_matrices: tuple[str, ...] = ("q", "k", "v", "o")

    kind: ClassVar[str] = "bitfit"
    where: ClassVar[str] = "frozen linears that have a bias (attn.query, cross.out, ffn.up …)"

    def problems(self) -> list[str]:
        """A bias has no gate."""
        return ["use_gating has no meaning: a bias is one change for all rows"] if self.use_gating is True else []

    def share(self, sites: Sequence[Site]) -> nn.Module | None:
        """Nothing: every site has a bias of its own."""
        return None

    def build(self, site: Site, ground: Ground = NO_GROUND) -> "BitFit | None":
        """The module for a site, zero, or None where this configuration has none or the linear has no bias."""
        return BitFit(site) if ground.biased and self.adapts(site) else None


class BitFit(LinearAdapter):
    """What is added to the bias of one linear."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(site.width))

    def change(self, reading: Reading, delta: Delta) -> Tensor:
        """b for every token, (B, T, D)."""
        return self.bias.to(reading.like.dtype).expand_as(reading.like)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The weight as it is, (D, inputs), and the bias moved, (D,)."""
        own = self.bias.to(weight)
        return weight, own if bias is None else bias + own
