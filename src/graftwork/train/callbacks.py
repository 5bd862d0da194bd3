"""What happens while transformers' Trainer runs: a progress bar, checkpoints by the clock, a log at each epoch's end.

None of it touches weights or random state, so a run is the same with and without.
"""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

from graftwork.train.checkpoint import CLOCK
from graftwork.train.devices import ALONE, Devices
from graftwork.train.monitor import ALARMS, judge


class LogAtEpochEnd(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Closes a point of the training curve with every epoch, so that a resumed run draws the unbroken run's curve."""

    def on_epoch_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        control.should_log = True


class SaveByTheClock(TrainerCallback):  # type: ignore[misc]
    """A checkpoint within a long epoch, whenever so many seconds have passed since the last one.

    Not at the last step of an epoch: the dev rows are scored between that step and the epoch's own checkpoint, and a
    run that went on from before the scoring would never do it. All processes save by the clock of the first.
    """

    def __init__(self, seconds: float, devices: Devices = ALONE) -> None:
        self.seconds = seconds
        self._devices = devices
        self._last = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        ends = control.should_training_stop or state.epoch == int(state.epoch)
        if not ends and self._devices.told(time.monotonic() - self._last >= self.seconds):
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self._last = time.monotonic()


class Clock(TrainerCallback):  # type: ignore[misc]
    """Writes into every checkpoint how long its run has trained, `before` included; transformers reads it back."""

    def __init__(self, before: float = 0.0) -> None:
        self._begun = time.perf_counter() - before

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        state.stateful_callbacks[CLOCK] = {"args": {"before": time.perf_counter() - self._begun}, "attributes": {}}

    on_evaluate = on_step_end  # scoring comes between an epoch's last step and its checkpoint


def bars(shown: bool) -> Progress:
    """Where runs have their bars, on stderr; a context, so that they are always taken down."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[latest]}"),
        console=Console(stderr=True),
        disable=not shown,
    )


class Bar(TrainerCallback):  # type: ignore[misc]
    """The bar of one run with its newest loss and dev score."""

    def __init__(self, title: str, metric: str, progress: Progress) -> None:
        self._metric = f"eval_{metric}"
        self._progress = progress
        self._task = self._progress.add_task(title, total=None, latest="")
        self._latest: dict[str, str] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self._progress.update(self._task, total=state.max_steps, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        newest = state.log_history[-1]
        for key, name in (("loss", "loss"), (self._metric, f"dev {self._metric.removeprefix('eval_')}")):
            if key in newest:
                self._latest[name] = f"{name} {newest[key]:.3f}"
        if "grad_up" in newest:
            found = judge(state.log_history).state
            alarm = f" {found}" if found in ALARMS else ""
            self._latest["grad"] = f"grad down {newest['grad_down']:.0e} up {newest['grad_up']:.0e}{alarm}"
        self._progress.update(self._task, latest=" · ".join([f"epoch {state.epoch:.1f}", *self._latest.values()]))
