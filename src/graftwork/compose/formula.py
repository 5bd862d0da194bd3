"""What a composition computes at a site, as a formula: the reference executor, run once on symbols instead of tensors.

A `Value` stands for a (B, T, D) tensor written as

    Σ coefficient · source  +  Σ coefficient · (φ·W + b)

where a *source* is a full-width tensor (h₀, r, a norm of something) and φ are *features*: the few dozen numbers that a
token has in bottleneck space. Values add, subtract and scale, which is all that `Reading`, `Delta` and the blocks of
`reference.py` do with tensors; so what a composition means is written there alone. What is not linear is caught here:

    an adapter     features z = f(x·D + d); gated (g·z, g), with g the mean over the tokens of σ(x·w + w₀)
    a fusion       features (α₁φ₁, …, α_K φ_K, α₁, …, α_K), see `Formula.fused`
    a norm         a source of its own

Weights are float64. Knows nothing of how a formula is laid out or executed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from graftwork.compose.reference import Modules
from graftwork.core.adapter import Adapter
from graftwork.core.bottleneck import Bottleneck
from graftwork.core.fusion import Fusion, FusionConfig
from graftwork.core.phm import PHM
from graftwork.core.site import Delta, Reading


class Unfoldable(Exception):
    """Exactness would be lost; the message is the reason. Never leaves `fold.py`."""


@dataclass(eq=False)
class Feature:
    """A run of columns in bottleneck space, (N, size) at run time."""

    size: int


@dataclass(eq=False)
class Source:
    """A full-width tensor, (B, T, D) at run time."""


@dataclass(eq=False)
class Said:
    """φ·W + b: features with a row of D numbers each, and a bias (D,). `names` are the adapters that speak in it."""

    names: tuple[str, ...]
    rows: tuple[tuple[Feature, Tensor], ...]  # W by feature, (size, D)
    bias: Tensor


@dataclass(frozen=True)
class Value:
    """A formula for a (B, T, D) tensor. `dtype` and `to` are those of a tensor that is cast at the very end."""

    parts: Mapping[Source | Said, float]
    dtype: None = None

    def to(self, dtype: object) -> "Value":
        """Itself: a formula is cast when it is executed."""
        return self

    def __add__(self, other: "Value") -> "Value":
        total = {part: self.parts.get(part, 0.0) + other.parts.get(part, 0.0) for part in {**self.parts, **other.parts}}
        return Value({part: factor for part, factor in total.items() if factor})

    def __mul__(self, factor: float) -> "Value":
        return Value({part: own * factor for part, own in self.parts.items() if own * factor})

    def __sub__(self, other: "Value") -> "Value":
        return self + other * -1.0

    @property
    def sources(self) -> dict[Source, float]:
        """The full-width terms."""
        return {part: factor for part, factor in self.parts.items() if isinstance(part, Source)}

    @property
    def ups(self) -> dict[Said, float]:
        """The terms that come out of bottleneck space."""
        return {part: factor for part, factor in self.parts.items() if isinstance(part, Said)}

    def rows(self) -> dict[Feature, Tensor]:
        """W by feature, (size, D) each."""
        total: dict[Feature, Tensor] = {}
        for said, factor in self.ups.items():
            for feature, weight in said.rows:
                total[feature] = total[feature] + weight * factor if feature in total else weight * factor
        return total

    def bias(self, zeros: Tensor) -> Tensor:
        """The constant term, (D,); `zeros` (D,) where there is none."""
        return sum((said.bias * factor for said, factor in self.ups.items()), zeros)


@dataclass(eq=False)
class Columns(Feature):
    """x·W + b, (N, size), of a value x; `activation` runs over it, None leaves it as it is."""

    x: Value
    weight: Tensor  # (D, size)
    bias: Tensor  # (size,)
    activation: nn.Module | None


@dataclass(eq=False)
class Gated(Feature):
    """(g·z, g), size M + 1: z scaled by one number a row."""

    z: Feature
    gate: Columns


@dataclass(eq=False)
class Mixed(Feature):
    """(α₁φ₁, …, α_K φ_K, α₁, …, α_K) with α = softmax(φₖ·tₖ + cₖ)."""

    members: tuple[tuple[Feature, ...], ...]
    t: Columns
    c: Columns


@dataclass(eq=False)
class Normed(Source):
    """The site's norm of a value."""

    inner: Value


