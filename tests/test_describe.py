"""What `graftwork show` lists: methods and families, with the numbers of a model; no weights are loaded."""

from pathlib import Path

from transformers import GPTNeoConfig

from graftwork.core.backbone import load_skeleton
from graftwork.core.kinds import NAMED
from graftwork.core.spellings import ALIASES
from graftwork.describe import families, methods
from tests import zoo


def test_methods_without_a_model_say_where_they_go() -> None:
    rows = methods()["methods"]
    assert [row["name"] for row in rows] == list(NAMED)
    assert {alias: row["name"] for row in rows for alias in row["aliases"]} == ALIASES
    assert {row["goes to"] for row in rows if row["method"] == "prompt_tuning"} == {
        "embeddings that may get longer (prompt)"
    }


def test_methods_on_a_model_are_counted_or_refused_with_the_reason() -> None:
    rows = {row["name"]: row for row in methods("google/vit-base-patch16-224")["methods"]}
    assert rows["lora"]["parameters"] == 12 * 2 * 8 * (768 + 768)
    assert rows["seq_bn"]["parameters"] == 12 * (2 * 768 * 48 + 48 + 768)
    assert "parameters" not in rows["seq_bn_inv"]
    assert "the model has no embeddings" in rows["seq_bn_inv"]["refused"]


def test_families_list_every_model_type_once() -> None:
    rows = families()["families"]
    types = [name for row in rows for name in row["model types"]]
    assert len(types) == len(set(types))
    assert set(types) == {zoo.model(name).config.model_type for name in zoo.MAKERS}


def test_the_family_of_a_model_has_the_sites_of_its_configuration() -> None:
    (bert,) = families("bert-base-uncased")["families"]
    assert (bert["sub-layers"], bert["kv"]) == (["attn", "ffn"], ["attn"])  # no cross-attention in this configuration
    assert bert["norm"] == ["post"]
    (llama,) = families("meta-llama/Meta-Llama-3-8B")["families"]
    assert "ffn.gate" in llama["linears"]
    assert load_skeleton("bert-base-uncased").device.type == "meta"


def test_a_model_without_a_row_is_left_to_discovery(tmp_path: Path) -> None:
    options = {"hidden_size": 32, "num_layers": 1, "num_heads": 4, "attention_types": [[["global"], 1]]}
    GPTNeoConfig(**options).save_pretrained(tmp_path)
    said = families(str(tmp_path))
    assert said["families"] == []
    assert "discovered and proven" in said["discovery"]
