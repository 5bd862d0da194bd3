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
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from graftwork.core.example import example_of
from graftwork.core.families import Family, LayerStack, Linear, Sublayer
from graftwork.core.inside import linears_of
from graftwork.core.mixing import Reach, Seen, reaches
from graftwork.core.streams import Branch, Layer, Unreadable
from graftwork.core.trace import Call, Trace, trace
from graftwork.errors import BackboneError

_MIXED_ROWS = (
    "its rows reach each other, so its first dimension is none of rows; every row has its own adapters here, so rows "
    "must come first (batch_first=True)"
)


@dataclass(frozen=True)
class Discovery:
    """What was found: a row, the input it was found with, and a report for people."""

    family: Family
    inputs: Mapping[str, Any]
    report: str


@dataclass(frozen=True)
class _Candidate:
    """A list of layers whose streams could be read."""

    path: str
    numbers: tuple[int, ...]  # which children ran
    layers: tuple[Layer, ...]
    branches: tuple[tuple[Branch, ...], ...]


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
        try:
            seen = trace(trunk, given)
        except (ValueError, TypeError, RuntimeError, IndexError, AttributeError) as error:
            raise BackboneError(_did_not_run(trunk, given, error)) from error
        found, reasons = _stacks(trunk, seen, rows=_rows(given))
        if not found:
            raise BackboneError(_nothing(trunk, reasons))
        return _described(model, trunk, given, found)
    finally:
        trunk.train(training)


def _described(model: nn.Module, trunk: nn.Module, given: dict[str, Any], found: list[_Candidate]) -> Discovery:
    pairs = [pair for one in found for pair in zip(one.layers, one.branches, strict=True)]
    watched = [Seen(layer.call.module, layer.argument, branches) for layer, branches in pairs]
    reached = reaches(trunk, given, watched)
    if any(reach.rows for layer in reached for reach in layer):
        raise BackboneError(_nothing(trunk, {one.path: _MIXED_ROWS for one in found}))
    told = iter([_kinds(*pair, reach) for pair, reach in zip(pairs, reached, strict=True)])
    kinds = [[next(told) for _ in one.layers] for one in found]
    names = _names([one.path for one in found], kinds)
    stacks = []
    for candidate, of_layers, name in zip(found, kinds, names, strict=True):
        try:
            stacks.append(_stack(trunk, candidate, of_layers, name))
        except Unreadable as reason:
            raise BackboneError(_nothing(trunk, {candidate.path: str(reason)})) from None
    mixing = [reach for reach in reached[-1] if reach.forward or reach.backward]
    causal = bool(mixing) and not any(reach.backward for reach in mixing)
    model_type = str(getattr(getattr(model, "config", None), "model_type", "") or type(model).__name__)
    family = Family((model_type,), tuple(stacks), causal)
    return Discovery(
        family, given, "\n".join(_told(trunk, one, stack) for one, stack in zip(found, stacks, strict=True))
    )


def _kinds(layer: Layer, branches: tuple[Branch, ...], reached: list[Reach]) -> list[str]:
    """attn mixes tokens, cross reads other states, ffn does neither."""
    return [
        "attn" if reach.forward or reach.backward else "cross" if layer.reads_outside(branch) else "ffn"
        for branch, reach in zip(branches, reached, strict=True)
    ]


# -- stacks -----------------------------------------------------------------------------------------------------------


def _stacks(trunk: nn.Module, seen: Trace, rows: int) -> tuple[list[_Candidate], dict[str, str]]:
    """The outermost lists of layers that can be read, in the order in which they run, and why others cannot."""
    calls: dict[str, Call] = {}
    for call in seen.calls:
        calls.setdefault(call.path, call)
    found: list[_Candidate] = []
    reasons: dict[str, str] = {}
    for path, module in sorted(trunk.named_modules(), key=lambda pair: pair[0].count(".") + bool(pair[0])):
        if any(path.startswith(one.path + ".") for one in found):
            continue
        listed = isinstance(module, nn.ModuleList | nn.Sequential | nn.ModuleDict)
        children = [(n, calls.get(f"{path}.{name}".strip("."))) for n, (name, _) in enumerate(module.named_children())]
        ran = [(number, call) for number, call in children if call is not None]
        if ran and (listed or len(children) > 1) and len(ran) > (0 if listed else 1):
            try:
                found.append(_candidate(path, ran, seen, rows))
            except Unreadable as reason:
                if listed:
                    reasons[path] = str(reason)
    return sorted(found, key=lambda one: one.layers[0].call.entered), reasons


def _candidate(path: str, ran: list[tuple[int, Call]], seen: Trace, rows: int) -> _Candidate:
    if len({type(call.module) for _, call in ran}) > 1 and len(ran) == 2:
        raise Unreadable("its two modules are of two classes")
    layers = [Layer(seen, call) for _, call in ran]
    for before, after in pairwise(layers):
        fed = after.entry is not None and before.call.first is not None
        if not fed or before.call.first not in seen.before(after.entry or 0, stop=[before.call.first or 0]):
            raise Unreadable("its modules do not feed each other one after the other")
    branches = tuple(layer.branches(rows) for layer in layers)
    return _Candidate(path, tuple(number for number, _ in ran), tuple(layers), branches)


