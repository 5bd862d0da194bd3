"""The bottleneck adapter (Houlsby et al. 2019; Pfeiffer et al. 2021; He et al. 2022; Steitz & Roth 2024, AdapterPlus).

    u = scale · up(f(down(x)))           down: D -> M, up: M -> D;  2·D·M + M + D parameters

What x is, what u is added to, and where the result is written are flags (AdapterHub's names). For h₀, r, LN as in
`core/site.py` the named placements are

    seq_bn         LN(h₀ + A(LN(h₀ + r)) + r)       pre-LN:  r + h₀ + A(h₀ + r)       (Pfeiffer)
    double_seq_bn  LN(h₀ + A(h₀) + r), twice         pre-LN:  r + h₀ + A(h₀)           (Houlsby)
    par_bn         LN(h₀ + s·A(r) + r)               pre-LN:  r + h₀ + s·A(r)          (He)

With u = 0 these are the base model to the last bit. At a linear h₀ is its output y and r its input x, so that a
parallel adapter there maps x to y's width (LLM-Adapters); at the input of a linear both are x. Where the configuration
asks for it, down and up are hypercomplex (`core/phm.py`), the site's norm is trained along (`core/norms.py`), and the
embed site has an invertible adapter (`core/invertible.py`). With `shared` one A serves the sites of a kind in all
layers (Rücklé et al. 2021, appendix): 2·D·M + M + D parameters in all, and its gradient is the sum over layers.

Knows nothing of layers, names, files or compositions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from graftwork.core.activations import activation
from graftwork.core.adapter import NO_GROUND, Ground
from graftwork.core.bottleneck_options import BottleneckOptions
from graftwork.core.distributions import begin_linear
from graftwork.core.embeddings import EmbeddingAdapter
from graftwork.core.initial import blank_linear, generator_of, new_gate, opened
from graftwork.core.invertible import Glow, Nice
from graftwork.core.norms import TrainedEmbeddingNorm, TrainedNorm
from graftwork.core.options import goes_to
from graftwork.core.phm import PHM, SharedPHM
from graftwork.core.site import Delta, Reading, Site, Uses
from graftwork.errors import AdapterError


@dataclass(frozen=True, kw_only=True)
class BottleneckConfig(BottleneckOptions):
    """Every choice of a bottleneck adapter, and what is built of it; the fields are in `core/bottleneck_options.py`."""

    def share(self, sites: Sequence[Site]) -> nn.Module | None:
        """The bottlenecks of all layers where they are shared, or what all hypercomplex layers have in common. Raises
        AdapterError where sites differ in size and their matrices were to be shared, and where an invertible adapter
        has no embeddings to go to."""
        if self.inv_adapter is not None and not any(self.adapts(site) for site in sites if site.place == "embed"):
            raise AdapterError(
                f"inv_adapter {self.inv_adapter!r}: the model has no embeddings that it could map (or stacks "
                f"{list(self.stacks)} leave them out); set inv_adapter=None for the bottlenecks alone"
            )
        wanted = [site for site in sites if self.wants(site) and goes_to(self, site)]
        if self.shared:
            return self._for_all(wanted)
        if not wanted or not self.phm_layer or not (self.shared_phm_rule or self.shared_W_phm):
            return None
        sizes = {(site.inputs if self._reads_input(site) else site.width, site.width, self.width(site)): site.name
                 for site in reversed(wanted)}  # fmt: skip
        if self.shared_W_phm and (len(sizes) > 1 or any(read != written for read, written, _ in sizes)):
            shown = "; ".join(f"{name}: {a} -> {m} -> {b}" for (a, b, m), name in reversed(sizes.items()))
            raise AdapterError(f"shared_W_phm needs sites of one size, and there are {shown}; set shared_W_phm=False")
        _, width, bottleneck = next(iter(sizes))
        return SharedPHM(self, width, bottleneck)

    def build(self, site: Site, ground: Ground = NO_GROUND) -> "Bottleneck | EmbeddingAdapter | None":
        """The module for a site, freshly initialised in float32, or None where this configuration has none.

        Raises AdapterError where a norm is to be trained and there is none, and where sizes do not fit phm_dim.
        """
        if not goes_to(self, site):
            return None
        if site.place == "embed":
            return self._at_embeddings(site, ground)
        if not self.wants(site):
            return None
        norm = TrainedNorm(ground.norm, site.name) if self.train_norms and site.place == "sublayer" else None
        if self.shared:
            return Tied(cast(Bottleneck, cast(nn.ModuleDict, ground.shared)[_kind(site)]), norm)
        shared = cast("SharedPHM | None", ground.shared)
        return Bottleneck(self._size(site), self, site.index, shared=shared, norm=norm)

    def _size(self, site: Site) -> tuple[int, int, int]:
        return site.width, self.width(site), site.inputs if self._reads_input(site) else 0

    def _for_all(self, sites: Sequence[Site]) -> nn.ModuleDict | None:
        """The one bottleneck of every kind of site, begun as that of its first."""
        first: dict[str, Site] = {}
        for site in sites:
            like = first.setdefault(_kind(site), site)
            if self._size(site) != self._size(like):
                raise AdapterError(
                    f"shared needs one size in all layers: {like.name} is {like.width} wide with a bottleneck of "
                    f"{self.width(like)}, {site.name} {site.width} with {self.width(site)}; set shared=False, or leave "
                    "layers out"
                )
        made = {kind: Bottleneck(self._size(site), self, site.index) for kind, site in first.items()}
        return nn.ModuleDict(made) if made else None

    def _reads_input(self, site: Site) -> bool:
        return self.is_parallel and site.place == "linear"

    def _at_embeddings(self, site: Site, ground: Ground) -> EmbeddingAdapter | None:
        if self.train_norms and ground.norm is not None:
            return TrainedEmbeddingNorm(ground.norm, site.name)
        if self.inv_adapter is None:
            return None
        kind = Nice if self.inv_adapter == "nice" else Glow
        factor = cast(float, self.inv_adapter_reduction_factor)
        made = kind(site.width, factor, self.non_linearity, generator_of(self.init_weights_seed, site.index))
        made.undone_at_head = self.inverse_at_head
        return made


class Bottleneck(nn.Module):
    """One bottleneck adapter at one site.

    size: D, M, and the width of what a parallel adapter at a linear reads (0 elsewhere). stream: numbers the site; a
    seed gives every site weights of its own. shared: of hypercomplex layers. norm: the site's, trained along.
    """

    def __init__(
        self,
        size: tuple[int, int, int],
        config: BottleneckOptions,
        stream: int = 0,
        *,
        shared: SharedPHM | None = None,
        norm: TrainedNorm | None = None,
    ) -> None:
        super().__init__()
        width, bottleneck, self.inputs = size
        read = self.inputs or width
        source = generator_of(config.init_weights_seed, stream)
        self.config = config
        self.writes_after = not config.original_ln_after
        self.norm_before = nn.LayerNorm(read) if config.ln_before else None
        self.activation = activation(config.non_linearity)
        self.down: nn.Linear | PHM
        self.up: nn.Linear | PHM
        if config.phm_layer:
            self.down = PHM((read, bottleneck), config, "down", shared, source)
            self.up = PHM((bottleneck, width), config, "up", shared, source)
        else:
            init, std = config.init_weights, config.init_std
            self.down = begin_linear(blank_linear(read, bottleneck, config.bias), init, source, std=std)
            self.up = begin_linear(blank_linear(bottleneck, width, config.bias), init, source, up=True, std=std)
        self.norm_after = nn.LayerNorm(width) if config.ln_after else None
        self.gate = new_gate(read, source) if config.use_gating else None
        scales = {"learned": 1, "channel": width}.get(str(config.scaling))
        self.scale = None if scales is None else nn.Parameter(torch.ones(scales))
        self.norm = norm

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which it computes."""
        return self.up.weight.dtype if isinstance(self.up, nn.Linear) else self.up.dtype

    def read(self, reading: Reading, delta: Delta, *, before_norm: bool = False) -> Tensor:
        """What the adapter sees, (B, T, D): r if parallel, else the stream or the sub-layer's output.

        A parallel adapter at a linear sees x, which is not of width D: what a fusion reads there is y.
        """
        if self.config.is_parallel and not self.inputs:
            return reading.residual
        stream = self.config.original_ln_before and not before_norm
        return reading.stream(delta) if stream else reading.hidden(delta)

    def change(self, reading: Reading, delta: Delta) -> Tensor:
        """u, (B, T, D): what the module says, before it is settled into the stream."""
        # a half-precision base may keep single layers, and so its stream, in float32 (T5)
        x = (reading.residual if self.inputs else self.read(reading, delta)).to(self.dtype)
        carried = None
        if self.config.adapter_residual_before_ln and not self.config.is_parallel:
            carried = self.carried(reading, delta).to(self.dtype)
        return self.finish(self.propose(x), x, carried).to(reading.like.dtype)

    def propose(self, x: Tensor) -> Tensor:
        """scale · up(f(down(x))), (B, T, D): what comes out of the bottleneck for x (B, T, D)."""
        inner = x if self.norm_before is None else self.norm_before(x)
        u: Tensor = self.up(self.activation(self.down(inner)))
        if self.config.stochastic_depth and self.training:
            u = _drop_rows(u, self.config.stochastic_depth)
        if self.scale is not None:
            return u * self.scale
        return u if self.config.scaling == 1 else u * float(self.config.scaling)

    def finish(self, u: Tensor, x: Tensor, carried: Tensor | None) -> Tensor:
        """What is proposed, after dropout, gate and a norm of its own; carried: what that norm sees with u."""
        u = functional.dropout(u, self.config.dropout, self.training)
        if self.gate is not None:
            u = u * opened(self.gate, x)
        if self.norm_after is None:
            return u
        normed: Tensor = self.norm_after(u if carried is None else u + carried)
        return normed if carried is None else normed - carried

    def settle(self, reading: Reading, delta: Delta, change: Tensor) -> Delta:
        """Turn u into a change of the stream: carried + u is what the flags ask for, the rest is already there."""
        carried, anchor = self._carries, "stream" if self.writes_after else "hidden"
        if carried != anchor:
            change = change + (self._term(carried, reading, delta) - self._term(anchor, reading, delta))
            change = change.to(reading.like.dtype)
        if self.writes_after and (reading.norm is not None or reading.inner is not None):
            return Delta(after=change)
        if self.norm is None:
            return Delta(before=change)
        normed_sum = self._term("sum", reading, delta.plus(Delta(before=change)))
        return Delta(before=change, after=self.norm(normed_sum))

    def forward(self, reading: Reading, delta: Delta) -> Delta:
        """What this adapter changes, given what others changed before: reads (B, T, D) tensors, returns (B, T, D)."""
        return self.settle(reading, delta, self.change(reading, delta))

    def carried(self, reading: Reading, delta: Delta) -> Tensor:
        """What u is added to, (B, T, D)."""
        return self._term(self._carries, reading, delta)

    @property
    def uses(self) -> Uses:
        """What it uses of a sub-layer besides the stream: h₀ or r by itself, the place behind the norm."""
        config = self.config
        terms = {self._carries, "stream" if self.writes_after else "hidden"}
        carried = config.adapter_residual_before_ln and self._carries == "hidden"
        apart = config.is_parallel or not config.original_ln_before or carried or (len(terms) > 1 and "hidden" in terms)
        return Uses(parts=apart, after=self.writes_after or self.norm is not None)

    @property
    def _carries(self) -> str:
        if self.config.is_parallel or self.config.residual_before_ln is True or not self.config.original_ln_before:
            return "hidden"  # without original_ln_before nothing was read but h₀ + Δ
        return "sum" if self.config.residual_before_ln == "post_add" else "stream"

    @staticmethod
    def _term(kind: str, reading: Reading, delta: Delta) -> Tensor:
        if kind == "hidden":
            return reading.hidden(delta)
        if kind == "stream":
            return reading.stream(delta)
        return reading.total(delta)


