"""Which linear of a sub-layer is which, read from a trace: by what it feeds, not by what it is called.

    attention      query, key: what the scores are made of, as first and second factor;  value: what the scores weigh
    feed-forward   down: what is added to the stream;  up: what enters it;  gate: what goes through the non-linearity
                   where two linears read the same input and their results are multiplied
    both           out / down is the linear whose result is h₀ itself

A linear is a module with one two-dimensional weight. What cannot be told (queries, keys and values of one linear, the
experts of a mixture) is left out.
"""

from collections.abc import Iterable

from torch import Tensor

from graftwork.core.families import Linear
from graftwork.core.streams import Branch, Layer
from graftwork.core.trace import Call, Trace

_FUSED = "_scaled_dot_product"
_SOFTMAX = ("_softmax", "_safe_softmax")
_PRODUCTS = ("bmm", "baddbmm", "mm")


def linears_of(layer: Layer, branch: Branch, kind: str) -> tuple[Linear, ...]:
    """The linears of one branch of a layer as rows; only those that can be told apart."""
    trace = layer.trace
    made = trace.before(branch.end, stop=[branch.start])
    between = {index for index in made if trace.nodes[index].time > layer.call.entered}
    calls = [call for call in layer.inside if _is_linear(call) and trace.root(call.made or 0) in between]
    last = [call for call in calls if trace.root(call.made or 0) == branch.end] or _final(trace, calls, layer.shape[-1])
    others = [call for call in calls if call not in last]
    if len(last) != 1:
        return ()
    if kind == "ffn":
        found = {**_entries(trace, others, between), "ffn.down": last[0]}
    else:
        found = {f"{kind}.{name}": call for name, call in _projections(trace, others, between, branch.start).items()}
        found[f"{kind}.out"] = last[0]
    return tuple(Linear(name, layer.path(call)) for name, call in found.items())


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


def _entries(trace: Trace, calls: list[Call], between: set[int]) -> dict[str, Call]:
    if len(calls) == 1:
        return {"ffn.up": calls[0]}
    if len(calls) != 2:
        return {}
    roots = {trace.root(call.made or 0): call for call in calls}
    for index in sorted(between):
        node = trace.nodes[index]
        if node.operation in ("mul", "mul_") and len(node.inputs) == 2:
            straight = [trace.root(i) for i in node.inputs if trace.root(i) in roots]
            if len(straight) == 1 and all(set(roots) & trace.before(i) for i in node.inputs):
                up = roots[straight[0]]
                return {"ffn.up": up, "ffn.gate": next(call for call in calls if call is not up)}
    return {}


def _projections(trace: Trace, calls: list[Call], between: set[int], start: int) -> dict[str, Call]:
    factors = _factors(trace, between, start)
    if factors is None:
        return {}
    found: dict[str, Call] = {}
    for name, node in zip(("query", "key", "value"), factors, strict=True):
        reached = trace.before(node)
        feeding = [call for call in calls if trace.root(call.made or 0) in reached]
        if len(feeding) != 1:
            return {}
        found[name] = feeding[0]
    return found if len({call.path for call in found.values()}) == 3 else {}


def _factors(trace: Trace, between: Iterable[int], start: int) -> tuple[int, int, int] | None:
    """The nodes of queries, keys and values: the inputs of a fused attention, or the factors of its two products.

    Of several products that make up the scores (relative positions), it is the one both of whose factors read r.
    """
    nodes = [trace.nodes[index] for index in sorted(between)]
    for node in nodes:
        if node.operation.startswith(_FUSED) and len(node.inputs) >= 3:
            return node.inputs[0], node.inputs[1], node.inputs[2]
    for node in nodes:
        if node.operation in _SOFTMAX:
            made = trace.before(node.index)
            scores = [n for n in nodes if n.index in made and n.operation in _PRODUCTS and len(n.shape) == 3]
            read = [n for n in scores if all(start in trace.before(i) for i in n.inputs[-2:])]
            weighed = [n for n in nodes if n.operation in _PRODUCTS and n.index > node.index and len(n.shape) == 3]
            one = read if len(scores) > 1 else scores
            if len(one) == 1 and weighed:
                return one[0].inputs[-2], one[0].inputs[-1], weighed[0].inputs[-1]
    return None
