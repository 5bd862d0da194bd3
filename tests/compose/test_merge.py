"""An adapter in the base's weights: the same answers, every bit back, and nothing else answered meanwhile."""

import copy
import itertools
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from graftwork.compose.tree import Stack
from graftwork.core.backbone import Backbone
from graftwork.errors import AdapterError, BackboneError
from graftwork.model import AdapterModel
from tests import tiny, zoo
from tests.adapted import last, same, shaken, snapshot
from tests.rig import relative

EVERY = "attn_matrices=['q','k','v','o'],intermediate_lora=True,gate_lora=True,output_lora=True"
METHODS = {
    "lora": f"lora[r=2,alpha=3,{EVERY}]",
    "rslora": f"lora[r=4,use_rslora=True,dropout=0.3,{EVERY}]",
    "dora": f"dora[r=2,{EVERY}]",
    "dora-adapters": f"dora[r=2,variant=adapters,{EVERY}]",
    "vera": f"vera[r=5,{EVERY}]",
    "ia3": f"ia3[alpha=1.5,{EVERY}]",
    "ia3-inner": "ia3[inner_ffn=True,intermediate_lora=False]",
    "both": f"lora[r=2,{EVERY}]|ia3[inner_ffn=True]",
}
FAMILIES = ["bert", "llama", "gpt2", "t5"]


def made(method: str, family: str = "bert") -> AdapterModel:
    model = AdapterModel(tiny.model(family))
    model.add_adapter("a", METHODS.get(method, method))
    model.add_adapter("b", "lora")
    shaken(model.parts, seed=3)
    return model.eval()


BIASES = [("bitfit", "bert"), ("bitfit", "gpt2")]  # the other two families have none


@pytest.mark.parametrize(("method", "family"), [*itertools.product(METHODS, FAMILIES), *BIASES])
def test_the_merged_base_answers_as_the_adapter_does_and_is_restored_to_the_last_bit(method: str, family: str) -> None:
    model = made(method, family)
    given = tiny.inputs(family)
    plain, expected = last(model(**given, adapters=None)), last(model(**given, adapters="a"))
    assert relative(expected, plain) > 0.01
    before = snapshot(model.base)
    model.merge_adapter("a")
    assert not same(before, snapshot(model.base))
    assert model.active_adapters == "a"
    for found in (model(**given), model(**given, adapters="a"), model(**given, adapters=["a", "a"])):
        assert relative(last(found), expected) < 1e-5
    assert relative(last(model.base(**given)), expected) < 1e-5
    model.reset_adapter()
    assert same(before, snapshot(model.base))
    assert torch.equal(last(model(**given, adapters=None)), plain)
    assert torch.equal(last(model(**given, adapters="a")), expected)
    model.reset_adapter()
    assert same(before, snapshot(model.base))


@pytest.mark.parametrize(
    "family", ["gpt_neox", "bloom", "falcon", "phi3", "albert", "deberta", "deberta-v2", "modernbert"]
)
def test_merged_projections_and_shared_layers(family: str) -> None:
    model = AdapterModel(zoo.model(family))
    model.add_adapter("a", f"lora[r=2,alpha=3,{EVERY}]")
    shaken(model.parts, seed=3)
    model.eval()
    given = zoo.inputs(family)
    expected, before = last(model(**given, adapters="a")), snapshot(model.base)
    model.merge_adapter("a")
    assert relative(last(model(**given)), expected) < 1e-5
    model.reset_adapter()
    assert same(before, snapshot(model.base))


def test_only_the_columns_that_are_meant_are_written() -> None:
    model = AdapterModel(tiny.model("gpt2"))
    model.add_adapter("a", "lora[attn_matrices=['k']]")
    shaken(model.parts, seed=3)
    weight = model.base.h[1].attn.c_attn.weight  # (inputs, 3·D): a Conv1D
    before = weight.clone()
    module = model.parts.modules_of("adapters", "a")["layer.1/attn.key"]
    model.merge_adapter("a")
    changed = (weight != before).any(dim=0)
    assert changed.tolist() == [32 <= column < 64 for column in range(96)]
    torch.testing.assert_close(weight[:, 32:64], before[:, 32:64] + module.weight_change().T)  # type: ignore[operator]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_restored_to_the_last_bit(dtype: torch.dtype) -> None:
    model = AdapterModel(tiny.model("llama").to(dtype))
    model.add_adapter("a", METHODS["dora"])
    shaken(model.parts, seed=3)
    before = snapshot(model.base)
    model.merge_adapter("a")
    assert not same(before, snapshot(model.base))
    model.reset_adapter()
    assert same(before, snapshot(model.base))


@pytest.mark.parametrize("setup", [None, "b", Stack("a", "b"), ["a", None], ["a", "b"], "Parallel(a, a)"])
def test_what_the_merged_base_cannot_answer_is_refused(setup: Any) -> None:
    model = made("lora")
    given = tiny.inputs("bert")
    model(**given, adapters=setup)  # a plan that was made before
    model.merge_adapter("a")
    with pytest.raises(AdapterError, match="cannot run, only 'a' for every row can: adapter 'a' is merged"):
        model(**given, adapters=setup)
    model.reset_adapter()
    model(**given, adapters=setup)


