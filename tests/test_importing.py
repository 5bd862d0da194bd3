"""Imports are tried on the base they are for: a package that comes out has had every tensor in its place."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, BertConfig, BertModel

from graftwork.errors import Conflict, NotFound, PackageError, UserError
from graftwork.importing import facts_of, packages, read
from graftwork.model import AdapterModel
from graftwork.registry.package import read as read_package
from graftwork.registry.store import Registry
from graftwork.workflow import export_files, import_files
from tests.registry.foreign.hub_files import SEQ_BN, WIDTH, bert_bottleneck, meta, rand, write
from tests.registry.foreign.test_adapterhub import fusion_tensors


def bert(width: int = WIDTH) -> BertModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 11}
    return BertModel(BertConfig(num_hidden_layers=2, max_position_embeddings=16, **sizes)).eval()


def test_an_adapter_and_its_fusion_are_installed_and_run(tmp_path: Path) -> None:
    model = AdapterModel(bert())
    imports = []
    for name in "ab":
        imports += read(write(tmp_path / name, meta(SEQ_BN, name), bert_bottleneck(name)), model.backbone)[1]
    config = {"query": True, "key": True, "value": True}
    theirs = fusion_tensors("a,b")
    theirs |= {key.replace("layer.0", "layer.1"): value for key, value in theirs.items()}
    imports += read(write(tmp_path / "f", meta(config, "a,b"), theirs, kind="fusion"), model.backbone)[1]
    found = packages(imports, model.backbone)
    assert [package.manifest.role for package in found] == ["task", "task", "fusion"]
    assert found[0].manifest.method is not None
    assert "stacks" in found[0].manifest.method, "every default is written out"
    assert found[0].manifest.sites == tuple(s.name for s in model.backbone.sites if s.name in found[0].manifest.sites)
    with pytest.raises(PackageError, match="Missing: a, b"):
        packages(imports[2:], model.backbone)
    assert packages(imports[2:], model.backbone, members={"a": found[0], "b": found[1]})[0].digest == found[2].digest


def test_an_import_is_what_its_own_numbers_say(tmp_path: Path) -> None:
    """Layer 1's output by hand: LN(h + A(LN(h + r)) + r)."""
    model = AdapterModel(bert())
    theirs = bert_bottleneck()
    (imported,) = read(write(tmp_path / "a", meta(SEQ_BN), theirs), model.backbone)[1]
    (package,) = packages([imported], model.backbone)
    Registry(tmp_path / "registry").push(package, "a")
    loaded = AdapterModel(bert())
    loaded.load_adapter(Registry(tmp_path / "registry").resolve("a").path)
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        states = loaded(ids, adapters="a", head="none", output_hidden_states=True).hidden_states
        layer = loaded.base.encoder.layer[1]
        r = layer.attention(states[1])[0]
        h = layer.output.dense(layer.intermediate(r))
        norm = layer.output.LayerNorm
        at = "encoder.layer.1.output.adapters.a.adapter_"
        down = torch.relu(norm(h + r) @ theirs[f"{at}down.0.weight"].T + theirs[f"{at}down.0.bias"])
        expected = norm(h + down @ theirs[f"{at}up.weight"].T + theirs[f"{at}up.bias"] + r)
    torch.testing.assert_close(states[2], expected)


def test_another_base_is_refused(tmp_path: Path) -> None:
    model = AdapterModel(bert(16))
    (imported,) = read(write(tmp_path / "a", meta(SEQ_BN), bert_bottleneck()), model.backbone)[1]
    with pytest.raises((PackageError, Conflict), match="hidden_size"):
        packages([imported], model.backbone)
    three = AdapterModel(bert())
    (imported,) = read(write(tmp_path / "b", meta(SEQ_BN), bert_bottleneck(layers=1)), three.backbone)[1]
    with pytest.raises(PackageError, match=r"layer\.1/ffn"):
        packages([imported], three.backbone)


