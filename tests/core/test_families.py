"""The table of architectures: rows are data, and each model type has exactly one. `test_certify.py` proves the rows."""

from collections import Counter
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertLMHeadModel, CLIPConfig, CLIPForImageClassification, LlavaConfig, LlavaModel

from graftwork.core.backbone import Backbone
from graftwork.core.families import FAMILIES, OF_MODEL_TYPE, LayerStack, family_of
from graftwork.core.probe import Probe, run
from graftwork.core.site import Delta, Site
from tests import tiny, zoo
from tests.hooked import hooked

POST_NORM = {"bert", "bert-decoder", "roberta", "xlm-roberta", "electra", "bert-generation", "distilbert", "albert"}
POST_NORM |= {"albert-groups", "deberta", "deberta-v2", "deberta-v3", "bart", "plbart", "encoder-decoder", "opt-post"}
POST_NORM |= {"wav2vec2", "hubert"}


def stacks() -> list[LayerStack]:
    plain = [stack for family in FAMILIES for stack in family.stacks]
    return plain + [stack for family in FAMILIES for variant in family.variants for stack in variant.stacks]


def sites(family: str, place: str = "sublayer") -> list[Site]:
    return [site for site in Backbone(zoo.model(family)).sites if site.place == place]


def test_each_model_type_has_one_row() -> None:
    counts = Counter(name for family in FAMILIES for name in family.model_types)
    assert set(counts.values()) == {1}
    assert {name: family for family in FAMILIES for name in family.model_types} == OF_MODEL_TYPE
    assert len(OF_MODEL_TYPE) == 52


def test_kinds_of_sites_are_known_and_each_stack_names_its_layers() -> None:
    for stack in stacks():
        kinds = [site.kind for site in stack.sites]
        assert len(set(kinds)) == len(kinds)
        assert set(kinds) <= {"attn", "cross", "ffn"}
        assert stack.layers
        parts = {linear.kind for linear in stack.linears}
        assert {
            f"{kind}.{part}" for kind in kinds if kind != "ffn" for part in ("query", "key", "value", "out")
        } <= parts
        assert {site.beside for site in stack.sites} <= {None, *kinds}


@pytest.mark.parametrize("family", zoo.MAKERS)
def test_a_row_is_post_norm_exactly_where_the_model_is(family: str) -> None:
    model = zoo.model(family)
    row = family_of(model.config, model.base_model)
    assert row is not None
    post = {site.norm is not None for stack in row.stacks for site in stack.sites}
    # X-MOD: the norm of the language adapters stands after the feed-forward layer
    assert post == ({False, True} if family.startswith("xmod") else {family in POST_NORM})