Step: TypeAlias = Columns | Gated | Mixed | Normed


@dataclass
class Formula:
    """The steps of one composition at one site, in an order that can be executed."""

    zeros: Tensor  # (D,), float64, where weights are computed: on the CPU (not every device has float64), or on meta
    normed: bool  # whether a norm follows the residual add at this site
    width: Callable[[int], int] = int  # M of an adapter -> the columns that it gets, those beyond M being zero
    steps: list[Step] = field(default_factory=list)
    output: Source = field(default_factory=Source)
    residual: Source = field(default_factory=Source)
    after: Source = field(default_factory=Source)  # the incoming change after the norm; may be absent
    _norms: dict[frozenset[tuple[Source | Said, float]], Normed] = field(default_factory=dict)

    def of(self, node: Callable[[Reading, Delta], Delta]) -> tuple[Value | None, Value | None]:
        """Run a node of the reference on symbols: what it writes before the residual add, and after the norm."""
        output, residual, after = (Value({s: 1.0}) for s in (self.output, self.residual, self.after))
        reading: Any = Reading(cast(Any, output), cast(Any, residual), cast(Any, self.norm if self.normed else None))
        change = node(reading, Delta(after=cast(Any, after)))
        return cast("Value | None", change.before), cast("Value | None", change.after)

    def norm(self, inner: Value) -> Value:
        """The site's norm of a value: a source. The same value is normed once."""
        key = frozenset(inner.parts.items())
        if key not in self._norms:
            self._norms[key] = self.add(Normed(inner))
        return Value({self._norms[key]: 1.0})

    def add(self, step: Any) -> Any:
        """Append a step and return it."""
        self.steps.append(step)
        return step

    def columns(self, x: Value, linear: tuple[Tensor, Tensor], activation: nn.Module | None = None) -> Columns:
        """x·W + b for `linear` = (W (D, size), b (size,))."""
        weight, bias = linear
        return cast(Columns, self.add(Columns(weight.shape[1], x, weight, bias, activation)))

    def said(self, name: str, adapter: Bottleneck, x: Value) -> Value:
        """What an adapter says to x: scale · up(f(down(x))), gated or not."""
        (down, start), (weight, bias) = self._weights(adapter.down), self._weights(adapter.up)
        extra = 0, self.width(len(weight)) - len(weight)  # columns of zeros: whatever f(0) is, nothing comes of it
        down, start = nn.functional.pad(down, extra), nn.functional.pad(start, extra)
        z: Feature = self.columns(x, (down, start), adapter.activation)
        scale = float(adapter.config.scaling) if adapter.scale is None else self._exact(adapter.scale)
        weight, bias = nn.functional.pad(weight, (0, 0, *extra)) * scale, bias * scale
        if adapter.gate is None:
            return Value({Said((name,), ((z, weight),), bias): 1.0})
        gated = self.add(Gated(z.size + 1, z, self.columns(x, self._weights(adapter.gate))))
        return Value({Said((name,), ((gated, torch.cat([weight, bias[None]])),), self.zeros): 1.0})

    def fused(self, fusion: Fusion, x: Value, changes: Sequence[Value]) -> Value:
        """AdapterFusion in bottleneck space, exactly.

        Member k says uₖ = φₖWₖ + vₖ. With q = x·Wq + bq, its score is q·(uₖWk + bk), and q·bk, the same for all k,
        leaves the softmax. What is left is φₖ·tₖ + cₖ with tₖ = q·(WₖWk)ᵀ and cₖ = q·(vₖWk)ᵀ, columns of one product
        with x. With αₖ the softmax, Σ αₖuₖ·V = Σ αₖφₖ·(WₖV) + αₖ·(vₖV): features (αₖφₖ, αₖ), V inside their rows.
        """
        eye = torch.eye(len(self.zeros)).to(self.zeros)
        query, query_bias = (eye, self.zeros) if fusion.query is None else self._weights(fusion.query)
        keys = self._weights(fusion.key)[0] if fusion.key is not None else eye
        values = self._exact(fusion.value.weight).T if fusion.value is not None else eye
        members = [list(change.rows().items()) for change in changes]
        rows = torch.cat([self.zeros[None][:0], *(w for m in members for _, w in m)])  # (F, D)
        biases = torch.stack([change.bias(self.zeros) for change in changes])  # (K, D)
        t, c = ((query @ seen.T, query_bias @ seen.T) for seen in (rows @ keys, biases @ keys))
        mixed = self.add(
            Mixed(
                len(rows) + len(biases),
                tuple(tuple(feature for feature, _ in member) for member in members),
                self.columns(x, t),
                self.columns(x, c),
            )
        )
        names = tuple(name for change in changes for said in change.ups for name in said.names)
        return Value({Said(names, ((mixed, torch.cat([rows, biases]) @ values),), self.zeros): 1.0})

    def _exact(self, tensor: Tensor) -> Tensor:
        """A detached copy in float64, where weights are computed with."""
        return tensor.detach().to(self.zeros, copy=True)

    def _weights(self, linear: nn.Linear | PHM) -> tuple[Tensor, Tensor]:
        """W (in, out) and b (out,) of a linear layer, which a hypercomplex one is too."""
        weight = linear.weight if isinstance(linear, nn.Linear) else linear.dense(self.zeros)
        bias = linear.bias if linear.bias is not None else torch.zeros(linear.out_features)
        return self._exact(weight).T, self._exact(bias)