def test_a_folder_with_none_of_the_files_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(NotFound, match=r"adapter_config\.json.*notes\.txt"):
        read(tmp_path, AdapterModel(bert()).backbone)


def test_the_command_stores_what_it_read_or_nothing(tmp_path: Path) -> None:
    base = tmp_path / "bert-tiny"
    bert().save_pretrained(base)
    registry = Registry(tmp_path / "registry")
    folder = write(tmp_path / "a", meta(SEQ_BN, model_name=str(base)), bert_bottleneck())
    (found,) = import_files(str(folder), registry)
    assert found.reference == "a@1"
    assert {fate.source for fate in found.fates} == bert_bottleneck().keys()
    (again,) = import_files(str(folder), registry, model=str(base), name="mood")
    assert again.reference == "mood@1"
    bad = write(tmp_path / "b", meta(SEQ_BN, "b", model_name=str(base)), bert_bottleneck("b") | {"x.y": rand(2)})
    with pytest.raises(PackageError, match="have no place"):
        import_files(str(bad), registry)
    assert {entry.name for entry in registry.list()} == {"a", "mood"}
    setup = {"type": "Stack", "children": [{"type": "single", "children": ["a"]}]}
    (tmp_path / "adapter_setup.json").write_text(json.dumps({"adapter_setup": setup}))
    with pytest.raises((UserError, PackageError)):
        import_files(str(tmp_path), registry, model=str(base), name="both")


@pytest.mark.shared
@pytest.mark.parametrize("case", ["a-bert-double_seq_bn", "a-t5-par_bn", "a-llama-seq_bn", "b-xlm-roberta-adapterplus"])
def test_golden_numbers(case: str, shared: Path) -> None:
    folder = shared / "conformance" / "cases" / case
    said: dict[str, Any] = json.loads((folder / "case.json").read_text())
    model = AdapterModel(AutoModel.from_pretrained(folder / said["base"])).eval()
    (imported,) = read(folder / "adapters" / "a", model.backbone)[1]
    (package,) = packages([imported], model.backbone)
    model.install(package)
    with torch.no_grad():
        output = model(**load_file(folder / "inputs.safetensors"), adapters="a", head="none")
    expected = load_file(folder / "expected.safetensors")[said["primary_output"]]
    torch.testing.assert_close(output[said["primary_output"]], expected, rtol=0, atol=said["tolerance"]["atol"])


def test_facts_of_a_base() -> None:
    facts = facts_of(AdapterModel(bert()).backbone)
    assert facts.padding == 0
    assert facts.norm_eps == 1e-12
    assert facts.embedding is not None
    assert facts.embedding.shape == (11, WIDTH)


def test_what_is_exported_is_imported_as_it_was(tmp_path: Path) -> None:
    base = tmp_path / "bert-tiny"
    bert().save_pretrained(base)
    registry = Registry(tmp_path / "registry")
    model = AdapterModel(BertModel.from_pretrained(base))
    model.add_adapter("rank", config="lora[r=2]")
    with torch.no_grad():
        for number, tensor in enumerate(model.parts.tensors("adapters", "rank").values()):
            tensor.copy_(rand(*tensor.shape) + number)
    registry.push(model.package("rank"), "rank")
    tensors = model.package("rank").tensors
    for to in ("adapterhub", "peft"):
        export_files("rank", registry, tmp_path / to, to, model=str(base))  # type: ignore[arg-type]
        (found,) = import_files(str(tmp_path / to), registry, model=str(base), name=f"from-{to}")
        again = read_package(registry.resolve(found.reference).path)
        assert again.tensors.keys() == tensors.keys()
        assert all(torch.equal(again.tensors[key], tensors[key]) for key in tensors)
    model.add_adapter("down", config="seq_bn")
    registry.push(model.package("down"), "down")
    with pytest.raises(PackageError, match="no method like 'bottleneck'"):
        export_files("down", registry, tmp_path / "no", "peft", model=str(base))
