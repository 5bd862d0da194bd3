"""What runs on a GPU says what it says on a CPU: models, generation, training, comparing, serving.

    GRAFTWORK_GPU=1 pytest tests/test_gpu.py tests/compose/test_bank_triton.py

A base without dropout trains the same way on both, up to rounding. bitsandbytes, where it has kernels for the card.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from graftwork.model import AdapterModel
from graftwork.recipe import Recipe, dump, override
from graftwork.registry.store import Registry
from graftwork.train.compare import compare
from graftwork.train.outcome import TrainResult
from graftwork.train.run import train
from graftwork.train.together import train_together
from graftwork.workflow import open_engine, push
from tests import tiny
from tests.adapted import shaken
from tests.rig import relative
from tests.test_model_generate import ROWS, generator, said
from tests.train import small
from tests.train.test_together import folder_without_dropout

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no GPU: GRAFTWORK_GPU=1 on a machine that has one runs this"
)
GPU = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CLOSE = 1e-4  # relative to the largest number; float32 sums in another order
METHODS = {
    "a": "seq_bn[reduction_factor=4]",
    "b": "double_seq_bn[reduction_factor=4]",
    "c": "par_bn[reduction_factor=4]",
    "l": "lora[r=2]",
    "p": "prefix_tuning[prefix_length=3]",
}
SETUPS: dict[str, Any] = {
    "one": "a",
    "stack": "Stack(a, b)",
    "fuse": "Fuse(a, b, name=f)",
    "average": "Average(a, c)",
    "split": "Split(a:3, b:4)",
    "parallel": "Parallel(a, Stack(b, a), l)",
    "rows": ["a", "Stack(a, b)", None, "b"],
    "kinds": ["l", "p", "a", "c"],
}


def model(family: str) -> AdapterModel:
    made = AdapterModel(tiny.model(family))
    for name, config in METHODS.items():
        made.add_adapter(name, config)
    made.add_adapter_fusion(["a", "b"], name="f")
    shaken(made.parts, seed=3)
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module", params=["bert", "llama", "t5"])
def pair(request: pytest.FixtureRequest) -> tuple[str, AdapterModel, AdapterModel]:
    """One model on a CPU, and the same on the GPU."""
    return request.param, model(request.param), model(request.param).to(GPU)


@pytest.mark.parametrize("execution", ["reference", "folded", "banked", "auto"])
@pytest.mark.parametrize("setup", SETUPS)
def test_compositions(pair: tuple[str, AdapterModel, AdapterModel], setup: str, execution: str) -> None:
    family, here, there = pair
    if family == "t5" and setup == "split":
        pytest.skip("a Split says of how many tokens, and the two halves of T5 have different ones")
    inputs, composed = tiny.inputs(family, rows=4), SETUPS[setup]
    placed = {key: value.to(GPU) for key, value in inputs.items()}
    here.execution, there.execution = "reference", execution
    with torch.inference_mode():
        expected, found = here(**inputs, adapters=composed)[0], there(**placed, adapters=composed)[0]
    assert found.device.type == GPU.type
    assert relative(found.cpu(), expected) < CLOSE


def test_what_is_folded_or_in_slots_follows_a_model_that_moves() -> None:
    moved, inputs = model("bert"), tiny.inputs("bert", rows=4)
    for execution in ("folded", "banked"):
        moved.execution = execution
        with torch.inference_mode():
            before = moved.to("cpu")(**inputs, adapters=SETUPS["rows"])[0]
            placed = {key: value.to(GPU) for key, value in inputs.items()}
            after = moved.to(GPU)(**placed, adapters=SETUPS["rows"])[0]
        assert relative(after.cpu(), before) < CLOSE


def test_what_is_added_to_a_model_lies_where_it_is(pair: tuple[str, AdapterModel, AdapterModel]) -> None:
    family, _, there = pair
    there.add_adapter("late", METHODS["b"])
    there.add_adapter("late-lora", METHODS["l"])
    there.add_adapter_fusion(["a", "late"], name="late-fusion")
    placed = {key: value.to(GPU) for key, value in tiny.inputs(family).items()}
    assert {weight.device.type for weight in there.parameters()} == {GPU.type}
    for setup in ("late", "late-lora", "Fuse(a, late, name=late-fusion)"):
        assert torch.isfinite(there(**placed, adapters=setup)[0]).all()


def test_generation() -> None:
    here, there = generator("llama"), generator("llama").to(GPU)
    ids = torch.randint(1, tiny.VOCABULARY, (4, 5), generator=torch.Generator().manual_seed(0))
    assert torch.equal(said(there, ids.to(GPU), ROWS).cpu(), said(here, ids, ROWS))


def recipe(folder: Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    if not (folder / "base").is_dir():
        folder_without_dropout(folder / "base")
    return small.recipe(folder, changes, train=24, dev=8)


def on_a_cpu(made: Recipe, output: Path) -> Path:
    """The folder of the same run, trained by a process that sees no GPU."""
    file = output.with_suffix(".yaml")
    file.write_text(dump(override(made, {"output": str(output)})), "utf8")
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-m", "graftwork", "train", str(file)], check=True, env=hidden)
    return output


def weights(folder: Path) -> dict[str, Tensor]:
    return {
        f"{file.parent.name}/{key}": tensor
        for file in sorted((folder / "package").rglob("*.safetensors"))
        for key, tensor in safetensors.torch.load_file(file).items()
    }


def same(found: dict[str, Tensor], expected: dict[str, Tensor], within: float) -> None:
    """Whether each weight differs by so much of its own norm: Adam makes whole steps of gradients that are rounding."""
    assert set(found) == set(expected)
    for key, tensor in expected.items():
        assert float((found[key] - tensor).norm()) <= within * float(tensor.norm()), key


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"adapter.variant": "lora[r=4]"},
        {"training.base_dropout": False, "training.prefix_cache": "auto", "adapter.options": {"leave_out": [0, 1]}},
        {"training.method": "full", "training.learning_rate": 1e-3},
    ],
    ids=["bottleneck", "lora", "prefix_cache", "full"],
)
def test_training_ends_where_it_does_on_a_cpu(tmp_path: Path, changes: dict[str, Any]) -> None:
    made = recipe(tmp_path, changes)
    result = train(made)
    expected = on_a_cpu(made, tmp_path / "cpu")
    same(weights(result.folder), weights(expected), within=0.05)
    points = json.loads((expected / "result.json").read_text("utf8"))["history"]
    there, here = ([point["loss"] for point in history if "loss" in point] for history in (result.history, points))
    assert there == pytest.approx(here, rel=2e-2)


def test_a_run_that_was_stopped_behind_its_last_step(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    result = train(made)
    (tmp_path / "run" / "result.json").unlink()
    again = train(made, resume=True)
    assert again.scores == result.scores
    same(weights(again.folder), weights(result.folder), within=0.0)


def test_several_in_one_run(tmp_path: Path) -> None:
    made = [
        recipe(tmp_path, {"name": name, "output": str(tmp_path / name), "adapter.variant": variant})
        for name, variant in (("one", METHODS["a"]), ("two", METHODS["b"]), ("three", METHODS["l"]))
    ]
    for one, result in zip(made, train_together(made), strict=True):
        assert isinstance(result, TrainResult)
        alone = train(override(one, {"output": str(tmp_path / f"{one.name}-alone")}))
        same(weights(result.folder), weights(alone.folder), within=0.05)


def test_a_comparison(tmp_path: Path) -> None:
    rows = compare(recipe(tmp_path), ["recipe", "full", "ia3"], folder=tmp_path / "out")
    assert [row.error for row in rows] == [None] * 3
    assert all(row.score is not None and row.price is not None for row in rows)
    assert all(row.device is not None and row.device > 0 for row in rows)


@pytest.mark.parametrize(
    "changes", [{"model.quantisation": "4bit"}, {"model.quantisation": "8bit"}, {"training.bf16": True}]
)
def test_packed_bases_and_mixed_precision(tmp_path: Path, changes: dict[str, Any]) -> None:
    result = train(recipe(tmp_path, changes))
    losses = [point["loss"] for point in result.history if "loss" in point]
    assert losses[-1] < losses[0]


def test_an_engine_answers_from_it(tmp_path: Path) -> None:
    made, registry = recipe(tmp_path, {"training.epochs": 4}), Registry(tmp_path / "registry")
    reference = push(train(made, registry=registry), registry)
    engine = open_engine(made.model.name, registry)
    assert engine.model.device.type == GPU.type
    asked = [{"text": row["text"], "adapters": adapters, "head": reference} for row in small.texts(8, seed=5)
             for adapters in (reference, f"Average({reference}, {reference})")]  # fmt: skip
    found = engine.answer(asked)
    engine.model.to("cpu")
    expected = engine.answer(asked)
    for there, here in zip(found, expected, strict=True):
        assert there["label"] == here["label"]
        assert there["scores"] == pytest.approx(here["scores"], abs=1e-4)
