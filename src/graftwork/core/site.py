"""Sites: the named places in a layer where an adapter reads and writes, and the one contract between the two.

    h  = site.read(delta so far)     what the adapter sees        (B, T, D)
    Δ  = adapter(h)                  what it would change         (B, T, D)
    site.write(Δ)                    added to the stream

A sub-layer site sees the sub-layer's output h₀, its residual input r, and the norm LN that follows the residual add
(post-LN models) or none (pre-LN). Three things can be read,

    hidden = h₀ + Δ        stream = LN(h₀ + r + Δ)  (pre-LN: h₀ + r + Δ)        residual = r

and a change can be written in two places: *before* the residual add, or *after* the norm. In a pre-LN model the two
places are one. Where nothing is used but the stream of a post-LN model, its norm alone says all there is to know: it
receives h₀ + r and gives the stream. The other sites are read and written in the same words:

    linear   `layer.3/attn.query`      h₀ = y, a frozen linear's output;  r = x, its input;  no norm
    input    `layer.3/ffn.up.input`    h₀ = r = x, a frozen linear's input, changed before the linear reads it
    embed    `embed`                   h₀ = r = e, the embeddings;  what changes them may be undone at the vocabulary
    prompt   `prompt`                  the embeddings again: tokens are put in front of them, nothing is added
    kv       `layer.3/attn.kv`         keys and values of an attention: positions are put in front of them

Nothing here knows of layers, models, names or compositions.

Shape letters, here and everywhere: B rows, T tokens, D width, M bottleneck, K members, L labels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from graftwork.errors import RoutingError

SUBLAYERS = ("attn", "ffn", "cross")

Rows = Tensor | None  # (n,) indices of rows, or None for all rows
Tokens = slice | None  # a run of tokens, or None for all tokens


@dataclass(frozen=True)
class Site:
    """One place to attach: `layer.3/ffn`, `decoder.layer.1/cross`, `layer.3/attn.query`, `encoder.embed`.

    layer counts from 0 within its stack; depth counts across stacks (encoder first), as AdapterHub's per-layer maps do;
    both are -1 where a site belongs to no layer. kind: attn, ffn, cross; `attn.query` and so on for a linear,
    `ffn.up.input` for its input; `attn.kv`; embed; prompt. width: of what is written; inputs: of r. heads, head_width:
    of the keys and values at a kv site, where inputs is the width of the model.
    """

    index: int
    stack: str
    layer: int
    depth: int
    kind: str
    width: int
    inputs: int = 0
    heads: int = 0
    head_width: int = 0

    @property
    def name(self) -> str:
        """The canonical name, which outlives the module paths of any one transformers version."""
        place = self.kind if self.layer < 0 else f"layer.{self.layer}/{self.kind}"
        return f"{self.stack}.{place}" if self.stack else place

    @property
    def place(self) -> str:
        """What sort of site it is: sublayer, linear, input, embed, prompt or kv."""
        if self.kind in SUBLAYERS:
            return "sublayer"
        last = self.kind.rpartition(".")[2]
        return last if last in ("input", "embed", "prompt", "kv") else "linear"


@dataclass(frozen=True, slots=True)
class Uses:
    """What a module uses of a sub-layer site besides the stream, which all may read and all may add to before the norm.

    parts: h₀ or r, one without the other. after: it writes behind the norm.
    """

    parts: bool = True
    after: bool = True

    def __or__(self, other: "Uses") -> "Uses":
        return Uses(self.parts or other.parts, self.after or other.after)


EVERYTHING = Uses()
STREAM = Uses(parts=False, after=False)


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
    """What a site offers in one forward: h₀ `output` and r `residual` (B, T, D), and the norm after the add or None.

    inner: a norm on the way from h₀ to the add (sandwich norms: Gemma 2 and 3). weight: of the frozen linear at a
    linear site, (width, inputs). mask: the tokens that are real, (B, T) or None where all are.
    summed: h₀ + r as the norm is given it, (B, T, D), where that is known; of another h₀ or r it is None.
    """

    output: Tensor
    residual: Tensor
    norm: Callable[[Tensor], Tensor] | None
    inner: Callable[[Tensor], Tensor] | None = None
    weight: Callable[[], Tensor] | None = None
    mask: Tensor | None = None
    summed: Tensor | None = None

    @property
    def like(self) -> Tensor:
        """A tensor with the shape (B, T, D), dtype and device of what is written."""
        return self.output

    def sources(self, delta: Delta) -> tuple[Tensor, Tensor | None]:
        """Two tensors that add up to what the norm reads, (B, T, D) each: h₀ + Δ and r, where the two are apart."""
        return self.hidden(delta), self.residual

    def hidden(self, delta: Delta) -> Tensor:
        """h₀ + Δ: the sub-layer's output with what earlier members wrote, (B, T, D)."""
        return self.output if delta.before is None else self.output + delta.before

    def stream(self, delta: Delta) -> Tensor:
        """LN(h₀ + r + Δ), or h₀ + r + Δ where the model has no norm there: the residual stream, (B, T, D)."""
        stream = self.total(delta)
        if self.norm is not None:
            stream = self.norm(stream)
        return stream if delta.after is None else stream + delta.after

    def total(self, delta: Delta) -> Tensor:
        """h₀ + r + Δ: what the norm reads, (B, T, D)."""
        if self.summed is not None:
            return self.summed if delta.before is None else self.summed + delta.before
        # h₀ first: the order in which the base adds, so that an unchanged stream is the base's to the last bit
        hidden = self.hidden(delta)
        return (hidden if self.inner is None else self.inner(hidden)) + self.residual

    def narrow(self, rows: Rows, tokens: Tokens) -> "Reading":
        """The same site seen by some rows and some tokens: (B, T, D) -> (n, t, D)."""
        return replace(
            self,
            output=narrow(self.output, rows, tokens),
            residual=narrow(self.residual, rows, tokens),
            mask=None if self.mask is None else narrow(self.mask, rows, tokens),
            summed=None if self.summed is None else narrow(self.summed, rows, tokens),
        )

    def masked(self, mask: Tensor | None) -> "Reading":
        """The same site where other tokens are real: mask (B, T), or None for all."""
        return replace(self, mask=mask)

    def split(self, sizes: Sequence[int]) -> list["Reading"]:
        """The same site seen by some rows after others, in views: (B, T, D) -> (size, T, D) each."""
        given = (self.output, self.residual, self.mask, self.summed)
        parts = zip(*(_split(one, sizes) for one in given), strict=True)
        return [replace(self, output=h, residual=r, mask=mask, summed=s) for h, r, mask, s in parts]


