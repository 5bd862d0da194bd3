"""Damaged folders, of ours and of others: each ends in an error that says what is wrong, or in a correct load.

200 folders in every run, the same ones; 10,000 fresh ones under the full profile. Never another exception, a hang, code
that runs, a part that is left behind, or an adapter of which a tensor was dropped in silence.
"""

import os
import shutil
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertModel

from graftwork.errors import GraftworkError
from graftwork.importing import packages, read
from graftwork.model import AdapterModel
from graftwork.registry.package import Package
from graftwork.registry.package import read as read_package
from graftwork.registry.package import write as write_package
from tests.adapted import same, shaken, snapshot
from tests.conftest import PROFILE
from tests.fuzz.damage import CANARY, Files, changed_json, changed_tensors, damage, tensors_of
from tests.registry.foreign import hub_files, test_peft

CASES = 10_000 if PROFILE == "full" else 200
WEIGHTS = ("pytorch_adapter.bin", "adapter.safetensors", "pytorch_model_head.bin", "model_head.safetensors")
WEIGHTS += ("adapter_model.safetensors", "adapter_model.bin")
LONGEST = 5.0  # seconds that one folder may take on a busy machine


@cache
def model() -> AdapterModel:
    """A BERT with two layers, eight wide, and an adapter with a head."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "hidden_size": hub_files.WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
    made = AdapterModel(BertModel(BertConfig(**sizes, intermediate_size=16, max_position_embeddings=16)))
    made.add_adapter("mood", "seq_bn[reduction_factor=4]")
    made.add_classification_head("mood", 3, layers=1)
    shaken(made.parts, seed=1)
    return made.eval()


def ours() -> Package:
    return model().package("mood")


@cache
def samples() -> dict[str, Files]:
    """Sound folders: a package, AdapterHub's in both forms of weights with a head, PEFT's."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        write_package(ours(), root / "package")
        head = {"head_type": "classification", "num_labels": 3, "layers": 1, "activation_function": "tanh"}
        weights = {"heads.a.1.weight": hub_files.rand(3, 8), "heads.a.1.bias": hub_files.rand(3)}
        for name, safe in (("hub-pickled", False), ("hub-safe", True)):
            hub_files.write(root / name, hub_files.meta(hub_files.SEQ_BN), hub_files.bert_bottleneck(), safe=safe)
            hub_files.write(root / name, hub_files.meta(head), weights, kind="head", safe=safe)
        query = "encoder.layer.{}.attention.self.query"
        pairs = {key: value for n in range(2) for key, value in test_peft.pair(query.format(n)).items()}
        test_peft.write(root / "peft", {}, pairs)
        return {folder.name: {path.name: path.read_bytes() for path in folder.iterdir()} for folder in root.iterdir()}


def placed(files: Files) -> Path:
    folder = Path(tempfile.mkdtemp()) / "a"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(autouse=True)
def no_canary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CANARY, raising=False)


HUGE = [
    ("bottleneck_size", 10**9),
    ("bottleneck_size", 10**30),
    ("reduction_factor", 1e-7),
    ("reduction_factor", 1e-300),
]


@pytest.mark.parametrize(
    "method",
    [
        *({key: value} for key, value in HUGE),
        {"reduction_factor": {"0": 1e-9, "default": 4}},
        {"phm_layer": True, "phm_dim": 10**9},
        {"kind": "lora", "r": 10**9},
        {"kind": "vera", "r": 10**9},
        {"kind": "prefix_tuning", "prefix_length": 10**9},
        {"kind": "prompt_tuning", "prompt_length": 10**9},
        {"kind": "union", "members": [{"kind": "lora", "r": 10**9}, {"kind": "ia3"}]},
        {"inv_adapter": "nice", "inv_adapter_reduction_factor": 1e-9},
    ],
)
def test_nothing_is_allocated_on_the_word_of_a_file(method: dict[str, Any]) -> None:
    package = ours()
    plain = {} if "kind" in method else dict(package.manifest.method or {})
    manifest = package.manifest.model_copy(update={"method": plain | method})
    with pytest.raises(GraftworkError, match=r"more than any tensor has|would make layers wider"):
        model().install(Package(manifest, package.tensors), "huge")
    head = package.manifest.head
    assert head is not None
    for change in ({"num_outputs": 10**9, "labels": ()}, {"layers": 10**6}):
        manifest = package.manifest.model_copy(update={"head": head.model_copy(update=change)})
        with pytest.raises(GraftworkError, match=r"more than any tensor has|a head of 1000000 layers"):
            model().install(Package(manifest, package.tensors), "huge")


def loads(folder: Path, kind: str) -> list[Package] | None:
    """What a folder loads as, or None where it is refused as it should be."""
    start, before = time.monotonic(), snapshot(model())
    try:
        if kind == "package":
            found = [read_package(folder)]
            model().install(found[0], "loaded")
            model().delete_adapter("loaded")
            if found[0].manifest.head is not None:
                model().delete_head("loaded")
        else:
            imports = read(folder, model().backbone)[1]
            found = packages(imports, model().backbone)
            whole(imports, folder)
        return found
    except GraftworkError as error:
        if len(str(error)) > 20:
            return None
        raise AssertionError(f"{error!r} says nothing") from error
    finally:
        assert CANARY not in os.environ, "code of a file was run"
        assert same(before, snapshot(model())), "something was left behind"
        assert time.monotonic() - start < LONGEST
        shutil.rmtree(folder.parent)


def whole(imports: list[Any], folder: Path) -> None:
    """Every tensor of the files was given a place, or left out for a reason, and every number is in a package."""
    told = {fate.source for one in imports for fate in one.fates}
    held = [tensors_of(path.name, path.read_bytes()) or {} for path in folder.iterdir() if path.name in WEIGHTS]
    assert told == {key for tensors in held for key in tensors}
    assert all(fate.target or fate.how.startswith("ignored: ") for one in imports for fate in one.fates)


@pytest.mark.parametrize("kind", ["package", "hub-pickled", "hub-safe", "peft"])
def test_the_sound_folders_load(kind: str) -> None:
    found = loads(placed(samples()[kind]), kind)
    assert found is not None
    assert found[0].tensors


@pytest.mark.timeout(3600)
@settings(max_examples=CASES)
@given(st.data())
def test_a_damaged_folder_is_refused_or_loads_whole(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["package", "hub-pickled", "hub-safe", "peft"]))
    files = data.draw(damage(samples()[kind]))
    found = loads(placed(files), kind)
    if kind == "package" and found is not None:
        assert found[0].digest == ours().digest


@pytest.mark.timeout(3600)
@settings(max_examples=max(CASES // 4, 50))
@given(st.data())
def test_a_dishonest_package_with_a_true_digest_is_refused_or_loads_whole(data: st.DataObject) -> None:
    package, folder = ours(), Path(tempfile.mkdtemp()) / "a"
    tensors, manifest = package.tensors, package.manifest
    try:
        if data.draw(st.booleans()):
            tensors = changed_tensors(data.draw, tensors)
        else:
            part = data.draw(st.sampled_from(["method", "head", "sites", "semantics", "name", "base"]))
            plain = manifest.model_dump(mode="json")
            manifest = type(manifest).model_validate({**plain, part: changed_json(data.draw, plain[part])})
        write_package(Package(manifest, tensors), folder)
    except (GraftworkError, ValueError):  # what cannot even be written
        shutil.rmtree(folder.parent)
        return
    found = loads(folder, "package")
    if found is not None:
        assert found[0].tensors.keys() == ours().tensors.keys()
