"""The monitor tells an adapter that is stuck at identity from one that does not learn, and no step waits for it."""

import json
import math
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.progress import Progress
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerControl, TrainerState, TrainingArguments

from graftwork.model import AdapterModel
from graftwork.recipe import Recipe
from graftwork.train.callbacks import Bar
from graftwork.train.job import prepare
from graftwork.train.monitor import STILL, Monitor, judge
from graftwork.train.outcome import TrainResult
from graftwork.train.report import lines
from graftwork.train.run import How, carry_out, train
from tests import tiny
from tests.train import small


def model(config: str = "double_seq_bn[reduction_factor=4]") -> AdapterModel:
    made = AdapterModel(tiny.model("bert"))
    made.add_adapter("mood", config)
    made.add_classification_head("mood", num_labels=2)
    made.train_adapter("mood")
    return made.eval()


def backward(made: AdapterModel, skip: range = range(0), seed: int = 1) -> None:
    made.zero_grad(set_to_none=True)
    made(**tiny.inputs("bert", seed=seed), labels=torch.tensor([0, 1]), skip_layers=skip).loss.backward()


def rms(made: AdapterModel, pattern: str, of_gradient: bool = True) -> float:
    """By hand, in double: every entry of the matrices whose name has a pattern."""
    weights = [
        value
        for name, value in made.named_parameters()
        if re.search(pattern, name) and value.dim() > 1 and "=mood" in name and "heads" not in name
    ]
    entries = [(value.grad if of_gradient else value.detach()) for value in weights]
    flat = torch.cat([entry.double().flatten() for entry in entries if entry is not None])
    return float(flat.square().mean().sqrt())


@pytest.mark.parametrize(
    ("config", "down", "up"),
    [
        ("double_seq_bn[reduction_factor=4]", r"\.down\.", r"\.up\."),
        ("compacter[reduction_factor=8]", r"\.down\.", r"\.up\."),
        ("lora[r=2,init_weights=bert]", r"\.a$", r"\.b$"),
        ("dora[r=2,init_weights=bert]", r"\.a$", r"\.b$"),
    ],
)
def test_numbers_are_those_of_every_entry(config: str, down: str, up: str) -> None:
    made = model(config)
    monitor = Monitor.of(made)
    assert monitor is not None
    squares = {"grad_down": 0.0, "grad_up": 0.0}
    for seed in (1, 2, 3):
        backward(made, seed=seed)
        monitor.see()
        squares["grad_down"] += rms(made, down) ** 2 / 3
        squares["grad_up"] += rms(made, up) ** 2 / 3
    found = monitor.read()
    assert found["up"] == pytest.approx(rms(made, up, of_gradient=False), rel=1e-5)
    for name, square in squares.items():
        assert found[name] == pytest.approx(math.sqrt(square), rel=1e-5)
    assert monitor.read() == {}  # nothing since


def test_layers_that_a_step_drops_are_not_in_its_mean() -> None:
    made = model()
    monitor = Monitor.of(made)
    assert monitor is not None
    backward(made, range(2))
    monitor.see()
    assert monitor.read()["grad_down"] == pytest.approx(rms(made, r"\.down\."), rel=1e-5)


def test_only_what_trains_between_two_projections_is_seen() -> None:
    made = model()
    made.add_adapter("other", "seq_bn")
    made.train_adapter("other")
    monitor = Monitor.of(made)
    assert monitor is not None
    made.set_active_adapters("Stack(mood, other)")
    made.active_head = "mood"
    backward(made)
    monitor.see()
    assert monitor.read()["grad_up"] > 0
    for config in ("ia3", "vera[r=4]", "loreft", "bitfit", "prompt_tuning[prompt_length=2]", "prefix_tuning"):
        assert Monitor.of(model(config)) is None
    assert Monitor.of(made.base) is None


def test_no_step_waits_for_the_device() -> None:
    made = model()
    monitor = Monitor.of(made)
    assert monitor is not None
    backward(made)
    names: list[str] = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.append(str(func))
            return func(*args, **(kwargs or {}))

    with Recorder():
        monitor.see()
    assert names
    assert not any("_local_scalar_dense" in name or "item" in name for name in names)
    with Recorder():
        monitor.read()
    assert any("_local_scalar_dense" in name for name in names)  # so the check above could have failed


def point(loss: float, down: float = 1e-3, up: float = 1e-3) -> dict[str, Any]:
    return {"step": 1, "loss": loss, "grad_down": down, "grad_up": up, "up": 0.01}


FALLING = [point(0.7 - 0.05 * step) for step in range(9)]
NOISY = [point(0.7 + 0.05 * (-1) ** step - 0.003 * step) for step in range(9)]


@pytest.mark.parametrize(
    ("points", "state"),
    [
        ([], ""),
        ([{"loss": 0.5}, {"dev": {"loss": 0.5}}], ""),  # no adapter with projections
        (FALLING, "learning"),
        (FALLING[:5], ""),  # too early to say
        ([point(0.7) for _ in range(9)], "not learning"),
        (NOISY, "not learning"),
        ([point(0.7 - 0.0001 * step) for step in range(9)], "not learning"),  # surely, but by less than a hundredth
        ([point(0.7, STILL / 2, STILL / 2)], "stuck at identity"),
        ([point(0.7 - 0.05 * step, 0.0, 0.0) for step in range(9)], "stuck at identity"),  # the head alone learns
        ([point(0.7, STILL / 2, 2 * STILL)] * 9, "not learning"),
        ([*FALLING, *[point(1e-5, 1e-12, 1e-12)] * 9], "learning"),  # nothing is left to learn
        ([point(1e-5, 1e-12, 1e-12)] * 9, ""),
        ([*FALLING, *[point(0.6, 0.0, 0.0)] * 9], "stuck at identity"),  # every unit has died
    ],
)
def test_verdicts(points: list[Mapping[str, Any]], state: str) -> None:
    assert judge(points).state == state