@dataclass(frozen=True)
class Symbolic:
    """The members of a composition, each computing with symbols. Raises Unfoldable for one that cannot."""

    formula: Formula
    modules: Modules

    def adapter(self, name: str, site: int) -> Adapter | None:
        """As `Modules.adapter`."""
        module = self.modules.adapter(name, site)
        if not isinstance(module, Bottleneck):
            return None  # `fold.py` refuses other modules before it asks
        norms = {"ln_before": module.norm_before, "ln_after": module.norm_after, "train_norms": module.norm}
        if flags := [flag for flag, own in norms.items() if own is not None]:
            raise Unfoldable(f"{name} has a norm of its own ({flags[0]}), which is not linear")
        if module.inputs:
            raise Unfoldable(f"{name} reads the input of a linear, which is not of the width that is written")
        return cast(Adapter, Leaf(name, module, self.formula))

    def fusion(self, name: str, site: int) -> Fusion | None:
        """As `Modules.fusion`."""
        module = self.modules.fusion(name, site)
        return None if module is None else cast(Fusion, _Fused(name, module, self.formula))


@dataclass(frozen=True)
class Leaf:
    """An adapter that computes with symbols."""

    name: str
    adapter: Bottleneck
    formula: Formula

    def change(self, reading: Reading, delta: Delta) -> Any:
        return self.formula.said(self.name, self.adapter, cast(Any, self.adapter.read(reading, delta)))

    def __call__(self, reading: Reading, delta: Delta) -> Delta:
        return self.adapter.settle(reading, delta, self.change(reading, delta))

    # what a fusion asks of its last member: the adapter's own answers, on symbols

    def read(self, reading: Reading, delta: Delta, *, before_norm: bool = False) -> Tensor:
        return self.adapter.read(reading, delta, before_norm=before_norm)

    def carried(self, reading: Reading, delta: Delta) -> Tensor:
        return self.adapter.carried(reading, delta)

    def settle(self, reading: Reading, delta: Delta, change: Tensor) -> Delta:
        return self.adapter.settle(reading, delta, change)


@dataclass(frozen=True)
class _Fused:
    name: str
    module: Fusion
    formula: Formula

    @property
    def config(self) -> FusionConfig:
        return self.module.config

    def attended(self, members: Sequence[Any]) -> list[Any]:
        return self.module.attended(members)

    def __call__(self, x: Value, changes: Sequence[Value], residual: Value | None) -> Value:
        if residual is not None:
            raise Unfoldable(f"fusion {self.name} adds the full-width residual to its values (residual_before)")
        for change in changes:
            if change.sources:
                names = ", ".join(name for said in change.ups for name in said.names)
                raise Unfoldable(
                    f"fusion {self.name} has a member ({names}) that moves the stream to where it writes "
                    "(residual_before_ln, original_ln_after), so its keys and values are of full width"
                )
        return self.formula.fused(self.module, x, changes)
