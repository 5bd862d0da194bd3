"""A recipe's training section as TrainingArguments: every key arrives, steps are counted right."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.training_args import ParallelMode

from graftwork.errors import RecipeError
from graftwork.schema.sections import TrainingSection
from graftwork.tasks.kinds import TASKS
from graftwork.train.run import train
from graftwork.train.settings import arguments, steps_per_epoch, total_steps, wants_bf16
from tests.train import small


def test_every_setting_arrives(tmp_path: Path) -> None:
    made = small.recipe(
        tmp_path,
        {
            "training": {
                "epochs": 3,
                "batch_size": 4,
                "learning_rate": 2e-3,
                "warmup_ratio": 0.5,
                "lr_scheduler": "cosine",
                "weight_decay": 0.3,
                "seed": 11,
                "eval_batch_size": 6,
                "gradient_accumulation": 2,
                "max_grad_norm": 0.7,
                "logging_steps": 9,
                "bf16": False,
            }
        },
    )
    found = arguments(made, tmp_path / "checkpoints", 41, "accuracy")
    expected = {
        "num_train_epochs": 3,
        "per_device_train_batch_size": 4,
        "learning_rate": 2e-3,
        "warmup_steps": 9,  # half of 3 * ceil(ceil(41 / 4) / 2) = 18
        "lr_scheduler_type": "cosine",
        "weight_decay": 0.3,
        "seed": 11,
        "per_device_eval_batch_size": 6,
        "gradient_accumulation_steps": 2,
        "max_grad_norm": 0.7,
        "logging_steps": 9,
        "bf16": False,
        "max_steps": -1,
        "metric_for_best_model": "accuracy",
        "greater_is_better": True,
        "output_dir": str(tmp_path / "checkpoints"),
    }
    assert {key: getattr(found, key) for key in expected} == expected
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("scheduler", ["linear", "polynomial"])
def test_the_only_step_of_a_run_has_its_learning_rate(tmp_path: Path, scheduler: str) -> None:
    changes = {"training.max_steps": 1, "training.lr_scheduler": scheduler, "training.learning_rate": 1e-2}
    made = small.recipe(tmp_path, changes, train=8, dev=4)
    assert arguments(made, tmp_path / "checkpoints", 8, "accuracy").warmup_steps == 0
    assert train(made, progress=False).history[0]["learning_rate"] == pytest.approx(1e-2)


def test_a_schedule_cannot_end_above_where_it_begins(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="learning_rate: 1e-08: lr_scheduler: polynomial ends at 1e-07"):
        small.recipe(tmp_path, {"training.lr_scheduler": "polynomial", "training.learning_rate": 1e-8})


def test_the_loss_is_better_when_lower(tmp_path: Path) -> None:
    assert arguments(small.recipe(tmp_path), tmp_path, 40, "loss").greater_is_better is False


_A, _B = ({"label": name, "labels": [name], "tags": [name], "heads": [at]} for at, name in enumerate("ab"))
_KNOWN, _UNKNOWN = ({"log_likelihood": said, "right": right, "pieces": 4} for said, right in ((-1.0, 4), (-9.0, 1)))
_NEAR, _FAR = [[1.0, 0.0], [1.0, 0.1]], [[0.0, 1.0], [0.1, 1.0]]
# kind -> labels, rows, answers that are right, answers that are not; some kinds are scored in two ways
_ANSWERED: list[tuple[str, tuple[str, ...], list[Any], list[Any], list[Any]]] = [
    *((kind, ("a", "b"), [_A, _B], [_A, _B], [_B, _A])
      for kind in ("classification", "pair", "image_classification", "multilabel", "tagging", "dependency_parsing")),
    ("tagging", ("O", "B-x"), [{"tags": ["B-x", "O"]}], [{"tags": ["B-x", "O"]}], [{"tags": ["O", "B-x"]}]),
    ("multiple_choice", ("0", "1"), [{"label": 1}], [{"label": "1"}], [{"label": "0"}]),
    ("question_answering", (), [{"answers": ["x"]}], [{"answer": "x"}], [{"answer": "y"}]),
    ("regression", (), [{"label": 1}, {"label": 2}], [{"value": 1.0}, {"value": 2.0}],
     [{"value": 2.0}, {"value": 1.0}]),
    ("similarity", (), [{"label": 0}, {"label": 1}], [{"similarity": 0.0}, {"similarity": 1.0}],
     [{"similarity": 1.0}, {"similarity": 0.0}]),
    ("similarity", (), [{"text_pair": "x"}, {"text_pair": "y"}], [{"embeddings": _NEAR}, {"embeddings": _FAR}],
     [{"embeddings": [_NEAR[0], _FAR[1]]}, {"embeddings": [_FAR[0], _NEAR[1]]}]),
    *((kind, (), [{}], [_KNOWN], [_UNKNOWN]) for kind in ("masked_lm", "causal_lm")),
    ("seq2seq_lm", (), [{"target": "x"}], [_KNOWN | {"text": "x"}], [_UNKNOWN | {"text": "y"}]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "labels", "rows", "right", "wrong"), _ANSWERED)
def test_right_answers_are_better_by_every_score(
    kind: str, labels: tuple[str, ...], rows: list[Any], right: list[Any], wrong: list[Any], tmp_path: Path
) -> None:
    task, made = TASKS[kind](labels=labels), small.recipe(tmp_path)
    better, worse = task.score(right, rows), task.score(wrong, rows)
    rising = {name: arguments(made, tmp_path, 40, name).greater_is_better for name in better}
    assert rising == {name: better[name] > worse[name] for name in better}


def test_scores_of_every_kind_of_task_are_tried() -> None:
    assert {kind for kind, *_ in _ANSWERED} == set(TASKS)


@pytest.mark.parametrize(
    ("settings", "rows", "epoch", "total"),
    [
        ({"batch_size": 8, "epochs": 2}, 40, 5, 10),
        ({"batch_size": 8, "epochs": 2}, 41, 6, 12),
        ({"batch_size": 8, "epochs": 2, "gradient_accumulation": 4}, 41, 2, 4),
        ({"batch_size": 8, "epochs": 2, "max_steps": 3}, 41, 6, 3),
    ],
)
def test_steps(settings: dict[str, Any], rows: int, epoch: int, total: int) -> None:
    training = TrainingSection(**settings)
    assert (steps_per_epoch(training, rows), total_steps(training, rows)) == (epoch, total)


@pytest.mark.parametrize("there", [0, 1, 4])
def test_one_process_trains_on_one_device(tmp_path: Path, there: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: there > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)  # what transformers takes for its own, all of them
    found = arguments(small.recipe(tmp_path, {"training.batch_size": 6}), tmp_path, 40, "accuracy")
    assert (found.n_gpu, found.train_batch_size, found.eval_batch_size) == (min(there, 1), 6, 6)
    assert found.parallel_mode == ParallelMode.NOT_PARALLEL


def test_mixed_precision_is_as_told_or_where_a_gpu_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    has_it = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    assert wants_bf16(TrainingSection()) == has_it
    assert not wants_bf16(TrainingSection(bf16=False))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert wants_bf16(TrainingSection(bf16=True))  # a CPU can, if slowly
    assert not wants_bf16(TrainingSection())
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    with pytest.raises(RecipeError, match=r"training\.bf16: this machine's accelerator has no bfloat16"):
        wants_bf16(TrainingSection(bf16=True))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert wants_bf16(TrainingSection())
    assert wants_bf16(TrainingSection(bf16=True))
