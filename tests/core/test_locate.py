"""From a row of data to modules: names, widths, columns of merged linears, and rows that name what is not there."""

from dataclasses import replace

import pytest
import torch

from graftwork.core.backbone import Backbone
from graftwork.core.families import OF_MODEL_TYPE, LayerStack
from graftwork.core.family import Family
from graftwork.errors import BackboneError
from tests import tiny, zoo


def sites(family: str) -> dict[str, tuple[int, int]]:
    return {site.name: (site.width, site.inputs) for site in Backbone(zoo.model(family)).sites}


def test_sub_layers_come_first_and_numbers_are_places() -> None:
    backbone = Backbone(tiny.model("t5"))
    places = [site.place for site in backbone.sites]
    assert places == sorted(places, key=lambda place: place != "sublayer")
    assert [site.index for site in backbone.sites] == list(range(len(backbone.sites)))


def test_a_site_says_how_wide_what_it_reads_and_writes_is() -> None:
    found = sites("bert")
    assert found["layer.0/attn.query"] == (tiny.WIDTH, tiny.WIDTH)
    assert found["layer.0/ffn.up"] == (64, tiny.WIDTH)
    assert found["layer.0/ffn.down"] == (tiny.WIDTH, 64)
    assert found["layer.0/ffn.down.input"] == (64, 64)
    assert found["embed"] == (tiny.WIDTH, tiny.WIDTH)


def test_a_narrow_embedding_is_as_wide_as_it_is() -> None:
    model = zoo.model("albert")
    assert sites("albert")["embed"][0] == model.config.embedding_size != model.config.hidden_size


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "falcon", "bloom", "phi3", "modernbert", "deberta"])
def test_the_parts_of_a_merged_linear_cover_it_once(family: str) -> None:
    backbone = Backbone(zoo.model(family))
    covered = False
    for located in backbone._located:
        if located.site.kind != "attn.query" or located.columns is None:
            continue
        linear = located.modules["linear"]
        parts = [one for one in backbone._located if one.modules.get("linear") is linear and one.columns is not None]
        size = sum(one.site.width for one in parts)
        columns = torch.cat([torch.arange(size)[one.columns] for one in parts])
        assert sorted(columns.tolist()) == list(range(size))
        covered = True
    assert covered


def wrong(stack: LayerStack) -> Family:
    return Family(("bert",), (stack,))


def test_rows_that_name_what_is_not_there_say_what_is() -> None:
    (stack,) = OF_MODEL_TYPE["bert"].stacks
    with pytest.raises(BackboneError, match=r"says layers are at 'blocks', but BertModel has embeddings, encoder"):
        Backbone(tiny.model("bert"), wrong(replace(stack, layers="blocks")))
    site = replace(stack.sites[0], output="attention.output.nothing")
    with pytest.raises(BackboneError, match=r"the output of site 'attn' is 'attention.output.nothing'"):
        Backbone(tiny.model("bert"), wrong(replace(stack, sites=(site,))))
    linear = replace(stack.linears[0], path="attention.self.nothing")
    with pytest.raises(BackboneError, match=r"says the linear 'attn.query' is 'attention.self.nothing'"):
        Backbone(tiny.model("bert"), wrong(replace(stack, linears=(linear,))))
