"""Every choice of a bottleneck adapter, under AdapterHub's names and with its defaults; what is added says so.

Plain data: says what a value may be, and nothing of the modules that are made of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from graftwork.core.activations import ACTIVATIONS
from graftwork.core.distributions import DEVIATIONS, INITS
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
from graftwork.core.site import Site
from graftwork.errors import AdapterError

LINEARS = (
    *(f"{block}.{part}" for block in ("attn", "cross") for part in ("query", "key", "value", "out")),
    *("ffn.up", "ffn.gate", "ffn.down"),
)
HYPERCOMPLEX_INITS = ("glorot-uniform", "glorot-normal", "normal")
_INVERTIBLE = (None, "nice", "glow")
_LOCATION = {"attn": "mh_adapter", "ffn": "output_adapter", "cross": "cross_adapter"}  # site kind -> its flag
_SWITCHES = (
    *(*_LOCATION.values(), "original_ln_before", "original_ln_after", "ln_before", "ln_after", "is_parallel"),
    *("use_gating", "adapter_residual_before_ln", "bias", "train_norms", "shared", "phm_layer", "factorized_phm_W"),
    *("shared_W_phm", "shared_phm_rule", "factorized_phm_rule", "learn_phm", "phm_bias", "inverse_at_head"),
)


@dataclass(frozen=True, kw_only=True)
class BottleneckOptions:
    """The fields of `BottleneckConfig`. Raises AdapterError that lists every value out of range.

    reduction_factor: D / M; a number, or a mapping from layer number (across stacks, encoder first) to number with
    "default". leave_out: layers without an adapter. stacks: only these ("encoder", "vision"); empty for all. scaling: a
    number, "learned" (one parameter) or "channel" (D). init_weights: see `core/distributions.py`. With phm_layer, W
    begins as hypercomplex_nonlinearity says; with mam_adapter up is zero, houlsby and adapter_bert apply to W itself.

    Not AdapterHub's: linears, further places ("ffn.up.input", "ffn.down", "attn.query"); bottleneck_size, M itself;
    bias, of down and up; train_norms, see `core/norms.py`; init_std, another deviation of init_weights; stacks; shared,
    one bottleneck for all layers.
    """

    mh_adapter: bool = False
    output_adapter: bool = True
    cross_adapter: bool = False
    linears: tuple[str, ...] = ()
    reduction_factor: float | Mapping[str, float] = 16
    bottleneck_size: int | None = None
    non_linearity: str = "relu"
    bias: bool = True
    original_ln_before: bool = False
    original_ln_after: bool = True
    ln_before: bool = False
    ln_after: bool = False
    train_norms: bool = False
    init_weights: str = "bert"
    init_weights_seed: int | None = None
    init_std: float | None = None
    is_parallel: bool = False
    scaling: float | str = 1.0
    use_gating: bool = False
    residual_before_ln: bool | Literal["post_add"] = True
    adapter_residual_before_ln: bool = False
    inv_adapter: str | None = None
    inv_adapter_reduction_factor: float | None = None
    inverse_at_head: bool = True
    leave_out: tuple[int, ...] = ()
    stacks: tuple[str, ...] = ()
    shared: bool = False
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    phm_layer: bool = False
    phm_dim: int = 4
    factorized_phm_W: bool = True
    shared_W_phm: bool = False
    shared_phm_rule: bool = True
    factorized_phm_rule: bool = False
    phm_c_init: str = "normal"
    phm_init_range: float = 0.0001
    learn_phm: bool = True
    hypercomplex_nonlinearity: str = "glorot-uniform"
    phm_rank: int = 1
    phm_bias: bool = True

    kind: ClassVar[str] = "bottleneck"
    where: ClassVar[str] = "sub-layers (attn, ffn, cross), linears and their inputs, and the embeddings (embed)"

    def __post_init__(self) -> None:
        settle_places(self)
        wrong = switch_problems(self, _SWITCHES) + seed_problems(self.init_weights_seed)
        checks = (*_sizes(self), *_stream(self), *_elsewhere(self), *_hypercomplex(self))
        problems = wrong + [problem for fine, problem in checks if not fine] + place_problems(self)
        if problems:
            raise AdapterError("bottleneck adapter: " + "; ".join(problems))

    def wants(self, site: Site) -> bool:
        """Whether there is to be a bottleneck at a sub-layer, linear or input site, leave_out and stacks aside."""
        flag = _LOCATION.get(site.kind)
        return site.kind in self.linears if flag is None else bool(getattr(self, flag))

    def adapts(self, site: Site) -> bool:
        """Whether this configuration means a site; a norm at the embeddings is trained only where there is one."""
        if site.place == "embed":
            return goes_to(self, site) and (self.train_norms or self.inv_adapter is not None)
        return goes_to(self, site) and self.wants(site)

    def width(self, site: Site) -> int:
        """M = floor(D / reduction factor), at least 1. Raises AdapterError where a mapping leaves the layer out."""
        if self.bottleneck_size is not None:
            return self.bottleneck_size
        return max(1, int(site.width // at_layer("reduction_factor", self.reduction_factor, site)))


_Checks = tuple[tuple[bool, str], ...]


def _sizes(config: BottleneckOptions) -> _Checks:
    size, std = config.bottleneck_size, config.init_std
    return (
        (fits_layers(config.reduction_factor, _is_factor), f"reduction_factor {config.reduction_factor!r} must be a "
         "positive number, or a mapping of layer number (or 'default') to one"),
        (size is None or (is_count(size) and size > 0), f"bottleneck_size {size!r} must be a positive whole number, "
         "or none for D / reduction_factor"),
        (str(config.non_linearity).lower() in ACTIVATIONS, f"non_linearity {config.non_linearity!r} is unknown; there "
         f"are {', '.join(ACTIVATIONS)}"),
        (config.init_weights in INITS, f"init_weights {config.init_weights!r} is not one of {', '.join(INITS)}"),
        (std is None or (is_number(std) and std > 0), f"init_std {std!r} must be a positive number, or none for the "
         "deviation of init_weights"),
        (std is None or (config.init_weights in DEVIATIONS and not config.phm_layer), "init_std has no meaning for "
         "init_weights 'mam_adapter', which has no deviation, nor for phm_layer, which has phm_init_range"),
        (is_share(config.dropout), f"dropout {config.dropout!r} must be in [0, 1)"),
        (is_share(config.stochastic_depth), f"stochastic_depth {config.stochastic_depth!r} must be in [0, 1)"),
    )  # fmt: skip


def _stream(config: BottleneckOptions) -> _Checks:
    residual = config.residual_before_ln
    return (
        (config.scaling in ("learned", "channel") or is_number(config.scaling), f"scaling {config.scaling!r} must be a "
         "finite number, 'learned' or 'channel'"),
        (isinstance(residual, bool) or residual == "post_add", f"residual_before_ln {residual!r} must be true, false "
         "or 'post_add'"),
        (residual != "post_add" or config.original_ln_before, "residual_before_ln 'post_add' needs original_ln_before: "
         "the sum is the one that the norm would read"),
        (not (config.is_parallel and config.stochastic_depth), "stochastic_depth has no meaning for a parallel "
         "adapter"),
        (not config.train_norms or config.original_ln_after, "train_norms needs original_ln_after: nothing is normed "
         "after the adapter"),
    )  # fmt: skip


def _elsewhere(config: BottleneckOptions) -> _Checks:
    linears, factor = config.linears, config.inv_adapter_reduction_factor
    listed = isinstance(linears, tuple) and all(str(kind).removesuffix(".input") in LINEARS for kind in linears)
    places = (*(getattr(config, flag) for flag in _LOCATION.values()), linears, config.inv_adapter)
    return (
        (any(places), "needs one of mh_adapter, output_adapter, cross_adapter, linears, inv_adapter"),
        (listed, f"linears {linears!r} must be a list of {', '.join(LINEARS)}, each with '.input' for what the linear "
         "reads"),
        (not (linears and config.original_ln_before and not config.is_parallel), "original_ln_before has no meaning "
         "for linears: a linear's output is not a stream that a norm would read"),
        (config.inv_adapter in _INVERTIBLE, f"inv_adapter {config.inv_adapter!r} must be 'nice', 'glow' or none"),
        (factor is None or (is_number(factor) and factor > 0), f"inv_adapter_reduction_factor {factor!r} must be a "
         "positive number, or none without inv_adapter"),
        (config.inv_adapter is None or factor is not None, f"inv_adapter {config.inv_adapter!r} needs an "
         "inv_adapter_reduction_factor, such as 2"),
        (not (config.train_norms and config.inv_adapter), "train_norms and inv_adapter both change the embeddings; "
         "stack two adapters instead"),
    )  # fmt: skip


def _hypercomplex(config: BottleneckOptions) -> _Checks:
    spread, start = config.phm_init_range, config.hypercomplex_nonlinearity
    return (
        (is_count(config.phm_dim) and config.phm_dim > 0, f"phm_dim {config.phm_dim!r} must be a positive whole "
         "number"),
        (is_count(config.phm_rank) and config.phm_rank > 0, f"phm_rank {config.phm_rank!r} must be a positive whole "
         "number"),
        (config.phm_c_init in ("normal", "uniform"), f"phm_c_init {config.phm_c_init!r} must be 'normal' or 'uniform'"),
        (is_number(spread) and spread > 0, f"phm_init_range {spread!r} must be a positive number"),
        (start in HYPERCOMPLEX_INITS, f"hypercomplex_nonlinearity {start!r} is not one of "
         f"{', '.join(HYPERCOMPLEX_INITS)} (AdapterHub lists 'phm' too and never defined it)"),
        (not (config.shared and config.phm_layer), "shared is for dense layers; hypercomplex layers have shared_W_phm"),
        (config.bias or not config.phm_layer, "bias is that of dense layers; hypercomplex layers have phm_bias"),
    )  # fmt: skip


def _is_factor(value: object) -> bool:
    return is_number(value) and value > 0  # type: ignore[operator]