def test_sites_are_numbered_in_the_order_of_the_forward() -> None:
    names = [site.name for site in sites("t5")]
    assert names == [
        *("encoder.layer.0/attn", "encoder.layer.0/ffn", "encoder.layer.1/attn", "encoder.layer.1/ffn"),
        *("decoder.layer.0/attn", "decoder.layer.0/cross", "decoder.layer.0/ffn"),
        *("decoder.layer.1/attn", "decoder.layer.1/cross", "decoder.layer.1/ffn"),
    ]
    found = sites("bart")
    assert [site.depth for site in found] == [0, 0, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [site.index for site in found] == list(range(10))
    assert {site.width for site in found} == {tiny.WIDTH}


@pytest.mark.parametrize(
    ("family", "order"),
    [
        ("clip", ["text", "vision"]),  # AdapterHub's order, whatever runs first
        ("siglip", ["text", "vision"]),
        ("llava", ["vision", "text"]),  # the text is what is nearest to the output
        ("encoder-decoder", ["encoder", "decoder"]),
        ("albert-groups", [""]),
    ],
)
def test_layers_are_counted_over_all_stacks(family: str, order: list[str]) -> None:
    found = sites(family)
    depths = {site.depth: (site.stack, site.layer) for site in found}
    assert list(depths) == list(range(4))
    each = 4 // len(order)
    assert list(depths.values()) == [(stack, layer) for stack in order for layer in range(each)]


def test_a_layer_that_is_run_again_and_again_is_one_layer() -> None:
    backbone = hooked(zoo.model("albert"))
    assert [site.name for site in sites("albert")] == ["layer.0/attn", "layer.0/ffn"]
    times: list[int] = []
    run(backbone, zoo.inputs("albert"), Probe({0: lambda reading: times.append(reading.output.shape[0])}))
    assert times == [2, 2, 2]


def test_towers_have_widths_of_their_own() -> None:
    for family in ("clip", "siglip", "llava", "paligemma", "gemma3"):
        widths = {(site.stack, site.width) for site in sites(family)}
        assert widths == {("text", zoo.WIDTH), ("vision", zoo.SEEN)}, family


@pytest.mark.parametrize("family", ["clip", "llava", "paligemma", "gemma3"])
@pytest.mark.parametrize("stack", ["text", "vision"])
def test_a_change_in_one_tower_alone_moves_the_output(family: str, stack: str) -> None:
    backbone, inputs = hooked(zoo.model(family)), zoo.inputs(family)
    plain = run(backbone, inputs)
    first = next(site.index for site in backbone.sites if site.stack == stack)
    changed = run(backbone, inputs, Probe({first: lambda reading: Delta(torch.randn_like(reading.output))}))
    assert not torch.allclose(changed, plain, atol=1e-3)


def test_a_model_without_one_of_its_towers() -> None:
    config = CLIPConfig(text_config=zoo._TEXT, vision_config=zoo._TOWER)
    backbone = Backbone(CLIPForImageClassification(config).eval())
    assert {site.stack for site in backbone.sites} == {"vision"}


def test_a_tower_without_a_row_leaves_the_model_without_one() -> None:
    text: Any = {**zoo._GROUPED, "model_type": "smollm3", "pad_token_id": 0}
    vision: Any = {**zoo._TOWER, "model_type": "clip_vision_model"}
    model = LlavaModel(LlavaConfig(text_config=text, vision_config=vision))
    assert family_of(model.config, model.base_model) is None


def test_causal_is_where_tokens_see_only_what_is_before_them() -> None:
    seen = {family: zoo.model(family) for family in zoo.MAKERS}
    causal = {name for name, model in seen.items() if (row := family_of(model.config, model.base_model)) and row.causal}
    encoders = {"albert", "albert-groups", "bert", "roberta", "xlm-roberta", "electra", "bert-generation", "distilbert"}
    encoders |= {"modernbert", "deberta", "deberta-v2", "deberta-v3", "xmod", "xmod-pre", "xmod-own", "xmod-pre-own"}
    encoders |= {"vit", "beit", "dinov2", "dinov2-gated", "clip", "clip-vision", "siglip", "siglip-text"}
    encoders |= {"siglip-vision", "wav2vec2", "wav2vec2-stable", "hubert"}
    assert causal == set(zoo.MAKERS) - encoders


def test_a_decoder_of_an_encoders_type_is_causal() -> None:
    config = BertConfig(**tiny.MAKERS["bert"][2], is_decoder=True)
    assert Backbone(BertLMHeadModel(config)).family.causal
    assert not Backbone(tiny.model("bert")).family.causal


# what stands between the embeddings' module and the first layer: nothing, or something that only adds
ADDED = [name for name in zoo.MAKERS if name not in ("electra", "albert", "albert-groups", "opt-post", "whisper")]


@pytest.mark.parametrize("family", ADDED)
def test_a_change_of_the_embeddings_enters_the_first_layer(family: str) -> None:
    backbone, inputs = Backbone(zoo.model(family)), zoo.inputs(family)
    places = [site for site in backbone.sites if site.place == "embed"]
    assert len(places) <= 1
    if not places:
        assert family in ("vit", "beit", "dinov2", "dinov2-gated", "clip-vision", "siglip-vision")
        return
    place = places[0]
    backbone.open(place)
    first = next(one for one in backbone.located if one.row is not None and one.site.stack == place.stack)
    change = torch.randn(place.width)
    entered: list[torch.Tensor] = []

    def catch(module: Any, args: Any, kwargs: Any) -> None:
        entered.append(args[0] if args else kwargs["hidden_states"])

    backbone.layer_of(first.site).register_forward_pre_hook(catch, with_kwargs=True)
    run(backbone, inputs)
    run(backbone, inputs, Probe({place.index: lambda reading: Delta(change.expand_as(reading.output))}))
    plain, changed = entered
    moved = changed - plain
    if family in ("llava", "paligemma", "gemma3"):  # tokens of the image are put in afterwards
        assert not moved[:, 1:5].any()
        moved = torch.cat([moved[:, :1], moved[:, 5:]], dim=1)
    torch.testing.assert_close(moved, change.expand_as(moved), atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("family", ["electra", "albert", "albert-groups", "opt-post"])
def test_embeddings_of_a_width_of_their_own(family: str) -> None:
    backbone = Backbone(zoo.model(family))
    (place,) = [site for site in backbone.sites if site.place == "embed"]
    assert place.width == 16


def test_whispers_embeddings_are_where_adapterhub_has_them() -> None:
    backbone, inputs = Backbone(zoo.model("whisper")), zoo.inputs("whisper")
    (place,) = [site for site in backbone.sites if site.place == "embed"]
    backbone.open(place)
    plain = backbone.trunk.encoder(inputs["input_features"])[0]
    with backbone.runtime.running(Probe({place.index: lambda reading: Delta(torch.ones_like(reading.output))})):
        changed = backbone.trunk.encoder(inputs["input_features"])[0]
    torch.testing.assert_close(changed, plain + 1)


WITHOUT_PROMPTS = {
    "whisper",
    "beit",
}
WITHOUT_PROMPTS |= {
    "wav2vec2",
    "wav2vec2-stable",
    "hubert",
    "clip-text",
    "clip",
    "siglip",
    "paligemma",
    "gemma3",
}


class Longer(Probe):
    """Puts two tokens of zeros in front of the embeddings."""

    def prompted(self, site: int, embeddings: torch.Tensor) -> torch.Tensor | None:
        return torch.cat([embeddings[:, :2] * 0, embeddings], dim=1)

    def lengthened(self, row: torch.Tensor, fill: int, pad: int) -> torch.Tensor:
        return torch.nn.functional.pad(row, (2, 0), value=fill)


@pytest.mark.parametrize("family", zoo.MAKERS)
def test_embeddings_get_longer_where_a_row_says_they_may(family: str) -> None:
    backbone, inputs = Backbone(zoo.model(family)), zoo.inputs(family)
    places = [site for site in backbone.sites if site.place == "prompt"]
    assert len(places) == (family not in WITHOUT_PROMPTS)
    if not places:
        return
    backbone.open(places[0])
    lengths: list[int] = []

    def note(module: Any, args: Any, output: Any) -> None:
        lengths.append((output if isinstance(output, torch.Tensor) else output[0]).shape[1])

    first = next(one.site for one in backbone.located if one.row is not None and one.site.stack == places[0].stack)
    backbone.layer_of(first).register_forward_hook(note)
    run(backbone, inputs)
    if "input_ids" in inputs:  # a mask is for the rows as they become
        inputs |= {"attention_mask": torch.ones(2, inputs["input_ids"].shape[1] + 2, dtype=torch.long)}
    run(backbone, inputs, Longer({}))
    half = len(lengths) // 2
    assert lengths[half:] == [length + 2 for length in lengths[:half]]
