"""VeRA: one frozen random pair of matrices for all layers, and trained vectors (Kopiczko et al. 2024, 2310.11454).

    y + b ⊙ (B·(d ⊙ (A·dropout(x))))              A: (r, inputs), B: (width, r) frozen; d: (r,), b: (width,)

r + width parameters a site: 0.02 M on BERT-base's q and v at r = 256. d begins at vera_d, b at zero, so the model is
the base to the last bit. A and B are the same in every layer, drawn once from projection_seed (Kaiming uniform), as
large as the largest linear needs and cut to the size of each (as PEFT does). They are no parameters: a package holds d
and b alone, and the seed brings back the rest.

AdapterHub's VeRA trains two full square matrices where the paper has vectors. What it saves is a LoRA (A: D·A, B: B·B),
and is read as one. Knows nothing of layers, names, files or compositions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from graftwork.core.adapter import NO_GROUND, Ground
from graftwork.core.initial import blank, generator_of, new_gate, opened
from graftwork.core.linear import LinearAdapter, LinearConfig, is_rank
from graftwork.core.options import is_count, is_number, is_share
from graftwork.core.site import Delta, Reading, Site
from graftwork.errors import AdapterError


@dataclass(frozen=True, kw_only=True)
class VeraConfig(LinearConfig):
    """Every choice of VeRA; names are those of AdapterHub's VeraConfig, r and vera_d those of the paper.

    vera_d, vera_b: where the vectors begin. projection_seed: what the frozen pair is drawn from.
    """

    r: int = 256
    vera_d: float = 0.1
    vera_b: float = 0.0
    dropout: float = 0.0
    projection_seed: int = 0

    kind: ClassVar[str] = "vera"

    def problems(self) -> list[str]:
        """What is wrong with the fields of the method itself."""
        checks = (
            (is_rank(self.r), f"r {self.r!r} must be a whole number from 1"),
            (is_number(self.vera_d), f"vera_d {self.vera_d!r} must be a finite number"),
            (is_number(self.vera_b), f"vera_b {self.vera_b!r} must be a finite number"),
            (is_share(self.dropout), f"dropout {self.dropout!r} must be in [0, 1)"),
            (is_count(self.projection_seed, 2**32), f"projection_seed {self.projection_seed!r} must be a whole number "
             "from 0 to 2**32 - 1"),
        )  # fmt: skip
        return [problem for fine, problem in checks if not fine]

    def share(self, sites: Sequence[Site]) -> "Projections | None":
        """The frozen pair, as large as the largest linear it goes to, or None where it goes to none."""
        mine = [site for site in sites if self.adapts(site)]
        if not mine:
            return None
        inputs, width = max(site.inputs for site in mine), max(site.width for site in mine)
        return Projections(self.r, inputs, width, self.projection_seed)

    def build(self, site: Site, ground: Ground = NO_GROUND) -> "Vera | None":
        """The module for a site, freshly initialised, or None where this configuration has none.

        Raises AdapterError without what `share` made.
        """
        if not self.adapts(site):
            return None
        if ground.shared is None:
            raise AdapterError(f"vera adapter: {site.name} has no projections; they are made once by share(sites)")
        return Vera(self, site, cast(Projections, ground.shared))


class Projections(nn.Module):
    """A (r, inputs) and B (width, r): Kaiming uniform, frozen, drawn on the CPU, absent from every state dict."""

    a: Tensor
    b: Tensor

    def __init__(self, r: int, inputs: int, width: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator("cpu").manual_seed(seed)
        for name, shape in (("a", (r, inputs)), ("b", (width, r))):
            matrix = torch.empty(shape, device="cpu", dtype=torch.float32)
            bound = math.sqrt(6 / shape[1])
            self.register_buffer(name, matrix.uniform_(-bound, bound, generator=generator), persistent=False)


class Vera(LinearAdapter):
    """The two vectors at one linear."""

    def __init__(self, config: VeraConfig, site: Site, projections: Projections) -> None:
        super().__init__()
        self.inputs, self.width = site.inputs, site.width
        self.dropout = config.dropout
        self.d, self.b = blank(config.r), blank(site.width)
        nn.init.constant_(self.d, config.vera_d)
        nn.init.constant_(self.b, config.vera_b)
        generator = generator_of(config.init_weights_seed, site.index)
        self.gate = new_gate(site.inputs, generator) if config.use_gating else None
        self._shared = (projections,)  # in a tuple: it is not this module's own

    def change(self, reading: Reading, delta: Delta) -> Tensor:
        """b ⊙ (B·(d ⊙ (A·x))), (B, T, D)."""
        a, b = self._cut()
        x = reading.residual.to(self.d.dtype)
        u = functional.linear(functional.dropout(x, self.dropout, self.training), a) * self.d
        u = functional.linear(u, b) * self.b
        if self.gate is not None:
            u = u * opened(self.gate, x)
        return u.to(reading.output.dtype)

    def weight_change(self) -> Tensor:
        """What a merge adds to the frozen weight, (D, inputs). Raises AdapterError for a gate."""
        if self.gate is not None:
            raise AdapterError("a gated VeRA changes each row differently: it is no change of the weight")
        a, b = self._cut()
        return (self.b[:, None] * b) @ (self.d[:, None] * a)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The linear that computes what the frozen one and this do: weight (D, inputs) and bias (D,)."""
        return weight + self.weight_change().to(weight), bias

    def _cut(self) -> tuple[Tensor, Tensor]:
        """The part of the frozen pair that this linear needs, where and as its vectors are."""
        shared = self._shared[0]
        return shared.a[:, : self.inputs].to(self.d), shared.b[: self.width].to(self.d)
