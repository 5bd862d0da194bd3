"""Sealed checkpoints: a damaged, half-written or half-deleted one is never taken for whole."""

import json
from pathlib import Path
from typing import Any

import pytest

from graftwork.train.checkpoint import SEAL, STATE, drop_after, is_whole, newest_whole, seal


def made(folder: Path, step: int, best: int | None = None, **state: Any) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"weights" * step)
    whole = {"global_step": step, "max_steps": 100, "best_global_step": best, "stateful_callbacks": {}, **state}
    (path / STATE).write_text(json.dumps(whole), "utf8")
    seal(path)
    return path


def test_a_sealed_checkpoint_is_whole(tmp_path: Path) -> None:
    path = made(tmp_path, 5)
    assert is_whole(path)
    found = newest_whole(tmp_path)
    assert found is not None
    assert (found.folder, found.step, found.finished, found.best) == (path, 5, False, None)


def damage_missing(path: Path) -> None:
    (path / "model.safetensors").unlink()


def damage_short(path: Path) -> None:
    (path / "model.safetensors").write_bytes(b"weights")


def damage_changed(path: Path) -> None:
    data = bytearray((path / "model.safetensors").read_bytes())
    data[3] ^= 1
    (path / "model.safetensors").write_bytes(bytes(data))


def damage_unsealed(path: Path) -> None:
    (path / SEAL).unlink()


def damage_seal(path: Path) -> None:
    (path / SEAL).write_bytes((path / SEAL).read_bytes()[:20])


def damage_empty_seal(path: Path) -> None:
    (path / SEAL).write_text('{"files": {}}', "utf8")


def damage_strange_seal(path: Path) -> None:
    (path / SEAL).write_text("[1]", "utf8")


DAMAGES = [value for name, value in sorted(globals().items()) if name.startswith("damage_")]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_noticed_and_the_one_before_is_taken(tmp_path: Path, damage: Any) -> None:
    made(tmp_path, 5)
    broken = made(tmp_path, 7)
    damage(broken)
    assert not is_whole(broken)
    found = newest_whole(tmp_path)
    assert found is not None
    assert found.step == 5
    assert drop_after(tmp_path, 5) == ["checkpoint-7"]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


def test_steps_are_compared_as_numbers(tmp_path: Path) -> None:
    for step in (9, 10, 2):
        made(tmp_path, step)
    (tmp_path / "checkpoint-old").mkdir()
    (tmp_path / "checkpoint-11").write_text("no folder", "utf8")
    found = newest_whole(tmp_path)
    assert found is not None
    assert found.step == 10
    assert drop_after(tmp_path, 2) == ["checkpoint-10", "checkpoint-9"]


def test_a_checkpoint_whose_best_one_is_gone_is_passed_over(tmp_path: Path) -> None:
    best = made(tmp_path, 5, best=5)
    made(tmp_path, 8, best=5)
    found = newest_whole(tmp_path)
    assert found is not None
    assert (found.step, found.best) == (8, best)
    damage_short(best)
    assert newest_whole(tmp_path) is None


def test_the_end_of_a_run_is_seen(tmp_path: Path) -> None:
    stopped = {"TrainerControl": {"args": {"should_training_stop": True}}}
    for step, state, finished in ((10, {}, False), (20, {"stateful_callbacks": stopped}, True), (100, {}, True)):
        made(tmp_path, step, **state)
        found = newest_whole(tmp_path)
        assert found is not None
        assert (found.step, found.finished) == (step, finished)


def test_no_folder_holds_no_checkpoint(tmp_path: Path) -> None:
    assert newest_whole(tmp_path / "nowhere") is None
    assert drop_after(tmp_path / "nowhere", 0) == []
