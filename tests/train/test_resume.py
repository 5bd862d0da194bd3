"""A run killed with SIGKILL in its second epoch ends with the weights of an unbroken one, bit for bit."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from graftwork.recipe import Recipe, dump, override
from graftwork.train.checkpoint import CLOCK, SEAL, STATE, newest_whole, seal
from graftwork.train.outcome import TrainResult
from graftwork.train.run import train
from graftwork.train.settings import KEPT
from tests.shared import ROOT
from tests.train import small

STEPS = 12  # in an epoch
CHILD = """
import sys
import torch
torch.set_num_threads(1)
from graftwork import recipe
from graftwork.train.run import train
train(recipe.load(sys.argv[1]), checkpoint_seconds=0)
"""
CHANGES: dict[str, Any] = {
    "training.epochs": 3,
    "training.batch_size": 4,
    "training.learning_rate": 2e-3,
    "training.warmup_ratio": 0.2,
    "training.metric": "loss",  # better in every epoch: a tie would leave the best checkpoint to be rotated away
}


MASKED: dict[str, Any] = {"task.kind": "masked_lm"}  # other pieces are hidden in every epoch


def recipe(folder: Path, changes: dict[str, Any] | None = None) -> Recipe:
    base, tokenizer = folder / "base", small.tokenizer()
    if not base.is_dir():
        small.model_folder(base)
        tokenizer.mask_token = "[UNK]"
        tokenizer.save_pretrained(base)
    changes = CHANGES | (changes or {})
    if "data.train" in changes:
        changes["data.train"] = str(folder / changes["data.train"])
        lines = [row["text"] for row in small.texts(160)]  # of 12 pieces in the middle: STEPS batches of 4 blocks
        (folder / "train.txt").write_text("\n".join(lines), "utf8")
    return small.recipe(folder, changes, train=4 * STEPS - 1)


def elsewhere(made: Recipe, folder: Path) -> Recipe:
    """The same recipe with another output."""
    return override(made, {"output": str(folder)})


def kill_in_second_epoch(made: Recipe) -> int:
    """Train in another process, kill it in the middle of its second epoch, and return the newest checkpoint's step."""
    file = Path(made.output).parent / "killed.yaml"
    file.write_text(dump(made), "utf8")
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(file)], cwd=ROOT, stderr=subprocess.PIPE, env={**os.environ}
    )
    checkpoints = Path(made.output) / "checkpoints"
    begun = time.monotonic()
    while not any((checkpoints / f"checkpoint-{step}" / SEAL).is_file() for step in range(STEPS + 3, 2 * STEPS)):
        assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
        assert time.monotonic() - begun < 120
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert process.stderr is not None
    process.stderr.close()
    found = newest_whole(checkpoints)
    assert found is not None
    return found.step


def check_equal(one: TrainResult, other: TrainResult) -> None:
    """Packages, last weights, optimiser, schedule, random state, dev history and scores, bit for bit.

    The loss at a point of the curve is a mean of the steps since the point before, and a kill cuts one point in two.
    """
    assert one.package.digest == other.package.digest
    last = [run.folder / "checkpoints" / f"checkpoint-{one.steps}" for run in (one, other)]
    weights = [safetensors.torch.load_file(path / "model.safetensors") for path in last]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    for file in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        states = [torch.load(path / file, weights_only=False) for path in last]
        assert same(*states), file
    assert [point for point in one.history if "dev" in point] == [point for point in other.history if "dev" in point]
    assert one.scores == other.scores
    assert (one.steps, one.epochs, one.best_epoch) == (other.steps, other.epochs, other.best_epoch)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return bool((one == other).all()) if hasattr(one, "all") else bool(one == other)


