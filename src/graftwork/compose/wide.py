"""The wide bottleneck: what a folded composition runs at a site, a short list of steps over all tokens at once.

    down   one product of what is read with all columns that need it: bottlenecks, queries, gates
    mix    activations, small products between features, attention over members: a few dozen numbers a token
    up     one product of all features with the rows that they stand for

Weights lie (in, out), the order in which a narrow product is fastest. N = B·T tokens, C columns, F features, K members.
Nothing here knows of adapters, names or what the steps mean: `layout.py` writes them, `formula.py` says what for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from graftwork.compose.run import Run, Span, Terms, check_norm
from graftwork.core.site import Delta, Reading


class Step(Protocol):
    """Something that adds a register or a source to a run."""

    def __call__(self, run: Run) -> None: ...

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """What it holds: matrices (2-D), which multiply every token, and biases (1-D)."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Down:
    """x·W + b: what is read (N, D) -> a register (N, C)."""

    terms: Terms
    weight: Tensor
    bias: Tensor

    def __call__(self, run: Run) -> None:
        """Add the register."""
        run.registers.append(run.product(run.flat(self.terms), self.weight, self.bias, None))

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """W and b."""
        return self.weight, self.bias


@dataclass(frozen=True, slots=True, eq=False)
class Join:
    """Columns (N, C) of a register plus φ·M for features of earlier members: what a down sees of what they wrote."""

    start: Span
    parts: tuple[tuple[Span, Tensor], ...]

    def __call__(self, run: Run) -> None:
        """Add the register."""
        total = run.features((self.start,))
        for span, matrix in self.parts:
            total = run.product(run.features((span,)), matrix, None, total)
        run.registers.append(total)

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """Every M."""
        return tuple(matrix for _, matrix in self.parts)


@dataclass(frozen=True, slots=True, eq=False)
class Activate:
    """f of some columns, (N, C) -> a register (N, C)."""

    span: Span
    function: Callable[[Tensor], Tensor]

    def __call__(self, run: Run) -> None:
        """Add the register."""
        run.registers.append(self.function(run.features((self.span,))))

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """None."""
        return ()


@dataclass(frozen=True, slots=True, eq=False)
class Gate:
    """(g·z, g), (N, M + 1), with g = mean over the tokens of σ(column), one number a row."""

    z: Span
    gate: Span
    spread: Tensor  # (1, M + 1)

    def __call__(self, run: Run) -> None:
        """Add the register."""
        rows, tokens, _ = run.shape
        gate = torch.sigmoid(run.features((self.gate,))).view(rows, tokens, 1).mean(dim=1, keepdim=True)
        run.registers.append(
            _weighed(gate.expand(rows, tokens, 1).reshape(-1, 1), run.features((self.z,)), self.spread)
        )

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """The row that repeats g."""
        return (self.spread,)


@dataclass(frozen=True, slots=True, eq=False)
class Mix:
    """(α₁φ₁, …, α_K φ_K, α), (N, F + K), with α = softmax(Σ φ·t over each member's columns + c)."""

    features: tuple[Span, ...]
    t: Span
    c: Span
    segments: Tensor  # (F, K), 1 where a feature is of a member
    spread: Tensor  # (K, F + K), its transpose beside the identity

    def __call__(self, run: Run) -> None:
        """Add the register."""
        features = run.features(self.features)
        scores = torch.addmm(run.features((self.c,)), features * run.features((self.t,)), self.segments)
        run.registers.append(_weighed(scores.softmax(dim=-1), features, self.spread))

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """The two that sum over members' columns and repeat over them."""
        return self.segments, self.spread


def _weighed(weights: Tensor, features: Tensor, spread: Tensor) -> Tensor:
    """Weights (N, K) and features (N, F) -> (weight · feature, weight), (N, F + K)."""
    result = torch.mm(weights, spread)
    result[:, : features.shape[1]] *= features
    return result


@dataclass(frozen=True, slots=True, eq=False)
class Up:
    """φ·W + b + full-width terms, (B, T, D). With a `carry`, a source to add to, b is the last row of W."""

    features: tuple[Span, ...]
    weight: Tensor
    bias: Tensor | None
    carry: int | None
    terms: Terms

    def tensor(self, run: Run) -> Tensor:
        """(B, T, D), in the dtype of the site's output."""
        total = None if self.carry is None else run.sources[self.carry]
        if self.features:
            total = self._product(run, total)
        terms = run.total(self.terms)
        if total is None:
            return terms if terms is not None else torch.zeros(run.shape, dtype=run.out, device=self.weight.device)
        return total if terms is None else total + terms

    def _product(self, run: Run, carry: Tensor | None) -> Tensor:
        features = run.features(self.features)
        if carry is None:
            product = run.product(features, self.weight, self.bias, None).view(run.shape)
            return product if run.out is run.dtype else product.to(run.out)
        features = functional.pad(features, (0, 1), value=1.0)  # a 1 for the bias in the last row
        if carry.dtype == self.weight.dtype:
            return run.product(features, self.weight, None, carry.reshape(-1, run.shape[-1])).view(run.shape)
        return carry + run.product(features, self.weight, None, None).view(run.shape).to(carry.dtype)

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """W and b."""
        return () if not self.features else (self.weight,) if self.bias is None else (self.weight, self.bias)


@dataclass(frozen=True, slots=True, eq=False)
class Write:
    """What has been changed so far, written out at full width: a source."""

    up: Up

    def __call__(self, run: Run) -> None:
        """Add the source."""
        run.sources.append(self.up.tensor(run))

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """Those of the up-projection."""
        return self.up.weights


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """The site's norm of a sum of sources, (B, T, D): a source."""

    base: Terms
    written: Terms

    def __call__(self, run: Run) -> None:
        """Add the source."""
        total, written = run.total(self.base), run.total(self.written)
        assert total is not None  # every norm reads the stream
        assert run.norm is not None  # checked on entry
        run.sources.append(run.norm(total if written is None else total + written))

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """None."""
        return ()


@dataclass(frozen=True, slots=True, eq=False)
class Wide:
    """A folded composition at one site: a node, called like an adapter. A snapshot of its members' weights."""

    steps: tuple[Step, ...]
    before: Up | None
    after: Up | None
    dtype: torch.dtype
    normed: bool

    def __call__(self, reading: Reading, delta: Delta) -> Delta:
        """What the composition changes, (B, T, D), given what was changed before.

        Raises RoutingError at a site of the other kind: with a norm after the residual add, or without.
        """
        check_norm(reading, self.normed)
        return self.through(Run(reading, delta, self.dtype))

    def through(self, run: Run) -> Delta:
        """What it changes, from what a run brings and by the products that a run makes."""
        for step in self.steps:
            step(run)
        return Delta(
            None if self.before is None else self.before.tensor(run),
            None if self.after is None else self.after.tensor(run),
        )

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """Everything it holds."""
        ups = [weight for up in (self.before, self.after) if up is not None for weight in up.weights]
        return (*(weight for step in self.steps for weight in step.weights), *ups)
