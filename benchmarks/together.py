"""What does training eight adapters in one run save, against training them one after another?

    python benchmarks/together.py [--quick] [--shapes 1x16,8x16,32x64] [--adapters 2,8] [--batches 4,32] [--epochs 3]
                                  [--rounds 5] [--threads 1] [--clock cpu] [--json FILE] [--out FILE]

Base: MiniLM (6 layers, 384 wide), seq_bn r16. Steps: forward and backward of N adapters with a batch of B x T tokens
each, together and one after another in turns, and the quotient of their times: how many times as fast. Runs: eight
recipes by `train_together`, and by `train` one after another, with all that belongs to a run (tokenising, scoring,
packages): eight tasks, and eight widths of one task, a few hundred rows each from the shared data, the base at rest
(`base_dropout: false`); seconds by the wall and of all processors, and dev scores, which must be the same up to what
rounding does to a close decision. Without the shared data only the steps are measured.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from page import command, page, table, write
from torch import Tensor

from graftwork import recipe as recipes
from graftwork.compose.abreast import Call, run_abreast
from graftwork.compose.forward import Asks
from graftwork.compose.inputs import for_heads, shape_of
from graftwork.errors import GraftworkError
from graftwork.model import AdapterModel, AutoAdapterModel
from graftwork.recipe import Recipe
from graftwork.timing import CLOCKS, alternate, milliseconds, quotients
from graftwork.train.outcome import TrainResult
from graftwork.train.run import train
from graftwork.train.together import train_together

Found = dict[str, Any]
ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "together.md"
SHARED = Path(os.environ.get("GRAFTWORK_SHARED") or ROOT.parent / "shared") / "data"
TASKS = {
    "trec": "classification",
    "sst2": "classification",
    "tweet_emotion": "classification",
    "mrpc": "pair",
    "tweet_irony": "classification",
    "snips": "classification",
    "cola": "classification",
    "mr_sentiment": "classification",
}
WIDTHS = (2, 4, 8, 16, 32, 64, 96, 128)  # reduction factors
RECIPE = """
model: {name: minilm}
adapter: {variant: seq_bn, reduction_factor: 16}
training: {learning_rate: 1e-3, max_seq_length: 64, base_dropout: false, logging_steps: 1000}
"""


def models(count: int) -> list[AdapterModel]:
    """So many models over one base at rest, each with an adapter and a head that train."""
    first = AutoAdapterModel.from_pretrained("minilm")
    made = [first, *(AdapterModel(first.backbone) for _ in range(count - 1))]
    for model in made:
        model.add_adapter("a", "seq_bn[reduction_factor=16]")
        model.add_classification_head("a", num_labels=2)
        model.train_adapter("a")
    first.base.eval()
    return made


def steps(made: Sequence[AdapterModel], rows: int, tokens: int) -> dict[str, Callable[[], None]]:
    """Forward and backward of a batch of every model, one after another and together."""
    draw = torch.Generator().manual_seed(0)
    batches: list[dict[str, Tensor]] = [
        {
            "input_ids": torch.randint(1000, 9000, (rows, tokens), generator=draw),
            "attention_mask": torch.ones(rows, tokens, dtype=torch.long),
            "labels": torch.randint(0, 2, (rows,), generator=draw),
        }
        for _ in made
    ]

    def apart() -> None:
        for model, batch in zip(made, batches, strict=True):
            model(**batch).loss.backward()

    def shared() -> None:
        calls = [
            Call(model.parts, model.plan("a", "a", rows), for_heads(batch, shape_of(batch)), Asks(None, None, True))
            for model, batch in zip(made, batches, strict=True)
        ]
        torch.autograd.backward([answer().loss for answer in run_abreast(made[0].backbone, calls, {})])

    return {"apart": apart, "together": shared}


def measured_steps(counts: Sequence[int], shapes: Sequence[str], rounds: int, clock: str) -> list[Found]:
    rows = []
    for count in counts:
        made = models(count)
        for shape in shapes:
            times = alternate(steps(made, *map(int, shape.split("x"))), rounds, clock)
            found = quotients(times["apart"], times["together"])
            rows.append({
                "part": "step", "adapters": count, "shape": shape, "speedup": found.middle, "low": found.low,
                "high": found.high, "apart_ms": milliseconds(times["apart"]), "clock": clock,
                "together_ms": milliseconds(times["together"]),
            })  # fmt: skip
            print(f"{count} adapters, {shape}: {found} times as fast", flush=True)
    return rows


def some(task: str, folder: Path, train_rows: int, dev_rows: int) -> dict[str, str]:
    """The first rows of a shared data set, as files of their own; in dev those whose label train has."""
    files: dict[str, str] = {}
    known: set[str] = set()
    for split, count in (("train", train_rows), ("dev", dev_rows)):
        rows = [json.loads(line) for line in (SHARED / task / f"{split}.jsonl").read_text("utf8").splitlines()]
        known = known or {row["label"] for row in rows[:count]}
        file = folder / f"{task}-{split}.jsonl"
        kept = [row for row in rows if row["label"] in known][:count]
        file.write_text("".join(json.dumps(row) + "\n" for row in kept), "utf8")
        files[split] = str(file)
    return files


def sets(folder: Path, options: argparse.Namespace, batch: int) -> dict[str, list[Recipe]]:
    """Eight tasks, and eight widths of the first, with batches of so many rows."""

    def made(name: str, task: str, changes: Mapping[str, Any]) -> Recipe:
        files = some(task, folder, options.rows, 40 if options.quick else 200)
        text = f"{RECIPE}task: {{kind: {TASKS[task]}}}\ndata: {json.dumps(files)}\n"
        epochs = {"training.epochs": options.epochs, "training.batch_size": batch, "output": str(folder / name)}
        return recipes.override(recipes.loads(text, name=name), {**epochs, **changes})

    return {
        "tasks": [made(f"task-{task}", task, {}) for task in TASKS],
        "widths": [made(f"width-{width}", "trec", {"adapter.reduction_factor": width}) for width in WIDTHS],
    }


def whole(run: Callable[[], list[TrainResult | GraftworkError]]) -> tuple[list[float], float, float]:
    """Dev scores, and seconds by the wall and of all processors."""
    wall, processors = time.perf_counter(), time.process_time()
    found = run()
    taken = time.perf_counter() - wall, time.process_time() - processors
    scores = []
    for result in found:
        if isinstance(result, GraftworkError):
            raise result
        scores.append(result.scores["dev"][result.main])
    return scores, *taken


def measured_runs(options: argparse.Namespace) -> list[Found]:
    rows: list[Found] = []
    for batch in options.batches:
        for name in ("tasks",) if options.quick else ("tasks", "widths"):
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place)
                listed = sets(folder, options, batch)[name]
                elsewhere = [recipes.override(one, {"output": f"{one.output}-apart"}) for one in listed]
                apart, apart_wall, apart_cpu = whole(
                    lambda listed=elsewhere: [train(one, progress=False) for one in listed]
                )
                shared, wall, cpu = whole(lambda listed=listed: train_together(listed, progress=False))
            rows.append({
                "part": "run", "set": name, "recipes": len(listed), "batch": batch, "rows": options.rows,
                "epochs": options.epochs, "apart_wall": apart_wall, "wall": wall, "apart_cpu": apart_cpu, "cpu": cpu,
                "apart_scores": apart, "scores": shared,
                "difference": max(abs(one - other) for one, other in zip(apart, shared, strict=True)),
            })  # fmt: skip
            print(
                f"{name}, batches of {batch}: {apart_wall:.1f} s apart, {wall:.1f} s together (processors "
                f"{apart_cpu:.1f} and {cpu:.1f}); scores at most {rows[-1]['difference']:.4f} apart",
                flush=True,
            )
    return rows


def _run(row: Found) -> list[str]:
    return [
        f"{row['recipes']} {row['set']}",
        f"{row['batch']} rows",
        f"{row['apart_wall']:.1f} s, {row['apart_cpu']:.1f} s",
        f"{row['wall']:.1f} s, {row['cpu']:.1f} s",
        f"{row['apart_wall'] / row['wall']:.2f}, {row['apart_cpu'] / row['cpu']:.2f}",
        f"{row['difference']:.4f} at most",
    ]


def told(rows: Sequence[Found], threads: int) -> str:
    """The page."""
    taken = [row for row in rows if row["part"] == "step"]
    runs = [row for row in rows if row["part"] == "run"]
    parts = [
        f"Base: MiniLM, 6 layers, 384 wide, float32, at rest; seq_bn r16; {threads} thread(s). "
        "Above 1, together is faster."
    ]
    parts += ["## Steps", table(
        ["adapters", "batch of each", "one after another, ms", "together, ms", "times as fast (quartiles)"],
        [[str(row["adapters"]), row["shape"], f"{row['apart_ms']:.0f}", f"{row['together_ms']:.0f}",
          f"{row['speedup']:.2f} ({row['low']:.2f}-{row['high']:.2f})"] for row in taken],
    )]  # fmt: skip
    if runs:
        head = ["what", "batch of each", "apart: wall, processors", "together", "times as fast", "dev scores differ by"]
        parts += ["## Whole runs", table(head, [_run(row) for row in runs])]
    return page("Many adapters in one training run", command(), *parts)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--shapes")
    parser.add_argument("--adapters")
    parser.add_argument("--batches")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    quick = options.quick
    shapes = (options.shapes or ("1x16,8x16" if quick else "1x16,4x16,8x16,32x16,8x64,32x64")).split(",")
    counts = [int(one) for one in (options.adapters or ("8" if quick else "2,8,32")).split(",")]
    options.batches = [int(one) for one in (options.batches or ("4" if quick else "4,32")).split(",")]
    options.rows = options.rows or (24 if quick else 320)
    options.epochs = options.epochs or (1 if quick else 3)
    torch.set_num_threads(options.threads)
    rows = measured_steps(counts, shapes, options.rounds or (3 if quick else 7), options.clock)
    rows += measured_runs(options) if SHARED.is_dir() and options.batches != [0] else []
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", "utf8")
    if options.out or not quick:
        write(options.out or RESULTS, told(rows, options.threads))


if __name__ == "__main__":
    main()
