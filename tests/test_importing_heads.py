"""AdapterHub's heads: every kind, imported with its adapter, gives the numbers that adapters 1.3.0 wrote down."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel

from graftwork.importing import packages, read
from graftwork.model import AdapterModel

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
    "d-bert-static_classification": "classification",
}


def load(folder: Path) -> tuple[AdapterModel, dict[str, Any]]:
    """The base of a case with its adapters and heads."""
    case = json.loads((folder / "case.json").read_text())
    model = AdapterModel(AutoModel.from_pretrained(folder / case["base"], attn_implementation="eager"))
    imports = [i for part in case["adapters"] for i in read(folder / part["path"], model.backbone)[1]]
    for package in packages(imports, model.backbone):
        model.install(package)
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
    wanted = {key: value for key, value in expected.items() if key in output.outputs}
    assert case["primary_output"] in wanted
    assert wanted.keys() == output.outputs.keys()
    for key, value in wanted.items():
        assert differs(output.outputs[key], value) < case["tolerance"]["atol"]


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
