"""AdapterHub's heads, flexible and static, keep their numbers; what a file leaves open comes from the base."""

from pathlib import Path
from typing import Any

import pytest
import torch

from graftwork.errors import PackageError
from graftwork.registry.foreign.adapterhub import read_adapterhub, read_head
from graftwork.registry.foreign.imported import UNKNOWN, Facts
from graftwork.registry.foreign.static_heads import STATIC
from tests.registry.foreign.hub_files import SEQ_BN, WIDTH, bert_bottleneck, meta, rand, write


def linear(prefix: str, outputs: int, inputs: int = WIDTH) -> dict[str, torch.Tensor]:
    return {f"{prefix}.weight": rand(outputs, inputs), f"{prefix}.bias": rand(outputs)}


def head(folder: Path, config: dict[str, Any] | None, tensors: dict[str, torch.Tensor], **more: Any) -> Path:
    return write(folder, meta(config, **more), tensors, kind="head")


def read(folder: Path, facts: Facts = UNKNOWN) -> dict[str, Any]:
    found = read_head(folder, facts=facts).head
    assert found is not None
    return dict(found)


TWO = {"head_type": "classification", "num_labels": 3, "layers": 2, "activation_function": "tanh", "use_pooler": False}


def test_a_flexible_head_keeps_its_numbers(tmp_path: Path) -> None:
    theirs = linear("heads.a.1", WIDTH) | linear("heads.a.4", 3) | linear("heads.ab.1", 2)
    labels = {"no": 0, "yes": 1, "maybe": 2}
    found = read_head(head(tmp_path / "h", TWO | {"label2id": labels, "dropout_prob": 0.2}, theirs))
    shape = {"kind": "classification", "num_outputs": 3, "layers": 2, "activation": "tanh", "dropout": 0.2}
    assert found.head == shape | {"pooling": "first", "labels": ["no", "yes", "maybe"], "options": {}}
    assert torch.equal(found.tensors["head/layers.4.bias"], theirs["heads.a.4.bias"])
    assert len(found.tensors) == 4
    assert {fate.source for fate in found.fates} == theirs.keys()
    assert all("'ab'" in fate.how for fate in found.fates if not fate.target)


@pytest.mark.parametrize(
    ("change", "model_type", "pooling", "kind"),
    [
        ({}, "bert", "first", "classification"),
        ({"use_pooler": True}, "bert", "pooler", "classification"),
        ({}, "gpt2", "last", "classification"),
        ({}, "bart", "eos", "classification"),
        ({}, "beit", "pooler", "classification"),
        ({"num_labels": 1}, "bert", "first", "regression"),
        ({"head_type": "tagging"}, "bert", "none", "tagging"),
    ],
)
def test_what_stands_for_a_row(
    tmp_path: Path, change: dict[str, Any], model_type: str, pooling: str, kind: str
) -> None:
    found = read(head(tmp_path / "h", TWO | change, linear("heads.a.1", WIDTH), model_type=model_type))
    assert (found["pooling"], found["kind"]) == (pooling, kind)


def test_what_the_base_decides(tmp_path: Path) -> None:
    lm = {"head_type": "masked_lm", "vocab_size": 11, "layers": 2, "activation_function": "gelu", "layer_norm": True}
    theirs = linear("heads.a.0", WIDTH) | {"heads.a.2.weight": rand(WIDTH)} | linear("heads.a.3", 11)
    folder = head(tmp_path / "h", lm | {"bias": True}, theirs)
    assert read(folder)["options"] == {"layer_norm": True, "norm_eps": 1e-12}
    assert read(folder, Facts(norm_eps=1e-5))["options"]["norm_eps"] == 1e-5
    tied = read_head(folder, facts=Facts(embedding=rand(11, WIDTH)))
    assert tied.head is not None
    assert tied.head["options"]["tied"] is True
    assert "head/layers.3.weight" not in tied.tensors
    assert "head/layers.3.bias" in tied.tensors
    assert read_head(folder, facts=Facts(embedding=rand(11, WIDTH) + 1)).tensors.keys() >= {"head/layers.3.weight"}
    rows = head(tmp_path / "rows", TWO, linear("heads.a.1", 3), model_type="t5")
    assert read(rows)["options"] == {}  # what stands for a row is read before the factor
    assert read(rows, Facts(dropout=0.3))["dropout"] == 0.3
    t5 = head(tmp_path / "t5", TWO | {"head_type": "question_answering"}, linear("heads.a.1", 2), model_type="t5")
    assert read(t5)["options"] == {"scale": WIDTH**-0.5}
    assert read(t5, Facts(scaled=False))["options"] == {}


