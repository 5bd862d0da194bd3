"""Proof for the sites that are no sub-layers: frozen linears, their inputs, keys and values.

    a change x·ΔWᵀ at a linear site       = the model whose weight is W + ΔW
    a change δ at the input of a linear   = a change W·δ at its output
    nothing real in front of keys         = nothing in front of keys

That a merged linear's part is query, key or value is proven by what attention does, not by where its columns lie. c is
what enters the output projection, c(t) at token t:

    a change of the query at token t      moves c(t) and no other token's
    a constant v added to every value     moves c by exactly v, for attention weights add up to 1
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from graftwork.core.backbone import Backbone
from graftwork.core.locate import Located, head_width
from graftwork.core.probe import Probe, run
from graftwork.core.site import Delta, Positions, Reading, Site
from graftwork.errors import BackboneError

Found = tuple[Site, float, str]  # a site, the relative difference found there, and what was compared


def linear_differences(backbone: Backbone, inputs: Mapping[str, Any]) -> Iterator[Found]:
    """Every comparison at every site that is no sub-layer and runs on this input."""
    linears = [one for one in backbone.located if one.site.place == "linear"]
    for located in linears:
        backbone.open(located.site)
    ran = _ran(backbone, inputs, linears)
    for located in (one for one in linears if one.site.index in ran):
        yield from _as_weight(backbone, inputs, located)
        kind, _, part = located.site.kind.partition(".")
        out = next((one for one in linears if _same_layer(one, located) and one.site.kind == f"{kind}.out"), None)
        if part == "query" and out is not None:
            yield located.site, _query(backbone, inputs, located, out), "which tokens the query moves"
        elif part == "value" and out is not None:
            yield located.site, _value(backbone, inputs, located, out), "what a constant value adds"
    for located in backbone.located:
        output = next((one for one in linears if f"{one.site.name}.input" == located.site.name), None)
        if output is not None and output.site.index in ran and output.columns is None:
            yield from _as_output(backbone, inputs, located, output)
        if located.site.place == "kv":
            yield from _in_front(backbone, inputs, located)


def _same_layer(one: Located, other: Located) -> bool:
    return (one.site.stack, one.site.layer) == (other.site.stack, other.site.layer)


def _ran(backbone: Backbone, inputs: Mapping[str, Any], linears: list[Located]) -> set[int]:
    ran: set[int] = set()
    noted = {one.site.index: (lambda reading, index=one.site.index: ran.add(index)) for one in linears}
    run(backbone, inputs, Probe(noted))
    return ran


def _traced(backbone: Backbone, inputs: Mapping[str, Any], site: Site, probe: Probe | None = None) -> Tensor:
    """All that the site's layer gives, one run after another, with the model's output: (N,)."""
    seen: list[Tensor] = []

    def ended(module: nn.Module, args: Any, output: Any) -> None:
        seen.append((output if isinstance(output, Tensor) else output[0]).flatten())

    handle = backbone.layer_of(site).register_forward_hook(ended)
    try:
        seen.append(run(backbone, inputs, probe).flatten())
    finally:
        handle.remove()
    return torch.cat(seen)


def _relative(found: Tensor, expected: Tensor, plain: Tensor) -> float:
    """How far two results are apart, measured by what the change did; no number where it did nothing."""
    return float((found - expected).norm() / (expected - plain).norm())


def _as_weight(backbone: Backbone, inputs: Mapping[str, Any], located: Located) -> Iterator[Found]:
    site = located.site
    change = 0.3 * torch.randn(site.width, 2) @ torch.randn(2, site.inputs) / site.inputs**0.5
    probe = Probe({site.index: lambda reading: Delta(reading.residual @ change.T)})
    plain, found = _traced(backbone, inputs, site), _traced(backbone, inputs, site, probe)
    weight = located.modules["linear"].weight
    assert isinstance(weight, Tensor)
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            rows = weight.T if isinstance(located.modules["linear"], Conv1D) else weight
            rows[slice(None) if located.columns is None else located.columns] += change
        expected = _traced(backbone, inputs, site)
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    yield site, _relative(found, expected, plain), "the change of a weight"


def _as_output(backbone: Backbone, inputs: Mapping[str, Any], located: Located, output: Located) -> Iterator[Found]:
    backbone.open(located.site)
    ground = backbone.ground(output.site)
    assert ground.weight is not None
    weight, change = ground.weight(), torch.randn(located.site.width)
    entering = Probe({located.site.index: lambda reading: Delta(change.expand_as(reading.output))})
    leaving = Probe({output.site.index: lambda reading: Delta((weight @ change).expand_as(reading.output))})
    found, expected = (_traced(backbone, inputs, output.site, probe) for probe in (entering, leaving))
    yield located.site, _relative(found, expected, _traced(backbone, inputs, output.site)), "the change of an input"


def _context(backbone: Backbone, inputs: Mapping[str, Any], out: Located, probe: Probe | None = None) -> Tensor:
    """What enters the output projection the first time it runs, (B, T, inputs)."""
    seen: list[Tensor] = []
    handle = out.modules["linear"].register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    try:
        run(backbone, inputs, probe)
    finally:
        handle.remove()
    return seen[0]


def _once(change: Callable[[Reading], Tensor]) -> Callable[[Reading], Delta | None]:
    """A change of the first call only: relative positions go through query and key as well."""
    calls = iter([True])
    return lambda reading: Delta(change(reading)) if next(calls, False) else None


def _query(backbone: Backbone, inputs: Mapping[str, Any], located: Located, out: Located) -> float:
    """How much of what a query's change moves lies at other tokens."""
    token = 2

    def change(reading: Reading) -> Tensor:
        changed = torch.zeros_like(reading.output)
        changed[:, token] = torch.randn_like(changed[:, token])
        return changed

    plain = _context(backbone, inputs, out)
    moved = _context(backbone, inputs, out, Probe({located.site.index: _once(change)})) - plain
    here = moved[:, token].norm()
    moved[:, token] = 0
    return float(moved.norm() / here)


