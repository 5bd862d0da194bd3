"""From a formula to a wide bottleneck: which columns share a product, where they lie, what is written out and when.

Columns that read the same sources share one down-projection, and those of them that also see the same earlier features
share one small product with these. Within such a group the columns of one activation lie side by side. What had to be
written out at full width for a norm is added to, never computed again. Weights arrive in float64 and are cast here.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from graftwork.compose.formula import Columns, Feature, Formula, Gated, Mixed, Normed, Said, Source, Value
from graftwork.compose.plain import Plain, shortest
from graftwork.compose.run import AFTER, OUTPUT, RESIDUAL, Span, Terms
from graftwork.compose.wide import Activate, Down, Gate, Join, Mix, Norm, Step, Up, Wide, Write

_LINE = 16  # numbers: 64 bytes of float32
_Reads: TypeAlias = frozenset[tuple[Source, float]]
_Sees: TypeAlias = frozenset[Feature]  # the features of earlier members that a read contains


@dataclass(eq=False)
class _Group:
    """Columns that read the same sources and see the same earlier features, in the order in which they lie."""

    reads: _Reads
    sees: _Sees
    columns: list[Columns]

    @property
    def size(self) -> int:
        return sum(columns.size for columns in self.columns)

    @property
    def ordered(self) -> list[Columns]:
        """The columns as they lie."""
        return [columns for _, run in self.runs() for columns in run]

    def runs(self) -> list[tuple[nn.Module | None, list[Columns]]]:
        """The columns by activation: those of one activation side by side, plain columns last."""
        runs: dict[object, list[Columns]] = {}
        for columns in self.columns:
            runs.setdefault(_same(columns.activation), []).append(columns)
        plain = runs.pop(None, None)
        return [(run[0].activation, run) for run in runs.values()] + ([(None, plain)] if plain else [])


def lay_out(formula: Formula, before: Value | None, after: Value | None, like: Tensor) -> Wide | Plain:
    """The wide bottleneck that computes two values of a formula; `like` gives the dtype and device of its weights."""
    layout = _Layout(formula, like)
    for step in formula.steps:
        layout.place(step)
    first, second = (None if value is None else layout.up(value) for value in (before, after))
    return shortest(Wide(tuple(layout.steps), first, second, like.dtype, formula.normed))


class _Layout:
    def __init__(self, formula: Formula, like: Tensor) -> None:
        self.zeros = formula.zeros
        self.like = like
        self.steps: list[Step] = []
        self.sources: dict[Source, int] = {formula.output: OUTPUT, formula.residual: RESIDUAL, formula.after: AFTER}
        self.source_count, self.register_count = len(self.sources), 0
        self.places: dict[Feature, Span] = {}
        self.written: list[tuple[Mapping[Said, float], int]] = []  # what is at full width already, and in which source
        self.groups = _grouped(formula)
        self.downs: dict[_Reads, int] = {}  # what is read -> the register of its down-projection

    def place(self, step: Columns | Gated | Mixed | Normed) -> None:
        """Add what one step of the formula needs."""
        if isinstance(step, Columns):
            if step not in self.places:
                self._columns(next(group for group in self.groups if step in group.columns))
        elif isinstance(step, Gated):
            spread = self._cast(torch.ones(1, step.size))
            self.places[step] = self._register(Gate(self.places[step.z], self.places[step.gate], spread), step.size)
        elif isinstance(step, Mixed):
            self._mixed(step)
        else:
            ups = step.inner.ups
            written = ((self._written(ups), 1.0),) if ups else ()
            self.sources[step] = self._source(Norm(self._terms(step.inner.sources), written))

    def up(self, value: Value) -> Up:
        """A value at full width: added to the largest part of it that was written out already."""
        sources, ups, carry = (
            {self.sources[source]: factor for source, factor in value.sources.items()},
            value.ups,
            None,
        )
        for said, index in self.written:  # each holds more than the one before
            if said.items() <= value.ups.items():
                carry, ups = index, {part: factor for part, factor in value.ups.items() if part not in said}
        rest = _value(ups)
        rows = sorted(rest.rows().items(), key=lambda row: self.places[row[0]])
        bias = rest.bias(self.zeros)
        terms = tuple(sorted(sources.items()))
        weight = torch.cat([self.zeros.new_zeros(0, len(bias)), *(weight for _, weight in rows)])
        spans = self._spans([feature for feature, _ in rows])
        if carry is None:
            return Up(spans, self._cast(weight), self._cast(bias), None, terms)
        return Up(spans, self._cast(torch.cat([weight, bias[None]])), None, carry, terms)

    def _columns(self, group: _Group) -> None:
        if group.reads not in self.downs:
            self.downs[group.reads] = self._down(group.reads)
        shared = [other for other in self.groups if other.reads == group.reads]
        register, first = self.downs[group.reads], sum(other.size for other in shared[: shared.index(group)])
        if group.sees:
            parts = self._joined(group)
            register, first, _ = self._register(Join((register, first, first + group.size), parts), group.size)
        for activation, run in group.runs():
            size = sum(columns.size for columns in run)
            place, start = register, first
            if activation is not None:
                place, start, _ = self._activated((register, first, first + size), activation)
            for columns in run:
                self.places[columns] = (place, start, start + columns.size)
                start += columns.size
            first += size

    def _activated(self, span: Span, activation: nn.Module) -> Span:
        own = deepcopy(activation).requires_grad_(False)  # a few kinds have parameters: these belong to the snapshot
        return self._register(Activate(span, own.forward), span[2] - span[1])

    def _down(self, reads: _Reads) -> int:
        columns = [columns for group in self.groups if group.reads == reads for columns in group.ordered]
        weight = torch.cat([own.weight for own in columns], dim=1)
        # constants that earlier members wrote are constants here too; their features join later
        bias = torch.cat([own.bias + own.x.bias(self.zeros) @ own.weight for own in columns])
        down = Down(self._terms(columns[0].x.sources), _aligned(self._cast(weight)), self._cast(bias))
        return self._register(down, len(bias))[0]

    def _joined(self, group: _Group) -> tuple[tuple[Span, Tensor], ...]:
        """φ·(W·D) for the features that a group sees: one small product for each run of registers."""
        seen = sorted(group.sees, key=lambda feature: self.places[feature])
        columns = [(own.x.rows(), own.weight) for own in group.ordered]
        matrix = torch.cat([torch.cat([rows[feature] @ own for rows, own in columns], dim=1) for feature in seen])
        spans = self._spans(seen)
        pieces = torch.split(matrix, [stop - start for _, start, stop in spans])
        return tuple((span, self._cast(piece)) for span, piece in zip(spans, pieces, strict=True))

    def _mixed(self, step: Mixed) -> None:
        sizes = [sum(feature.size for feature in member) for member in step.members]
        spread = torch.eye(len(sizes)).repeat_interleave(torch.tensor(sizes), dim=1)  # (K, F)
        whole = torch.cat([spread, torch.eye(len(sizes))], dim=1)  # (K, F + K)
        features = self._spans([feature for member in step.members for feature in member])
        mix = Mix(features, self.places[step.t], self.places[step.c], self._cast(spread.T), self._cast(whole))
        self.places[step] = self._register(mix, step.size)

    def _written(self, ups: Mapping[Said, float]) -> int:
        """The source that holds what was said so far, at full width."""
        for said, index in self.written:
            if said == ups:
                return index
        index = self._source(Write(self.up(_value(ups))))
        self.written.append((ups, index))
        return index

    def _terms(self, sources: Mapping[Source, float]) -> Terms:
        return tuple(sorted((self.sources[source], factor) for source, factor in sources.items()))

    def _spans(self, features: Sequence[Feature]) -> tuple[Span, ...]:
        """Where features lie, those side by side as one."""
        spans: list[Span] = []
        for register, start, stop in (self.places[feature] for feature in features):
            if spans and spans[-1][0] == register and spans[-1][2] == start:
                spans[-1] = (register, spans[-1][1], stop)
            else:
                spans.append((register, start, stop))
        return tuple(spans)

    def _register(self, step: Step, size: int) -> Span:
        self.steps.append(step)
        self.register_count += 1
        return self.register_count - 1, 0, size

    def _source(self, step: Step) -> int:
        self.steps.append(step)
        self.source_count += 1
        return self.source_count - 1

    def _cast(self, weight: Tensor) -> Tensor:
        return weight.to(self.like.device, self.like.dtype).contiguous()


def _aligned(weight: Tensor) -> Tensor:
    """The same (D, C) with rows that begin at whole cache lines: an odd C costs a few rows of tokens an eighth more."""
    width = -(-weight.shape[1] // _LINE) * _LINE
    if width == weight.shape[1]:
        return weight
    return weight.new_empty(len(weight), width)[:, : weight.shape[1]].copy_(weight)


def _grouped(formula: Formula) -> list[_Group]:
    groups: dict[tuple[_Reads, _Sees], _Group] = {}
    for step in formula.steps:
        if isinstance(step, Columns):
            key = (frozenset(step.x.sources.items()), frozenset(step.x.rows()))
            groups.setdefault(key, _Group(*key, [])).columns.append(step)
    return list(groups.values())


def _same(activation: nn.Module | None) -> object:
    """What tells activations apart: the kind and its settings, or the module itself where it has parameters."""
    if activation is None:
        return None
    return activation if any(True for _ in activation.parameters()) else (type(activation), repr(activation))


def _value(ups: Mapping[Said, float]) -> Value:
    return Value(dict(ups.items()))
