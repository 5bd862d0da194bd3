"""Structural discovery: the sites of a model that has no row, found by tracing a probe.

    1. one forward of a small random input is traced                           core/trace.py
    2. a list of modules, each fed by the one before, is a stack; in every layer the residual stream is followed back:
       its sums, what is added (h₀), what it is added to (r), its norms          core/streams.py
    3. a derivative tells what each sub-layer mixes: attention, cross-attention, feed-forward      core/mixing.py
    4. its linears are told by what they feed                                   core/inside.py
    5. what the layers have in common becomes a row, the data type of core/families.py

Names decide nothing: class and attribute names are only carried along as paths.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

from graftwork.core.example import example_of
from graftwork.core.families import Attention, Family, LayerStack, Linear, Sublayer
from graftwork.core.family import BY_HAND
from graftwork.core.inside import inside_of
from graftwork.core.mixing import Reach, Seen, reaches
from graftwork.core.outlet import Outlet, outlet, traced
from graftwork.core.stacks import Candidate, in_order, pairs, stacks_of
from graftwork.core.streams import Branch, Layer, Unreadable
from graftwork.errors import BackboneError

_MIXED_ROWS = (
    "its rows reach each other, so its first dimension is none of rows; every row has its own adapters here, so rows "
    "must come first (batch_first=True)"
)


_Row = TypeVar("_Row", Linear, Attention)


@dataclass(frozen=True)
class Discovery:
    """What was found: a row, the input it was found with, and a report for people.

    outlet: where the last hidden state comes out.
    """

    family: Family
    inputs: Mapping[str, Any]
    report: str
    outlet: Outlet


def discover(model: nn.Module, probe: Mapping[str, Any] | None = None) -> Discovery:
    """Find the sites of a model from one forward of its trunk on `probe` (keyword arguments), or on one made up here.

    The model is not changed. Raises BackboneError that says what was looked for, what was seen, and how to describe
    the sites by hand.
    """
    trunk = getattr(model, "base_model", model)
    given = dict(example_of(model) if probe is None else probe)
    training = trunk.training
    trunk.eval()
    try:
        seen = traced(trunk, given)
        found, reasons = stacks_of(trunk, seen, rows=_rows(given))
        if not found:
            raise BackboneError(_nothing(trunk, reasons))
        return _described(model, trunk, given, in_order(found, seen), outlet(seen, found[-1].layers[-1].shape))
    finally:
        trunk.train(training)


def _described(
    model: nn.Module, trunk: nn.Module, given: dict[str, Any], stacks: list[tuple[str, Candidate]], hidden: Outlet
) -> Discovery:
    layers = [pair for _, one in stacks for pair in pairs(one)]
    watched = [Seen(layer.call.module, layer.argument, layer.shape, branches) for layer, branches in layers]
    reached = reaches(trunk, given, watched)
    if any(reach.rows for layer in reached for reach in layer):
        raise BackboneError(_nothing(trunk, {one.path: _MIXED_ROWS for _, one in stacks}))
    told = iter([_kinds(*pair, reach) for pair, reach in zip(layers, reached, strict=True)])
    rows: list[LayerStack] = []
    for name, one in stacks:
        try:
            rows.append(_stack(one, [next(told) for _ in one.layers], name))
        except Unreadable as reason:
            raise BackboneError(_nothing(trunk, {one.path: str(reason)})) from None
    mixing = [reach for reach in reached[-1] if reach.forward or reach.backward]
    causal = bool(mixing) and not any(reach.backward for reach in mixing)
    model_type = str(getattr(getattr(model, "config", None), "model_type", "") or type(model).__name__)
    report = "\n".join(_told(one, row) for (_, one), row in zip(stacks, rows, strict=True))
    return Discovery(Family((model_type,), tuple(rows), causal), given, report, hidden)


def _kinds(layer: Layer, branches: tuple[Branch, ...], reached: list[Reach]) -> list[str]:
    """attn mixes tokens, cross reads other states, ffn does neither."""
    return [
        "attn" if reach.forward or reach.backward else "cross" if layer.reads_outside(branch) else "ffn"
        for branch, reach in zip(branches, reached, strict=True)
    ]


# -- from the layers of a stack to a row ------------------------------------------------------------------------------


def _stack(found: Candidate, kinds: list[list[str]], name: str) -> LayerStack:
    places = {kind: number for layer in sorted(kinds, key=len) for number, kind in enumerate(layer)}
    order = sorted(places, key=lambda kind: places[kind])
    rows: list[Sublayer] = []
    linears: list[Linear] = []
    attentions: list[Attention] = []
    for kind in order:
        of_kind: list[tuple[Layer, Branch, tuple[Branch, ...], list[str]]] = []
        for layer, branches, mixed in zip(found.layers, found.branches, kinds, strict=True):
            having = [branch for branch, other in zip(branches, mixed, strict=True) if other == kind]
            if len(having) > 1:
                raise Unreadable(
                    f"{len(having)} sub-layers of a layer are {kind}: {', '.join(b.outputs[0] for b in having)}; "
                    "a layer has one site of each kind"
                )
            of_kind += [(layer, branch, branches, mixed) for branch in having]
        rows.append(_row(found, kind, of_kind))
        parts = [inside_of(layer, branch, kind) for layer, branch, _, _ in of_kind]
        linears += _common([linear for linear, _ in parts])
        attentions += _common([attention for _, attention in parts])
    return LayerStack(
        name,
        found.path,
        tuple(rows),
        linears=tuple(linears),
        attentions=tuple(attentions),
        embed=_embed(found),
    )


def _row(
    found: Candidate,
    kind: str,
    of_kind: list[tuple[Layer, Branch, tuple[Branch, ...], list[str]]],
) -> Sublayer:
    branches = [branch for _, branch, _, _ in of_kind]
    outputs = [path for path in branches[0].outputs if all(path in other.outputs for other in branches)]
    residuals = [one for one in branches[0].residuals if all(one in other.residuals for other in branches)]
    rest = {
        (b.norm, b.inner, None if b.beside is None else mixed[b.beside], b.shared, b.flat) for _, b, _, mixed in of_kind
    }
    if not outputs or not residuals or len(rest) > 1:
        raise Unreadable(f"its layers differ: the {kind} sub-layers have no module for h₀, r and norm in common")
    norm, inner, beside, shared, flat = next(iter(rest))
    path, argument = residuals[0]
    row = Sublayer(
        kind, outputs[0], path, norm, argument, len(of_kind) < len(found.layers), inner, beside, shared, flat
    )
    if row.optional:
        having = {id(layer) for layer, _, _, _ in of_kind}
        for layer in (layer for layer in found.layers if id(layer) not in having):
            try:
                layer.call.module.get_submodule(row.output)
            except AttributeError:
                continue
            raise Unreadable(
                f"its layers differ: {row.output!r} is a {kind} sub-layer in some, something else in others"
            )
    return row


def _common(found: list[tuple[_Row, ...]]) -> tuple[_Row, ...]:
    return found[0] if all(rows == found[0] for rows in found) else ()


def _embed(found: Candidate) -> str | None:
    """The outermost module whose output enters the first layer, if that is no other list of layers."""
    first = found.layers[0]
    if first.entry is None:
        return None
    made = first.trace.outputs.get(first.trace.root(first.entry), [])
    made = [call for call in made if call.left < first.call.entered and call.path]
    once = [call for call in made if sum(other.module is call.module for other in first.trace.calls) == 1]
    return once[-1].path if once else None


# -- saying it --------------------------------------------------------------------------------------------------------


def _told(found: Candidate, stack: LayerStack) -> str:
    layer = type(found.layers[0].call.module).__name__
    lines = [
        f"{len(found.layers)} layers of class {layer} at {found.path!r}" + (f" ({stack.name})" if stack.name else "")
    ]
    for row in stack.sites:
        place = "post-LN, norm " + repr(row.norm) if row.norm else "pre-LN"
        text = (
            f"  {row.kind}: h = output of {row.output!r}, r = argument {row.argument[1]!r} of {row.residual!r}; {place}"
        )
        text += f", {row.inner!r} on the branch" if row.inner else ""
        text += f", beside {row.beside}" if row.beside else ""
        lines.append(text + (", not in every layer" if row.optional else ""))
    told = ", ".join(
        f"{linear.kind} {linear.path!r}" + ("" if linear.part is None else f" part {linear.part} of {linear.layout}")
        for linear in stack.linears
    )
    lines.append(f"  linears: {told or 'none could be told apart'}")
    lines.append(f"  embeddings: {stack.embed!r}" if stack.embed else "  embeddings: no module returns them")
    return "\n".join(lines)


def _rows(given: Mapping[str, Any]) -> int:
    return next(int(value.shape[0]) for value in given.values() if isinstance(value, Tensor))


def _nothing(trunk: nn.Module, reasons: Mapping[str, str]) -> str:
    seen = "; ".join(f"{path or 'itself'!r}: {reason}" for path, reason in reasons.items()) or "no list of modules ran"
    return (
        f"the sites of a {type(trunk).__name__} could not be discovered. Looked for a list of layers, each fed by the "
        "one before, in which modules return what is added to the residual stream. Seen: "
        f"{seen}. {BY_HAND}"
    )
