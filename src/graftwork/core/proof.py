"""What a site must compute: inject random changes there and compare the model with the closed form.

    the stream after a site  =  LN(h₀ + Δ + r) + Δ'      (pre-LN: h₀ + Δ + r + Δ')

The left side is what the model itself computed: the residual that the next site of the layer receives, the layer's
output, or what its row names as `onward`. The right side is computed here from h₀ and r caught in the same forward; Δ
is written before the add and Δ' after the norm. Where one hook on the norm may stand for the others
(`core/sublayer.py`), the norm is called with h₀ + Δ + r. A zero change must leave the model's output bit-equal. Where a
block adds two sub-layers to one residual, the other one's output is part of what is compared.

Nothing here makes a Backbone: `core/certify.py` does, and a Backbone without a row proves itself.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from graftwork.core.families import Sublayer
from graftwork.core.family import BY_HAND
from graftwork.core.locate import Located
from graftwork.core.probe import Probe, Sited, open_sublayers, run
from graftwork.core.site import NO_DELTA, Delta, Reading, Site
from graftwork.core.sublayer import seen_at_norm
from graftwork.errors import BackboneError

_ALLOWED = {torch.bfloat16: 5e-2, torch.float16: 5e-3}  # relative, by the type in which the model computes


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


@dataclass(frozen=True)
class _Normed:
    """The norm of the site in question was called, with its first argument."""

    summed: Tensor | None


_Event = _Read | _Streamed | _Normed


def prove(
    backbone: Sited, located: Located, inputs: Mapping[str, Any], plain: Tensor, tolerance: float
) -> float | None:
    """The largest difference at one sub-layer site, or None where it does not run on this input.

    plain: the model's output without a change. Raises BackboneError where the site is not as described.
    """
    _check_zero(backbone, inputs, located.site, plain)
    found = None
    for place in ("before", "after"):
        difference = _difference(backbone, inputs, located, place, tolerance)
        if difference is not None:
            found = max(found or 0.0, difference)
            require(located.site, difference, tolerance, f"the stream after it ({place} the norm)")
    return found


def prove_found(backbone: Sited, inputs: Mapping[str, Any], report: str) -> None:
    """Prove the first, the middle and the last layer of every stack that was discovered, as `report` says.

    Every layer of a stack has the same description, read from that layer itself: what a few prove holds for all.
    Raises BackboneError where it does not hold.
    """
    training = backbone.trunk.training
    backbone.trunk.eval()
    open_sublayers(backbone)
    try:
        plain = run(backbone, inputs)
        sublayers = [one for one in backbone.located if one.row is not None]
        for one in sublayers:
            own = sorted({other.site.layer for other in sublayers if other.site.stack == one.site.stack})
            if one.site.layer in (own[0], own[len(own) // 2], own[-1]):
                prove(backbone, one, inputs, plain, _ALLOWED.get(plain.dtype, 1e-4))
    except BackboneError as error:
        raise BackboneError(f"found by discovery:\n{report}\nbut {error}. {BY_HAND}") from error
    finally:
        backbone.close()
        backbone.trunk.train(training)


def require(site: Site, difference: float, tolerance: float, what: str) -> None:
    """Raise BackboneError for a difference that is larger than allowed."""
    if not difference <= tolerance:  # also where it is no number
        raise BackboneError(
            f"site {site.name}: {what} is not what the closed form says; relative difference {difference:.2g}, allowed "
            f"{tolerance:g}. Its family row names the wrong modules"
        )


def _check_zero(backbone: Sited, inputs: Mapping[str, Any], site: Site, plain: Tensor) -> None:
    zero = run(backbone, inputs, Probe({site.index: lambda reading: Delta(torch.zeros_like(reading.output))}))
    if not torch.equal(zero, plain):
        raise BackboneError(f"site {site.name}: a change of zero changed the model's output")


def _difference(
    backbone: Sited, inputs: Mapping[str, Any], target: Located, place: str, tolerance: float
) -> float | None:
    """The largest relative difference over all times the site ran, or None where it did not run."""
    events: list[_Event] = []

    def read(located: Located, row: Sublayer, reading: Reading) -> Delta:
        delta = Delta(**{place: torch.randn_like(reading.output)}) if located is target else NO_DELTA
        # copies, for a block may add in place
        kept = replace(reading, output=reading.output.clone(), residual=reading.residual.clone(), summed=None)
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
    with torch.no_grad():
        if seen_at_norm(target, backbone.located):
            _check_norm(events, target, tolerance)
        return max((_compare(events[number:]) for number in times), default=None)


def _check_norm(events: list[_Event], target: Located, tolerance: float) -> None:
    """The norm is called once each time the site runs, with h₀ + r + Δ: what a hook there goes by."""
    own = [event for event in events if isinstance(event, _Normed) or getattr(event, "located", None) is target]
    for read, normed in zip_longest(own[::2], own[1::2]):
        if not isinstance(read, _Read) or not isinstance(normed, _Normed) or normed.summed is None:
            raise BackboneError(
                f"site {target.site.name}: its norm is not called once each time it runs, with one tensor first; its "
                "family row names the wrong norm"
            )
        expected = read.reading.total(read.delta)
        difference = float((normed.summed - expected).norm() / expected.norm())
        require(target.site, difference, tolerance, "what its norm reads")


def _watch(backbone: Sited, target: Located, events: list[_Event]) -> Iterator[RemovableHandle]:
    """Hooks that note what the norm reads, the end of the layer, and the stream where the row says who gets it."""
    layer = backbone.layer_of(target.site)

    def note(module: nn.Module, args: Any, output: Any, onward: bool = True) -> None:
        events.append(_Streamed(onward, (output if isinstance(output, Tensor) else output[0]).clone()))

    def norm(module: nn.Module, args: tuple[Any, ...]) -> None:
        events.append(_Normed(args[0].clone() if args else None))

    yield layer.register_forward_hook(partial(note, onward=False))
    if "norm" in target.modules:
        yield target.modules["norm"].register_forward_pre_hook(norm)
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
        elif isinstance(event, _Read) and event.located.site.depth == site.depth and not onward:
            if event.row.beside != site.kind:
                return float((event.reading.residual - expected).norm() / expected.norm())
            expected = expected + event.reading.output
    raise BackboneError(f"site {site.name}: nothing was seen to receive the stream after it")