class Tied(Bottleneck):
    """A site's share of the one bottleneck of all layers. owner: has the parameters; it lies once, with the adapter."""

    def __init__(self, owner: Bottleneck, norm: TrainedNorm | None) -> None:
        nn.Module.__init__(self)
        self._owner = (owner,)  # in a tuple: no module of this one's own
        self.config, self.inputs, self.writes_after = owner.config, owner.inputs, owner.writes_after
        self.norm = norm

    @property
    def owner(self) -> Bottleneck:
        """The one that all layers share."""
        return self._owner[0]

    def __getattr__(self, name: str) -> Any:
        # asked of the owner every time: a parameter of it may be replaced (loading with assign, sharding)
        return getattr(self._owner[0], name) if name in _OWNED else super().__getattr__(name)


_OWNED = ("norm_before", "activation", "down", "up", "norm_after", "gate", "scale")


def _kind(site: Site) -> str:
    """Which of the shared bottlenecks a site has: that of its kind in its stack, as a name of a module."""
    return f"{site.stack}_{site.kind}".strip("_").replace(".", "_")


def _drop_rows(u: Tensor, probability: float) -> Tensor:
    """Stochastic depth (Huang et al. 2016), per row: (B, T, D) with whole rows zeroed, the others scaled up."""
    keep = torch.rand(u.shape[0], 1, 1, device=u.device) >= probability
    return u * keep / (1 - probability)
