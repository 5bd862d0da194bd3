"""Saving and loading through AdapterModel: what comes back computes the same, and what does not fit changes nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForMaskedLM

from graftwork.compose.tree import Fuse, Stack
from graftwork.errors import AdapterError, CompositionError, Conflict, NotFound, PackageError
from graftwork.model import AdapterModel
from graftwork.registry.package import read
from tests import tiny
from tests.adapted import adapted, last, same, shaken, snapshot

GIVEN = tiny.inputs("bert")


def fresh() -> AdapterModel:
    """The same base without any part."""
    return AdapterModel(tiny.model("bert"))


@pytest.mark.parametrize("name", ["a", "en.v1", "hi/ner", "hi@3", "self_attn"])
@pytest.mark.parametrize("load_as", [None, "other/name.v2"])
def test_an_adapter_and_its_head_come_back(name: str, load_as: str | None, tmp_path: Path) -> None:
    model = adapted(adapters=[name, "x"], heads=[name])
    digest = model.save_adapter(tmp_path / "saved", name)
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [
        "README.md",
        "graft.json",
        "graft.safetensors",
    ]
    other = fresh()
    here = other.load_adapter(tmp_path / "saved", load_as=load_as, set_active=True)
    assert here == (load_as or name)
    assert other.active_adapters == other.active_head == here
    assert torch.equal(other(**GIVEN).logits, model(**GIVEN, adapters=name).logits)
    assert other.package(here).digest == digest  # a name is no part of what a package is


@pytest.mark.parametrize("config", ["seq_bn", "double_seq_bn", "par_bn", "scaled_par_bn", "seq_bn[leave_out=[1]]"])
@pytest.mark.parametrize("family", ["bert", "llama", "t5", "vit"])
def test_every_named_configuration_comes_back(config: str, family: str, tmp_path: Path) -> None:
    model = AdapterModel(tiny.model(family))
    model.add_adapter("a", config)
    shaken(model.parts, seed=3)
    model.save_adapter(tmp_path / "a", "a")
    other = AdapterModel(tiny.model(family))
    other.load_adapter(tmp_path / "a")
    given = tiny.inputs(family)
    with torch.no_grad():  # both folded: what may learn would run by the reference, which rounds otherwise
        assert torch.equal(last(other(**given, adapters="a")), last(model(**given, adapters="a")))
    assert other.parts.adapter_configs == model.parts.adapter_configs
    assert not torch.equal(last(other(**given, adapters="a")), last(other(**given)))


def test_heads_stay_out_when_asked(tmp_path: Path) -> None:
    model = adapted(heads=["a"])
    model.save_adapter(tmp_path / "bare", "a", with_head=False)
    model.save_adapter(tmp_path / "full", "a")
    for folder, with_head in [("bare", True), ("full", False)]:
        other = fresh()
        other.load_adapter(tmp_path / folder, with_head=with_head)
        assert other.parts.head_configs == {}
        assert torch.equal(last(other(**GIVEN, adapters="a")), last(model(**GIVEN, adapters="a", head="none")))


def test_a_head_alone_comes_back(tmp_path: Path) -> None:
    model = fresh()
    model.add_tagging_head("t", 3, id2label={0: "O", 1: "B", 2: "I"})
    model.add_regression_head("r")
    shaken(model.parts, seed=3)
    other = fresh()
    for name in ("t", "r"):
        model.save_head(tmp_path / name, name)
        other.load_head(tmp_path / name)
        assert torch.equal(other(**GIVEN, head=name).logits, model(**GIVEN, head=name).logits)
    assert other.parts.head_configs == model.parts.head_configs
    assert other.parts.head_configs["t"].labels == ("O", "B", "I")


@pytest.mark.parametrize("label", [None, "ab"])
@pytest.mark.parametrize("heads", [[], ["a", "b"]])
@pytest.mark.parametrize("load_as", [None, "mix"])
def test_a_fusion_comes_back_over_its_members(
    label: str | None, heads: list[str], load_as: str | None, tmp_path: Path
) -> None:
    name = label or "a,b"
    model = adapted(heads=[*heads, name])
    fuse = Fuse("a", "b", name=label)
    model.add_adapter_fusion(fuse)
    shaken(model.parts.fusions, seed=4)
    model.save_all_adapters(tmp_path / "all")
    model.save_adapter_fusion(tmp_path / "fusion", name)
    other = fresh()
    with pytest.raises(AdapterError, match="no adapter 'a'; the adapters are: none yet"):
        other.load_adapter_fusion(tmp_path / "fusion")
    for member in "ab":
        other.load_adapter(tmp_path / "all" / member)
    here = other.load_adapter_fusion(tmp_path / "fusion", load_as=load_as, set_active=True)
    assert here == (load_as or name)
    assert other.active_adapters == Fuse("a", "b", name=load_as or label)
    with torch.no_grad():
        assert torch.equal(other(**GIVEN).logits, model(**GIVEN, adapters=fuse).logits)
    again = other.save_adapter_fusion(tmp_path / "again", here)
    third = fresh()
    for member in "ab":
        third.load_adapter(tmp_path / "all" / member, with_head=False)
    third.load_adapter_fusion(tmp_path / "again", set_active=True)  # its members now name the packages they came from
    assert torch.equal(third(**GIVEN).logits, other(**GIVEN).logits)
    assert again == read(tmp_path / "again").digest


def test_a_fusion_over_other_members_is_refused(tmp_path: Path) -> None:
    model = adapted()
    model.add_adapter_fusion("a,b")
    model.save_adapter_fusion(tmp_path / "fusion", "a,b")
    other = adapted()
    other.load_adapter_fusion(tmp_path / "fusion", load_as="first")  # the same members, trained here
    shaken(other.parts.adapters["=b"], seed=6)
    before = snapshot(other)
    with pytest.raises(
        Conflict, match=r"fusion 'a,b' was trained over 'b' with digest [0-9a-f]{12}, but 'b' here is ano"
    ):
        other.load_adapter_fusion(tmp_path / "fusion")
    assert same(before, snapshot(other))
    assert list(other.parts.fusion_records) == ["first"]


def test_every_adapter_is_saved_into_a_folder_of_its_own(tmp_path: Path) -> None:
    names = ["hi", "hi/ner", "hi/ner.v2", "x@3"]
    model = adapted(adapters=names, heads=["hi"])
    for _ in range(2):  # a second time over the first
        model.save_all_adapters(tmp_path / "all")
    assert {path.name for path in (tmp_path / "all").iterdir()} == {"hi", "hi%2Fner", "hi%2Fner.v2", "x@3"}
    other = fresh()
    assert {other.load_adapter(path) for path in (tmp_path / "all").iterdir()} == set(names)
    assert same(snapshot(other), {key: snapshot(model)[key] for key in snapshot(other)})


def test_what_is_loaded_is_frozen_until_it_is_trained(tmp_path: Path) -> None:
    model = adapted(heads=["a"])
    digest = model.save_adapter(tmp_path / "a", "a")
    other = fresh()
    other.add_adapter("t")
    other.add_classification_head("t")
    other.train_adapter("t")
    other.load_adapter(tmp_path / "a")
    other.active_adapters = Stack("a", "t")
    trained = {name.split(".")[2] for name, p in other.named_parameters() if p.requires_grad}
    assert trained == {"=t"}
    assert other.parts.origins == {"a": digest}
    other.train_adapter("a")
    assert other.parts.origins == {}
    assert {name.split(".")[2] for name, p in other.named_parameters() if p.requires_grad} == {"=a"}


def test_an_adapter_changed_by_a_checkpoint_is_no_longer_its_package(tmp_path: Path) -> None:
    model = adapted()
    model.save_adapter(tmp_path / "a", "a")
    model.save_adapter(tmp_path / "b", "b")
    other = fresh()
    other.load_adapter(tmp_path / "a")
    other.load_adapter(tmp_path / "b")
    other.load_state_dict(model.state_dict())
    assert set(other.parts.origins) == {"a", "b"}
    shaken(model.parts.adapters["=a"], seed=6)
    other.load_state_dict(model.state_dict())
    assert set(other.parts.origins) == {"b"}


def test_another_base_is_refused(tmp_path: Path) -> None:
    adapted(heads=["a"]).save_adapter(tmp_path / "a", "a")
    message = (
        r"package 'a' was trained on another base: bert \(bert, width 32, [0-9a-f]{12}\); this one is (\w+) \(\1, "
        r"width 32, [0-9a-f]{12}\)\. Load the base it was trained on"
    )
    for base in (tiny.model("bert", seed=1), tiny.model("roberta")):
        other = AdapterModel(base)
        with pytest.raises(Conflict, match=message):
            other.load_adapter(tmp_path / "a")
        assert snapshot(other) == {}


def test_the_same_trunk_under_a_task_head_is_the_same_base(tmp_path: Path) -> None:
    model = adapted()
    model.save_adapter(tmp_path / "a", "a")
    masked = BertForMaskedLM(tiny.model("bert").config).eval()
    masked.bert.load_state_dict(tiny.model("bert").state_dict(), strict=False)
    other = AdapterModel(masked)
    other.load_adapter(tmp_path / "a")
    output = other(**GIVEN, adapters="a", output_hidden_states=True)
    assert torch.equal(output.hidden_states[-1], last(model(**GIVEN, adapters="a")))


@pytest.mark.parametrize(
    ("load_as", "error", "message"),
    [
        ("a", AdapterError, "adapter 'a' is already there; install the package under another name"),
        ("h", AdapterError, "head 'h' is already there"),
        ("a b", CompositionError, "'a b' is not a name"),
        ("a,b", CompositionError, "'a,b' is not a name"),
    ],
)
def test_a_name_in_use_or_no_name_is_refused(
    load_as: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    model = adapted(heads=["a", "h"])
    model.save_adapter(tmp_path / "a", "a")
    before, active = snapshot(model), model.active_adapters
    with pytest.raises(error, match=message):
        model.load_adapter(tmp_path / "a", load_as=load_as, set_active=True)
    assert same(before, snapshot(model))
    assert model.active_adapters == active
    if load_as == "h":
        assert model.load_adapter(tmp_path / "a", load_as="h", with_head=False) == "h"


def test_names_that_are_not_there_cannot_be_saved(tmp_path: Path) -> None:
    model = adapted(heads=["h"])
    with pytest.raises(AdapterError, match="nothing is called 'z'; there are: a, b, h"):
        model.save_adapter(tmp_path / "z", "z")
    with pytest.raises(AdapterError, match="nothing is called 'z'; there are: no parts yet"):
        fresh().package("z")
    with pytest.raises(NotFound, match="no such folder"):
        model.load_adapter(tmp_path / "z")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_files_of_others_is_not_replaced(tmp_path: Path) -> None:
    model = adapted()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(Conflict, match=r"holds files that are no part of a package.*thesis\.tex"):
        model.save_adapter(tmp_path / "mine", "a")
    model.save_adapter(tmp_path / "a", "a")
    model.save_adapter(tmp_path / "a", "b")  # a package is replaced by a package
    assert read(tmp_path / "a").manifest.name == "b"


def test_packages_travel_without_files() -> None:
    model = adapted(heads=["a"])
    package = model.package("a")
    shaken(model.parts, seed=7)  # what was packed stays as it was
    other: Any = fresh()
    assert other.install(package, "b") == "b"
    assert torch.equal(other(**GIVEN, adapters="b").logits, adapted(heads=["a"])(**GIVEN, adapters="a").logits)


def test_a_damaged_package_changes_nothing(tmp_path: Path) -> None:
    model = adapted(heads=["a"])
    model.save_adapter(tmp_path / "a", "a")
    weights = tmp_path / "a" / "graft.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    model.set_active_adapters("b")
    before = snapshot(model)
    with pytest.raises(PackageError, match=r"graft\.safetensors"):
        model.load_adapter(tmp_path / "a", load_as="c", set_active=True)
    assert same(before, snapshot(model))
    assert model.active_adapters == "b"
