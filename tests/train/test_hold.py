"""A folder in which a process trains is not another's to train in, and a comparison that is stopped trains no more."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from graftwork.errors import Conflict
from graftwork.recipe import Recipe, dump, override
from graftwork.train.folder import RunFolder
from graftwork.train.hold import held, holder
from graftwork.train.run import train
from tests.shared import ROOT
from tests.train import small

LONG = {"training.epochs": 2000, "training.max_steps": None}


@contextmanager
def started(folder: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """`graftwork <words>`, once a run in `folder` has begun to train."""
    process = subprocess.Popen([sys.executable, "-m", "graftwork", *words], cwd=ROOT, stderr=subprocess.PIPE)
    begun = time.monotonic()
    try:
        while not any(RunFolder(folder).checkpoints.glob("checkpoint-*/sealed.json")):
            assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
            assert time.monotonic() - begun < 240
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.communicate()


def long(folder: Path) -> tuple[Recipe, str]:
    made = small.recipe(folder, LONG)
    (folder / "mood.yaml").write_text(dump(made))
    return made, str(folder / "mood.yaml")


def test_a_folder_is_trained_in_by_one_process(tmp_path: Path) -> None:
    made, file = long(tmp_path)
    place = Path(made.output)
    with started(place, "train", file) as process:
        there = (place / "run.json").stat().st_mtime_ns
        for how in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(Conflict, match=rf"run: process {process.pid} is training in it; let it end or stop"):
                train(made, **how)
        assert (place / "run.json").stat().st_mtime_ns == there
        assert process.poll() is None
    assert holder(place) is None
    with held(place):  # the system let go of what was killed
        assert holder(place) == os.getpid()
        with pytest.raises(Conflict, match=f"process {os.getpid()}"), held(place):
            pass
    short = train(override(made, {"training.epochs": 1}), overwrite=True)
    assert holder(place) is None
    with held(place):
        assert train(override(made, {"training.epochs": 1}), resume=True).package.digest == short.package.digest


@pytest.mark.parametrize(
    "stop", [signal.SIGTERM, *(pytest.param(one, marks=pytest.mark.full) for one in (signal.SIGINT, signal.SIGKILL))]
)
def test_a_comparison_that_is_stopped_trains_no_more(tmp_path: Path, stop: signal.Signals) -> None:
    _, file = long(tmp_path)
    words = ["compare", file, "--methods", "recipe", "--out", str(tmp_path / "out")]
    run = tmp_path / "out" / "mood-recipe-seed-0"
    with started(run, *words) as process:
        child = holder(run)
        assert child not in (None, process.pid)
        process.send_signal(stop)
        process.wait(60)
        begun = time.monotonic()
        while holder(run) is not None and time.monotonic() - begun < 20:
            time.sleep(0.05)
        left = holder(run)
        if left is not None:
            os.kill(left, signal.SIGKILL)
        assert left is None
