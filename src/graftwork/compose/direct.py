"""The direct way through a site: from the sum that its norm would read to the one that it is to read, s -> s + Δ.

What most calls run (an adapter, a Stack or a Fuse of adapters before the norm, the rows of one bank) needs no reading,
no registers and no change of its own. At a few tokens a row a site costs what is done around its products, and here
that is nothing: a function over the weights, made with the route. The operators are those of `plain.py`, `wide.py` and
`bank_product.py` in the same order. A Stack is its members in turn, each of which reads what the one before it wrote.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from graftwork.compose.plain import Plain, reads_output, reads_stream
from graftwork.compose.run import AFTER, OUTPUT, RESIDUAL
from graftwork.compose.wide import Activate, Down, Mix, Norm, Step, Up, Wide, Write
from graftwork.core.activations import operator_of
from graftwork.core.site import Direct

_Norm: TypeAlias = Callable[[Tensor], Tensor]


def direct_of(node: object) -> Direct | None:
    """What a folded node does at the norm of a site, or None where that is not all that it does."""
    if isinstance(node, Plain):
        return _alone(node) if node.normed and not node.after else None
    parts = _parts(node) if isinstance(node, Wide) else None
    if parts is None:
        return None
    return in_turn([part.direct for part in parts])


def in_turn(parts: Sequence[Direct]) -> Direct:
    """Several, one after another; None in the place of a sum where one of them cannot."""
    if len(parts) == 1:
        return parts[0]

    def run(summed: Tensor, norm: _Norm, output: Tensor | None, residual: Tensor | None) -> Tensor | None:
        now: Tensor | None = summed
        for part in parts:
            now = None if now is None else part(now, norm, output, residual)
        return now

    return run


def onto(change: Tensor, summed: Tensor) -> Tensor:
    """s + Δ, (B, T, D), in the dtype of s. A change of that dtype is overwritten."""
    return change.add_(summed) if change.dtype is summed.dtype else summed + change.to(summed.dtype)


def _alone(node: Plain) -> Direct:
    (down, start), (up, constant) = node.down, node.up
    activate, dtype, linear = operator_of(node.activation), down.dtype, functional.linear
    stream, hidden = node.read is reads_stream, node.read is reads_output

    if not node.own:  # views of weights that lie (in, out), which `linear` would not multiply as they lie
        return _product(node.read, (down.T, start), activate, (up.T, constant))

    def run(summed: Tensor, norm: _Norm, output: Tensor | None, residual: Tensor | None) -> Tensor | None:
        x = norm(summed) if stream else output if hidden else residual
        if x is None or x.dtype is not dtype or summed.dtype is not dtype:
            return None
        return onto(linear(activate(linear(x, down, start)), up, constant), summed)

    return run


def _product(
    read: object, inner: tuple[Tensor, Tensor], activate: Callable[[Tensor], Tensor], outer: tuple[Tensor, Tensor]
) -> Direct:
    """On weights that lie (in, out), W (D, C) and b, W' (C, D) and b'."""
    (down, start), (up, constant), addmm = inner, outer, torch.addmm
    stream, hidden, dtype = read is reads_stream, read is reads_output, up.dtype

    def run(summed: Tensor, norm: _Norm, output: Tensor | None, residual: Tensor | None) -> Tensor | None:
        x = norm(summed) if stream else output if hidden else residual
        if x is None or x.dtype is not dtype or summed.dtype is not dtype:
            return None
        z = activate(addmm(start, x.flatten(0, 1), down))
        return onto(addmm(constant, z, up).view(summed.shape), summed)

    return run


@dataclass(frozen=True)
class _Part:
    """One read of the norm and what is written of it: W (D, C) and b, f over columns, members' weights, W' (F, D)."""

    down: Down
    activate: Activate
    mix: Mix | None
    weight: Tensor
    bias: Tensor

    @property
    def direct(self) -> Direct:
        """What it does."""
        if self.mix is not None:
            return _fusion(self, self.mix)
        down, activate = self.down, operator_of(self.activate.function)
        return _product(reads_stream, (down.weight, down.bias), activate, (self.weight, self.bias))


def _parts(node: Wide) -> list[_Part] | None:
    """The steps of a node, cut at its norms; None where they are more than that."""
    if node.after is not None or node.before is None or not node.normed:
        return None
    parts: list[_Part] = []
    steps, source, register, written = list(node.steps), AFTER, 0, None
    while steps:
        own = steps[: 4 if len(steps) > 3 and isinstance(steps[3], Mix) else 3]
        rest = steps[len(own) :]
        if rest and not isinstance(rest[0], Write):
            return None
        up = rest[0].up if rest and isinstance(rest[0], Write) else node.before
        part = _part(own, up, source + 1, register, written)
        if part is None:
            return None
        parts.append(part)
        written, source, register, steps = source + 2, source + 2, register + len(own) - 1, rest[1:]
    return parts or None


def _part(steps: list[Step], up: Up, source: int, register: int, written: int | None) -> _Part | None:
    """source: what its norm makes; register: its first; written: the source with what was written before it."""
    if len(steps) < 3 or up.carry != written or up.terms:
        return None
    first, down, activate, *more = steps
    if not isinstance(first, Norm) or not isinstance(down, Down) or not isinstance(activate, Activate):
        return None
    reads = first.base, first.written, down.terms
    if reads != (((OUTPUT, 1.0), (RESIDUAL, 1.0)), () if written is None else ((written, 1.0),), _of_norm(source)):
        return None
    mix = more[0] if more and isinstance(more[0], Mix) else None
    size = activate.span[2]
    spans = (activate.span, up.features)
    if mix is None and (spans != ((register, 0, down.weight.shape[1]), ((register + 1, 0, size),)) or more):
        return None
    if mix is not None:
        members = mix.segments.shape[1]
        if spans != ((register, 0, size), ((register + 2, 0, size + members),)):
            return None
        if mix.features != ((register + 1, 0, size),) or {mix.t[0], mix.c[0]} != {register}:
            return None
    weight, bias = (up.weight, up.bias) if up.bias is not None else (up.weight[:-1], up.weight[-1])
    return _Part(down, activate, mix, weight, bias)


def _of_norm(source: int) -> tuple[tuple[int, float], ...]:
    return ((AFTER, 1.0), (source, 1.0))


def _fusion(part: _Part, mix: Mix) -> Direct:
    down, start, up, constant = part.down.weight, part.down.bias, part.weight, part.bias
    function, dtype, product = part.activate.function, part.weight.dtype, torch.addmm
    size, (_, *t), (_, *c) = part.activate.span[2], mix.t, mix.c
    segments, spread = mix.segments, mix.spread

    def run(summed: Tensor, norm: _Norm, output: Tensor | None, residual: Tensor | None) -> Tensor | None:
        x = norm(summed)
        if x.dtype is not dtype or summed.dtype is not dtype:
            return None
        columns = product(start, x.flatten(0, 1), down)
        features = function(columns[:, :size])
        scores = product(columns[:, c[0] : c[1]], features * columns[:, t[0] : t[1]], segments)
        weighed = torch.mm(scores.softmax(-1), spread)
        weighed[:, :size].mul_(features)
        return onto(product(constant, weighed, up).view(summed.shape), summed)

    return run
