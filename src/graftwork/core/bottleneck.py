"""The bottleneck adapter (Houlsby et al. 2019; Pfeiffer et al. 2021; He et al. 2022; Steitz & Roth 2024, AdapterPlus).

    u = scale · up(f(down(x)))           down: D -> M, up: M -> D;  2·D·M + M + D parameters

What x is, what u is added to, and where the result is written are flags (AdapterHub's names). For h₀, r, LN as in
`core/site.py` the named placements are

    seq_bn         LN(h₀ + A(LN(h₀ + r)) + r)       pre-LN:  r + h₀ + A(h₀ + r)       (Pfeiffer)
    double_seq_bn  LN(h₀ + A(h₀) + r), twice         pre-LN:  r + h₀ + A(h₀)           (Houlsby)
    par_bn         LN(h₀ + s·A(r) + r)               pre-LN:  r + h₀ + s·A(r)          (He)

With u = 0 the first three are the base model to the last bit. Knows nothing of layers, names, files or compositions.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN

from graftwork.core.adapter import NO_GROUND, Ground
from graftwork.core.options import goes_to, is_count, is_number, is_share, place_problems, settle_places
from graftwork.core.site import Delta, Reading, Site
from graftwork.errors import AdapterError

INITS = ("bert", "mam_adapter", "houlsby", "adapter_bert")
ACTIVATIONS = tuple(sorted({*ACT2FN, "leakyrelu", "swish"}))
_SWITCHES = (
    *("mh_adapter", "output_adapter", "cross_adapter", "original_ln_before", "original_ln_after"),
    *("ln_before", "ln_after", "is_parallel", "use_gating", "adapter_residual_before_ln"),
)
_LOCATION = {"attn": "mh_adapter", "ffn": "output_adapter", "cross": "cross_adapter"}  # site kind -> its flag


@dataclass(frozen=True, kw_only=True)
class BottleneckConfig:
    """Every choice of a bottleneck adapter; defaults and names are those of AdapterHub's BnConfig.

    reduction_factor: D / M; a number, or a mapping from layer number (across stacks, encoder first) to number with
    "default". leave_out: layers without an adapter. stacks: only these ("encoder", "vision"); empty for all. scaling: a
    number, "learned" (one parameter) or "channel" (D).
    init_weights: bert N(0, 0.02) · mam_adapter Kaiming down, zero up · houlsby N(0, 0.01) cut at 2σ · adapter_bert
    N(0, 0.001) cut at 2σ; biases zero. Raises AdapterError for a value out of range.
    """

    mh_adapter: bool = False
    output_adapter: bool = True
    cross_adapter: bool = False
    reduction_factor: float | Mapping[str, float] = 16
    non_linearity: str = "relu"
    original_ln_before: bool = False
    original_ln_after: bool = True
    ln_before: bool = False
    ln_after: bool = False
    init_weights: str = "bert"
    init_weights_seed: int | None = None
    is_parallel: bool = False
    scaling: float | str = 1.0
    use_gating: bool = False
    residual_before_ln: bool | Literal["post_add"] = True
    adapter_residual_before_ln: bool = False
    leave_out: tuple[int, ...] = ()
    stacks: tuple[str, ...] = ()
    dropout: float = 0.0
    stochastic_depth: float = 0.0

    kind: ClassVar[str] = "bottleneck"

    def __post_init__(self) -> None:
        settle_places(self)
        if isinstance(self.reduction_factor, Mapping):
            object.__setattr__(self, "reduction_factor", {str(k): v for k, v in self.reduction_factor.items()})
        problems = self._problems()
        if problems:
            raise AdapterError("bottleneck adapter: " + "; ".join(problems))

    def _problems(self) -> list[str]:
        kinds = (self.mh_adapter, self.output_adapter, self.cross_adapter)
        checks = (
            (any(kinds), "needs one of mh_adapter, output_adapter, cross_adapter"),
            (_are_factors(self.reduction_factor), f"reduction_factor {self.reduction_factor!r} must be a positive "
             "number, or a mapping of layer number (or 'default') to one"),
            (str(self.non_linearity).lower() in ACTIVATIONS, f"non_linearity {self.non_linearity!r} is unknown; there "
             f"are {', '.join(ACTIVATIONS)}"),
            (self.init_weights in INITS, f"init_weights {self.init_weights!r} is not one of {', '.join(INITS)}"),
            (self.init_weights_seed is None or is_count(self.init_weights_seed, 2**32), f"init_weights_seed "
             f"{self.init_weights_seed!r} must be none or a whole number from 0 to 2**32 - 1"),
            (self.scaling in ("learned", "channel") or is_number(self.scaling), f"scaling {self.scaling!r} must be a "
             "finite number, 'learned' or 'channel'"),
            (isinstance(self.residual_before_ln, bool) or self.residual_before_ln == "post_add", "residual_before_ln "
             f"{self.residual_before_ln!r} must be true, false or 'post_add'"),
            (self.residual_before_ln != "post_add" or self.original_ln_before, "residual_before_ln 'post_add' needs "
             "original_ln_before: the sum is the one that the norm would read"),
            (is_share(self.dropout), f"dropout {self.dropout!r} must be in [0, 1)"),
            (is_share(self.stochastic_depth), f"stochastic_depth {self.stochastic_depth!r} must be in [0, 1)"),
            (not (self.is_parallel and self.stochastic_depth), "stochastic_depth has no meaning for a parallel "
             "adapter"),
        )  # fmt: skip
        switches = ((name, getattr(self, name)) for name in _SWITCHES)
        wrong = [f"{name} {value!r} must be true or false" for name, value in switches if not isinstance(value, bool)]
        return wrong + [problem for fine, problem in checks if not fine] + place_problems(self)

    def width(self, site: Site) -> int:
        """M = floor(D / reduction factor), at least 1. Raises AdapterError where a mapping leaves the layer out."""
        factor = self.reduction_factor
        if isinstance(factor, Mapping):
            if str(site.depth) not in factor and "default" not in factor:
                raise AdapterError(
                    f"reduction_factor {dict(factor)} has neither an entry for layer {site.depth} nor a 'default'"
                )
            factor = factor.get(str(site.depth), factor.get("default", 0))
        return max(1, int(site.width // factor))

    def share(self, sites: Sequence[Site]) -> nn.Module | None:
        """Nothing: every site has weights of its own."""
        return None

    def build(self, site: Site, ground: Ground = NO_GROUND) -> "Bottleneck | None":
        """The adapter for a site, freshly initialised in float32, or None where this configuration has none."""
        flag = _LOCATION.get(site.kind)
        if flag is None or not getattr(self, flag) or not goes_to(self, site):
            return None
        return Bottleneck(site.width, self.width(site), self, stream=site.index)


def _are_factors(value: object) -> bool:
    if not isinstance(value, Mapping):
        return is_number(value) and value > 0  # type: ignore[operator]
    layers = all(str(key) == "default" or str(key).isdecimal() for key in value)
    return layers and all(is_number(factor) and factor > 0 for factor in value.values())


def activation(name: str) -> nn.Module:
    """A non-linearity by its name in transformers' table; `swish` is SiLU, `leakyrelu` has torch's slope of 0.01."""
    name = name.lower()
    if name == "leakyrelu":
        return nn.LeakyReLU()
    return ACT2FN["silu" if name == "swish" else name]  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """One bottleneck adapter at one site. `stream` numbers the site: a seed gives every site weights of its own."""

    def __init__(self, width: int, bottleneck: int, config: BottleneckConfig, stream: int = 0) -> None:
        super().__init__()
        self.config = config
        self.writes_after = not config.original_ln_after
        self.norm_before = nn.LayerNorm(width) if config.ln_before else None
        self.down = _linear(width, bottleneck)
        self.activation = activation(config.non_linearity)
        self.up = _linear(bottleneck, width)
        self.norm_after = nn.LayerNorm(width) if config.ln_after else None
        self.gate = _linear(width, 1) if config.use_gating else None
        scales = {"learned": 1, "channel": width}.get(str(config.scaling))
        self.scale = None if scales is None else nn.Parameter(torch.ones(scales))
        self._initialise(stream)

    def _initialise(self, stream: int) -> None:
        seed, kind = self.config.init_weights_seed, self.config.init_weights
        # a generator of its own: a seed neither touches the global one nor gives every site the same weights
        generator = None if seed is None else torch.Generator().manual_seed((seed << 16) + stream)
        for linear in (self.down, self.up):
            nn.init.zeros_(linear.bias)
            if kind == "bert":
                nn.init.normal_(linear.weight, std=0.02, generator=generator)
            elif kind != "mam_adapter":
                std = 1e-2 if kind == "houlsby" else 1e-3
                nn.init.trunc_normal_(linear.weight, std=std, a=-2 * std, b=2 * std, generator=generator)
            elif linear is self.down:
                nn.init.kaiming_uniform_(linear.weight, a=math.sqrt(5), generator=generator)
            else:
                nn.init.zeros_(linear.weight)
        if self.gate is not None:
            nn.init.normal_(self.gate.weight, std=0.02, generator=generator)
            nn.init.zeros_(self.gate.bias)

    def read(self, reading: Reading, delta: Delta, *, before_norm: bool = False) -> Tensor:
        """What the adapter sees, (B, T, D): r if parallel, else the stream or the sub-layer's output."""
        if self.config.is_parallel:
            return reading.residual
        stream = self.config.original_ln_before and not before_norm
        return reading.stream(delta) if stream else reading.hidden(delta)

    def change(self, reading: Reading, delta: Delta) -> Tensor:
        """u, (B, T, D): what the module says, before it is settled into the stream."""
        # a half-precision base may keep single layers, and so its stream, in float32 (T5)
        x = self.read(reading, delta).to(self.up.weight.dtype)
        inner = x if self.norm_before is None else self.norm_before(x)
        u: Tensor = self.up(self.activation(self.down(inner)))
        if self.config.stochastic_depth and self.training:
            u = _drop_rows(u, self.config.stochastic_depth)
        if self.scale is not None:
            u = u * self.scale
        elif self.config.scaling != 1:
            u = u * float(self.config.scaling)
        u = functional.dropout(u, self.config.dropout, self.training)
        if self.gate is not None:
            u = u * torch.sigmoid(self.gate(x)).mean(dim=1, keepdim=True)  # one scalar a row, (B, 1, 1)
        if self.norm_after is not None:
            if self.config.adapter_residual_before_ln and not self.config.is_parallel:
                carried = self.carried(reading, delta).to(u.dtype)
                u = self.norm_after(u + carried) - carried
            else:
                u = self.norm_after(u)
        return u.to(reading.output.dtype)

    def settle(self, reading: Reading, delta: Delta, change: Tensor) -> Delta:
        """Turn u into a change of the stream: carried + u is what the flags ask for, the rest is already there."""
        carried, anchor = self._carries, "stream" if self.writes_after else "hidden"
        if carried != anchor:
            change = change + (self._term(carried, reading, delta) - self._term(anchor, reading, delta))
            change = change.to(reading.output.dtype)
        if self.writes_after and reading.norm is not None:
            return Delta(after=change)
        return Delta(before=change)

    def forward(self, reading: Reading, delta: Delta) -> Delta:
        """What this adapter changes, given what others changed before: reads (B, T, D) tensors, returns (B, T, D)."""
        return self.settle(reading, delta, self.change(reading, delta))

    def carried(self, reading: Reading, delta: Delta) -> Tensor:
        """What u is added to, (B, T, D)."""
        return self._term(self._carries, reading, delta)

    @property
    def _carries(self) -> str:
        if self.config.is_parallel or self.config.residual_before_ln is True or not self.config.original_ln_before:
            return "hidden"  # without original_ln_before nothing was read but h₀ + Δ
        return "sum" if self.config.residual_before_ln == "post_add" else "stream"

    @staticmethod
    def _term(kind: str, reading: Reading, delta: Delta) -> Tensor:
        if kind == "hidden":
            return reading.hidden(delta)
        return reading.stream(delta) if kind == "stream" else reading.hidden(delta) + reading.residual


def _linear(inputs: int, outputs: int) -> nn.Linear:
    # uninitialised: torch's own initialisation would draw from the global generator, whatever the seed
    return nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")


def _drop_rows(u: Tensor, probability: float) -> Tensor:
    """Stochastic depth (Huang et al. 2016), per row: (B, T, D) with whole rows zeroed, the others scaled up."""
    keep = torch.rand(u.shape[0], 1, 1, device=u.device) >= probability
    return u * keep / (1 - probability)
