"""Every row of the families table, proven on a tiny random model of its class; and wrong rows, found out."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from graftwork.core.certify import certify
from graftwork.core.families import OF_MODEL_TYPE, Family, LayerStack, Sublayer, family_of
from graftwork.errors import BackboneError
from tests import tiny, zoo

LAYERS = {"albert": 1} | dict.fromkeys(tiny.MAKERS, 3) | dict.fromkeys(("t5", "bart"), 4)
LAYERS |= dict.fromkeys(("albert-groups", "mt5", "plbart", "mbart", "m2m_100", "whisper", "encoder-decoder"), 4)
LAYERS |= dict.fromkeys(("clip", "siglip", "llava", "paligemma", "gemma3"), 4)
CROSS = {"bert-decoder": 3} | dict.fromkeys(("t5", "bart", "mt5", "plbart", "mbart", "m2m_100", "whisper"), 2)
CROSS |= {"encoder-decoder": 2, "gpt2-cross": 2}


@pytest.mark.parametrize("family", zoo.MAKERS)
def test_every_site_of_every_family_is_what_its_row_says(family: str) -> None:
    torch.manual_seed(3)
    differences = certify(zoo.model(family), zoo.inputs(family), linears=True).differences
    sublayers = [name for name in differences if name.endswith(("/attn", "/ffn", "/cross"))]
    assert len(sublayers) == 2 * LAYERS.get(family, 2) + CROSS.get(family, 0)
    assert max(differences[name] for name in sublayers) < 1e-5
    for part in ("query", "key", "value", "out"):
        assert sum(name.endswith(f"/attn.{part}") for name in differences) == LAYERS.get(family, 2)
        assert sum(name.endswith(f"/cross.{part}") for name in differences) == CROSS.get(family, 0)


def test_every_model_type_of_the_table_is_certified() -> None:
    tested = {zoo.model(family).config.model_type for family in zoo.MAKERS}
    assert tested == set(OF_MODEL_TYPE)


def test_every_variant_of_the_table_is_certified() -> None:
    met = [family_of(model.config, model.base_model) for model in map(zoo.model, zoo.MAKERS)]
    for family in OF_MODEL_TYPE.values():
        for variant in family.variants:
            assert not variant.stacks or any(found and found.stacks == variant.stacks for found in met), variant.when


def with_site(family: str, kind: str, **changes: Any) -> Family:
    """The family of a tiny model with one sub-layer site described otherwise."""
    model = zoo.model(family)
    right = family_of(model.config, model.base_model)
    assert right is not None
    sites = tuple(replace(site, **changes) if site.kind == kind else site for site in right.stacks[0].sites)
    return replace(right, stacks=(replace(right.stacks[0], sites=sites), *right.stacks[1:]))


@pytest.mark.parametrize(
    ("family", "kind", "changes"),
    [
        ("llama", "ffn", {"residual": "input_layernorm"}),  # the residual of the other sub-layer
        ("llama", "ffn", {"output": "mlp.up_proj"}),  # not what is added to the stream
        ("bert", "ffn", {"norm": None}),  # the norm forgotten
        ("distilbert", "attn", {"norm": "output_layer_norm"}),  # another norm
        ("gemma2", "attn", {"inner": None}),  # the norm on the branch forgotten
        ("gemma2", "attn", {"inner": None, "norm": "post_attention_layernorm"}),  # taken for one after the add
        ("gptj", "ffn", {"beside": None}),  # the sub-layer beside it forgotten
        ("vit", "ffn", {"shared": False}),  # a module that serves both
        ("beit", "attn", {"output": "attention.o_proj"}),  # scaled after that
        ("opt", "ffn", {"flat": False}),  # rows and tokens joined
        ("xmod", "attn", {"onward": None}),  # a norm between the site and the next
        ("mbart", "attn", {"residual": "self_attn", "norm": "self_attn_layer_norm"}),  # BART's, by the same names
    ],
)
def test_a_wrong_site_is_found_out(family: str, kind: str, changes: dict[str, Any]) -> None:
    with pytest.raises((BackboneError, RuntimeError), match=r"site (encoder\.)?layer|must match"):
        certify(zoo.model(family), zoo.inputs(family), with_site(family, kind, **changes))


def with_linear(family: str, kind: str, **changes: Any) -> Family:
    """The family of a tiny model with one linear described otherwise."""
    model = zoo.model(family)
    right = family_of(model.config, model.base_model)
    assert right is not None
    linears = tuple(replace(one, **changes) if one.kind == kind else one for one in right.stacks[0].linears)
    return replace(right, stacks=(replace(right.stacks[0], linears=linears), *right.stacks[1:]))


@pytest.mark.parametrize(
    ("family", "kind", "changes"),
    [
        ("llama", "attn.query", {"path": "self_attn.k_proj"}),
        ("llama", "attn.value", {"path": "self_attn.q_proj"}),
        ("bert", "attn.value", {"path": "attention.self.key"}),
        ("gpt2", "attn.query", {"part": 1}),
        ("gpt2", "attn.value", {"part": 1}),
        ("bloom", "attn.query", {"layout": "blocks"}),
        ("bloom", "attn.value", {"layout": "blocks"}),
        ("falcon-new", "attn.value", {"layout": "blocks"}),
        ("falcon", "attn.value", {"part": 1}),
        ("deberta", "attn.query", {"layout": "blocks"}),
        ("phi3", "attn.query", {"layout": "heads"}),
    ],
)
def test_a_linear_that_is_another_is_found_out(family: str, kind: str, changes: dict[str, Any]) -> None:
    with pytest.raises((BackboneError, RuntimeError), match=rf"site layer.0/{kind}: wh|must match|invalid|expand"):
        certify(zoo.model(family), zoo.inputs(family), with_linear(family, kind, **changes), linears=True)


def test_an_attention_that_does_not_ask_the_interface_is_found_out() -> None:
    bloom = OF_MODEL_TYPE["bloom"]
    bert = OF_MODEL_TYPE["bert"].stacks[0].attentions[0]
    stack = replace(bloom.stacks[0], attentions=(replace(bert, path="self_attention"),))
    with pytest.raises(BackboneError, match="does not call transformers' attention interface"):
        certify(zoo.model("bloom"), zoo.inputs("bloom"), replace(bloom, stacks=(stack,)), linears=True)


def test_weights_are_as_they_were_after_a_certificate() -> None:
    model = zoo.model("falcon-new")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    certify(model, zoo.inputs("falcon-new"), linears=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_site_that_never_runs_is_not_called_certified() -> None:
    cross = OF_MODEL_TYPE["bart"].stacks[1].sites[1]
    only_cross = Family(("bart",), (LayerStack("decoder", "layers", (cross,)),))
    with pytest.raises(BackboneError, match="nothing was certified"):
        certify(tiny.model("bart").decoder, {"input_ids": tiny.inputs("bert")["input_ids"]}, only_cross)


def test_a_certificate_of_sublayers_alone() -> None:
    certificate = certify(tiny.model("bert"), tiny.inputs("bert"))
    assert certificate.sites == 6
    wrong = Sublayer("ffn", "output.dropout", "output", None, (1, "input_tensor"))
    stack = replace(OF_MODEL_TYPE["bert"].stacks[0], sites=(wrong,))
    with pytest.raises(BackboneError, match=r"layer.0/ffn: the stream after it \(before the norm\) is not what"):
        certify(tiny.model("bert"), tiny.inputs("bert"), Family(("bert",), (stack,)))
