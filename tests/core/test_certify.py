"""Every row of the families table, proven on a tiny random model of its class."""

import dataclasses

import pytest

from graftwork.core.certify import certify
from graftwork.core.families import OF_MODEL_TYPE, Family, LayerStack, Sublayer
from graftwork.errors import BackboneError
from tests import tiny

EXPECTED = {"bert-decoder": 9, "t5": 10, "bart": 10}


@pytest.mark.parametrize("family", tiny.MAKERS)
def test_every_site_of_every_family_is_what_its_row_says(family: str) -> None:
    certificate = certify(tiny.model(family), tiny.inputs(family))
    assert certificate.sites == EXPECTED.get(family, 6)
    assert max(certificate.differences.values()) < 1e-5


def test_every_model_type_of_the_table_is_certified() -> None:
    tested = {tiny.model(family).config.model_type for family in tiny.MAKERS}
    assert tested == set(OF_MODEL_TYPE)


@pytest.mark.parametrize(
    ("family", "wrong"),
    [
        ("llama", Sublayer("ffn", "mlp.down_proj", "input_layernorm")),  # the residual of the other sub-layer
        ("llama", Sublayer("ffn", "mlp.up_proj", "post_attention_layernorm")),  # not what is added to the stream
        ("bert", Sublayer("ffn", "output.dropout", "output", None, (1, "input_tensor"))),  # the norm forgotten
        ("distilbert", Sublayer("attn", "attention.out_lin", "attention", "output_layer_norm")),  # another norm
    ],
)
def test_a_wrong_row_is_found_out(family: str, wrong: Sublayer) -> None:
    right = OF_MODEL_TYPE[family]
    stack = dataclasses.replace(right.stacks[0], sites=(wrong,))
    with pytest.raises((BackboneError, RuntimeError), match=r"site layer|must match"):
        certify(tiny.model(family), tiny.inputs(family), Family(right.model_types, (stack,)))


def test_a_site_that_never_runs_is_not_called_certified() -> None:
    only_cross = Family(
        ("bart",), (LayerStack("decoder", "decoder.layers", (OF_MODEL_TYPE["bart"].stacks[1].sites[1],)),)
    )
    model = tiny.model("bart")
    with pytest.raises(BackboneError, match="nothing was certified"):
        certify(
            model.decoder,
            {"input_ids": tiny.inputs("bert")["input_ids"]},
            dataclasses.replace(only_cross, stacks=(dataclasses.replace(only_cross.stacks[0], layers="layers"),)),
        )
