"""What other libraries' names let through: substrings, module names, dots, one tenant's file in another's."""

from pathlib import Path

import pytest
import torch

from graftwork.compose.tree import Fuse
from graftwork.model import AdapterModel
from graftwork.registry.package import read
from tests import tiny
from tests.adapted import adapted, last, same, snapshot

GIVEN = tiny.inputs("bert")


def test_a_name_that_is_a_substring_of_another_never_saves_it_too(tmp_path: Path) -> None:
    model = adapted(adapters=["a", "b", "c", "ab"], heads=["sst", "sst2"])
    model.add_adapter_fusion("a,b")
    model.add_adapter_fusion("a,b,c")
    model.save_adapter_fusion(tmp_path / "fusion", "a,b")
    model.save_head(tmp_path / "head", "sst")
    model.save_adapter(tmp_path / "a", "a")
    wanted = {f"fusion/{key}" for key in model.parts.tensors("fusions", "a,b")}
    assert read(tmp_path / "fusion").tensors.keys() == wanted
    assert read(tmp_path / "head").tensors.keys() == {f"head/{key}" for key in model.parts.tensors("heads", "sst")}
    assert read(tmp_path / "a").tensors.keys() == {f"adapter/{key}" for key in model.parts.tensors("adapters", "a")}


@pytest.mark.parametrize("name", ["self_attn", "encoder", "layer", "attention", "down", "weight", "default"])
def test_an_adapter_called_like_a_module_never_empties_a_file(name: str, tmp_path: Path) -> None:
    model = adapted(adapters=["default-v2", name])
    for saved in ("default-v2", name):
        model.save_adapter(tmp_path / saved, saved)
        assert len(read(tmp_path / saved).tensors) == 4 * 3
        other = AdapterModel(tiny.model("bert"))
        other.load_adapter(tmp_path / saved)
        assert torch.equal(last(other.eval()(**GIVEN, adapters=saved)), last(model(**GIVEN, adapters=saved)))


@pytest.mark.parametrize(
    ("replaced", "tenant"), [("a", "tenant_b"), ("de", "default-v2"), ("lora", "x"), ("x", "lora_A")]
)
def test_replacing_one_tenant_never_zeroes_another(replaced: str, tenant: str, tmp_path: Path) -> None:
    model = adapted(adapters=[replaced, tenant])
    model.save_adapter(tmp_path / "new", replaced)
    before, answer = snapshot(model.parts.adapters[f"={tenant}"]), last(model(**GIVEN, adapters=tenant))
    model.delete_adapter(replaced)
    model.load_adapter(tmp_path / "new")
    model.add_adapter(replaced, "lora", overwrite_ok=True)
    assert same(before, snapshot(model.parts.adapters[f"={tenant}"]))
    assert torch.equal(last(model(**GIVEN, adapters=tenant)), answer)


@pytest.mark.parametrize("name", ["en.v1", "a.b.c", "v1.0-final", "org/task@2.1"])
def test_a_dot_in_a_name_is_never_an_error(name: str, tmp_path: Path) -> None:
    model = adapted(adapters=[name], heads=[name])
    model.save_adapter(tmp_path / "saved", name)
    other = AdapterModel(tiny.model("bert"))
    assert other.load_adapter(tmp_path / "saved") == name


def test_several_fusions_over_the_same_adapters_are_never_one() -> None:
    model = adapted()
    for name in ("one", "two"):
        model.add_adapter_fusion(Fuse("a", "b", name=name))
    torch.nn.init.normal_(model.parts.fusions["=two"]["=layer%2E1/ffn"].query.weight)  # type: ignore[index, union-attr]
    one, two = (last(model(**GIVEN, adapters=Fuse("a", "b", name=name))) for name in ("one", "two"))
    assert not torch.equal(one, two)


def test_a_fusions_own_name_is_never_lost(tmp_path: Path) -> None:
    model = adapted(adapters=["a", "b"])
    model.add_adapter_fusion(Fuse("a", "b", name="mine"))
    for name in ("a", "b", "mine"):
        model.save_adapter(tmp_path / name, name)
    other = AdapterModel(tiny.model("bert"))
    assert [other.load_adapter(tmp_path / name) for name in ("a", "b", "mine")] == ["a", "b", "mine"]
    assert other.parts.fusion_records.keys() == {"mine"}
    given = {**GIVEN, "adapters": Fuse("a", "b", name="mine")}
    with torch.no_grad():
        assert torch.equal(last(other.eval()(**given)), last(model(**given)))
