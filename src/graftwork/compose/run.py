"""One call of a folded composition: the full-width tensors that it reads, and its registers in bottleneck space.

N = B·T tokens. A run makes every product of what is read with weights (`Run.product`), so that another kind of run may
take them from somewhere else (`bank_slab.py`).
"""

from typing import TypeAlias

import torch
from torch import Tensor

from graftwork.core.site import Delta, Reading
from graftwork.errors import RoutingError

Span: TypeAlias = tuple[int, int, int]  # (register, first column, last column + 1)
Terms: TypeAlias = tuple[tuple[int, float], ...]  # (source, coefficient), ...
OUTPUT, RESIDUAL, AFTER = 0, 1, 2  # the sources that a call brings


class Run:
    """One call: full-width sources (B, T, D), and registers (N, columns) in bottleneck space."""

    __slots__ = ("dtype", "norm", "out", "registers", "shape", "sources", "sums")

    def __init__(self, reading: Reading, delta: Delta, dtype: torch.dtype) -> None:
        self.shape = reading.like.shape
        self.norm = reading.norm
        self.dtype, self.out = dtype, reading.like.dtype  # of the weights, and of the result
        self.sources: list[Tensor | None] = [*reading.sources(delta), delta.after]
        self.registers: list[Tensor] = []
        self.sums: dict[Terms, Tensor | None] = {}

    def total(self, terms: Terms) -> Tensor | None:
        """Σ coefficient · source, (B, T, D), of the sources that are there; None where none is."""
        if len(terms) == 1 and terms[0][1] == 1:
            return self.sources[terms[0][0]]
        if terms in self.sums:
            return self.sums[terms]
        total: Tensor | None = None
        for index, factor in terms:
            source = self.sources[index]
            if source is None:
                continue
            if total is None:
                total = source if factor == 1 else source * factor
            else:
                total = torch.add(total, source, alpha=factor)
        self.sums[terms] = total
        return total

    def flat(self, terms: Terms) -> Tensor:
        """The same as (N, D), in the weights' dtype."""
        total = self.total(terms)
        assert total is not None  # every read holds a source that each call brings
        flat = total.reshape(-1, self.shape[-1])
        return flat if flat.dtype is self.dtype else flat.to(self.dtype)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None, onto: Tensor | None) -> Tensor:
        """x·W + b, or x·W added to something, (N, out): the one way in which weights meet what is read."""
        added = bias if onto is None else onto
        return torch.mm(x, weight) if added is None else torch.addmm(added, x, weight)

    def features(self, spans: tuple[Span, ...]) -> Tensor:
        """Columns of registers side by side, (N, F)."""
        parts = []
        for index, start, stop in spans:
            register = self.registers[index]
            # a slice is a dispatch like any other: none for a whole register
            parts.append(register if stop - start == register.size(1) else register[:, start:stop])
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def check_norm(reading: Reading, normed: bool) -> None:
    """Raise RoutingError at a site that is not of the kind a composition was folded for."""
    if (reading.norm is None) is normed:
        found = "no norm follows" if normed else "a norm follows"
        raise RoutingError(f"folded with normed={normed}, but {found} the residual add at this site")
