"""What a run brought: scores, history, counts and where it ran, as one value, and as result.json and back."""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from graftwork.core.counting import counted
from graftwork.errors import PackageError
from graftwork.model import AdapterModel
from graftwork.registry.durable import named, replace_file
from graftwork.registry.package import Package, read
from graftwork.strict_json import load_json
from graftwork.train.folder import RunFolder, encoded

_OF_STEPS = ("loss", "learning_rate", "grad_down", "grad_up", "up")
LIBRARIES = ("graftwork", "torch", "transformers", "tokenizers", "datasets", "safetensors", "numpy")


@dataclass(frozen=True)
class TrainResult:
    """One finished run. `package` holds what was trained; `scores` are those of the best epoch, `dev` and `test`.

    history: points of the training curve, {"step", "epoch"} with "loss", "learning_rate" and the numbers of
    `train/monitor.py`, or with "dev" scores. learning: what that says of them all, {"state"} with numbers.
    drop_curve: of a run with `training.drop`, the dev scores with the adapters of the lowest 0, 1, … layers dropped.
    parallel: how several processes shared it, {"kind", "processes"}; empty for one.
    screening: of a fusion, what each member was worth alone before it (`train/screening.py`). attention: and what it
    then attends to on the dev rows (`train/attention.py`).
    parameters: of what trained, the adapter, fusion and head in the package, and the base. seconds: of training; those
    up to its checkpoint too where a run was resumed (from step `resumed_from`). memory: the most that its process held.
    """

    name: str
    method: str
    composition: str
    main: str  # the score that counts
    scores: Mapping[str, Mapping[str, float]]
    history: Sequence[Mapping[str, Any]]
    steps: int
    epochs: float
    best_epoch: float
    parameters: Mapping[str, int]
    data: Mapping[str, Any]
    seed: int
    seconds: float
    command: str
    folder: Path = field(metadata={"written": False})
    package: Package = field(metadata={"written": False})
    notes: tuple[str, ...] = ()
    resumed_from: int = 0
    machine: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    learning: Mapping[str, Any] = field(default_factory=dict)
    parallel: Mapping[str, Any] = field(default_factory=dict)
    drop_curve: Sequence[Mapping[str, float]] = field(default_factory=list)
    memory: Mapping[str, int] = field(default_factory=dict)
    screening: Sequence[Mapping[str, Any]] = field(default_factory=list)
    attention: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of the package's files, and of a tuned base or PEFT's files."""
        folder = RunFolder(self.folder)
        files = [
            file for place in (folder.package, folder.model, folder.peft) if place.is_dir() for file in place.iterdir()
        ]
        return sum(file.stat().st_size for file in files)


def write_result(result: TrainResult) -> None:
    """Put result.json into the run's folder; a run that has one is finished. Raises UserError."""
    written = [one.name for one in fields(result) if one.metadata.get("written", True)]
    contents = {key: value for key, value in _plain(result).items() if key in written}
    with named(result.folder):
        replace_file(RunFolder(result.folder).result, encoded(contents))


def read_result(folder: RunFolder) -> TrainResult:
    """A finished run, read back. Raises PackageError."""
    contents = load_json(folder.result.read_bytes(), str(folder.result))
    known = [one for one in fields(TrainResult) if one.metadata.get("written", True)]
    names = {one.name for one in known}
    needed = {one.name for one in known if one.default is MISSING and one.default_factory is MISSING}
    if not isinstance(contents, dict) or not needed <= contents.keys() <= names:
        raise PackageError(f"{folder.result}: is not the result of a run; start again with --overwrite")
    notes = tuple(contents.pop("notes", None) or ())  # type: ignore[arg-type]
    return TrainResult(**contents, notes=notes, folder=folder.path, package=read(folder.package))  # type: ignore[arg-type]


def _plain(result: TrainResult) -> dict[str, Any]:
    shallow = {one.name: getattr(result, one.name) for one in fields(result) if one.name != "package"}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in shallow.items()}


def counts(model: AdapterModel, name: str) -> dict[str, int]:
    """The parameters of what has a name in a model, and of its base."""
    parts = model.parts
    return {
        "adapter": parts.count("adapters", name) if name in parts.adapter_configs else 0,
        "fusion": parts.count("fusions", name) if name in parts.fusion_records else 0,
        "head": parts.count("heads", name),
        "base": counted(model.base),
    }


def history(log: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The Trainer's log as points of a curve."""
    points: list[dict[str, Any]] = []
    for entry in log:
        point: dict[str, Any] = {key: entry[key] for key in ("step", "epoch") if key in entry}
        if "eval_loss" in entry:
            dev = {key.removeprefix("eval_"): value for key, value in entry.items() if key.startswith("eval_")}
            speed = ("runtime", "samples_per_second", "steps_per_second")
            points.append(point | {"dev": {key: value for key, value in dev.items() if key not in speed}})
        elif "loss" in entry:
            points.append(point | {key: entry[key] for key in _OF_STEPS if key in entry})
    return points


def machine(threads: int | None = None) -> str:
    """What this ran on, in one line without names of hosts or places. threads: of other processes that did the work."""
    count = threads or torch.get_num_threads()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{count} thread{'s' * (count > 1)}"
    return f"{_processor()}, {device}, Python {platform.python_version()}, torch {torch.__version__}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf8").splitlines()
    except OSError:
        return platform.machine()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{named[0]}, {len(named)} cores" if named else platform.machine()


def versions() -> dict[str, str]:
    """The libraries that a result depends on."""
    return {library: importlib.metadata.version(library) for library in LIBRARIES}
