"""How AdapterHub's `adapters` 1.3.0 reads a site where that differs from the site itself, for weights trained that way.

    ALBERT, attention      h and r are taken for each other
    ModernBERT             r is the input after its norm; before the attention's adapter stands the last layer's norm
    Gemma 2 and 3          the norm that an adapter reads through is the last layer's, whatever layer it sits in
    Gemma 2, embeddings    invertible adapters read them before they are multiplied by the root of their width
    Phi, feed-forward      there is no r
    T5, prefixes           relative positions count the prefix, so every real key is further away

Only packages that say `semantics: adapters-1` are read so; the sites themselves are what the model's equations say.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import nn

from graftwork.core.locate import Located
from graftwork.core.site import Reading

View: TypeAlias = Callable[[Reading], Reading]

COUNTS_PREFIXES = ("t5", "mt5")  # model types whose attention counts positions of a prefix
_LAST_NORM = {
    ("modernbert", "attn"): "mlp_norm",
    **{(kind, "attn"): "post_attention_layernorm" for kind in ("gemma2", "gemma3_text")},
    **{(kind, "ffn"): "post_feedforward_layernorm" for kind in ("gemma2", "gemma3_text")},
}


@dataclass(frozen=True)
class _Plugin:
    """r after its own norm, or the last layer's norm to read through."""

    before: nn.Module | None
    norm: nn.Module | None

    def __call__(self, reading: Reading) -> Reading:
        residual = reading.residual if self.before is None else self.before.forward(reading.residual)
        # `forward`, past the hooks of the site: this is a reading, not a step of the model
        norm = None if self.norm is None else self.norm.forward
        return replace(reading, residual=residual, norm=norm, inner=None, summed=None)


def swapped(reading: Reading) -> Reading:
    """h and r taken for each other."""
    return replace(reading, output=reading.residual, residual=reading.output, summed=None)


@dataclass(frozen=True)
class Unscaled:
    """Embeddings before they were multiplied; a change of them is to be multiplied in turn."""

    factor: float

    def __call__(self, reading: Reading) -> Reading:
        smaller = reading.output / self.factor
        return replace(reading, output=smaller, residual=smaller, summed=None)


def alone(reading: Reading) -> Reading:
    """h without r."""
    return replace(reading, residual=torch.zeros_like(reading.residual), summed=None)


def view_of(model_type: str, located: Located, last_layer: nn.Module) -> View | None:
    """How a site is read there, or None where it is read as it is."""
    site = located.site
    if (model_type, site.kind) == ("gemma2", "embed"):
        return Unscaled(float(located.modules["embed"].scalar_embed_scale))  # type: ignore[arg-type]
    if site.place != "sublayer":
        return None
    if (model_type, site.kind) == ("albert", "attn"):
        return swapped
    if (model_type, site.kind) == ("phi", "ffn"):
        return alone
    norm = _LAST_NORM.get((model_type, site.kind))
    if norm is None and model_type != "modernbert":
        return None
    before = located.modules["residual"] if model_type == "modernbert" else None
    return _Plugin(before, None if norm is None else last_layer.get_submodule(norm))
