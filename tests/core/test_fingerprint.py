"""The fingerprint: one for a trunk however it is loaded; another for other weights or another way to compute."""

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    LlamaForCausalLM,
    PreTrainedModel,
    T5EncoderModel,
    T5ForConditionalGeneration,
    T5Model,
)

from graftwork.core import fingerprint as module
from graftwork.core.backbone import Backbone, load_skeleton
from graftwork.core.fingerprint import COMPUTING_FIELDS, is_trunk, weight_files
from graftwork.errors import BackboneError
from tests import tiny


def identity(model: PreTrainedModel) -> str:
    return Backbone(model).fingerprint


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A folder with a masked language model: trunk, pooler-free, and a head."""
    model = BertForMaskedLM(tiny.model("bert").config)
    model.bert.load_state_dict(tiny.model("bert").state_dict(), strict=False)
    model.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("family", tiny.MAKERS)
def test_a_model_in_memory_and_the_same_model_from_files_are_one(family: str, tmp_path: Path) -> None:
    model = tiny.model(family)
    own = identity(model)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert weight_files(str(loaded.config.name_or_path))
    assert identity(loaded) == own
    assert identity(tiny.model(family, seed=1)) != own


def test_the_class_on_top_does_not_matter(bert: Path) -> None:
    plain = identity(BertModel.from_pretrained(bert))
    assert identity(BertForMaskedLM.from_pretrained(bert)) == plain
    torch.manual_seed(1)
    assert identity(BertForSequenceClassification.from_pretrained(bert)) == plain  # its head is new
    assert identity(AutoModel.from_pretrained(bert, add_pooling_layer=False)) == plain


@pytest.mark.parametrize(("one", "other"), [(T5Model, T5ForConditionalGeneration), (T5Model, T5EncoderModel)])
def test_parts_of_one_folder_are_one_base(one: Any, other: Any, tmp_path: Path) -> None:
    T5ForConditionalGeneration(tiny.model("t5").config).save_pretrained(tmp_path)
    assert identity(one.from_pretrained(tmp_path)) == identity(other.from_pretrained(tmp_path))


def test_a_trunk_saved_alone_is_the_trunk_saved_under_a_head(tmp_path: Path) -> None:
    model = LlamaForCausalLM(tiny.model("llama").config)
    model.save_pretrained(tmp_path / "headed")
    model.model.save_pretrained(tmp_path / "bare")
    headed = identity(LlamaForCausalLM.from_pretrained(tmp_path / "headed"))
    assert identity(AutoModel.from_pretrained(tmp_path / "bare")) == headed
    assert identity(model) == headed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_type_it_is_loaded_in_does_not_matter(bert: Path, dtype: torch.dtype) -> None:
    assert identity(BertModel.from_pretrained(bert, dtype=dtype)) == identity(BertModel.from_pretrained(bert))


def test_shards_and_other_files_in_the_folder_do_not_matter(bert: Path, tmp_path: Path) -> None:
    whole = BertModel.from_pretrained(bert)
    whole.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(weight_files(str(tmp_path / "shards"))) > 2
    assert identity(BertModel.from_pretrained(tmp_path / "shards")) == identity(whole)
    before = identity(BertModel.from_pretrained(bert))
    save_file({"bert.x": torch.ones(2)}, bert / "adapter_model.safetensors")
    module._seen.clear()
    assert identity(BertModel.from_pretrained(bert)) == before


def test_a_skeleton_has_the_identity_of_its_files(bert: Path) -> None:
    assert identity(load_skeleton(bert)) == identity(BertModel.from_pretrained(bert))


# -- what moves it --


def test_every_weight_counts() -> None:
    model = tiny.model("bert")
    own = identity(model)
    moved = 0
    for name, parameter in model.named_parameters():
        changed = copy.deepcopy(model)
        with torch.no_grad():
            changed.get_parameter(name).view(-1)[-1] += 1e-3
        assert (identity(changed) != own) == is_trunk(name), name
        moved += is_trunk(name)
        assert parameter.dim()
    assert moved == len(list(model.named_parameters())) - 2  # all but the pooler's weight and bias


def test_equal_weights_in_other_layers_are_another_model() -> None:
    model = tiny.model("llama")
    own = identity(model)
    swapped = copy.deepcopy(model)
    swapped.layers = torch.nn.ModuleList([swapped.layers[1], swapped.layers[0], swapped.layers[2]])
    assert identity(swapped) != own


def test_weights_changed_after_loading_count(bert: Path) -> None:
    model = BertModel.from_pretrained(bert)
    own = identity(model)
    with torch.no_grad():
        model.encoder.layer[2].output.dense.weight[3, 4] += 1e-3
    assert identity(model) != own


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_attention_heads", 2),
        ("hidden_act", "relu"),
        ("layer_norm_eps", 1e-3),
        ("is_decoder", True),
        ("max_position_embeddings", 65),
    ],
)
def test_configuration_that_changes_what_is_computed_counts(bert: Path, field: str, value: Any) -> None:
    assert field in COMPUTING_FIELDS
    model = BertModel.from_pretrained(bert)
    own = identity(model)
    changed = BertModel.from_pretrained(bert)
    setattr(changed.config, field, value)
    assert identity(changed) != own
    rope = tiny.model("llama")
    own = identity(rope)
    rope.config.rope_parameters = {**rope.config.rope_parameters, "rope_theta": 1.0}
    assert identity(rope) != own


@pytest.mark.parametrize(
    ("field", "value"),
    [("hidden_dropout_prob", 0.5), ("id2label", {0: "x"}), ("_name_or_path", "elsewhere"), ("use_cache", False)],
)
def test_bookkeeping_does_not_count(bert: Path, field: str, value: Any) -> None:
    model = BertModel.from_pretrained(bert)
    own = identity(model)
    setattr(model.config, field, value)
    assert identity(model) == own


# -- where it is computed from --


def test_files_are_hashed_again_only_when_they_change(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module._seen.clear()
    hashed: list[str] = []
    entry = module._entry
    monkeypatch.setattr(module, "_entry", lambda name, tensor: hashed.append(name) or entry(name, tensor))
    own = identity(BertModel.from_pretrained(bert))
    count = len(hashed)
    assert count > 30
    assert identity(BertForMaskedLM.from_pretrained(bert)) == own
    assert len(hashed) == count
    file = bert / "model.safetensors"
    tensors = load_file(file)
    tensors["bert.encoder.layer.0.output.dense.bias"][0] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    os.utime(file, ns=(1, 1))
    assert identity(BertModel.from_pretrained(bert)) != own
    assert len(hashed) == 2 * count


def test_a_snapshot_of_a_hub_is_found_by_its_commit(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "hub" / "models--some--model" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes((bert / "model.safetensors").read_bytes())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert weight_files("some/model", "0" * 40) == [snapshot / "model.safetensors"]
    assert weight_files("some/model", "1" * 40) == []
    assert weight_files("some/other", "0" * 40) == []


@pytest.mark.parametrize("name", ["", "no/such/folder/at all", "/gone"])
def test_a_name_that_leads_nowhere_has_no_files(name: str) -> None:
    assert weight_files(name) == []


def test_weights_that_are_nowhere_have_no_identity() -> None:
    with pytest.raises(BackboneError, match=r"the base has no identity: its weight '.*' is in no file.*not in memory"):
        identity(tiny.model("bert").to("meta"))


def test_it_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = Backbone(tiny.model("bert"))
    first = backbone.fingerprint
    with torch.no_grad():
        backbone.trunk.embeddings.word_embeddings.weight.zero_()
    assert backbone.fingerprint == first
    assert len(first) == 64
