"""Proof that a family's description is right: inject random changes at each site and compare with the closed form.

    the stream after a site  =  LN(h₀ + Δ + r) + Δ'      (pre-LN: h₀ + Δ + r + Δ')

The left side is what the model itself computed: the residual that the next site of the layer receives, the layer's
output, or what its row names as `onward`. The right side is computed here from h₀ and r caught in the same forward; Δ
is written before the add and Δ' after the norm. A zero change must leave the model's output bit-equal. Where a block
adds two sub-layers to one residual, the other one's output is part of what is compared.

Linears, their inputs and embeddings are proven in `core/certify_linears.py`. Run it on a small random model of the
class: the layout is the same, and it takes milliseconds.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from graftwork.core.backbone import Backbone
from graftwork.core.certify_linears import linear_differences
from graftwork.core.families import Family, Sublayer
from graftwork.core.locate import Located
from graftwork.core.probe import Probe, run
from graftwork.core.site import NO_DELTA, Delta, Reading, Site
from graftwork.errors import BackboneError


@dataclass(frozen=True)
class Certificate:
    """Largest relative difference between the model and the closed form, per site name."""

    differences: Mapping[str, float]

    @property
    def sites(self) -> int:
        """How many sites were certified."""
        return len(self.differences)


@dataclass(frozen=True)
class _Read:
    """A sub-layer site was read, and changed if it is the one in question."""

    located: Located
    row: Sublayer
    reading: Reading
    delta: Delta


@dataclass(frozen=True)
class _Streamed:
    """The end of the layer in question, or the module onward of the site, gave or received a stream."""

    onward: bool
    stream: Tensor


_Event = _Read | _Streamed


def certify(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    family: Family | None = None,
    tolerance: float = 1e-4,
    *,
    linears: bool = False,
) -> Certificate:
    """Check every site of a model on one input; linears: also those that are no sub-layers.

    Raises BackboneError naming the first site that is not as described. The model is frozen, as by any Backbone, and
    keeps the hooks; they do nothing where no route runs. Sites that do not run on this input are left out.
    """
    training = model.training
    model.eval()
    try:
        backbone = Backbone(model, family)
        plain = run(backbone, inputs)
        found: dict[str, float] = {}
        for located in (one for one in backbone.located if one.row is not None):
            _check_zero(backbone, inputs, located.site, plain)
            for delta in ("before", "after"):
                difference = _difference(backbone, inputs, located, delta)
                if difference is not None:
                    name = located.site.name
                    found[name] = max(found.get(name, 0.0), difference)
                    _require(located.site, difference, tolerance, f"the stream after it ({delta} the norm)")
        if not found:
            raise BackboneError(f"no site of {type(model).__name__} ran on this input, so nothing was certified")
        if linears:
            for site, difference, what in linear_differences(backbone, inputs):
                found[site.name] = max(found.get(site.name, 0.0), difference)
                _require(site, difference, tolerance, what)
        return Certificate(found)
    finally:
        model.train(training)


def _require(site: Site, difference: float, tolerance: float, what: str) -> None:
    if not difference <= tolerance:  # also where it is no number
        raise BackboneError(
            f"site {site.name}: {what} is not what the closed form says; relative difference {difference:.2g}, allowed "
            f"{tolerance:g}. Its family row names the wrong modules"
        )


def _check_zero(backbone: Backbone, inputs: Mapping[str, Any], site: Site, plain: Tensor) -> None:
    zero = run(backbone, inputs, Probe({site.index: lambda reading: Delta(torch.zeros_like(reading.output))}))
    if not torch.equal(zero, plain):
        raise BackboneError(f"site {site.name}: a change of zero changed the model's output")


def _difference(backbone: Backbone, inputs: Mapping[str, Any], target: Located, place: str) -> float | None:
    """The largest relative difference over all times the site ran, or None where it did not run."""
    events: list[_Event] = []

    def read(located: Located, row: Sublayer, reading: Reading) -> Delta:
        delta = Delta(**{place: torch.randn_like(reading.output)}) if located is target else NO_DELTA
        # copies, for a block may add in place
        kept = replace(reading, output=reading.output.clone(), residual=reading.residual.clone())
        events.append(_Read(located, row, kept, delta))
        return delta

    probes = {one.site.index: partial(read, one, one.row) for one in backbone.located if one.row is not None}
    handles = list(_watch(backbone, target, events))
    try:
        run(backbone, inputs, Probe(probes))
    finally:
        for handle in handles:
            handle.remove()
    times = [number for number, event in enumerate(events) if isinstance(event, _Read) and event.located is target]
    return max((_compare(events[number:]) for number in times), default=None)


def _watch(backbone: Backbone, target: Located, events: list[_Event]) -> Iterator[RemovableHandle]:
    """Hooks that note the end of the site's layer, and its stream on the way where the row says who gets it."""
    layer = backbone.layer_of(target.site)

    def note(module: nn.Module, args: Any, output: Any, onward: bool = True) -> None:
        events.append(_Streamed(onward, (output if isinstance(output, Tensor) else output[0]).clone()))

    yield layer.register_forward_hook(partial(note, onward=False))
    assert target.row is not None
    if target.row.onward is not None:
        module = layer.get_submodule(target.row.onward)
        if target.row.onward == target.row.norm:
            yield module.register_forward_hook(note)
        else:
            yield module.register_forward_pre_hook(lambda module, args: note(module, (), args))


def _compare(events: list[_Event]) -> float:
    """How far what the model made of the first event, relatively, is from what the closed form says."""
    first, *later = events
    assert isinstance(first, _Read)
    site, onward = first.located.site, first.row.onward is not None
    expected = first.reading.stream(first.delta)
    for event in later:
        if isinstance(event, _Streamed):
            if event.onward == onward:
                return float((event.stream - expected).norm() / expected.norm())
        elif event.located.site.depth == site.depth and not onward:
            if event.row.beside != site.kind:
                return float((event.reading.residual - expected).norm() / expected.norm())
            expected = expected + event.reading.output
    raise BackboneError(f"site {site.name}: nothing was seen to receive the stream after it")
