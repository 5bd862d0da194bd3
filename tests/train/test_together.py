"""Recipes that train together: each ends as it does alone, and fails, stops and goes on alone."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from graftwork.errors import Conflict, GoalMissed, GraftworkError, RecipeError
from graftwork.model import AutoAdapterModel
from graftwork.recipe import Recipe, dump, override
from graftwork.registry.store import Registry
from graftwork.train.checkpoint import SEAL
from graftwork.train.folder import RunFolder
from graftwork.train.outcome import TrainResult
from graftwork.train.run import train
from graftwork.train.together import Size, bundles, train_together
from tests import tiny
from tests.shared import ROOT
from tests.train import small, test_kinds


def folder_without_dropout(folder: Path) -> Path:
    """As `small.model_folder`, but nothing is random in training."""
    base, tokenizer = tiny.model("bert"), small.tokenizer()
    base.config.hidden_dropout_prob = base.config.attention_probs_dropout_prob = 0.0
    base.save_pretrained(folder)
    tokenizer.mask_token = "[UNK]"
    tokenizer.save_pretrained(folder)
    return folder


def recipes(folder: Path, variants: Mapping[str, Mapping[str, Any]]) -> list[Recipe]:
    if not (folder / "base").is_dir():
        folder_without_dropout(folder / "base")
    made = small.recipe(folder, train=24, dev=8)
    return [
        override(made, {"name": name, "output": str(folder / "together" / name), **changes})
        for name, changes in variants.items()
    ]


def alone(recipe: Recipe, registry: Registry | None = None) -> TrainResult:
    """Trained by itself, once: asked for again, it is read back."""
    output = Path(recipe.output)
    elsewhere = override(recipe, {"output": str(output.parent.parent / "alone" / output.name)})
    return train(elsewhere, registry=registry, resume=True)


def weights(result: TrainResult) -> dict[str, torch.Tensor]:
    """Those of the last checkpoint."""
    return safetensors.torch.load_file(
        result.folder / "checkpoints" / f"checkpoint-{result.steps}" / "model.safetensors"
    )


# A softmax over choices or places takes no notice of a number added to all of them: the gradient of these biases is
# nothing but rounding, and Adam makes steps of it.
FREE = {"multiple_choice": "head.layers.4.bias", "question_answering": "head.layers.1.bias"}


def check_alike(one: TrainResult | GraftworkError, other: TrainResult | GraftworkError, free: str = "none") -> None:
    """Steps, losses, last weights (but those that end in `free`), best epoch and scores, up to rounding."""
    bound = 1e-5
    assert isinstance(one, TrainResult)
    assert isinstance(other, TrainResult)
    assert (one.steps, one.epochs, one.best_epoch) == (other.steps, other.epochs, other.best_epoch)
    points = [[point for point in run.history if "loss" in point] for run in (one, other)]
    for key in ("step", "learning_rate", "loss"):
        assert [point[key] for point in points[0]] == pytest.approx([point[key] for point in points[1]], abs=bound), key
    last = weights(one), weights(other)
    assert last[0].keys() == last[1].keys()
    for name, tensor in last[0].items():
        assert name.endswith(free) or (tensor - last[1][name]).abs().max() < bound, name
    assert one.scores["dev"] == pytest.approx(other.scores["dev"], abs=1e-4)
    assert one.scores["test"] == pytest.approx(other.scores["test"], abs=1e-4)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "longer": {
        "training.batch_size": 3,
        "training.seed": 5,
        "training.epochs": 3,
        "training.max_grad_norm": 0.05,
        "adapter.variant": "double_seq_bn[reduction_factor=8]",
    },
    "accumulation": {
        "training.gradient_accumulation": 2,
        "training.lr_scheduler": "cosine",
        "training.warmup_ratio": 0.3,
        "training.weight_decay": 0.3,
        "adapter.variant": "lora[r=4]",
    },
    "stops": {
        "training.epochs": 6,
        "training.early_stopping_patience": 1,
        "training.learning_rate": 1e-7,
        "adapter.variant": "prompt_tuning[prompt_length=3]",
    },
    "drops": {"training.drop": "random", "training.seed": 3},
    "masked": {"task.kind": "masked_lm", "training.method": "head", "training.batch_size": 5, "training.max_steps": 7},
}


def test_each_ends_as_it_does_alone(tmp_path: Path) -> None:
    made = recipes(tmp_path, VARIANTS)
    found = train_together(made, command="typed")
    for recipe, result in zip(made, found, strict=True):
        check_alike(result, alone(recipe))
        assert isinstance(result, TrainResult)
        assert (result.name, result.command, result.resumed_from) == (recipe.name, "typed", 0)
        assert any(note.startswith("trained together with ") for note in result.notes)
    longer, other = results(found)[1:3]
    (longer.folder / "result.json").unlink()
    shutil.rmtree(longer.folder / "checkpoints" / f"checkpoint-{longer.steps}")
    again = results(train_together(made[1:3], resume=True))
    assert 0 < again[0].resumed_from < longer.steps
    assert again[1].package.digest == other.package.digest  # was finished, and is read back
    check_alike(again[0], alone(made[1]))


def results(found: Sequence[TrainResult | GraftworkError]) -> list[TrainResult]:
    assert all(isinstance(one, TrainResult) for one in found), found
    return [one for one in found if isinstance(one, TrainResult)]


def test_stacks_and_fusions_train_beside_others(tmp_path: Path) -> None:
    registry, model = (
        Registry(tmp_path / "registry"),
        AutoAdapterModel.from_pretrained(folder_without_dropout(tmp_path / "base")),
    )
    for name in ("hi", "en"):
        model.add_adapter(name, "seq_bn[reduction_factor=4]")
        registry.push(model.package(name), name)
    changes: dict[str, Any] = {"training.max_steps": 4}
    fuse = {"composition": "fuse", "members": ["hi@1", "en@1"]}
    made = recipes(
        tmp_path,
        {
            "stack": {"adapter.composition": "stack", "adapter.language_adapter": "hi@1", **changes},
            "fuse": {"adapter": fuse, "training.batch_size": 4, **changes},
        },
    )
    for recipe, result in zip(made, train_together(made, registry=registry), strict=True):
        check_alike(result, alone(recipe, registry))


def test_a_base_at_rest_leaves_the_dropout_of_heads_as_it_is_alone(tmp_path: Path) -> None:
    small.model_folder(tmp_path / "base")  # with dropout, which its heads take over
    changes: dict[str, Any] = {"training.base_dropout": False, "training.max_steps": 4}
    made = recipes(tmp_path, {"a": changes, "b": {**changes, "training.batch_size": 3, "training.seed": 1}})
    found = results(train_together(made))
    for recipe, result in zip(made, found, strict=True):
        assert result.package.manifest.head is not None
        assert result.package.manifest.head.dropout == 0.1
        check_alike(result, alone(recipe))


@pytest.mark.full
def test_tasks_of_all_kinds_learn_what_they_learn_alone(tmp_path: Path) -> None:
    base = str(folder_without_dropout(tmp_path / "base"))
    made = []
    for name, (kind, *_) in test_kinds.KINDS.items():
        if kind != "seq2seq_lm":
            changes = {"model.name": base, "training.max_steps": 3, "output": str(tmp_path / "together" / name)}
            made.append(override(test_kinds.recipe(tmp_path / name, name), changes))
    for recipe, result in zip(made, train_together(made), strict=True):
        check_alike(result, alone(recipe), FREE.get(recipe.task.kind, "none"))


def test_a_task_with_a_decoder_of_its_own_is_refused(tmp_path: Path) -> None:
    made = test_kinds.recipe(tmp_path, "spoken")
    with pytest.raises(RecipeError, match="'a': task kind seq2seq_lm runs a decoder over texts of its own"):
        train_together([made])
    assert not Path(made.output).exists()


def test_who_diverges_fails_alone(tmp_path: Path) -> None:
    wild, calm = recipes(
        tmp_path, {"wild": {"training.learning_rate": 1e30, "training.max_grad_norm": 0.0}, "calm": {}}
    )
    found = train_together([wild, calm])
    assert isinstance(found[0], GoalMissed)
    assert "training diverged" in str(found[0])
    assert not (Path(wild.output) / "result.json").exists()
    check_alike(found[1], alone(calm))


def test_equal_names_and_a_limit_of_tokens(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"name": "same", "training.max_steps": 4}
    made = recipes(tmp_path, {"a": changes, "b": {**changes, "training.batch_size": 3, "training.seed": 1}})
    found = results(train_together(made, tokens=1))
    for recipe, result in zip(made, found, strict=True):
        assert result.package.digest == alone(recipe).package.digest  # each ran by itself, so bit for bit
    assert found[0].package.digest != found[1].package.digest


def test_batches_that_share_a_forward() -> None:
    sizes = [Size(8, 10), Size(8, 30), Size(4, 12), Size(8, 28)]
    assert bundles(sizes, 10_000, 10_000) == [[1, 3, 2, 0]]
    assert bundles(sizes, 16 * 30, 10_000) == [[1, 3], [2, 0]]
    assert bundles(sizes, 1, 10_000) == [[1], [3], [2], [0]]
    assert bundles([*sizes, Size(8, 30, (5,))], 10_000, 10_000) == [[1, 3, 2, 0], [4]]
    assert bundles(sizes, 10_000, 16) == [[1, 3], [2, 0]]  # 8 x (30 - 28) tokens of padding, and 8 x (12 - 10)
    assert bundles(sizes, 10_000, 15) == [[1], [3], [2], [0]]
    assert bundles([Size(8, 30)] * 3, 10_000, 0) == [[0, 1, 2]]
    assert bundles([], 1, 1) == []


def test_what_cannot_train_together_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (one,) = recipes(tmp_path, {"one": {}})
    folder_without_dropout(tmp_path / "other")

    def refused(changes: dict[str, Any], *parts: str) -> None:
        second = override(one, {"name": "two", "output": str(tmp_path / "two"), **changes})
        with pytest.raises((RecipeError, Conflict)) as caught:
            train_together([one, second])
        assert all(part in str(caught.value) for part in parts), str(caught.value)

    refused({"model.name": str(tmp_path / "other")}, "have one base", str(tmp_path / "base"), str(tmp_path / "other"))
    refused({"model.dtype": "bfloat16"}, "(float32) in 'one'", "(bfloat16) in 'two'")
    refused({"training.method": "full"}, "'two': training.method full changes the base", "train it alone")
    refused({"training.bf16": True}, "training.bf16 is auto in 'one' and True in 'two'")
    refused({"training.base_dropout": False}, "training.base_dropout is true in 'one' and false in 'two'")
    one = override(one, {"training.base_dropout": False})
    refused({"training.prefix_cache": "2GB"}, "'two': training.prefix_cache is 2GB", "train it alone")
    refused({"output": one.output}, "is the output of 'one' and of 'two'")
    with pytest.raises(RecipeError, match="there is no recipe to train"):
        train_together([])
    assert not (tmp_path / "together").exists()
    assert not (tmp_path / "two").exists()


def test_a_base_that_rests_draws_nothing_and_each_ends_as_alone(tmp_path: Path) -> None:
    small.model_folder(tmp_path / "base")  # with dropout
    resting = {"training.base_dropout": False, "training.epochs": 1}
    made = recipes(tmp_path, {"a": resting, "b": {**resting, "training.learning_rate": 3e-3}})
    for recipe, result in zip(made, train_together(made), strict=True):
        assert isinstance(result, TrainResult)
        for name, tensor in weights(alone(recipe)).items():
            torch.testing.assert_close(weights(result)[name], tensor, rtol=1e-3, atol=1e-5)


def test_a_run_is_not_put_over_another(tmp_path: Path) -> None:
    made = recipes(tmp_path, {"a": {}, "b": {}})
    RunFolder(made[1].output).claim({}, "", resume=False, overwrite=False)
    with pytest.raises(Conflict, match="holds a run already"):
        train_together(made)
    assert not Path(made[0].output).exists()


CHILD = """
import sys
import torch
torch.set_num_threads(1)
from graftwork import recipe
from graftwork.train.together import train_together
train_together([recipe.load(file) for file in sys.argv[1:]], checkpoint_seconds=0)
"""
STEPS = {"short": 6, "long": 12}  # in an epoch


@pytest.mark.full
def test_a_killed_run_goes_on_as_an_unbroken_one_ends(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"training.epochs": 3, "training.learning_rate": 2e-3, "training.warmup_ratio": 0.2}
    made = recipes(tmp_path, {name: {**changes, "training.batch_size": 24 // steps} for name, steps in STEPS.items()})
    files = [tmp_path / f"{recipe.name}.yaml" for recipe in made]
    for recipe, file in zip(made, files, strict=True):
        file.write_text(dump(recipe), "utf8")
    kill_after_step(STEPS["long"] + 3, [sys.executable, "-c", CHILD, *map(str, files)], Path(made[1].output))
    resumed = results(train_together(made, resume=True))
    assert [one.steps for one in resumed] == [18, 36]
    assert STEPS["long"] < resumed[1].resumed_from < 36
    assert resumed[0].resumed_from >= STEPS["short"]
    for recipe, result in zip(made, resumed, strict=True):
        one, other = weights(result), weights(alone(recipe))
        assert all((tensor - other[name]).abs().max() < 1e-5 for name, tensor in one.items())


def kill_after_step(step: int, command: list[str], output: Path) -> None:
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, env={**os.environ})
    begun = time.monotonic()
    while not any((output / "checkpoints" / f"checkpoint-{at}" / SEAL).is_file() for at in range(step, 2 * step)):
        assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
        assert time.monotonic() - begun < 120
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert process.stderr is not None
    process.stderr.close()
