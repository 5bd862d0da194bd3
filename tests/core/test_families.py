"""The table of architectures: rows are data, and each model type has exactly one. `test_certify.py` proves the rows."""

from collections import Counter

import pytest

from graftwork.core.backbone import Backbone
from graftwork.core.families import FAMILIES, OF_MODEL_TYPE
from tests import tiny


def test_each_model_type_has_one_row() -> None:
    counts = Counter(name for family in FAMILIES for name in family.model_types)
    assert set(counts.values()) == {1}
    assert {name: family for family in FAMILIES for name in family.model_types} == OF_MODEL_TYPE


def test_kinds_of_sites_are_known_and_each_stack_names_its_layers() -> None:
    for family in FAMILIES:
        for stack in family.stacks:
            kinds = [site.kind for site in stack.sites]
            assert len(set(kinds)) == len(kinds)
            assert set(kinds) <= {"attn", "cross", "ffn"}
            assert stack.layers


@pytest.mark.parametrize("family", tiny.MAKERS)
def test_a_row_is_post_norm_exactly_where_the_model_is(family: str) -> None:
    row = OF_MODEL_TYPE[tiny.model(family).config.model_type]
    post = {site.norm is not None for stack in row.stacks for site in stack.sites}
    expected = family in {"bert", "bert-decoder", "roberta", "xlm-roberta", "electra", "distilbert", "bart"}
    assert post == {expected}


def test_sites_are_numbered_in_the_order_of_the_forward() -> None:
    names = [site.name for site in Backbone(tiny.model("t5")).sites]
    assert names == [
        *("encoder.layer.0/attn", "encoder.layer.0/ffn", "encoder.layer.1/attn", "encoder.layer.1/ffn"),
        *("decoder.layer.0/attn", "decoder.layer.0/cross", "decoder.layer.0/ffn"),
        *("decoder.layer.1/attn", "decoder.layer.1/cross", "decoder.layer.1/ffn"),
    ]
    sites = Backbone(tiny.model("bart")).sites
    assert [site.depth for site in sites] == [0, 0, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [site.index for site in sites] == list(range(10))
    assert {site.width for site in sites} == {tiny.WIDTH}


def test_causal_is_where_tokens_see_only_what_is_before_them() -> None:
    causal = {name for name, family in OF_MODEL_TYPE.items() if family.causal}
    assert causal == {"llama", "mistral", "qwen3", "gpt2", "t5", "bart"}
