"""A run's result: written, read back, drawn and printed; nothing is lost, and damage is named."""

import dataclasses
import io
import json
import platform
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from graftwork.build import add_task_head
from graftwork.errors import PackageError, UserError
from graftwork.model import AdapterModel
from graftwork.registry.package import write
from graftwork.tasks.classify import Classification
from graftwork.train import report
from graftwork.train.curve import MISSING, draw
from graftwork.train.folder import RunFolder
from graftwork.train.outcome import TrainResult, history, machine, read_result, versions, write_result
from tests import tiny

LOG = [
    {"loss": 0.7, "grad_norm": 1.5, "learning_rate": 1e-3, "epoch": 0.5, "step": 5},
    {"eval_loss": 0.6, "eval_accuracy": 0.75, "eval_runtime": 1.0, "eval_samples_per_second": 9.0,
     "eval_steps_per_second": 2.0, "epoch": 1.0, "step": 10},
    {"train_runtime": 3.0, "train_loss": 0.65, "epoch": 1.0, "step": 10},
]  # fmt: skip
POINTS = [
    {"step": 5, "epoch": 0.5, "loss": 0.7, "learning_rate": 1e-3},
    {"step": 10, "epoch": 1.0, "dev": {"loss": 0.6, "accuracy": 0.75}},
]


def result(folder: Path, **changes: Any) -> TrainResult:
    model = AdapterModel(tiny.model("bert"))
    add_task_head(model, Classification(("a", "b"), 32), "mood")
    package = model.package("mood")
    write(package, folder / "package", overwrite=True)
    made = TrainResult(
        name="mood", method="head", composition="none", main="accuracy",
        scores={"dev": {"accuracy": 0.75, "mcc": 0.5}, "test": {"accuracy": 0.5, "mcc": 0.25}},
        history=POINTS, steps=10, epochs=1.0, best_epoch=1.0,
        parameters={"trained": 1122, "adapter": 0, "fusion": 0, "head": 1122, "base": 44880},
        data={"digest": "d", "rows": {"train": 3}}, seed=0, seconds=12.3, command="graftwork train x.yaml",
        folder=folder, package=package, notes=("2 rows were cut",), machine=machine(), versions=versions(),
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def test_a_result_is_read_back_as_it_was(tmp_path: Path) -> None:
    made = result(tmp_path)
    write_result(made)
    found = read_result(RunFolder(tmp_path))
    assert found.package.digest == made.package.digest
    assert dataclasses.replace(found, package=made.package) == made
    written = json.loads((tmp_path / "result.json").read_text())
    assert "folder" not in written
    assert str(tmp_path) not in json.dumps(written)


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    write_result(result(tmp_path))
    for text in ('{"name": "x"}', "[]", "{"):
        (tmp_path / "result.json").write_text(text)
        with pytest.raises(PackageError, match=r"result\.json"):
            read_result(RunFolder(tmp_path))


def test_a_disk_that_refuses_is_named(tmp_path: Path) -> None:
    made = result(tmp_path / "run")
    with pytest.raises(UserError, match="nowhere: cannot be written: No such file"):
        write_result(dataclasses.replace(made, folder=tmp_path / "nowhere"))


def test_the_log_becomes_points_of_a_curve() -> None:
    assert history(LOG) == POINTS


def test_the_machine_is_one_line_without_names_of_places() -> None:
    line = machine()
    assert "\n" not in line
    assert f"torch {torch.__version__}" in line
    assert "cores" in line
    assert platform.node() not in line
    assert f", {torch.get_num_threads()} thread" in line
    assert ", 1 thread, " in machine(1)
    assert ", 2 threads, " in machine(2)


def test_a_curve_is_a_picture(tmp_path: Path) -> None:
    assert draw(POINTS, "accuracy", "mood", tmp_path / "curve.png") == ""
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert draw(POINTS[1:], "loss", "mood", tmp_path / "curve.png") == ""  # a run shorter than one log


def test_without_matplotlib_there_is_a_line_and_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", [])
    monkeypatch.setattr(sys, "path", [])
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    assert draw(POINTS, "accuracy", "mood", tmp_path / "curve.png") == MISSING
    assert "graftwork[plots]" in MISSING
    assert not (tmp_path / "curve.png").exists()


def printed(*results: TrainResult) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(report.table(results))
    return console.export_text()


def test_the_table(tmp_path: Path) -> None:
    text = printed(result(tmp_path))
    for shown in ("dev accuracy", "test accuracy", "mood", "head", "0.7500", "0.5000", "1,122 (2.5%)", "MB", "12 s"):
        assert shown in text
    without_test = result(tmp_path, scores={"dev": {"accuracy": 0.75}})
    assert " - " in printed(without_test)
    other = result(tmp_path, main="mcc")
    assert "0.5000 mcc" in printed(result(tmp_path), other)


def test_lines_name_scores_notes_and_files(tmp_path: Path) -> None:
    assert report.lines(result(tmp_path)) == [
        "dev: accuracy 0.7500, mcc 0.5000",
        "test: accuracy 0.5000, mcc 0.2500",
        "monitor: nothing to see: no bottleneck, LoRA or DoRA trained",
        "note: 2 rows were cut",
        f"package: {tmp_path / 'package'}",
        f"all of it: {tmp_path}",
    ]
