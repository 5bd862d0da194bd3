"""The sides of a comparison as the asking process sees them: each a process in an environment of its own (`side.py`).

Peers' environments are made by the Makefile, `.venv-adapters` and `.venv-peft`; a side whose environment is missing is
left out aloud. Only one side works at a time, for each waits for its next request.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from setups import Shape
from transformers import BertConfig, BertModel

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = {
    "graftwork": Path(sys.executable),
    "adapters": ROOT / ".venv-adapters" / "bin" / "python",
    "peft": ROOT / ".venv-peft" / "bin" / "python",
}


class Refused(Exception):
    """A side's library has no such setup."""


class Remote:
    """One side's process."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        self._results = folder
        quiet = {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
        quiet |= {"PYTHONPATH": str(ROOT / "src")}  # for the clock: peers' environments have no graftwork
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [PYTHONS[name], Path(__file__).with_name(f"side_{name}.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **quiet, "TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled")},
            )

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        """One request and its answer. Raises Refused, or RuntimeError for whatever went wrong over there."""
        asked, answers = self._process.stdin, self._process.stdout
        assert asked is not None
        assert answers is not None
        try:
            asked.write(json.dumps({"do": do, **fields}) + "\n")
            asked.flush()
            line = answers.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            last = " | ".join(self._log.read_text("utf8", errors="replace").splitlines()[-5:])
            raise RuntimeError(f"the side {self.name} ended: {last or 'it said nothing'}")
        found: dict[str, Any] = json.loads(line)
        if "refused" in found:
            raise Refused(f"{self.name}: {found['refused']}")
        if "error" in found:
            raise RuntimeError(f"{self.name}, asked to {do} {fields}: {found['error']}")
        return found

    def result(self) -> Path:
        """Where this side puts what a setup returned."""
        return self._results / f"{self.name}.safetensors"

    def output(self) -> torch.Tensor:
        """What the last prepared setup returned, (B, T, D)."""
        return load_file(self.result())["output"]

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(timeout=60)


class Sides:
    """All sides of one run on one base; a context manager. versions: what each says it runs."""

    def __init__(self, names: list[str], shape: Shape, dtype: str, threads: int, options: Mapping[str, Any]) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="graftwork-bench-")
        folder = Path(self._temporary.name)
        write_base(folder / "base", shape)
        self.remotes = {name: Remote(name, folder) for name in names}
        self.versions: dict[str, str] = {}
        fields = {"dtype": dtype, "threads": threads, "options": dict(options)}
        try:
            for name, remote in self.remotes.items():
                opened = remote.ask("open", base=str(folder / "base"), folder=str(folder), **fields)
                self.versions[name] = opened["versions"]
        except RuntimeError:
            self.__exit__()
            raise

    def __enter__(self) -> "Sides":
        return self

    def __exit__(self, *_: object) -> None:
        for remote in self.remotes.values():
            remote.close()
        self._temporary.cleanup()


def present(names: list[str]) -> list[str]:
    """The sides whose environments the Makefile has finished; says which are missing."""
    whole = [name for name in names if (PYTHONS[name].parent.parent / ".installed").exists()]
    for name in names:
        if name not in whole:
            print(f"SKIPPED: {name}: {PYTHONS[name].parent.parent.name} is not built; `make bench-peers` builds it")
    return whole


def write_base(folder: Path, shape: Shape) -> None:
    """A BERT encoder with random weights as a folder that every version of transformers loads."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=1000,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=max(1, shape.width // 64),
        intermediate_size=4 * shape.width,
        max_position_embeddings=max(512, shape.tokens),
    )
    folder.mkdir(parents=True)
    fields = {key: value for key, value in config.to_dict().items() if key not in ("dtype", "transformers_version")}
    (folder / "config.json").write_text(json.dumps(fields | {"architectures": ["BertModel"]}), "utf8")
    state = {key: value.contiguous() for key, value in BertModel(config).state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
