"""(IA)³: activations scaled by a trained vector (Liu et al. 2022, arXiv 2205.05638).

    y ⊙ l,  written as the change  y ⊙ (l - 1)          l: (width,), ones at birth: the base to the last bit

Keys and values are scaled where they leave their linears. The feed-forward block is scaled in one of two places: the
paper and PEFT scale its inner activations, which are the input of its last linear (inner_ffn, site `ffn.down.input`);
AdapterHub scales the output of its first linear, before the non-linearity (intermediate_lora), and is the default here
for the sake of its files. With ReLU and positive l the two are one. alpha multiplies l, and a gate stands in its place,
as in AdapterHub: then the model is not the base at birth. In a Stack the scales multiply.
Knows nothing of layers, names, files or compositions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from graftwork.core.adapter import NO_GROUND, Ground
from graftwork.core.initial import blank, generator_of, new_gate, opened
from graftwork.core.linear import LinearAdapter, LinearConfig
from graftwork.core.options import goes_to, is_number, switch_problems
from graftwork.core.site import Delta, Reading, Site
from graftwork.errors import AdapterError

INITS = ("ia3", "bert")


@dataclass(frozen=True, kw_only=True)
class IA3Config(LinearConfig):
    """Every choice of (IA)³; names and defaults are those of AdapterHub's IA3Config.

    init_weights: ia3 ones · bert N(0, 0.02). inner_ffn: the paper's place in the feed-forward block.
    """

    attn_matrices: tuple[str, ...] = ("k", "v")
    intermediate_lora: bool = True
    inner_ffn: bool = False
    alpha: float = 1
    init_weights: str = "ia3"

    kind: ClassVar[str] = "ia3"
    where: ClassVar[str] = "frozen linears (attn.key, ffn.up …), or the input of the last one (ffn.down.input)"

    def problems(self) -> list[str]:
        """What is wrong with the fields of the method itself."""
        checks = (
            (is_number(self.alpha), f"alpha {self.alpha!r} must be a finite number"),
            (self.init_weights in INITS, f"init_weights {self.init_weights!r} is not one of {', '.join(INITS)}"),
        )
        return switch_problems(self, ("inner_ffn",)) + [problem for fine, problem in checks if not fine]

    def adapts(self, site: Site) -> bool:
        """Whether this configuration means a site: a linear's output, or what the last linear of a block reads."""
        inner = self.inner_ffn and site.kind == "ffn.down.input" and goes_to(self, site)
        return inner or super().adapts(site)

    def share(self, sites: Sequence[Site]) -> nn.Module | None:
        """Nothing: every site has weights of its own."""
        return None

    def build(self, site: Site, ground: Ground = NO_GROUND) -> "IA3 | None":
        """The module for a site, freshly initialised in float32, or None where this configuration has none."""
        return IA3(self, site) if self.adapts(site) else None


class IA3(LinearAdapter):
    """A scale of the output of one linear, or of the input of the feed-forward block's last."""

    def __init__(self, config: IA3Config, site: Site) -> None:
        super().__init__()
        generator = generator_of(config.init_weights_seed, site.index)
        self.alpha = float(config.alpha)
        self.scale = blank(site.width)
        if config.init_weights == "ia3":
            nn.init.ones_(self.scale)
        else:
            nn.init.normal_(self.scale, std=0.02, generator=generator)
        self.gate = new_gate(site.inputs or site.width, generator) if config.use_gating else None

    def change(self, reading: Reading, delta: Delta) -> Tensor:
        """y ⊙ (alpha·l - 1), (B, T, D), for y with what earlier members wrote."""
        y = reading.hidden(delta)
        factor = self.alpha if self.gate is None else opened(self.gate, reading.residual)
        return (y.to(self.scale.dtype) * (self.scale * factor - 1)).to(y.dtype)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Every row scaled: weight (D, inputs) and bias (D,). Raises AdapterError for a gate."""
        if self.gate is not None:
            raise AdapterError("a gated (IA)³ changes each row of a batch differently: it is no change of the weight")
        factor = (self.alpha * self.scale).to(weight)
        return factor[:, None] * weight, None if bias is None else factor * bias
