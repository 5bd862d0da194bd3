"""Proof that a family's description is right: inject a random Δ at each site and compare with the closed form.

    the stream after a site  =  LN(h₀ + Δ + r)      (pre-LN: h₀ + Δ + r)

The left side is what the model itself computed: the residual that the next site of the layer receives, or the layer's
output. The right side is computed here from h₀ and r caught in the same forward. A zero Δ must leave the model's output
bit-equal. Run it on a small random model of the class: the layout is the same, and it takes milliseconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from graftwork.core.backbone import Backbone
from graftwork.core.families import Family
from graftwork.core.site import Delta, Positions, Reading, Site
from graftwork.errors import BackboneError


@dataclass(frozen=True)
class Certificate:
    """Largest relative difference between the model and the closed form, per site name."""

    differences: Mapping[str, float]

    @property
    def sites(self) -> int:
        """How many sites were certified."""
        return len(self.differences)


class _Probe:
    """A route that injects one random change at one site and keeps every reading."""

    def __init__(self, target: int | None, scale: float) -> None:
        self.target = target
        self.scale = scale
        self.injected: Tensor | None = None
        self.readings: dict[int, Reading] = {}

    def delta(self, site: int, reading: Reading) -> Delta | None:
        self.readings[site] = reading
        if site != self.target:
            return None
        self.injected = self.scale * torch.randn_like(reading.output)
        return Delta(before=self.injected)

    def positions(self, site: int, reading: Reading) -> Positions | None:
        return None

    def prompted(self, site: int, embeddings: Tensor) -> Tensor | None:
        return None

    def inverse(self, site: int, hidden: Tensor) -> Tensor | None:
        return None


def certify(
    model: PreTrainedModel, inputs: Mapping[str, Any], family: Family | None = None, tolerance: float = 1e-4
) -> Certificate:
    """Check every site of a model on one input. Raises BackboneError naming the first site that is not as described.

    The model is frozen, as by any Backbone, and keeps the hooks; they do nothing where no route runs.
    """
    training = model.training
    model.eval()
    try:
        backbone = Backbone(model, family)
        plain = _forward(backbone, inputs, None)
        differences: dict[str, float] = {}
        for site in (site for site in backbone.sites if site.place == "sublayer"):
            zero = _forward(backbone, inputs, _Probe(site.index, 0.0))
            if not torch.equal(zero, plain):
                raise BackboneError(f"site {site.name}: a change of zero changed the model's output")
            difference = _difference(backbone, inputs, site)
            if difference is not None:
                differences[site.name] = difference
                if difference > tolerance:
                    raise BackboneError(
                        f"site {site.name}: the stream after it is not LN(h + delta + r); relative difference "
                        f"{difference:.2g}, allowed {tolerance:g}. Its family row names the wrong modules"
                    )
        if not differences:
            raise BackboneError(f"no site of {type(model).__name__} ran on this input, so nothing was certified")
        return Certificate(differences)
    finally:
        model.train(training)


def _forward(backbone: Backbone, inputs: Mapping[str, Any], probe: _Probe | None) -> Tensor:
    with torch.no_grad(), backbone.runtime.running(probe):
        output = backbone.trunk(**inputs)
    return output[0]  # type: ignore[no-any-return]


def _difference(backbone: Backbone, inputs: Mapping[str, Any], site: Site) -> float | None:
    probe = _Probe(site.index, 1.0)
    caught: list[Tensor] = []
    layer = _layer_of(backbone, site)
    handle = layer.register_forward_hook(lambda module, args, output: caught.append(_first(output)))
    try:
        _forward(backbone, inputs, probe)
    finally:
        handle.remove()
    if probe.injected is None:
        return None  # the site did not run on this input: cross-attention without an encoder
    following = [
        s.index for s in backbone.sites if s.depth == site.depth and s.index > site.index and s.place == "sublayer"
    ]
    ran = [index for index in following if index in probe.readings]
    observed = probe.readings[ran[0]].residual if ran else caught[0]
    expected = probe.readings[site.index].stream(Delta(before=probe.injected))
    return float((observed - expected).norm() / expected.norm())


def _layer_of(backbone: Backbone, site: Site) -> nn.Module:
    stack = next(stack for stack in backbone.family.stacks if stack.name == site.stack)
    layers = backbone.trunk.get_submodule(stack.layers)
    return list(layers.children())[site.layer]


def _first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]
