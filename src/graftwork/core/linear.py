"""What the methods on frozen linears share: which linears an option means, and how a change of their output is written.

    q, k, v, o of attn_matrices      `attn.query`, `attn.key`, `attn.value`, `attn.out`; `cross.…` with crossattn_lora
    intermediate_lora                `ffn.up`, the first linear of the feed-forward block
    gate_lora                        `ffn.gate`, the linear beside it where a model has one (Llama)
    output_lora                      `ffn.down`, the last one

The names mean the same linears in every family. (AdapterHub swaps `intermediate` and `output` on Llama and Mistral, and
leaves `o` without effect; who reads its files maps that.) Knows no method.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from graftwork.core.adapter import NO_GROUND, Ground
from graftwork.core.initial import blank
from graftwork.core.options import (
    at_layer,
    fits_layers,
    goes_to,
    is_count,
    is_number,
    is_share,
    place_problems,
    seed_problems,
    settle_places,
    switch_problems,
)
from graftwork.core.site import Delta, Reading, Site
from graftwork.errors import AdapterError

INITS = ("lora", "bert")
MATRICES = {"query": "q", "key": "k", "value": "v", "out": "o"}  # part of an attention -> its letter
_BLOCKS = {"attn": "selfattn_lora", "cross": "crossattn_lora"}
_FEED_FORWARD = {"up": "intermediate_lora", "gate": "gate_lora", "down": "output_lora"}


@dataclass(frozen=True, kw_only=True)
class LinearConfig(ABC):
    """Where a method on linears goes, its gate and its seed; the names are those of AdapterHub's LoRAConfig.

    use_gating: the change is multiplied by a sigmoid gate on the linear's input, averaged over tokens.
    leave_out: layers without an adapter. stacks: only these ("encoder", "vision"); empty for all.
    Raises AdapterError for a value out of range.
    """

    selfattn_lora: bool = True
    crossattn_lora: bool = True
    intermediate_lora: bool = False
    gate_lora: bool = False
    output_lora: bool = False
    attn_matrices: tuple[str, ...] = ("q", "v")
    use_gating: bool = False
    init_weights_seed: int | None = None
    leave_out: tuple[int, ...] = ()
    stacks: tuple[str, ...] = ()

    kind: ClassVar[str]
    where: ClassVar[str] = "frozen linears (attn.query, cross.out, ffn.up …)"

    def __post_init__(self) -> None:
        settle_places(self)
        problems = self._shared_problems() + self.problems()
        if problems:
            raise AdapterError(f"{self.kind} adapter: " + "; ".join(problems))

    @abstractmethod
    def problems(self) -> list[str]:
        """What is wrong with the fields of the method itself."""

    def _shared_problems(self) -> list[str]:
        found = switch_problems(self, (*_BLOCKS.values(), *_FEED_FORWARD.values(), "use_gating"))
        if not isinstance(self.attn_matrices, tuple) or not set(self.attn_matrices) <= set(MATRICES.values()):
            found.append(f"attn_matrices {self.attn_matrices!r} must be a list of 'q', 'k', 'v', 'o'")
        return found + seed_problems(self.init_weights_seed) + place_problems(self)

    def adapts(self, site: Site) -> bool:
        """Whether this configuration means a site, which must be a linear's output."""
        block, _, part = site.kind.partition(".")
        if site.place != "linear" or not goes_to(self, site):
            return False
        if block == "ffn":
            return bool(getattr(self, _FEED_FORWARD[part]))
        return bool(getattr(self, _BLOCKS[block])) and MATRICES[part] in self.attn_matrices

    @abstractmethod
    def share(self, sites: Sequence[Site]) -> nn.Module | None:
        """What the modules of one adapter have in common, or None."""

    @abstractmethod
    def build(self, site: Site, ground: Ground = NO_GROUND) -> nn.Module | None:
        """The module for a site, freshly initialised, or None where this configuration has none."""


@dataclass(frozen=True, kw_only=True)
class LowRankConfig(LinearConfig, ABC):
    """A linear's change of low rank, s·B·A·dropout(x): A (r, inputs), B (width, r).

    r: the rank; a number, or a mapping from layer number (across stacks) to number with "default". alpha: s = alpha/r,
    or alpha/√r with use_rslora (Kalajdzievski 2023). init_weights: lora Kaiming A, zero B · bert N(0, 0.02) both.
    """

    r: int | Mapping[str, int] = 8
    alpha: float = 8
    dropout: float = 0.0
    init_weights: str = "lora"
    use_rslora: bool = False

    def rank_problems(self) -> list[str]:
        """What is wrong with these fields."""
        checks = (
            (fits_layers(self.r, is_rank), f"r {self.r!r} must be a whole number from 1, or a mapping of layer number "
             "(or 'default') to one"),
            (is_number(self.alpha), f"alpha {self.alpha!r} must be a finite number"),
            (is_share(self.dropout), f"dropout {self.dropout!r} must be in [0, 1)"),
            (self.init_weights in INITS, f"init_weights {self.init_weights!r} is not one of {', '.join(INITS)}"),
        )  # fmt: skip
        return switch_problems(self, ("use_rslora",)) + [problem for fine, problem in checks if not fine]

    def scale(self, site: Site) -> float:
        """s, what B·A is multiplied by at a site."""
        rank = at_layer("r", self.r, site)
        return float(self.alpha / (math.sqrt(rank) if self.use_rslora else rank))

    def factors(self, site: Site, generator: torch.Generator | None) -> tuple[nn.Parameter, nn.Parameter]:
        """A (r, inputs) and B (width, r), freshly initialised. Raises AdapterError where r leaves the layer out."""
        rank = at_layer("r", self.r, site)
        a, b = blank(rank, site.inputs), blank(site.width, rank)
        if self.init_weights == "lora":
            nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
            nn.init.zeros_(b)
        else:
            nn.init.normal_(a, std=0.02, generator=generator)
            nn.init.normal_(b, std=0.02, generator=generator)
        return a, b


def is_rank(value: object) -> bool:
    """Whether a value is a whole number from 1."""
    return is_count(value) and value != 0


class LinearAdapter(nn.Module, ABC):
    """A module at a frozen linear: its input x is reading.residual (B, T, inputs), its output y (B, T, D).

    A fusion of such modules asks with y, which has the width of what they say.
    """

    def read(self, reading: Reading, delta: Delta, *, before_norm: bool = False) -> Tensor:
        """y with what earlier members wrote, (B, T, D)."""
        return reading.hidden(delta)

    @abstractmethod
    def change(self, reading: Reading, delta: Delta) -> Tensor:
        """What is added to y, (B, T, D)."""

    def carried(self, reading: Reading, delta: Delta) -> Tensor:
        """What the change is added to, (B, T, D)."""
        return reading.hidden(delta)

    def settle(self, reading: Reading, delta: Delta, change: Tensor) -> Delta:
        """The change as it is: there is no norm to write behind."""
        return Delta(before=change)

    def forward(self, reading: Reading, delta: Delta) -> Delta:
        """What this adapter changes, given what others changed before: x (B, T, inputs), y (B, T, D) -> (B, T, D)."""
        return self.settle(reading, delta, self.change(reading, delta))