def test_a_parser_and_labels_that_do_not_fit(tmp_path: Path) -> None:
    parser = {"head_type": "dependency_parsing", "num_labels": 2, "label2id": {"a": 0, "b": 1}}
    theirs = {"heads.a.biaffine_arcs.weight": rand(1, 9, 8), "heads.a.biaffine_rels.weight": rand(2, 9, 9)}
    found = read_head(head(tmp_path / "h", parser, theirs), facts=Facts(padding=0))
    assert found.tensors.keys() == {"head/biaffine_arcs.weight", "head/biaffine_rels.weight"}
    assert found.head is not None
    assert found.head["options"] == {"word_pad": 0}
    odd = read_head(head(tmp_path / "o", TWO | {"label2id": {"a": 0}}, linear("heads.a.1", 3)))
    assert odd.head is not None
    assert odd.head["labels"] == []
    assert any("names left out" in note for note in odd.notes)


def test_every_static_head_is_renumbered(tmp_path: Path) -> None:
    assert len(STATIC) == 82
    for name, row in STATIC.items():
        outputs = [WIDTH] * (len(row.modules) - 1) + [3]
        theirs = {k: v for m, o in zip(row.modules, outputs, strict=True) for k, v in linear(m, o).items()}
        theirs |= {f"{row.norm}.{p}": rand(WIDTH) for p in ("weight", "bias")} if row.norm else {}
        theirs |= {copy: rand(3) for copy in row.copies}
        labels = {"x": 0, "y": 1, "z": 2}
        folder = head(tmp_path / name, None, theirs, name=None, model_class=name, label2id=labels, num_labels=3)
        found = read_head(folder)
        assert found.head is not None
        assert {fate.source for fate in found.fates} == theirs.keys()
        numbers = [int(key.split(".")[1]) for key in found.tensors if found.tensors[key].ndim == 2]
        language = row.kind.endswith("_lm")
        wanted = {1: [0] if language else [1], 2: [0, 3] if language else [1, 4]}[len(row.modules)]
        assert numbers == wanted, name


def test_a_bias_stored_twice_must_agree(tmp_path: Path) -> None:
    theirs = linear("cls.predictions.transform.dense", WIDTH) | linear("cls.predictions.decoder", 11)
    theirs |= {f"cls.predictions.transform.LayerNorm.{p}": rand(WIDTH) for p in ("weight", "bias")}
    theirs |= {"cls.predictions.bias": rand(11) + 1}
    with pytest.raises(PackageError, match="differs from it"):
        read_head(head(tmp_path / "h", None, theirs, name=None, model_class="BertForMaskedLM"))
    bart = {"lm_head.weight": rand(11, WIDTH), "final_logits_bias": torch.zeros(1, 11)}
    kind = {"name": None, "model_class": "BartForConditionalGeneration", "model_type": "bart"}
    zeros = read_head(head(tmp_path / "z", None, bart, **kind))
    assert zeros.head is not None
    assert zeros.head["options"] == {"bias": False}
    biased = read_head(head(tmp_path / "b", None, bart | {"final_logits_bias": rand(1, 11)}, **kind))
    assert torch.equal(biased.tensors["head/layers.0.bias"], rand(1, 11)[0])


def test_a_head_beside_its_adapter_is_one_package_and_another_is_not(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", meta(SEQ_BN), bert_bottleneck())
    head(folder, TWO, linear("heads.a.1", WIDTH) | linear("heads.a.4", 3))
    (both,) = read_adapterhub(folder)
    assert both.head is not None
    head(folder, TWO, linear("heads.b.1", WIDTH), name="b")
    assert [found.name for found in read_adapterhub(folder)] == ["a", "b"]
    head(folder, None, linear("classifier", 3), name=None, model_class="BertForSequenceClassification")
    (static,) = read_adapterhub(folder)
    assert static.head is not None
    assert static.head["pooling"] == "pooler"


@pytest.mark.parametrize(
    ("config", "more", "message"),
    [
        ({"head_type": "custom"}, {}, "custom"),
        (TWO | {"depth": 3}, {}, r"unknown fields \['depth'\]"),
        (TWO | {"num_labels": None}, {}, "how many outputs"),
        (None, {"model_class": "BertForNothing", "name": None}, "BertForNothing"),
        (None, {"model_class": "BertForSequenceClassification", "name": None}, "classifier.weight is missing"),
    ],
)
def test_what_is_not_understood_is_refused(
    tmp_path: Path, config: dict[str, Any] | None, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(PackageError, match=message):
        read_head(head(tmp_path / "h", config, linear("heads.a.1", WIDTH), **more))


def test_a_tensor_that_is_no_part_of_the_head_stops_the_import(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="have no place"):
        read_head(head(tmp_path / "h", TWO, linear("heads.a.1", WIDTH) | linear("elsewhere.1", 2)))
