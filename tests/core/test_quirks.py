"""How AdapterHub's library reads some sites: each reading against what its code does, written out."""

import pytest
import torch
from torch import nn

from graftwork.core.backbone import Backbone
from graftwork.core.site import NO_DELTA, Reading
from tests import zoo


def view(family: str, name: str) -> tuple[Backbone, object]:
    backbone = Backbone(zoo.model(family))
    site = next(site for site in backbone.sites if site.name == name)
    return backbone, backbone.view(site)


def reading(width: int, norm: nn.Module | None = None) -> Reading:
    generator = torch.Generator().manual_seed(3)
    h, r = torch.randn(2, 1, 4, width, generator=generator)
    return Reading(h, r, norm)


def test_albert_takes_h_and_r_for_each_other_at_the_attention() -> None:
    backbone, at = view("albert", "layer.0/attn")
    given = reading(backbone.sites[0].width)
    seen = at(given)  # type: ignore[operator]
    assert seen.output is given.residual
    assert seen.residual is given.output
    assert view("albert", "layer.0/ffn")[1] is None


@pytest.mark.parametrize("layer", [0, 1])
def test_modernbert_reads_the_residual_after_its_norm_and_through_the_last_layers_norm(layer: int) -> None:
    backbone, at = view("modernbert", f"layer.{layer}/attn")
    given = reading(backbone.sites[0].width)
    seen, layers = at(given), backbone.trunk.layers  # type: ignore[operator,union-attr]
    normed = layers[layer].attn_norm(given.residual)
    assert torch.allclose(seen.residual, normed)
    assert torch.allclose(seen.stream(NO_DELTA), layers[-1].mlp_norm(given.output + normed))


def test_gemma_reads_through_the_last_layers_norm() -> None:
    backbone, at = view("gemma3_text", "layer.0/ffn")
    given = reading(backbone.sites[0].width)
    last = backbone.trunk.layers[-1].post_feedforward_layernorm  # type: ignore[union-attr]
    with torch.no_grad():
        last.weight.add_(1.0)  # unlike the others
    expected = last(given.output + given.residual)
    assert torch.allclose(at(given).stream(NO_DELTA), expected)  # type: ignore[operator]


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_other_models_are_read_as_they_are(family: str) -> None:
    backbone = Backbone(zoo.model(family))
    assert all(backbone.view(site) is None for site in backbone.sites)


def test_phis_feed_forward_has_no_residual() -> None:
    backbone, at = view("phi", "layer.0/ffn")
    given = reading(backbone.sites[0].width)
    seen = at(given)  # type: ignore[operator]
    assert torch.equal(seen.stream(NO_DELTA), given.output)
    assert view("phi", "layer.0/attn")[1] is None


def test_gemma_2s_embeddings_are_read_before_they_are_multiplied() -> None:
    backbone, at = view("gemma2", "embed")
    width = backbone.sites[0].width
    given = reading(width)
    seen = at(given)  # type: ignore[operator]
    torch.testing.assert_close(seen.output * width**0.5, given.output)