CURVE: dict[str, Any] = {"training.epochs": 1, "training.logging_steps": 3}
ROWS = 240  # 30 steps


def test_an_adapter_that_learns(tmp_path: Path) -> None:
    result = train(small.recipe(tmp_path, CURVE, train=ROWS))
    assert result.learning["state"] == "learning"
    assert json.loads((result.folder / "result.json").read_text())["learning"] == result.learning
    points = [point for point in result.history if "loss" in point]
    assert all(point["grad_down"] > STILL and point["grad_up"] > STILL for point in points)
    (told,) = (line for line in lines(result) if "learning" in line or "stuck" in line)
    assert told.startswith("monitor: learning (gradients of rms ")
    assert f"{result.learning['grad_down']:.1e} at down, {result.learning['grad_up']:.1e} at up" in told
    assert f"loss {result.learning['loss_first']:.4f}, then {result.learning['loss_last']:.4f}" in told


def test_a_run_too_short_to_judge_says_so(tmp_path: Path) -> None:
    result = train(small.recipe(tmp_path, {**CURVE, "training.max_steps": 3}))
    (told,) = (line for line in lines(result) if line.startswith("monitor:"))
    assert told.startswith("monitor: no verdict (gradients of rms ")
    assert told.endswith("; fewer than 6 points, or a loss below 0.001 from the start)")


def with_zeroed(recipe: Recipe, *projections: str) -> TrainResult:
    """A run whose adapter begins with some projections at zero."""
    job = prepare(recipe, None)
    with torch.no_grad():
        for name, weight in job.model.parts.adapters.named_parameters():
            if any(f"{word}.weight" in name for word in projections):
                weight.zero_()
    with Progress(disable=True) as shown:
        return carry_out(job, How(), shown)


def test_projections_that_both_begin_at_zero_are_stuck_at_identity(tmp_path: Path) -> None:
    recipe = small.recipe(tmp_path, CURVE)
    result = with_zeroed(recipe, "down", "up")
    assert result.learning == {"state": "stuck at identity", "grad_down": 0.0, "grad_up": 0.0, "up": 0.0}
    told = next(line for line in lines(result) if line.startswith("note: the adapter is stuck at identity"))
    assert "monitor: stuck at identity (gradients of rms 0.0e+00 at down, 0.0e+00 at up)" in lines(result)
    assert "no gradient reaches its matrices (rms 0.0e+00 at down, 0.0e+00 at up; up itself is 0.0e+00)" in told
    assert "choose another init_weights" in told


def test_an_up_projection_alone_at_zero_is_the_usual_beginning(tmp_path: Path) -> None:
    result = with_zeroed(small.recipe(tmp_path, CURVE, train=ROWS), "up")
    assert result.learning["state"] == "learning"
    assert result.learning["up"] > 0


@pytest.mark.parametrize("cause", ["no steps", "shuffled labels"])
def test_gradients_without_a_falling_loss_are_not_learning(tmp_path: Path, cause: str) -> None:
    changes: dict[str, Any] = CURVE
    if cause == "no steps":
        changes = {**CURVE, "training.learning_rate": 1e-12}
    else:
        draw = random.Random(0)
        rows = [{**row, "label": draw.choice(("good", "bad"))} for row in small.texts(200)]
        small.write(tmp_path / "train.jsonl", rows)
        changes = {**CURVE, "training.learning_rate": 1e-3}
    result = train(small.recipe(tmp_path, changes, train=ROWS))
    assert result.learning["state"] == "not learning"
    assert result.learning["grad_up"] > STILL
    told = next(line for line in lines(result) if line.startswith("note: the adapter is not learning"))
    assert "the loss has not fallen beyond its noise" in told
    assert "see whether the labels belong to the rows" in told


def test_the_progress_line_says_it() -> None:
    with Progress(disable=True) as shown:
        bar = Bar("mood", "accuracy", shown)
        state = TrainerState(epoch=1.0, log_history=[point(0.7, 0.0, 0.0)])
        bar.on_log(TrainingArguments(output_dir="x"), state, TrainerControl())
        assert shown.tasks[0].fields["latest"] == "epoch 1.0 · loss 0.700 · grad down 0e+00 up 0e+00 stuck at identity"
        state.log_history = [*FALLING]
        bar.on_log(TrainingArguments(output_dir="x"), state, TrainerControl())
        assert shown.tasks[0].fields["latest"] == "epoch 1.0 · loss 0.300 · grad down 1e-03 up 1e-03"


def test_recipes_that_train_no_adapter_have_no_numbers(tmp_path: Path) -> None:
    result = train(small.recipe(tmp_path, {"training.method": "head"}))
    assert result.learning == {}
    assert "monitor: nothing to see: no bottleneck, LoRA or DoRA trained" in lines(result)
    assert not any("grad_up" in point for point in result.history)