def test_nothing_is_added_trained_loaded_or_packaged_meanwhile() -> None:
    model = made("lora")
    model.add_classification_head("a")
    package, fingerprint = model.package("b"), made("lora").backbone.fingerprint
    state = snapshot(model)
    model.merge_adapter("a")
    refused: list[Any] = [
        lambda: model.merge_adapter("b"),
        lambda: model.add_adapter("c", "dora"),
        lambda: model.average_adapter("c", ["b", "b"]),
        lambda: model.train_adapter("a"),
        lambda: model.train_adapter("b"),
        lambda: model.package("a"),
        lambda: model.package("b"),
        lambda: model.install(package, "c"),
        lambda: model.load_state_dict(state),
        lambda: (model.set_active_adapters(None), model.delete_adapter("a")),
        lambda: model.add_adapter("a", "lora", overwrite_ok=True),
    ]
    for call in refused:
        with pytest.raises(AdapterError, match=r"adapter 'a' is merged into the base.*until reset_adapter\(\)"):
            call()
    assert same(state, snapshot(model))
    assert model.parts.adapter_configs.keys() == {"a", "b"}
    assert model(**tiny.inputs("bert"), adapters="a").logits.shape == (2, 2)  # its head answers
    model.delete_adapter("b")
    assert model.backbone.fingerprint == fingerprint
    model.reset_adapter()
    assert model.package("a").manifest.base.fingerprint == fingerprint
    model.delete_head("a")


def test_the_fingerprint_is_the_bases_even_when_first_asked_for_meanwhile() -> None:
    expected = Backbone(tiny.model("bert")).fingerprint
    model = made("lora")
    model.merge_adapter("a")
    assert model.backbone.fingerprint == expected
    model.reset_adapter()
    assert Backbone(model.base).fingerprint == expected


def test_a_copy_of_a_merged_model_is_restored_by_itself() -> None:
    model = made("lora")
    before = snapshot(model.base)
    model.merge_adapter("a")
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        copied.reset_adapter()
        assert same(before, snapshot(copied.base))
        assert not same(before, snapshot(model.base))
    model.reset_adapter()
    assert same(before, snapshot(model.base))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("seq_bn", r"adapter 'a' \(bottleneck\) cannot be merged.*a non-linearity stands between its matrices"),
        ("llm_parallel", "a non-linearity stands between"),
        ("lora|seq_bn", r"adapter 'a' \(union \| lora \| bottleneck\) cannot be merged"),
        ("loreft", "it edits some positions of a row and not the others"),
        ("prefix_tuning[bottleneck_size=8]", "it adds positions to the attention"),
        ("prompt_tuning", "it adds tokens"),
        ("lora[use_gating=True]", "a gated LoRA changes each row differently"),
        ("vera[r=4,use_gating=True]", "a gated VeRA changes each row differently"),
        ("ia3[use_gating=True]", r"a gated \(IA\)³ changes each row"),
        ("dora[use_gating=True,variant=adapters]", "a gated DoRA changes each row differently"),
        ("lora|lora[use_gating=True,attn_matrices=['o']]", "a gated LoRA"),
    ],
)
def test_what_is_no_change_of_a_weight_is_refused_and_changes_nothing(config: str, message: str) -> None:
    model = made(config)
    given = tiny.inputs("bert")
    before, answer = snapshot(model.base), last(model(**given, adapters="a"))
    with pytest.raises(AdapterError, match=message):
        model.merge_adapter("a")
    assert same(before, snapshot(model.base))
    assert torch.equal(last(model(**given, adapters="a")), answer)
    model.package("a")


def test_an_unknown_adapter_is_refused() -> None:
    with pytest.raises(AdapterError, match="no adapter 'z'; the adapters are: a, b"):
        made("lora").merge_adapter("z")


def test_packed_shared_and_absent_weights_are_refused() -> None:
    model = made("lora")
    attention = model.base.encoder.layer[1].attention.self
    whole = attention.query.weight
    attention.query.weight = nn.Parameter(whole.to(torch.int8), requires_grad=False)
    with pytest.raises(BackboneError, match=r"a Linear holds a packed or split weight \(torch.int8\)"):
        model.merge_adapter("a")
    attention.query.weight = attention.key.weight
    with pytest.raises(BackboneError, match="a Linear is shared by several layers"):
        model.merge_adapter("a")
    attention.query.weight = nn.Parameter(whole.to("meta"), requires_grad=False)
    with pytest.raises(BackboneError, match=r"is not in memory \(offloaded\)"):
        model.merge_adapter("a")
    attention.query.weight = whole
    model.merge_adapter("a")


def test_a_failure_half_way_restores_what_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("lora")
    before = snapshot(model.base)
    last_module = list(model.parts.modules_of("adapters", "a").values())[-1]

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(last_module, "merged", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        model.merge_adapter("a")
    assert same(before, snapshot(model.base))
    model(**tiny.inputs("bert"), adapters="b")
