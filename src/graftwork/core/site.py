"""Sites: the named places in a layer where an adapter reads and writes, and the one contract between the two.

    h  = site.read(delta so far)     what the adapter sees        (B, T, D)
    Δ  = adapter(h)                  what it would change         (B, T, D)
    site.write(Δ)                    added to the stream

A sub-layer site sees the sub-layer's output h₀, its residual input r, and the norm LN that follows the residual add
(post-LN models) or none (pre-LN). Three things can be read,

    hidden = h₀ + Δ        stream = LN(h₀ + r + Δ)  (pre-LN: h₀ + r + Δ)        residual = r

and a change can be written in two places: *before* the residual add, or *after* the norm. In a pre-LN model the two
places are one. Nothing here knows of layers, models, names or compositions.

Shape letters, here and everywhere: B rows, T tokens, D width, M bottleneck, K members, L labels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

Rows = Tensor | None  # (n,) indices of rows, or None for all rows
Tokens = slice | None  # a run of tokens, or None for all tokens


@dataclass(frozen=True)
class Site:
    """One place to attach: `layer.3/ffn`, `decoder.layer.1/cross`.

    layer counts from 0 within its stack; depth counts across stacks (encoder first), as AdapterHub's per-layer maps do.
    """

    index: int
    stack: str
    layer: int
    depth: int
    kind: str
    width: int

    @property
    def name(self) -> str:
        """The canonical name, which outlives the module paths of any one transformers version."""
        place = f"layer.{self.layer}/{self.kind}"
        return f"{self.stack}.{place}" if self.stack else place


@dataclass(frozen=True, slots=True)
class Delta:
    """A change to the stream, (B, T, D) each: added `before` the residual add and `after` the norm. None is zero."""

    before: Tensor | None = None
    after: Tensor | None = None

    def plus(self, other: "Delta") -> "Delta":
        """The sum of two changes."""
        return Delta(_plus(self.before, other.before), _plus(self.after, other.after))

    def times(self, factor: float) -> "Delta":
        """The change scaled by a number."""
        return Delta(
            None if self.before is None else self.before * factor,
            None if self.after is None else self.after * factor,
        )


NO_DELTA = Delta()


def _plus(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    if left is None or right is None:
        return right if left is None else left
    return left + right


@dataclass(frozen=True, slots=True)
class Reading:
    """What a sub-layer site offers in one forward: h₀ `output` and r `residual` (B, T, D), and the norm or None."""

    output: Tensor
    residual: Tensor
    norm: Callable[[Tensor], Tensor] | None

    def hidden(self, delta: Delta) -> Tensor:
        """h₀ + Δ: the sub-layer's output with what earlier members wrote, (B, T, D)."""
        return self.output if delta.before is None else self.output + delta.before

    def stream(self, delta: Delta) -> Tensor:
        """LN(h₀ + r + Δ), or h₀ + r + Δ where the model has no norm there: the residual stream, (B, T, D)."""
        # h₀ first: the order in which the base adds, so that an unchanged stream is the base's to the last bit
        stream = self.hidden(delta) + self.residual
        if self.norm is not None:
            stream = self.norm(stream)
        return stream if delta.after is None else stream + delta.after

    def narrow(self, rows: Rows, tokens: Tokens) -> "Reading":
        """The same site seen by some rows and some tokens: (B, T, D) -> (n, t, D)."""
        return Reading(narrow(self.output, rows, tokens), narrow(self.residual, rows, tokens), self.norm)


def narrow(tensor: Tensor, rows: Rows, tokens: Tokens) -> Tensor:
    """Some rows and some tokens of a tensor: (B, T, D) -> (n, t, D)."""
    if tokens is not None:
        tensor = tensor[:, tokens]
    return tensor if rows is None else tensor.index_select(0, rows)


class Route(Protocol):
    """Who changes what in one forward. Compositions are lowered to this before the forward starts."""

    def delta(self, site: int, reading: Reading) -> Delta | None:
        """The change at a site, (B, T, D), or None where nothing attaches."""
        ...
