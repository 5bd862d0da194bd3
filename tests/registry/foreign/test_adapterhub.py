"""AdapterHub's folders of every version are read whole, by their own version's rules, or not at all."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from graftwork.errors import NotFound, PackageError
from graftwork.registry.foreign.adapterhub import read_adapterhub, read_fusion
from graftwork.registry.foreign.adapterhub_setup import read_setup
from graftwork.registry.foreign.imported import Facts, Imported, asserted_base, to_package
from graftwork.registry.package import read
from graftwork.registry.package import write as write_package
from tests.registry.foreign.hub_files import BERT, SEQ_BN, WIDTH, bert_bottleneck, bottleneck, meta, rand, write
from tests.shared import shared_folder


def one(folder: Path, **options: Any) -> Imported:
    (found,) = read_adapterhub(folder, **options)
    return found


def test_a_bottleneck_is_read_tensor_by_tensor_with_every_fate(tmp_path: Path) -> None:
    theirs = bert_bottleneck()
    found = one(write(tmp_path / "a", meta(SEQ_BN), theirs))
    assert found.sites == ("layer.0/ffn", "layer.1/ffn")
    for key, name in (
        ("adapter_down.0.weight", "down.weight"),
        ("adapter_down.0.bias", "down.bias"),
        ("adapter_up.weight", "up.weight"),
        ("adapter_up.bias", "up.bias"),
    ):
        assert torch.equal(found.tensors[f"adapter/layer.1/ffn/{name}"], theirs[BERT.format(1, "a") + key])
    assert {fate.source for fate in found.fates} == theirs.keys()
    assert all(fate.how == "copied" for fate in found.fates)
    assert found.method is not None
    assert found.method["kind"] == "bottleneck"
    assert found.method["original_ln_before"] is True
    assert found.semantics == "adapters-1"


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("prefix", ["", "bert."])
def test_both_formats_and_both_prefixes(tmp_path: Path, prefix: str, safe: bool) -> None:
    folder = write(tmp_path / "a", meta(SEQ_BN), bert_bottleneck(prefix=prefix), safe=safe)
    assert one(folder).sites == ("layer.0/ffn", "layer.1/ffn")


@pytest.mark.parametrize("name", ["output", "adapters", "encoder", "attention", "self_attn", "0"])
def test_a_name_that_is_also_a_step_of_the_path_finds_its_own_tensors(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "x", meta(SEQ_BN, name), bert_bottleneck(name))
    assert one(folder).sites == ("layer.0/ffn", "layer.1/ffn")


@pytest.mark.parametrize(
    ("kind", "attention", "output"),
    [
        ("text_task", "attention_text_task_adapters", "layer_text_task_adapters"),
        ("text_lang", "attention_text_lang_adapters", "layer_text_lang_adapters"),
    ],
)
def test_version_1(tmp_path: Path, kind: str, attention: str, output: str) -> None:
    theirs = bottleneck(f"bert.encoder.layer.0.attention.output.{attention}.a.")
    theirs |= bottleneck(f"bert.encoder.layer.0.output.{output}.a.")
    old = {
        "LN_after": False,
        "LN_before": False,
        "MH_Adapter": True,
        "Output_Adapter": True,
        "adapter_residual_before_ln": False,
        "attention_type": "sent-lvl",
        "new_attention_norm": False,
        "non_linearity": "gelu",
        "original_ln_after": True,
        "original_ln_before": False,
        "reduction_factor": 4,
        "residual_before_ln": True,
        "invertible_adapter": None,
    }
    folder = write(tmp_path / "a", meta(old, type=kind, version="absent"), theirs)
    found = one(folder)
    assert found.sites == ("layer.0/attn", "layer.0/ffn")
    assert found.role == ("language" if kind == "text_lang" else "task")
    assert found.method is not None
    assert found.method["non_linearity"] == "gelu_new"
    assert found.method["mh_adapter"] is True


def test_gelu_means_gelu_where_a_version_is_stated(tmp_path: Path) -> None:
    for version, written, meant in (
        ("absent", "gelu", "gelu_new"),
        ("absent", "gelu_orig", "gelu"),
        ("3.2.1", "gelu", "gelu"),
        ("adapters.0.1.0", "gelu", "gelu"),
    ):
        folder = write(
            tmp_path / version, meta(SEQ_BN | {"non_linearity": written}, version=version), bert_bottleneck()
        )
        method = one(folder).method
        assert method is not None
        assert method["non_linearity"] == meant


INVERTIBLE = {"block_type": "nice", "non_linearity": "relu", "reduction_factor": 2}


def test_a_task_adapter_of_version_1_names_an_invertible_part_that_it_never_had(tmp_path: Path) -> None:
    config = SEQ_BN | {"invertible_adapter": INVERTIBLE}
    found = one(write(tmp_path / "a", meta(config, type="text_task", version="absent"), bert_bottleneck()))
    assert found.method is not None
    assert "inv_adapter" not in found.method
    assert any("never had" in note for note in found.notes)
    folder = write(tmp_path / "b", meta(config, type="text_lang", version="absent"), bert_bottleneck())
    with pytest.raises(PackageError, match="names an invertible adapter"):
        read_adapterhub(folder)


@pytest.mark.parametrize("collection", ["invertible_adapters", "invertible_lang_adapters"])
def test_an_invertible_adapter_goes_to_the_embeddings(tmp_path: Path, collection: str) -> None:
    inner = {f"bert.{collection}.a.{f}.{i}.weight": rand(2, 4) for f in "FG" for i in (0, 2)}
    config = SEQ_BN | {"inv_adapter": "nice", "inv_adapter_reduction_factor": 2}
    found = one(write(tmp_path / "a", meta(config), bert_bottleneck(prefix="bert.") | inner))
    assert torch.equal(found.tensors["adapter/embed/F.2.weight"], inner[f"bert.{collection}.a.F.2.weight"])
    assert found.method is not None
    assert found.method["inv_adapter"] == "nice"


def test_a_norm_in_front_is_stored_twice_and_must_agree(tmp_path: Path) -> None:
    at = BERT.format(0, "a")
    norm = {f"{at}adapter_norm_before.weight": rand(WIDTH), f"{at}adapter_norm_before.bias": rand(WIDTH)}
    twins = {key.replace("adapter_norm_before", "adapter_down.0"): value.clone() for key, value in norm.items()}
    theirs = bottleneck(at, down="adapter_down.1") | norm | twins
    found = one(write(tmp_path / "a", meta(SEQ_BN | {"ln_before": True}), theirs))
    assert torch.equal(found.tensors["adapter/layer.0/ffn/norm_before.weight"], norm[f"{at}adapter_norm_before.weight"])
    ignored = [fate for fate in found.fates if not fate.target]
    assert {fate.source for fate in ignored} == twins.keys()
    theirs[f"{at}adapter_down.0.bias"] += 1
    with pytest.raises(PackageError, match="differs from it"):
        read_adapterhub(write(tmp_path / "b", meta(SEQ_BN | {"ln_before": True}), theirs))


def test_a_whole_number_for_scaling_becomes_a_float(tmp_path: Path) -> None:
    method = one(write(tmp_path / "a", meta(SEQ_BN | {"scaling": 4}), bert_bottleneck())).method
    assert method is not None
    assert isinstance(method["scaling"], float)


def test_a_compacter_without_its_shared_rule_is_refused_with_the_reason(tmp_path: Path) -> None:
    at = BERT.format(0, "a")
    theirs = {f"{at}adapter_{m}.W_left": rand(4, 2, 1) for m in ("down.0", "up")}
    theirs |= {f"{at}adapter_{m}.W_right": rand(4, 1, 2) for m in ("down.0", "up")}
    theirs |= {f"{at}adapter_{m}.b": rand(WIDTH) for m in ("down.0", "up")}
    config = SEQ_BN | {"phm_layer": True, "reduction_factor": 1}
    with pytest.raises(PackageError, match="bare model"):
        read_adapterhub(write(tmp_path / "a", meta(config), theirs))
    rule = {"bert.shared_parameters.a.phm_rule": rand(4, 4, 4)}
    found = one(write(tmp_path / "b", meta(config), theirs | rule))
    assert set(found.tensors) == {
        *(f"adapter/layer.0/ffn/{m}.{leaf}" for m in ("down", "up") for leaf in ("W_left", "W_right", "bias")),
        "adapter/shared/rule",
    }


def test_members_of_a_union_each_take_their_own(tmp_path: Path) -> None:
    loras = {
        f"encoder.layer.0.attention.self.query.loras.a.lora_{m}": rand(*s) for m, s in (("A", (2, 8)), ("B", (8, 2)))
    }
    config = {"architecture": "union", "configs": [SEQ_BN, {"architecture": "lora", "attn_matrices": ["q"], "r": 2}]}
    found = one(write(tmp_path / "a", meta(config), bert_bottleneck(layers=1) | loras))
    assert found.method is not None
    assert [member["kind"] for member in found.method["members"]] == ["bottleneck", "lora"]
    assert {"adapter/layer.0/ffn/0.down.weight", "adapter/layer.0/attn.query/1.a"} <= set(found.tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.layer.9.elsewhere.adapters.a.adapter_up.weight": rand(2, 2)}, "have no place"),
        ({"something.else": rand(2)}, "have no place"),
        ({"encoder.layer.0.output.adapters.b.adapter_up.weight": rand(2, 2)}, "have no place"),
        ({"encoder.layer.0.output.adapters.a.adapter_down.7.weight": rand(2, 2)}, "have no place"),
    ],
)
def test_a_tensor_without_a_place_stops_the_import(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(PackageError, match=message):
        read_adapterhub(write(tmp_path / "a", meta(SEQ_BN), bert_bottleneck() | change))


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (meta(SEQ_BN | {"surprise": 1}), "unknown field 'surprise'"),
        (meta(SEQ_BN, model_type="martian"), "martian"),
        (meta(SEQ_BN, hidden_size="8"), "hidden_size"),
        (meta(SEQ_BN, name="a.b"), "no dot"),
        (meta(SEQ_BN, name=None), "name None"),
        (meta({"architecture": "mtl_lora"}), "mtl_lora"),
        (meta({"architecture": "union", "configs": []}), "union"),
        (meta(None), "config is None"),
        (meta(SEQ_BN, peft_type="LORA"), "PEFT"),
        (meta(SEQ_BN | {"new_attention_norm": True}), "new_attention_norm"),
    ],
)
def test_a_configuration_that_is_not_understood_is_refused(
    tmp_path: Path, written: dict[str, Any], message: str
) -> None:
    with pytest.raises(PackageError, match=message):
        read_adapterhub(write(tmp_path / "a", written, bert_bottleneck()))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", meta(SEQ_BN), bert_bottleneck())
    (folder / "pytorch_adapter.bin").unlink()
    with pytest.raises(NotFound, match=r"pytorch_adapter\.bin"):
        read_adapterhub(folder)
    with pytest.raises(NotFound, match=r"adapter_config\.json"):
        read_adapterhub(tmp_path / "nowhere")


def fusion_tensors(name: str) -> dict[str, torch.Tensor]:
    at = f"encoder.layer.0.output.adapter_fusion_layer.{name}."
    return {f"{at}{m}.weight": rand(WIDTH, WIDTH) for m in ("query", "key", "value")} | {
        f"{at}{m}.bias": rand(WIDTH) for m in ("query", "key")
    }


def test_a_fusion_of_any_age(tmp_path: Path) -> None:
    old = {"query": True, "key": True, "value": True, "temperature": False}
    theirs = fusion_tensors("a,b") | fusion_tensors("a,b,c")
    found = read_fusion(write(tmp_path / "f", meta(old, "a,b", version="absent"), theirs, kind="fusion"))
    assert found.members == ("a", "b")
    assert found.fusion is not None
    assert found.fusion["dropout_prob"] == 0.0
    assert found.sites == ("layer.0/ffn",)
    assert {fate.source for fate in found.fates} == theirs.keys()
    assert all("'a,b,c'" in fate.how for fate in found.fates if not fate.target)
    named = meta(old, "mix", adapter_names=["x", "y"])
    assert read_fusion(write(tmp_path / "g", named, fusion_tensors("mix"), kind="fusion")).members == ("x", "y")
    package = to_package(found, members={"a": "1" * 64, "b": "2" * 64})
    assert package.manifest.fusion is not None
    assert package.manifest.fusion.composition == "Fuse(a, b)"
    with pytest.raises(PackageError, match="missing"):
        to_package(found)


def test_a_package_of_an_import_is_written_and_read(tmp_path: Path) -> None:
    found = one(write(tmp_path / "a", meta(SEQ_BN), bert_bottleneck()))
    package = to_package(found, name="mood")
    write_package(package, tmp_path / "package")
    again = read(tmp_path / "package")
    assert again.manifest.semantics == "adapters-1"
    assert again.manifest.base.asserted
    assert again.manifest.name == "mood"
    assert again.manifest.base == asserted_base(found.base)
    other = again.manifest.base.model_copy(update={"hidden_size": 16})
    with pytest.raises(PackageError, match="hidden_size"):
        to_package(found, other)


def test_a_setup_is_an_expression_and_its_parts(tmp_path: Path) -> None:
    leaf = {name: {"type": "single", "children": [name]} for name in "ab"}
    fuse = {"type": "Fuse", "children": [leaf["a"], leaf["b"]]}
    setup = {"type": "Stack", "children": [leaf["b"], fuse]}
    for name in "ab":
        write(tmp_path / name, meta(SEQ_BN, name), bert_bottleneck(name))
    config = {"query": True, "key": True, "value": True}
    write(tmp_path / "a,b", meta(config, "a,b"), fusion_tensors("a,b"), kind="fusion")
    (tmp_path / "adapter_setup.json").write_text(json.dumps({"adapter_setup": setup, "head_setup": None}))
    text, parts = read_setup(tmp_path)
    assert text == "Stack(b, Fuse(a, b))"
    assert [part.name for part in parts] == ["a", "b", "a,b"]
    average = {"type": "Average", "children": [leaf["a"], leaf["b"]], "kwargs": {"weights": [0.3, 0.7]}}
    (tmp_path / "adapter_setup.json").write_text(json.dumps({"adapter_setup": average}))
    assert read_setup(tmp_path)[0] == "Average(a:0.3, b:0.7)"
    lost = {"type": "Stack", "children": [{"type": "single", "children": ["gone"]}]}
    (tmp_path / "adapter_setup.json").write_text(json.dumps({"adapter_setup": lost}))
    with pytest.raises(PackageError, match="gone"):
        read_setup(tmp_path)


SHARED = shared_folder()
CASES = json.loads((SHARED / "conformance" / "index.json").read_text()) if SHARED else []


def kv_facts(base: Path) -> Facts:
    """Heads and widths of every attention that a base could have."""
    config = json.loads((base / "config.json").read_text())
    counts = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers")
    layers = next(config[k] for k in counts if config.get(k))
    heads = next(
        config[k]
        for k in (
            "num_key_value_heads",
            "num_attention_heads",
            "num_heads",
            "n_head",
            "n_heads",
            "encoder_attention_heads",
        )
        if config.get(k)
    )
    shape = (heads, config.get("head_dim") or config.get("d_kv") or 16)
    places = ["layer.{}/attn.kv", "encoder.layer.{}/attn.kv", "decoder.layer.{}/attn.kv", "decoder.layer.{}/cross.kv"]
    return Facts(kv={place.format(layer): shape for place in places for layer in range(layers)})


@pytest.mark.shared
@pytest.mark.parametrize("entry", CASES, ids=[entry["id"] for entry in CASES])
def test_every_golden_folder_imports_with_no_tensor_unaccounted(entry: dict[str, Any], tmp_path: Path) -> None:
    assert SHARED is not None
    folder = SHARED / "conformance" / entry["path"]
    case = json.loads((folder / "case.json").read_text())
    facts = kv_facts(folder / case["base"])
    found = [i for a in case["adapters"] for i in read_adapterhub(folder / a["path"], facts=facts)]
    assert [i.name for i in found] == [a["name"] for a in case["adapters"]]
    for imported, a in zip(found, case["adapters"], strict=True):
        assert (imported.head is not None) == bool(a["head"])
        assert to_package(imported).digest
    digests = {imported.name: "0" * 64 for imported in found}
    for fusion in case["fusions"]:
        assert to_package(read_fusion(folder / fusion["path"]), members=digests).digest


def test_two_bottlenecks_of_a_union_take_each_their_own_place(tmp_path: Path) -> None:
    first = {**SEQ_BN, "mh_adapter": True, "output_adapter": False}
    config = {"architecture": "union", "configs": [first, SEQ_BN]}
    attention = bottleneck("encoder.layer.0.attention.output.adapters.a.")
    (found,) = read_adapterhub(write(tmp_path / "a", meta(config), {**attention, **bert_bottleneck(layers=1)}))
    assert {name.rpartition("/")[2].split(".")[0] for name in found.tensors if "/attn/" in name} == {"0"}
    assert {name.rpartition("/")[2].split(".")[0] for name in found.tensors if "/ffn/" in name} == {"1"}
