"""Proof that a family's description is right: every site of a model against its closed form, on one input.

    the stream after a site  =  LN(h₀ + Δ + r) + Δ'      (pre-LN: h₀ + Δ + r + Δ')        core/proof.py

Linears, their inputs and embeddings are proven in `core/certify_linears.py`. Run it on a small random model of the
class: the layout is the same, and it takes milliseconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from graftwork.core.backbone import Backbone
from graftwork.core.certify_linears import linear_differences
from graftwork.core.families import Family
from graftwork.core.probe import open_sublayers, run
from graftwork.core.proof import prove, require
from graftwork.errors import BackboneError


@dataclass(frozen=True)
class Certificate:
    """Largest relative difference between the model and the closed form, per site name."""

    differences: Mapping[str, float]

    @property
    def sites(self) -> int:
        """How many sites were certified."""
        return len(self.differences)


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
        open_sublayers(backbone)
        plain = run(backbone, inputs)
        found: dict[str, float] = {}
        for located in (one for one in backbone.located if one.row is not None):
            difference = prove(backbone, located, inputs, plain, tolerance)
            if difference is not None:
                found[located.site.name] = difference
        if not found:
            raise BackboneError(f"no site of {type(model).__name__} ran on this input, so nothing was certified")
        if linears:
            for site, difference, what in linear_differences(backbone, inputs):
                found[site.name] = max(found.get(site.name, 0.0), difference)
                require(site, difference, tolerance, what)
        return Certificate(found)
    finally:
        model.train(training)