def _names(paths: list[str], kinds: list[list[list[str]]]) -> list[str]:
    """Stacks are called encoder and decoder where one reads the other's states, else by where their paths differ."""
    if len(paths) == 1:
        return [""]
    crossed = [any("cross" in layer for layer in stack) for stack in kinds]
    if len(paths) == 2 and crossed == [False, True]:
        return ["encoder", "decoder"]
    steps = [path.split(".") for path in paths]
    for length in range(1, max(len(one) for one in steps) + 1):
        names = ["_".join(one[:length]) for one in steps]
        if len(set(names)) == len(names):
            return names
    return [path.replace(".", "_") for path in paths]


# -- from the layers of a stack to a row ------------------------------------------------------------------------------


def _stack(trunk: nn.Module, found: _Candidate, kinds: list[list[str]], name: str) -> LayerStack:
    places = {kind: number for layer in sorted(kinds, key=len) for number, kind in enumerate(layer)}
    order = sorted(places, key=lambda kind: places[kind])
    rows: list[Sublayer] = []
    linears: list[Linear] = []
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
        rows.append(_row(trunk, found, kind, of_kind))
        linears += _common([linears_of(layer, branch, kind) for layer, branch, _, _ in of_kind])
    return LayerStack(name, found.path, tuple(rows), linears=tuple(linears), embed=_embed(found))


def _row(
    trunk: nn.Module,
    found: _Candidate,
    kind: str,
    of_kind: list[tuple[Layer, Branch, tuple[Branch, ...], list[str]]],
) -> Sublayer:
    branches = [branch for _, branch, _, _ in of_kind]
    outputs = [path for path in branches[0].outputs if all(path in other.outputs for other in branches)]
    residuals = [one for one in branches[0].residuals if all(one in other.residuals for other in branches)]
    rest = {(b.norm, b.inner, None if b.beside is None else m[b.beside]) for _, b, _, m in of_kind}
    if not outputs or not residuals or len(rest) > 1:
        raise Unreadable(f"its layers differ: the {kind} sub-layers have no module for h₀, r and norm in common")
    norm, inner, beside = next(iter(rest))
    path, argument = residuals[0]
    row = Sublayer(kind, outputs[0], path, norm, argument, len(of_kind) < len(found.layers), inner, beside)
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


def _common(found: list[tuple[Linear, ...]]) -> tuple[Linear, ...]:
    return found[0] if all(linears == found[0] for linears in found) else ()


def _embed(found: _Candidate) -> str | None:
    """The outermost module whose output enters the first layer, if that is no other list of layers."""
    first = found.layers[0]
    if first.entry is None:
        return None
    made = first.trace.outputs.get(first.trace.root(first.entry), [])
    made = [call for call in made if call.left < first.call.entered and call.path]
    once = [call for call in made if sum(other.module is call.module for other in first.trace.calls) == 1]
    return once[-1].path if once else None


# -- saying it --------------------------------------------------------------------------------------------------------


def _told(trunk: nn.Module, found: _Candidate, stack: LayerStack) -> str:
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
    told = ", ".join(f"{linear.kind} {linear.path!r}" for linear in stack.linears)
    lines.append(f"  linears: {told or 'none could be told apart'}")
    lines.append(f"  embeddings: {stack.embed!r}" if stack.embed else "  embeddings: no module returns them")
    return "\n".join(lines)


def _rows(given: Mapping[str, Any]) -> int:
    return next(int(value.shape[0]) for value in given.values() if isinstance(value, Tensor))


def _did_not_run(trunk: nn.Module, given: Mapping[str, Any], error: Exception) -> str:
    shapes = {name: tuple(value.shape) if isinstance(value, Tensor) else value for name, value in given.items()}
    return (
        f"a {type(trunk).__name__} did not run on the probe {shapes}: {error}. Give one forward's arguments as "
        "probe={...}, two rows and a few tokens, or describe its layers with family="
    )


def _nothing(trunk: nn.Module, reasons: Mapping[str, str]) -> str:
    seen = "; ".join(f"{path or 'itself'!r}: {reason}" for path, reason in reasons.items()) or "no list of modules ran"
    return (
        f"the sites of a {type(trunk).__name__} could not be discovered. Looked for a list of layers, each fed by the "
        "one before, in which modules return what is added to the residual stream. Seen: "
        f"{seen}. Describe the layers with a Family (stacks of layers, and for each sub-layer the module whose output "
        "is added to the residual stream, the module that receives the residual, and the norm after the add) and pass "
        "it as family=; check the description with graftwork.core.certify.certify(model, inputs, family)"
    )
