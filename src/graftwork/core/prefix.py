"""Prefix tuning: trained keys and values in front of an attention's own (Li & Liang 2021, arXiv 2101.00190).

    attention(q, [Pₖ; K], [Pᵥ; V])               Pₖ, Pᵥ: (P, H, W) at each attention; every query sees all P of them

Flat prefixes train Pₖ and Pᵥ themselves. Otherwise they are reparameterised: all attentions of one sort (`attn`,
`encoder_attn`, `decoder_cross` …) share an embedding E (P, d) and a layer down, and each has a layer of its own:

    Pₖ, Pᵥ = project(tanh(down(E)))              down: d -> bottleneck_size, project: bottleneck_size -> 2·H·W

`flattened` turns one into the other with the same numbers. H are the heads of keys and values, fewer than those of
queries where a model groups these. Dropout is on the prefixes. With use_gating a sigmoid gate on what enters the
attention, averaged over tokens, multiplies keys and values of a row (one gate for both, or one each).

A prefix lengthens an attention instead of changing a stream, so it is outside the arithmetic of changes: it stands
beside any other method, rows of a batch may have different ones or none, several may stand one after another, and they
have no sum and no mean. Knows nothing of layers, names, files or compositions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from graftwork.core.activations import ACTIVATIONS, activation
from graftwork.core.adapter import NO_GROUND, Ground
from graftwork.core.initial import blank, blank_linear, generator_of, new_gate, opened
from graftwork.core.linear import is_rank
from graftwork.core.options import goes_to, is_share, place_problems, seed_problems, settle_places, switch_problems
from graftwork.core.site import Positions, Reading, Site
from graftwork.errors import AdapterError

_SHARED = 1 << 15  # the streams of what is shared lie beyond those of the sites


@dataclass(frozen=True, kw_only=True)
class PrefixTuningConfig:
    """Every choice of prefix tuning; defaults and names are those of AdapterHub's PrefixTuningConfig.

    encoder_prefix: at the self-attention of an encoder that has a decoder. cross_prefix: at cross-attention. The other
    self-attentions always have one. Raises AdapterError for a value out of range.
    """

    encoder_prefix: bool = True
    cross_prefix: bool = True
    flat: bool = False
    prefix_length: int = 30
    bottleneck_size: int = 512
    non_linearity: str = "tanh"
    dropout: float = 0.0
    use_gating: bool = False
    shared_gating: bool = True
    init_weights_seed: int | None = None
    leave_out: tuple[int, ...] = ()
    stacks: tuple[str, ...] = ()

    kind: ClassVar[str] = "prefix_tuning"
    where: ClassVar[str] = "keys and values of an attention (attn.kv, cross.kv)"

    def __post_init__(self) -> None:
        settle_places(self)
        checks = (
            (is_rank(self.prefix_length), f"prefix_length {self.prefix_length!r} must be a whole number from 1"),
            (is_rank(self.bottleneck_size), f"bottleneck_size {self.bottleneck_size!r} must be a whole number from 1"),
            (str(self.non_linearity).lower() in ACTIVATIONS, f"non_linearity {self.non_linearity!r} is unknown; there "
             f"are {', '.join(ACTIVATIONS)}"),
            (is_share(self.dropout), f"dropout {self.dropout!r} must be in [0, 1)"),
        )  # fmt: skip
        names = ("encoder_prefix", "cross_prefix", "flat", "use_gating", "shared_gating")
        problems = [problem for fine, problem in checks if not fine] + switch_problems(self, names)
        problems += seed_problems(self.init_weights_seed) + place_problems(self)
        if problems:
            raise AdapterError("prefix_tuning adapter: " + "; ".join(problems))

    def adapts(self, site: Site) -> bool:
        """Whether this configuration means a site, which must be the keys and values of an attention."""
        if site.place != "kv" or not goes_to(self, site):
            return False
        if site.kind == "cross.kv":
            return self.cross_prefix
        return self.encoder_prefix or site.stack != "encoder"

    def share(self, sites: Sequence[Site]) -> nn.ModuleDict | None:
        """For each sort of attention, what its reparameterised prefixes have in common; None where they are flat."""
        mine = {location(site): site for site in sites if self.adapts(site)}
        if self.flat or not mine:
            return None
        return nn.ModuleDict(
            {
                name: Source(self, site.inputs, generator_of(self.init_weights_seed, _SHARED + number))
                for number, (name, site) in enumerate(mine.items())
            }
        )

    def build(self, site: Site, ground: Ground = NO_GROUND) -> "FlatPrefix | MadePrefix | None":
        """The prefix for a site, freshly initialised in float32, or None where this configuration has none.

        Raises AdapterError for a reparameterised one without what `share` made.
        """
        if not self.adapts(site):
            return None
        if self.flat:
            return FlatPrefix(self, site)
        if ground.shared is None:
            raise AdapterError(f"prefix_tuning adapter: {site.name} has no embedding; it is made once by share(sites)")
        shared = cast(nn.ModuleDict, ground.shared)
        return MadePrefix(self, site, cast(Source, shared[location(site)]))


def location(site: Site) -> str:
    """Which sort of attention a site is: `attn`, `encoder_attn`, `decoder_cross`."""
    block = site.kind.partition(".")[0]
    return f"{site.stack}_{block}" if site.stack else block


class Source(nn.Module):
    """What the reparameterised prefixes of one sort of attention begin with: E (P, d) and down (d -> M)."""

    def __init__(self, config: PrefixTuningConfig, width: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.embedding = blank(config.prefix_length, width)
        nn.init.normal_(self.embedding, generator=generator)
        self.down = _begun(blank_linear(width, config.bottleneck_size), generator)
        self.activation = activation(config.non_linearity)

    def forward(self) -> Tensor:
        """What each attention projects, (P, M)."""
        inner: Tensor = self.activation(self.down(self.embedding))
        return inner


class FlatPrefix(nn.Module):
    """Keys and values that are trained themselves, (P, H, W) each."""

    def __init__(self, config: PrefixTuningConfig, site: Site) -> None:
        super().__init__()
        generator = generator_of(config.init_weights_seed, site.index)
        self.dropout = config.dropout
        self.keys = blank(config.prefix_length, site.heads, site.head_width)
        self.values = blank(config.prefix_length, site.heads, site.head_width)
        for tensor in (self.keys, self.values):
            nn.init.normal_(tensor, generator=generator)
        self.gate = _gate(config, site, generator)

    def pair(self) -> Tensor:
        """Keys and values, (P, 2, H, W)."""
        return torch.stack((self.keys, self.values), dim=1)

    def positions(self, reading: Reading) -> Positions:
        """Keys and values to put in front, (B, H, P, W) each, for what enters the attention (B, T, D)."""
        return _positions(self.pair(), reading, self.gate, self.dropout if self.training else 0.0)


class MadePrefix(nn.Module):
    """Keys and values that a layer of this attention makes from what its sort shares."""

    def __init__(self, config: PrefixTuningConfig, site: Site, source: Source) -> None:
        super().__init__()
        generator = generator_of(config.init_weights_seed, site.index)
        self.config, self.site = config, site
        self.project = _begun(blank_linear(config.bottleneck_size, 2 * site.heads * site.head_width), generator)
        self.gate = _gate(config, site, generator)
        self._source = (source,)  # in a tuple: it is not this module's own

    def pair(self) -> Tensor:
        """Keys and values, (P, 2, H, W)."""
        made: Tensor = self.project(self._source[0]().to(self.project.weight))
        return made.view(-1, 2, self.site.heads, self.site.head_width)

    def positions(self, reading: Reading) -> Positions:
        """Keys and values to put in front, (B, H, P, W) each, for what enters the attention (B, T, D)."""
        return _positions(self.pair(), reading, self.gate, self.config.dropout if self.training else 0.0)

    def flattened(self) -> FlatPrefix:
        """A flat prefix with the same numbers and gate, where and as this one is (AdapterHub's eject)."""
        flat = FlatPrefix(replace(self.config, flat=True), self.site).to(self.project.weight).train(self.training)
        with torch.no_grad():
            keys, values = self.pair().unbind(dim=1)
            flat.keys.copy_(keys)
            flat.values.copy_(values)
            if flat.gate is not None and self.gate is not None:
                flat.gate.load_state_dict(self.gate.state_dict())
        return flat


def _begun(linear: nn.Linear, generator: torch.Generator | None) -> nn.Linear:
    """A linear as torch begins one: U(-1/√inputs, 1/√inputs)."""
    bound = linear.in_features**-0.5
    for tensor in (linear.weight, linear.bias):
        nn.init.uniform_(tensor, -bound, bound, generator=generator)
    return linear


def _gate(config: PrefixTuningConfig, site: Site, generator: torch.Generator | None) -> nn.Linear | None:
    return new_gate(site.inputs, generator, 1 if config.shared_gating else 2) if config.use_gating else None


def _positions(pair: Tensor, reading: Reading, gate: nn.Linear | None, dropout: float) -> Positions:
    """(P, 2, H, W) for every row of what enters the attention: keys and values (B, H, P, W)."""
    entering = reading.output
    rows = functional.dropout(pair.expand(entering.shape[0], *pair.shape), dropout)
    keys, values = rows.permute(2, 0, 3, 1, 4).unbind(dim=0)
    if gate is not None:
        opening = opened(gate, entering)[..., None]  # (B, 1, 1 or 2, 1)
        keys, values = keys * opening[:, :, :1], values * opening[:, :, -1:]
    return Positions(keys.to(entering.dtype), values.to(entering.dtype))
