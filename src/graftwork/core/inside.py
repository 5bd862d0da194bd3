"""Which linear of a sub-layer is which, read from a trace: by what it feeds, not by what it is called.

    attention      query, key: what the scores are made of, as first and second factor;  value: what the scores weigh
    feed-forward   down: what is added to the stream;  up: what enters it;  gate: what goes through the non-linearity
                   where two linears read the same input and their results are multiplied
    both           out / down is the linear whose result is h₀ itself

A linear is a module with one two-dimensional weight. Where one makes several of these, its columns are told by where
their numbers arrive. What cannot be told (the experts of a mixture) is left out.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from inspect import unwrap

import torch
from torch import Tensor, nn

from graftwork.core.family import Attention, LayerStack, Linear
from graftwork.core.locate import columns_of, features, head_width
from graftwork.core.streams import Branch, Layer
from graftwork.core.trace import Call, Node, Trace
from graftwork.errors import BackboneError

_PARTS = ("query", "key", "value")
_FUSED = "_scaled_dot_product"
_SOFTMAX = ("_softmax", "_safe_softmax")
_PRODUCTS = ("bmm", "baddbmm", "mm")


def inside_of(layer: Layer, branch: Branch, kind: str) -> tuple[tuple[Linear, ...], tuple[Attention, ...]]:
    """The linears of one branch of a layer as rows, only those that can be told apart, and its attention module."""
    trace = layer.trace
    made = trace.before(branch.end, stop=[branch.start])
    between = {index for index in made if trace.nodes[index].time > layer.call.entered}
    calls = [call for call in layer.inside if _is_linear(call) and trace.root(call.made or 0) in between]
    last = [call for call in calls if trace.root(call.made or 0) == branch.end] or _final(trace, calls, layer.shape[-1])
    others = [call for call in calls if call not in last]
    if len(last) != 1:
        return (), ()
    if kind == "ffn":
        return (*_entries(layer, others, between, last[0]), Linear("ffn.down", layer.path(last[0]))), ()
    out = Linear(f"{kind}.out", layer.path(last[0]))
    factors = _factors(trace, between, branch.start)
    if factors is None:
        return (out,), ()
    found = _projections(layer, others, factors, out)
    rows = tuple(replace(linear, kind=f"{kind}.{linear.kind}") for linear in found)
    return (*rows, out), _attention(layer, kind, factors) if found else ()


def _is_linear(call: Call) -> bool:
    weight = getattr(call.module, "weight", None)
    leaf = not any(True for _ in call.module.children())
    return leaf and isinstance(weight, Tensor) and weight.dim() == 2 and call.made is not None


def _final(trace: Trace, calls: list[Call], width: int) -> list[Call]:
    """The linear that was made from all others, where what follows it is none: a factor for every feature, say."""
    for call in sorted(calls, key=lambda call: call.left)[-1:]:
        read = {trace.root(node) for node in trace.before(call.made or 0)}
        if trace.nodes[call.made or 0].shape[-1] == width and all(trace.root(c.made or 0) in read for c in calls):
            return [call]
    return []


def _entries(layer: Layer, calls: list[Call], between: set[int], down: Call) -> tuple[Linear, ...]:
    """What enters a feed-forward layer: one linear, two of which one is the gate, or one that makes both."""
    trace, paths = layer.trace, [layer.path(call) for call in calls]
    if len(calls) == 1 and features(calls[0].module)[1] == features(down.module)[0]:
        return (Linear("ffn.up", paths[0]),)
    straight = [part for index in sorted(between) for part in _straight(trace, trace.nodes[index], calls)]
    if len(straight) != 1:
        return ()
    if len(calls) == 1:
        return (
            Linear("ffn.up", paths[0], straight[0], "halves"),
            Linear("ffn.gate", paths[0], 1 - straight[0], "halves"),
        )
    return Linear("ffn.up", paths[straight[0]]), Linear("ffn.gate", paths[1 - straight[0]])


def _straight(trace: Trace, product: Node, calls: list[Call]) -> list[int]:
    """Of a product of what two linears made, or the halves of one, which of the two (0, 1) enters it as it is."""
    if product.operation not in ("mul", "mul_") or len(product.inputs) != 2:
        return []
    roots = [trace.root(call.made or 0) for call in calls]
    if not all(set(roots) & trace.before(i) for i in product.inputs):
        return []
    if len(calls) == 2:
        return [roots.index(trace.root(i)) for i in product.inputs if trace.root(i) in roots]
    if len(calls) != 1:
        return []
    halves = trace.tensors[calls[0].made or 0].chunk(2, dim=-1)
    factors = [trace.tensors[i] for i in product.inputs]
    same = [(part, one) for part, half in enumerate(halves) for one in factors if one.shape == half.shape]
    return [part for part, one in same if torch.equal(halves[part], one)]


@dataclass(frozen=True)
class _Factors:
    """The nodes of queries, keys and values, and when an attention used them."""

    nodes: tuple[int, int, int]
    time: int


def _projections(layer: Layer, calls: list[Call], factors: _Factors, out: Linear) -> tuple[Linear, ...]:
    """query, key and value: three linears, or the parts of one."""
    feeding = []
    for node in factors.nodes:
        reached = layer.trace.before(node)
        feeding.append([call for call in calls if layer.trace.root(call.made or 0) in reached])
    if any(len(one) != 1 for one in feeding):
        return ()
    paths = [layer.path(one[0]) for one in feeding]
    if len(set(paths)) == len(_PARTS):
        return tuple(Linear(part, path) for part, path in zip(_PARTS, paths, strict=True))
    query, key, value = paths
    layouts = ("blocks", "heads", "groups") if query == key == value else ("halves",) if key == value else ()
    for layout in layouts:
        numbers = (None, 0, 1) if layout == "halves" else (0, 1, 2)
        rows = tuple(
            Linear(part, path, number, layout if number is not None else "blocks")
            for part, path, number in zip(_PARTS, paths, numbers, strict=True)
        )
        if _lies(layer, feeding[2][0], rows[2], factors.nodes[2], out):
            return rows
    return ()


def _lies(layer: Layer, call: Call, value: Linear, node: int, out: Linear) -> bool:
    """Whether the columns of a merged linear that a row calls values are those which attention weighs."""
    row = replace(value, kind=f"{out.kind.partition('.')[0]}.value")
    try:
        columns = columns_of(row, LayerStack("", "", (), linears=(out, row)), layer.call.module, call.module)
    except (BackboneError, RuntimeError):  # heads whose width is not said, or that do not fit
        return False
    made, weighed = layer.trace.tensors[call.made or 0], layer.trace.tensors[node]
    if made.dim() != 3:
        return False
    rows, tokens, _ = made.shape
    used = weighed.reshape(rows, -1, tokens, weighed.shape[-1])[0, :, 0] if weighed.shape[-2] == tokens else weighed[:0]
    found = made[0, 0][columns].view(-1, used.shape[-1]) if used.numel() else used
    groups = used[:: max(used.shape[0] // max(found.shape[0], 1), 1)]  # a group of query heads shares a value head
    return found.numel() > 0 and torch.equal(found, groups)


def _attention(layer: Layer, kind: str, factors: _Factors) -> tuple[Attention, ...]:
    """The innermost module around an attention, if it calls transformers' interface and says how wide its heads are."""
    around = [call for call in layer.inside if call.entered < factors.time < call.left]
    able = [call for call in around[:1] if _asks(call.module) and head_width(call.module) is not None]
    return tuple(Attention(kind, layer.path(call)) for call in able)