@pytest.mark.parametrize("changes", [{}, MASKED], ids=["classification", "masked_lm"])
def test_a_killed_run_ends_as_an_unbroken_one(tmp_path: Path, changes: dict[str, Any]) -> None:
    made = recipe(tmp_path, changes)
    step = kill_in_second_epoch(elsewhere(made, tmp_path / "killed"))
    assert STEPS < step < 2 * STEPS
    assert not (tmp_path / "killed" / "result.json").exists()
    resumed = train(elsewhere(made, tmp_path / "killed"), resume=True)
    assert resumed.resumed_from == step
    unbroken = train(elsewhere(made, tmp_path / "unbroken"))
    assert unbroken.resumed_from == 0
    assert unbroken.steps == 3 * STEPS
    check_equal(resumed, unbroken)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "early stopping": {"training.early_stopping_patience": 1, "training.epochs": 6, "training.learning_rate": 1e-6},
    "accumulation with a remainder": {"training.gradient_accumulation": 5},
    "an end within an epoch": {"training.max_steps": 2 * STEPS + 5},
    "constant rate to an end within an epoch": {
        "training.max_steps": 2 * STEPS + 5,
        "training.lr_scheduler": "constant",
    },
    "the whole model": {"training.method": "full", "training.epochs": 2},
    "only the head": {"training.method": "head"},
    "layers dropped at random": {"training.drop": "random"},
    "plain text": {"task.kind": "masked_lm", "data.train": "train.txt"},
    "behind a frozen prefix": {
        "training.base_dropout": False,
        "training.prefix_cache": "auto",
        "adapter.variant": "seq_bn[leave_out=[0]]",
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_goes_on_from_each_of_its_checkpoints(tmp_path: Path, variant: str) -> None:
    made = recipe(tmp_path, VARIANTS[variant])
    unbroken = train(elsewhere(made, tmp_path / "unbroken"))
    kept = sorted(int(path.name.split("-")[1]) for path in (tmp_path / "unbroken" / "checkpoints").iterdir())
    assert len(kept) == min(KEPT, made.training.epochs)
    assert kept[-1] == unbroken.steps
    for place, left in enumerate(kept):
        gone = kept[place + 1 :]
        broken = tmp_path / f"broken-after-{left}"
        shutil.copytree(tmp_path / "unbroken", broken)
        (broken / "result.json").unlink()
        for step in gone:
            shutil.rmtree(broken / "checkpoints" / f"checkpoint-{step}")
        resumed = train(elsewhere(made, broken), resume=True)
        assert resumed.resumed_from == left
        check_equal(resumed, unbroken)
        if unbroken.method == "full":
            tuned = [
                safetensors.torch.load_file(run.folder / "model" / "model.safetensors") for run in (resumed, unbroken)
            ]
            assert same(*tuned)


def test_seconds_are_those_of_every_process_of_a_run(tmp_path: Path) -> None:
    made = recipe(tmp_path, {"training.epochs": 2})
    unbroken = train(elsewhere(made, tmp_path / "run"))
    folder = tmp_path / "run" / "checkpoints"
    first, last = (newest_whole(folder), folder / f"checkpoint-{2 * STEPS}")
    assert first is not None
    assert 0 < first.seconds <= unbroken.seconds
    (tmp_path / "run" / "result.json").unlink()  # stopped after its last step
    assert train(elsewhere(made, tmp_path / "run"), resume=True).seconds >= first.seconds
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(last)
    at = folder / f"checkpoint-{STEPS}"
    state = json.loads((at / STATE).read_text())
    state["stateful_callbacks"][CLOCK]["args"]["before"] += 1000  # as if its first epoch had taken so long
    (at / STATE).write_text(json.dumps(state))
    seal(at)
    resumed = train(elsewhere(made, tmp_path / "run"), resume=True)
    assert resumed.resumed_from == STEPS
    assert 1000 < resumed.seconds < 1900, "once"
    there = newest_whole(folder)
    assert there is not None
    assert 1000 < there.seconds <= resumed.seconds


def test_a_finished_run_is_read_back(tmp_path: Path) -> None:
    made = small.recipe(tmp_path)
    done = train(made, command="graftwork train mood.yaml")
    again = train(made, resume=True, command="another")
    assert again.package.digest == done.package.digest
    assert (again.scores, again.history, again.command) == (done.scores, done.history, "graftwork train mood.yaml")
    assert again == dataclasses.replace(done, package=again.package)


def test_a_half_written_checkpoint_is_passed_over(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    unbroken = train(elsewhere(made, tmp_path / "unbroken"))
    broken = tmp_path / "broken"
    shutil.copytree(tmp_path / "unbroken", broken)
    (broken / "result.json").unlink()
    newest = broken / "checkpoints" / f"checkpoint-{unbroken.steps}"
    (newest / SEAL).unlink()
    (newest / "optimizer.pt").write_bytes((newest / "optimizer.pt").read_bytes()[:100])
    resumed = train(elsewhere(made, broken), resume=True)
    assert 0 < resumed.resumed_from < unbroken.steps
    check_equal(resumed, unbroken)
