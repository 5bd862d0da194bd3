"""A frozen linear with what a method on it stands on and reads, by hand and in float64: no model, no hooks."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graftwork.core.adapter import Ground
from graftwork.core.site import Delta, Reading, Site
from tests.rig import randomise

ROWS, TOKENS = 2, 5


def site(kind: str = "attn.query", width: int = 6, inputs: int = 4, index: int = 3, layer: int = 1) -> Site:
    """A site of a linear, its input, or anything else."""
    return Site(index, "", layer, layer, kind, width, inputs)


@dataclass
class Frozen:
    """x (B, T, inputs) -> y (B, T, D) = x·Wᵀ + bias, and the reading of that site."""

    site: Site
    x: Tensor
    weight: Tensor
    bias: Tensor

    @property
    def y(self) -> Tensor:
        return self.x @ self.weight.T + self.bias

    @property
    def reading(self) -> Reading:
        return Reading(self.y, self.x, None, weight=lambda: self.weight)

    def build(self, config: Any, shared: nn.Module | None = None, random: bool = True) -> Any:
        """The module of a configuration here, in this linear's dtype; random: every parameter matters."""
        module = config.build(self.site, Ground(lambda: self.weight, shared))
        module = module.to(self.x.dtype)
        if random:
            randomise(module.parameters())
        return module.eval()


def frozen(kind: str = "attn.query", width: int = 6, inputs: int = 4, dtype: torch.dtype = torch.float64) -> Frozen:
    """A linear with random weights, and a random input."""
    generator = torch.Generator().manual_seed(3)
    shapes = ((ROWS, TOKENS, inputs), (width, inputs), (width,))
    x, weight, bias = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    return Frozen(site(kind, width, inputs), x, weight, bias)


def written(delta: Delta) -> Tensor:
    """The one change of a linear's output: there is no norm to write behind."""
    assert delta.after is None
    assert delta.before is not None
    return delta.before