def _asks(module: nn.Module) -> bool:
    """Whether a module looks its attention up in transformers' table: its forward reads that name."""
    code = getattr(unwrap(type(module).forward), "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


def _factors(trace: Trace, between: Iterable[int], start: int) -> _Factors | None:
    """The nodes of queries, keys and values: the inputs of a fused attention, or the factors of its two products.

    Of several products that make up the scores (relative positions), it is the one both of whose factors read r.
    """
    nodes = [trace.nodes[index] for index in sorted(between)]
    for node in nodes:
        if node.operation.startswith(_FUSED) and len(node.inputs) >= 3:
            return _Factors(node.inputs[:3], node.time)  # type: ignore[arg-type]
    for node in nodes:
        if node.operation in _SOFTMAX:
            made = trace.before(node.index)
            scores = [n for n in nodes if n.index in made and n.operation in _PRODUCTS and len(n.shape) == 3]
            read = [n for n in scores if all(start in trace.before(i) for i in n.inputs[-2:])]
            weighed = [n for n in nodes if n.operation in _PRODUCTS and n.index > node.index and len(n.shape) == 3]
            one = read if len(scores) > 1 else scores
            if len(one) == 1 and weighed:
                return _Factors((one[0].inputs[-2], one[0].inputs[-1], weighed[0].inputs[-1]), node.time)
    return None