def _value(backbone: Backbone, inputs: Mapping[str, Any], located: Located, out: Located) -> float:
    """How far the context is from moving by a constant that all values moved by, head by head."""
    expected = constant = torch.randn(located.site.width)
    plain = _context(backbone, inputs, out)
    shared = plain.shape[-1] // located.site.width  # a group of query heads shares a value head
    if shared > 1:
        head = next(filter(None, map(head_width, backbone.layer_of(located.site).modules())))
        expected = constant.view(-1, head).repeat_interleave(shared, 0).reshape(-1)
    probe = Probe({located.site.index: _once(lambda reading: constant.expand_as(reading.output))})
    moved = _context(backbone, inputs, out, probe) - plain
    return float((moved - expected).norm() / expected.expand_as(moved).norm())


def _in_front(backbone: Backbone, inputs: Mapping[str, Any], located: Located) -> Iterator[Found]:
    backbone.open(located.site)
    site, ran = located.site, []

    def positions(real: bool) -> Callable[[Reading], Positions]:
        def made(reading: Reading) -> Positions:
            rows = reading.output.shape[0]
            ran.append(rows)
            shape = (rows, site.heads, 3, site.head_width)
            return Positions(torch.randn(shape), torch.randn(shape), torch.full((rows, 3), real))

        return made

    plain = _traced(backbone, inputs, site)
    nothing = _traced(backbone, inputs, site, Probe({}, {site.index: positions(False)}))
    if not ran:
        return
    something = _traced(backbone, inputs, site, Probe({}, {site.index: positions(True)}))
    if torch.equal(something, plain):
        raise BackboneError(f"site {site.name}: what was put in front of keys and values was not seen")
    yield site, _relative(nothing, plain, something), "what is not real in front of keys and values"
