"""Which checkpoints are whole: a checkpoint counts once it is sealed, and the seal is written last.

The seal lists every file with its size and sha256. A folder that a killed process left half-written, half-overwritten
or half-deleted has no seal, or one that does not fit, and is skipped. Knows files and the trainer's state, no tensors.
"""

import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftwork.registry.durable import replace_file

SEAL = "sealed.json"
STATE = "trainer_state.json"
CLOCK = "Clock"  # the callback whose state are the seconds of training so far
_FOLDER = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: where it is, after how many steps, and whether its run had nothing left to train.

    seconds: of training up to it, in all processes that came one after another.
    """

    folder: Path
    step: int
    finished: bool
    best: Path | None  # the checkpoint with the best score so far; None before the first score
    seconds: float = 0.0


def seal(folder: Path) -> None:
    """Declare a checkpoint whole; the last thing that is written into it."""
    contents = {"files": {path.name: _entry(path) for path in _files(folder)}}
    replace_file(folder / SEAL, json.dumps(contents, sort_keys=True, indent=2).encode())


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint is sealed and every file is as it was then."""
    try:
        listed = json.loads((folder / SEAL).read_bytes())["files"]
        return bool(listed) and all(_entry(folder / name) == entry for name, entry in listed.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def newest_whole(folder: Path) -> Checkpoint | None:
    """The checkpoint with the most steps that is whole, and whose best one is too; None where there is none."""
    for step, path in sorted(_checkpoints(folder).items(), reverse=True):
        if is_whole(path):
            found = _read(path, step)
            if found.best is None or found.best == path or is_whole(found.best):
                return found
    return None


def drop_after(folder: Path, step: int) -> list[str]:
    """Remove what a run that goes on from `step` writes anew, and what is not whole; return the names."""
    dropped = [path for found, path in _checkpoints(folder).items() if found > step or not is_whole(path)]
    for path in dropped:
        shutil.rmtree(path, ignore_errors=True)
    return sorted(path.name for path in dropped)


def _read(path: Path, step: int) -> Checkpoint:
    state: dict[str, Any] = json.loads((path / STATE).read_bytes())
    control = state.get("stateful_callbacks", {}).get("TrainerControl", {}).get("args", {})
    finished = state["global_step"] >= state["max_steps"] or bool(control.get("should_training_stop"))
    best = path.parent / f"checkpoint-{state['best_global_step']}" if state.get("best_global_step") else None
    seconds = state.get("stateful_callbacks", {}).get(CLOCK, {}).get("args", {}).get("before", 0.0)
    return Checkpoint(path, step, finished, best, float(seconds))


def _checkpoints(folder: Path) -> dict[int, Path]:
    if not folder.is_dir():
        return {}
    found = {path: _FOLDER.fullmatch(path.name) for path in folder.iterdir() if path.is_dir()}
    return {int(match.group(1)): path for path, match in found.items() if match}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and path.name != SEAL)


def _entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
