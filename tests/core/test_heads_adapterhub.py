"""AdapterHub's heads: every kind, its weights loaded key by key, gives the numbers that adapters 1.3.0 wrote down."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel

from graftwork.core.heads import HeadConfig
from graftwork.core.heads_adapterhub import hub_head_tensors, read_hub_head
from graftwork.core.heads_static import read_static_head
from graftwork.errors import AdapterError
from graftwork.model import AdapterModel
from tests import tiny

pytestmark = pytest.mark.shared

CASES = {
    "d-bert-classification1": "classification",
    "d-bert-classification_pooler": "classification",
    "d-bert-dependency_parsing": "dependency_parsing",
    "d-bert-masked_lm": "masked_lm",
    "d-bert-multilabel": "multilabel_classification",
    "d-bert-multiple_choice": "multiple_choice",
    "d-bert-tagging": "tagging",
    "d-gpt2-causal_lm": "causal_lm",
    "d-t5-question_answering": "question_answering",
    "d-t5-seq2seq_lm": "seq2seq_lm",
    "d-vit-image_classification": "image_classification",
    "d-xlm-roberta-classification": "classification",
}


def load(folder: Path) -> tuple[AdapterModel, dict[str, Any]]:
    """The base of a case with its adapters and heads, the weights filled in by hand."""
    case = json.loads((folder / "case.json").read_text())
    model = AdapterModel(AutoModel.from_pretrained(folder / case["base"], attn_implementation="eager"))
    for adapter in case["adapters"]:
        name, own = adapter["name"], folder / adapter["path"]
        model.add_adapter(name, adapter["config"])
        theirs = torch.load(own / "pytorch_adapter.bin", weights_only=True)
        ours = model.parts.tensors("adapters", name)
        assert [value.shape for value in theirs.values()] == [value.shape for value in ours.values()]
        for target, value in zip(ours.values(), theirs.values(), strict=True):
            target.copy_(value)
        written = json.loads((own / "head_config.json").read_text())["config"]
        config = read_hub_head(written, model.backbone)
        model.add_head(name, config)
        state = torch.load(own / "pytorch_model_head.bin", weights_only=True)
        model.parts.head(name).load_state_dict(hub_head_tensors(state, name, config), strict=True)
    return model.eval(), case


def differs(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max())


@pytest.mark.parametrize("name", CASES)
def test_the_numbers_are_those_of_adapters(name: str, shared: Path) -> None:
    folder = shared / "conformance" / "cases" / name
    model, case = load(folder)
    inputs, expected = load_file(folder / "inputs.safetensors"), load_file(folder / "expected.safetensors")
    with torch.no_grad():
        output = model(**inputs, adapters="a")
    assert model.parts.head_configs["a"].kind == CASES[name]
    seen = 0
    for key, value in expected.items():
        if key != "encoder_last_hidden_state":
            seen += 1
            assert differs(output.outputs[key], value) < case["tolerance"]["atol"]
    assert seen == len(output.outputs)
    primary = case["primary_output"]
    assert torch.equal(getattr(output, primary), output.outputs[primary])


@pytest.mark.parametrize("family", ["bert", "xlm-roberta"])
def test_parallel_branches_with_heads_of_different_kinds(family: str, shared: Path) -> None:
    folder = shared / "conformance" / "cases" / f"c-{family}-parallel_heads"
    model, case = load(folder)
    inputs, expected = load_file(folder / "inputs.safetensors"), load_file(folder / "expected.safetensors")
    with torch.no_grad():
        output = model(**inputs, adapters=case["composition_str"])
    assert len(output.groups) == 3
    for number, group in enumerate(output.groups):
        assert differs(group.logits, expected[f"head_outputs.{number}.logits"]) < 1e-4


def test_a_static_head_that_was_saved_alone(shared: Path) -> None:
    folder = shared / "conformance" / "cases" / "d-bert-static_classification"
    case = json.loads((folder / "case.json").read_text())
    model = AdapterModel(AutoModel.from_pretrained(folder / case["base"], attn_implementation="eager"))
    model.add_adapter("a", case["adapters"][0]["config"])
    theirs = torch.load(folder / "adapters" / "a" / "pytorch_adapter.bin", weights_only=True)
    for target, value in zip(model.parts.tensors("adapters", "a").values(), theirs.values(), strict=True):
        target.copy_(value)
    state = torch.load(folder / "heads" / "default" / "pytorch_model_head.bin", weights_only=True)
    config, tensors = read_static_head(case["model_class"], model.base.config, state, tied=False)
    model.add_head("a", config)
    model.parts.head("a").load_state_dict(tensors)
    inputs, expected = load_file(folder / "inputs.safetensors"), load_file(folder / "expected.safetensors")
    with torch.no_grad():
        assert differs(model.eval()(**inputs, adapters="a").logits, expected["logits"]) < 1e-4


def test_what_is_no_head_of_theirs_is_refused() -> None:
    backbone = AdapterModel(tiny.model("bert")).backbone
    for kind in ("span", "custom", None):
        with pytest.raises(AdapterError, match=f"head_type {kind!r} is no flexible head"):
            read_hub_head({"head_type": kind}, backbone)
    with pytest.raises(AdapterError, match="head_type 'tagging': unknown depth"):
        read_hub_head({"head_type": "tagging", "num_labels": 2, "depth": 3}, backbone)
    with pytest.raises(AdapterError, match=r"no head 'b' in the file; its keys begin heads\.a\.1"):
        hub_head_tensors({"heads.a.1.weight": torch.zeros(2)}, "b", HeadConfig(kind="classification", num_outputs=2))


def test_one_number_is_a_regression_and_labels_keep_their_order() -> None:
    backbone = AdapterModel(tiny.model("bert")).backbone
    one = read_hub_head({"head_type": "classification", "num_labels": 1, "layers": 2}, backbone)
    assert (one.kind, one.labels) == ("regression", ())
    named = {"head_type": "tagging", "num_labels": 2, "layers": 1, "label2id": {"B": 1, "O": 0}}
    assert read_hub_head(named, backbone).labels == ("O", "B")
