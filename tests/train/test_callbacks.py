"""What happens beside the training: checkpoints by the clock, a log at an epoch's end, a bar that can be quiet."""

import time
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState

from graftwork.train.callbacks import Bar, LogAtEpochEnd, SaveByTheClock, bars


def step(callback: SaveByTheClock, epoch: float, stopping: bool = False) -> bool:
    state, control = TrainerState(), TrainerControl(should_training_stop=stopping)
    state.epoch = epoch
    callback.on_step_end(None, state, control, model=None)
    return bool(control.should_save)


def test_an_epoch_ends_with_a_point_of_the_curve() -> None:
    control = TrainerControl()
    LogAtEpochEnd().on_epoch_end(None, None, control, model=None)
    assert control.should_log


def test_the_clock_saves_within_an_epoch_and_never_at_its_end() -> None:
    always = SaveByTheClock(0)
    assert step(always, 0.5)
    assert step(always, 1.25)
    assert not step(always, 1.0)  # the dev rows are scored next; the epoch's own checkpoint follows
    assert not step(always, 1.5, stopping=True)


def test_the_clock_starts_again_with_every_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    callback = SaveByTheClock(10)
    now = 109.0
    assert not step(callback, 0.5)
    now = 110.0
    assert step(callback, 0.5)
    callback.on_save(None, TrainerState(), TrainerControl(), model=None)
    now = 119.0
    assert not step(callback, 0.5)


def bar(shown: bool) -> Bar:
    with bars(shown) as progress:
        made = Bar("mood", "accuracy", progress)
        state = TrainerState(epoch=1.5, max_steps=8, global_step=3)
        log: list[dict[str, Any]] = [{"loss": 0.25, "step": 3}, {"eval_accuracy": 0.75, "eval_loss": 0.5, "step": 3}]
        for entry in log:
            state.log_history.append(entry)
            made.on_log(None, state, TrainerControl(), model=None)
        made.on_step_end(None, state, TrainerControl(), model=None)
    return made


def test_the_bar_shows_the_newest_loss_and_score(capsys: pytest.CaptureFixture[str]) -> None:
    shown = bar(shown=True)._progress.tasks[0]
    assert (shown.completed, shown.total) == (3, 8)
    assert shown.fields["latest"] == "epoch 1.5 · loss 0.250 · dev accuracy 0.750"
    assert capsys.readouterr().out == ""  # stdout belongs to results


def test_no_bar_is_drawn_where_none_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    bar(shown=False)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