class NormReading(Reading):
    """A sub-layer site seen at its norm alone: s = h₀ + r `summed`, (B, T, D), no h₀ and no r.

    Who asks for those gets a RoutingError: its module did not say that it uses them (`Uses`).
    """

    __slots__ = ()

    summed: Tensor
    norm: Callable[[Tensor], Tensor]

    def __init__(self, summed: Tensor, norm: Callable[[Tensor], Tensor], mask: Tensor | None = None) -> None:
        place = object.__setattr__  # of a frozen dataclass; h₀ and r stay unset
        place(self, "summed", summed)
        place(self, "norm", norm)
        place(self, "mask", mask)
        place(self, "inner", None)
        place(self, "weight", None)

    def __getattr__(self, name: str) -> Any:
        if name not in ("output", "residual"):  # torch.compile asks for what no slots have
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        raise RoutingError(
            f"{name!r} of a site that is seen at its norm alone, where nothing said that it would be used; a module "
            "that reads h₀ or r by itself says so: uses = Uses(parts=True, ...)"
        )

    @property
    def like(self) -> Tensor:
        """What the norm reads."""
        return self.summed

    def sources(self, delta: Delta) -> tuple[Tensor, Tensor | None]:
        """h₀ + r + Δ, and nothing besides."""
        return self.total(delta), None

    def narrow(self, rows: Rows, tokens: Tokens) -> "NormReading":
        """The same site seen by some rows and some tokens: (B, T, D) -> (n, t, D)."""
        mask = None if self.mask is None else narrow(self.mask, rows, tokens)
        return NormReading(narrow(self.summed, rows, tokens), self.norm, mask)

    def masked(self, mask: Tensor | None) -> "NormReading":
        """The same site where other tokens are real: mask (B, T), or None for all."""
        return NormReading(self.summed, self.norm, mask)

    def split(self, sizes: Sequence[int]) -> list[Reading]:
        """The same site seen by some rows after others, in views: (B, T, D) -> (size, T, D) each."""
        parts = zip(torch.split(self.summed, list(sizes)), _split(self.mask, sizes), strict=True)
        return [NormReading(summed, self.norm, mask) for summed, mask in parts]


def _split(mask: Tensor | None, sizes: Sequence[int]) -> Sequence[Tensor | None]:
    return [None] * len(sizes) if mask is None else torch.split(mask, list(sizes))


def narrow(tensor: Tensor, rows: Rows, tokens: Tokens) -> Tensor:
    """Some rows and some tokens of a tensor: (B, T, D) -> (n, t, D)."""
    if tokens is not None:
        tensor = tensor[:, tokens]
    return tensor if rows is None else tensor.index_select(0, rows)


@dataclass(frozen=True, slots=True)
class Positions:
    """Positions put in front of something: keys and values (B, H, P, W) each, real (B, P) or None where all are.

    counted: relative positions of the real keys begin after them (`core/quirks.py`); else they stand nowhere.
    """

    keys: Tensor
    values: Tensor
    real: Tensor | None = None
    counted: bool = False


# (h₀ + r, its norm, h₀, r) -> h₀ + r + Δ, (B, T, D) each; None: it cannot, ask `delta`. h₀ and r None if not caught
Direct: TypeAlias = Callable[[Tensor, Callable[[Tensor], Tensor], Tensor | None, Tensor | None], Tensor | None]


class Route(Protocol):
    """Who changes what in one forward. Compositions are lowered to this before the forward starts.

    For sites that are seen at their norm it may have `direct`, shorter ways through them, and `widened`: what gives a
    tensor there more rows, (B, ...) -> (lanes, ...), for this site and all that follow.
    """

    def delta(self, site: int, reading: Reading) -> Delta | None:
        """The change at a site, (B, T, D), or None where nothing attaches."""
        ...

    def positions(self, site: int, reading: Reading) -> Positions | None:
        """What is put in front of keys and values at a kv site, or None where nothing attaches."""
        ...

    def prompted(self, site: int, embeddings: Tensor) -> Tensor | None:
        """Embeddings (B, T, D) with prompts among them, (B, P + T, D), or None where nothing attaches."""
        ...

    def lengthened(self, row: Tensor, fill: int, pad: int) -> Tensor:
        """Numbers (B, T) for rows with prompts, (B, P + T): `fill` where these are, `pad` in front of shorter rows."""
        ...

    def inverse(self, site: int, hidden: Tensor) -> Tensor | None:
        """What undoes the change of an embed site, applied to (B, T, D) before the vocabulary, or None."""
        ...


def ways_of(route: Route | None) -> tuple[Mapping[int, Direct], Mapping[int, Callable[[Tensor], Tensor]]]:
    """`direct` and `widened` of a route, by site."""
    return getattr(route, "direct", {}), getattr(route, "widened", {})
