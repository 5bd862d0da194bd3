"""What does a training step cost beside the frozen base, here and in the peers' libraries, and what does an epoch?

    python benchmarks/training.py [--quick] [--setups seq_bn,fuse3] [--no-peers] [--shape 8x64] [--layers 12]
                                  [--width 768] [--dtype float32] [--rounds 9] [--rows 2000] [--clock wall]
                                  [--json FILE] [--out FILE]

Steps (`steps.py`): every library in an environment and a process of its own, on the shape of BERT-base with random
weights, in turns with the forward of its own base without a graph; `ratio` is the median quotient of a turn. Epochs:
recipes on MiniLM and SST-2, with frozen first layers whose states are kept (`training.prefix_cache`) and without; an
epoch trains, scores the dev rows and saves, and the median of three counts. `--quick` measures half the layers and half
the tokens, in fewer rounds, with fewer rows, and leaves the slowest setups out. Writes
benchmarks/results/training.md and its rows beside it as JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import torch
from page import command, conditions, page, table, write
from sides import PYTHONS, present

from graftwork import recipe as recipes
from graftwork.timing import CLOCKS
from graftwork.train import fit as fitting
from graftwork.train.callbacks import LogAtEpochEnd
from graftwork.train.run import train

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "training.md"
COMMON = ("seq_bn", "double_seq_bn", "lora", "fuse3", "fuse8")
PEERS = {"adapters": COMMON, "peft": ("lora",)}  # what each has
OWN = ("head", "seq_bn_rests", "seq_bn_top", "seq_bn_top_kept", "fuse3_textbook", "fuse8_textbook", "full")
SLOW = ("fuse8", "fuse8_textbook", "head")  # what --quick leaves out
EPOCHS: dict[str, dict[str, Any]] = {
    "adapters in the upper half": {"adapter.variant": "seq_bn[leave_out=[0,1,2]]"},
    "head only": {"training.method": "head"},
}
Row = dict[str, Any]


def steps(library: str, setups: list[str], asked: argparse.Namespace, rounds: int) -> list[Row]:
    """Rows of a library, measured in its environment. Raises RuntimeError with the end of what it said."""
    shape = ["--shape", asked.shape, "--layers", str(asked.layers), "--width", str(asked.width)]
    quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    quiet |= {"PYTHONPATH": str(ROOT / "src")}  # its clock, in environments that lack graftwork
    ended = subprocess.run(
        [PYTHONS[library], Path(__file__).with_name("steps.py"), library, "--setups", ",".join(setups),
         *shape, "--dtype", asked.dtype, "--rounds", str(rounds), "--clock", asked.clock],
        env={**os.environ, **quiet}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if ended.returncode:
        raise RuntimeError(f"{library}: {' | '.join(ended.stderr.splitlines()[-5:])}")
    rows: list[Row] = json.loads(ended.stdout)
    return [row | {"clock": asked.clock} for row in rows]


def all_steps(asked: argparse.Namespace, rounds: int) -> list[Row]:
    """The rows of every library that is there."""
    usual = [name for name in (*COMMON, *OWN) if not (asked.quick and name in SLOW)]
    wanted = asked.setups.split(",") if asked.setups else usual
    found = steps("graftwork", wanted, asked, rounds)
    for peer in [] if asked.no_peers else present(list(PEERS)):
        shared = [setup for setup in wanted if setup in PEERS[peer]]
        found += steps(peer, shared, asked, rounds) if shared else []
    return found


def epochs(shared: Path, rows: int, clock: str) -> list[Row]:
    """Seconds of an epoch on MiniLM and SST-2 with and without kept states, and what keeping them took."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GRAFTWORK_HOME"] = str(Path(folder, "home"))
        for split, count in (("train", rows), ("dev", rows // 4)):
            lines = (shared / "sst2" / f"{split}.jsonl").read_text("utf8").splitlines()[:count]
            Path(folder, f"{split}.jsonl").write_text("\n".join(lines) + "\n", "utf8")
        return [one | {"rows": rows, "clock": clock} for one in (epoch(name, folder, CLOCKS[clock]) for name in EPOCHS)]


class Stamped(LogAtEpochEnd):
    """Notes when each epoch began, and when the last one ended with its scoring."""

    now: Callable[[], float] = staticmethod(CLOCKS["wall"])
    stamps: ClassVar[list[float]] = []

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.stamps.append(self.now())

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.stamps.append(self.now())


def epoch(name: str, folder: str, now: Callable[[], float]) -> Row:
    """One setup of `epochs`, with its rows in a folder."""
    Stamped.now = now
    fitting.LogAtEpochEnd = Stamped
    seconds, before, weights = {}, {}, {}
    for cache in ("off", "2GB"):
        made = recipes.override(
            recipes.loads(TEXT, folder=folder, name="sst2"),
            {**EPOCHS[name], "training.prefix_cache": cache, "output": str(Path(folder, f"{name}-{cache}"))},
        )
        Stamped.stamps.clear()
        start = now()
        weights[cache] = train(made, progress=False).package.tensors
        seconds[cache] = median(end - begin for begin, end in pairwise(Stamped.stamps))
        before[cache] = Stamped.stamps[0] - start
    return {
        "setup": name,
        "epoch_seconds": seconds["off"],
        "kept_epoch_seconds": seconds["2GB"],
        "faster": seconds["off"] / seconds["2GB"],
        "keeping_seconds": before["2GB"] - before["off"],
        "megabytes": max(path.stat().st_size for path in Path(folder, "home").rglob("states")) / 1e6,
        "weights_differ_by": max(float((one - weights["2GB"][key]).abs().max()) for key, one in weights["off"].items()),
    }


TEXT = """
model: {name: minilm}
training: {epochs: 3, batch_size: 32, learning_rate: 1e-3, max_seq_length: 64, base_dropout: false}
task: {kind: classification}
data: {train: train.jsonl, dev: dev.jsonl}
"""


def written(found: dict[str, Any]) -> str:
    """The page."""
    step_rows = [
        [
            f"`{row['setup']}`", row["side"], f"{row['milliseconds']:.0f}",
            f"{row['ratio']:.2f} ({row['low']:.2f}-{row['high']:.2f})", f"{row['kept_megabytes']:,.0f}",
        ]
        for row in found["steps"]
    ]  # fmt: skip
    epoch_rows = [
        [
            row["setup"], str(row["rows"]), f"{row['epoch_seconds']:.1f}", f"{row['kept_epoch_seconds']:.1f}",
            f"{row['faster']:.1f}×", f"{row['keeping_seconds']:.1f}", f"{row['megabytes']:.0f}",
            f"{row['weights_differ_by']:.0e}",
        ]
        for row in found["epochs"]
    ]  # fmt: skip
    first = found["steps"][0]
    parts = [
        f"A step is forward, backward and AdamW; its cost is in forwards of the frozen base without a graph, at "
        f"{first['shape']} tokens, {first['layers']} layers of width {first['width']}, {first['dtype']}, "
        f"{first['threads']} thread, by the {first['clock']} clock. Kept: what autograd holds between forward and "
        "backward. `_textbook`: a fusion with a key and a value of every member. `_rests`: `base_dropout: false`. "
        "`_top`: adapters in the upper half of the layers. `_top_kept`: the same behind the kept states of the lower "
        "half. Of these setups PEFT has LoRA. Epochs are of recipes, in float32.",
        table(["setup", "library", "ms a step", "base forwards a step (quartiles)", "MB kept"], step_rows),
    ]
    if epoch_rows:
        head = [
            "what trains",
            "rows",
            "s an epoch",
            "s, states kept",
            "faster",
            "s to keep them",
            "MB",
            "weights differ",
        ]
        parts += ["## Epochs on MiniLM and SST-2, with `training.prefix_cache`", table(head, epoch_rows)]
    return page("Training", found["command"], *parts, peers={row["side"]: row["versions"] for row in found["steps"]})


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setups", help="of steps; left out, all")
    parser.add_argument("--no-peers", action="store_true", help="graftwork alone")
    parser.add_argument("--shape", help="rows x tokens; left out, 8x64, and 8x32 of --quick")
    parser.add_argument("--layers", type=int, help="left out, 12, and 6 of --quick")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of steps; epochs: float32")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", type=int, default=2000, help="of an epoch; 0 leaves epochs out")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--quick", action="store_true", help="small and 3 rounds, 100 rows")
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    parser.add_argument("--out", type=Path, default=OUT, help="the page; its rows go beside it")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.shape = asked.shape or ("8x32" if asked.quick else "8x64")
    asked.layers = asked.layers or (6 if asked.quick else 12)
    rounds, rows = (3, min(100, asked.rows)) if asked.quick else (asked.rounds, asked.rows)
    shared = Path(os.environ.get("GRAFTWORK_SHARED") or ROOT.parent / "shared") / "data"
    if asked.dtype != "float32":
        rows = 0
    if rows and not shared.is_dir():
        print(f"SKIPPED: epochs: there is no {shared}; see GRAFTWORK_SHARED", file=sys.stderr)
        rows = 0
    found = {"command": command(), "conditions": conditions(), "steps": all_steps(asked, rounds)}
    found["epochs"] = epochs(shared, rows, asked.clock) if rows else []
    text = written(found)
    print(text)
    for file in filter(None, (asked.json, asked.out.with_suffix(".json"))):
        write(file, json.dumps(found, indent=1) + "\n")
    write(asked.out, text)


if __name__ == "__main__":
    main()
