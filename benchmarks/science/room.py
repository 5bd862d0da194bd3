"""The room for experiments: cells in, rows out, a page from the rows. Every script in this folder is built on it.

    STUDY = Study("e1_parity", plan, work, page)        if __name__ == "__main__": main(STUDY)
    python benchmarks/science/e1_parity.py [--quick] [--minutes N] [--seeds 0,1,2] [--only k=v ...] [--page]

`plan` says which cells there are, given the rows so far (a chosen learning rate follows from the grid before it);
`work` runs one. What has a row is not run again, so a study can be stopped and gone on with anywhere. Training is
graftwork's own, from recipes; a run's folder is kept under $GRAFTWORK_RUNS and found again by what its recipe says.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # benchmarks/: page.py

import page
import rows as book
import torch
from rows import Key, Row

from graftwork import recipe as recipes
from graftwork.build import open_encoder, open_model, package_task
from graftwork.evaluate import evaluate
from graftwork.model import AdapterModel
from graftwork.model import Setup as Adapters
from graftwork.recipe import Recipe
from graftwork.registry.store import Registry
from graftwork.schema.sections import DataSection, ModelSection
from graftwork.tasks.task import Task
from graftwork.train.data import read_split
from graftwork.train.outcome import TrainResult, machine, versions
from graftwork.train.run import train

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "science"
SHARED = Path(os.environ.get("GRAFTWORK_SHARED") or ROOT.parent / "shared") / "data"
SEEDS = (0, 1, 2)

# task -> its kind and its folder under the shared data
TASKS = {
    "trec": ("classification", "trec"),
    "sst2": ("classification", "sst2"),
    "mrpc": ("pair", "mrpc"),
    "ud_pos": ("tagging", "ud_pos/en"),
    "snips": ("classification", "snips"),
}

# What all experiments share. bf16 is mixed precision, the same for every method; the test rows are in no recipe.
BASE: dict[str, Any] = {
    "model.name": "minilm",
    "training.batch_size": 32,
    "training.max_seq_length": 128,
    "training.epochs": 5,
    "training.bf16": True,
}

# method -> what its recipe says beside BASE
METHODS: dict[str, dict[str, Any]] = {
    "full": {"training.method": "full", "training.epochs": 3},
    "seq_bn": {"adapter.variant": "seq_bn", "adapter.reduction_factor": 8},  # m = 384 / 8 = 48
    "double_seq_bn": {  # Houlsby et al. 2019: two a layer, m = 64, the layer norms trained too
        "adapter.variant": "double_seq_bn",
        "adapter.reduction_factor": 6,
        "adapter.options": {"train_norms": True},
    },
    "lora": {"adapter.variant": "lora", "adapter.options": {"r": 8, "alpha": 16}},  # at queries and values
    "head": {  # what it reads never changes: read once, kept, and learnt from for many epochs
        "training.method": "head",
        "training.epochs": 20,
        "training.base_dropout": False,
        "training.prefix_cache": "auto",
    },
}


@dataclass(frozen=True)
class Asked:
    """What the command line says. `quick`: a hundred rows and a few steps, to see that everything runs."""

    quick: bool
    seeds: tuple[int, ...]
    folder: Path  # of rows and page
    runs: Path
    only: tuple[tuple[str, str], ...]  # parts of the keys that are meant
    deadline: float  # of time.monotonic()


@dataclass(frozen=True)
class Study:
    """One experiment. plan: the cells, in order, that the rows so far call for. work: a cell -> its row without key and
    conditions. page: the rows -> the page; pictures go into the folder that was asked for.

    claim, design, bar: of docs/science.md, where `result` says what the rows say to that, "" where they do not yet.
    """

    name: str
    plan: Callable[[Sequence[Row], Asked], Sequence[Key]]
    work: Callable[[Key, Asked], Row]
    page: Callable[[Sequence[Row], Asked], str]
    claim: str = ""
    design: str = ""
    bar: str = ""
    result: Callable[[Sequence[Row], Asked], str] = lambda found, asked: ""


def main(study: Study, arguments: Sequence[str] | None = None) -> None:
    """Run what is missing of a study, as long as it may, and write its page."""
    asked, only_page = _asked(study, arguments)
    file = asked.folder / f"{study.name}.jsonl"
    if not only_page:
        run(lambda found: study.plan(found, asked), lambda key: study.work(key, asked), file, asked)
    if found := book.read(file):
        page.write(asked.folder / f"{study.name}.md", study.page(found, asked))
        print(f"written: {asked.folder / study.name}.md", flush=True)


def run(
    cells: Sequence[Key] | Callable[[Sequence[Row]], Sequence[Key]],
    work: Callable[[Key], Row],
    out: Path,
    asked: Asked | None = None,
) -> bool:
    """Go through the cells that `out` lacks, and append a row for each; False where time was up before the end.

    cells: the cells, or what tells them from the rows so far.
    """
    while True:
        found = book.read(out)
        done = {book.name(row["key"]) for row in found}
        wanted = cells(found) if callable(cells) else cells
        missing = [key for key in wanted if book.name(key) not in done and (asked is None or _meant(key, asked.only))]
        if not missing:
            return True
        if asked is not None and time.monotonic() > asked.deadline:
            print(f"time is up: {len(missing)} cells of those now known are left", flush=True)
            return False
        started = time.process_time()
        row = {"key": dict(missing[0]), **work(missing[0])}
        book.append(out, {**row, "cpu": round(time.process_time() - started, 1), **conditions()})
        scores = "".join(f" {part} {row[part]:.4f}" for part in ("dev", "test") if part in row)
        print(f"{book.name(missing[0])}:{scores or ' done'}", flush=True)


def recipe(
    task: str,
    *changes: Mapping[str, Any],
    asked: Asked,
    name: str = "",
    train_rows: Path | None = None,
    dev_rows: Path | None = None,
) -> Recipe:
    """A recipe of the shared settings for one of TASKS, later changes before earlier ones.

    train_rows, dev_rows: other rows than the task's own. The test rows are in no recipe: `answered` scores them.
    """
    kind = TASKS[task][0]
    files = {"train": train_rows or rows_of(task, "train"), "dev": dev_rows or rows_of(task, "dev")}
    told: dict[str, Any] = {}
    for change in (BASE, *changes, *([QUICK] if asked.quick else [])):
        told |= change
    if asked.quick:
        files = {split: drawn(file, QUICK_ROWS[split], 0, asked) for split, file in files.items()}
    text = json.dumps({
        "name": name or f"{task}-adapter",
        "model": {"name": told["model.name"]},
        "task": {"kind": kind, "labels": labels(task), **({} if kind == "tagging" else {"pooling": "mean"})},
        "data": {split: str(file) for split, file in files.items()},
    })  # fmt: skip
    return placed(recipes.override(recipes.loads(text), told), asked)


def placed(made: Recipe, asked: Asked) -> Recipe:
    """A recipe with the folder of runs that belongs to what it says."""
    written = recipes.dump(recipes.override(made, {"output": "runs/none"}))
    digest = hashlib.sha256(written.encode()).hexdigest()[:10]
    return recipes.override(made, {"output": str(asked.runs / f"{made.name}-{digest}")})


def rows_of(task: str, split: str) -> Path:
    """The file of a task's rows. Raises LookupError where the shared data is not there."""
    file = SHARED / TASKS[task][1] / f"{split}.jsonl"
    if not file.is_file():
        raise LookupError(f"no rows of {task} at {file}: say where the shared data lies by $GRAFTWORK_SHARED")
    return file


@lru_cache
def labels(task: str) -> list[str]:
    """Every label of a task's training rows, which a draw of them need not hold."""
    lines = rows_of(task, "train").read_text("utf8").splitlines()
    found = [json.loads(line) for line in lines]
    return sorted({tag for row in found for tag in (row["tags"] if TASKS[task][0] == "tagging" else [row["label"]])})


QUICK = {"training.epochs": 1, "training.max_steps": 3}
QUICK_ROWS = {"train": 100, "dev": 32, "test": 32}


def drawn(file: Path, count: int, seed: int, asked: Asked) -> Path:
    """A file with `count` of a file's rows, drawn by a seed, in their order."""
    lines = file.read_text("utf8").splitlines(keepends=True)
    chosen = sorted(random.Random(seed).sample(range(len(lines)), min(count, len(lines))))
    place = asked.runs / "data" / f"{'-'.join(file.parts[-3:-1])}-{file.stem}-{count}-{seed}{file.suffix}"
    place.parent.mkdir(parents=True, exist_ok=True)
    page.write(place, "".join(lines[line] for line in chosen))
    return place


def trained(made: Recipe, registry: Registry | None = None) -> TrainResult:
    """The run of a recipe: read back where it was made before, else made now. Its checkpoints are not kept."""
    result = train(made, registry=registry, resume=True, progress=False)
    shutil.rmtree(Path(made.output) / "checkpoints", ignore_errors=True)
    return result


def opened(made: Recipe, result: TrainResult) -> AdapterModel:
    """The base with what a run trained on it; for full tuning the tuned base with its head."""
    name = str(result.folder / "model") if made.training.method == "full" else made.model.name
    model = open_model(ModelSection(name=name))
    model.install(result.package, result.name)
    return model


def answered(
    task: str, made: Recipe, result: TrainResult, model: AdapterModel, asked: Asked, skip_layers: Sequence[int] = ()
) -> Row:
    """The test score of what a run trained and which items are right: "test", "right", "items".

    skip_layers: those that run without adapters.
    """
    kind, adapters = package_task(result.package.manifest), None if result.composition == "none" else result.composition
    pieces = made.training.max_seq_length
    return judged(model, kind, items_of(task, asked), adapters, result.name, skip_layers=skip_layers, pieces=pieces)


def judged(
    model: AdapterModel,
    task: Task,
    items: Sequence[Mapping[str, Any]],
    adapters: Adapters,
    head: str,
    *,
    skip_layers: Sequence[int] = (),
    pieces: int = BASE["training.max_seq_length"],
) -> Row:
    """What a composition on the base makes of labelled items, as `answered` has it. pieces: of a text, at most."""
    encoder = open_encoder(BASE["model.name"], pieces, "truncate")
    scores, answers = evaluate(model, task, encoder, items, adapters=adapters, head=head, skip_layers=skip_layers)
    return {"test": scores[task.main_score], **graded(task, answers, items)}


def items_of(task: str, asked: Asked) -> list[dict[str, Any]]:
    """The test rows of a task."""
    return items_in(rows_of(task, "test"), TASKS[task][0], asked)


def items_in(file: Path, kind: str, asked: Asked) -> list[dict[str, Any]]:
    """The rows of a file, for a kind of task; a few of them where it is to be quick."""
    file = drawn(file, QUICK_ROWS["test"], 0, asked) if asked.quick else file
    return read_split(DataSection(train=str(file)), "train", kind)


def graded(task: Task, answers: Sequence[Mapping[str, Any]], items: Sequence[Mapping[str, Any]]) -> Row:
    """Which items are right: "right" as rows.py has it, and "items"."""
    pairs = list(zip(answers, items, strict=True))
    if task.kind == "tagging":
        tags = [list(zip(answer["tags"], item["tags"], strict=True)) for answer, item in pairs]
        return {"right": [[sum(a == b for a, b in one), len(one)] for one in tags], "items": len(items)}
    return {"right": book.pack([answer["label"] == item["label"] for answer, item in pairs]), "items": len(items)}


def scored(task: str, made: Recipe, asked: Asked) -> Row:
    """Train a recipe and say everything a row says of one system: dev, test, right, parameters, settings."""
    result = trained(made)
    row = answered(task, made, result, opened(made, result), asked)
    if made.training.method == "full":
        shutil.rmtree(result.folder)  # 90 MB a run, and nothing else is made from it
    told = made.model_dump(mode="json", exclude_defaults=True)
    return {
        "dev": result.scores["dev"][result.main],
        **row,
        "parameters": dict(result.parameters),
        "best_epoch": result.best_epoch,
        "settings": {part: told[part] for part in ("adapter", "training") if part in told},
    }


def conditions() -> Row:
    """Where a row comes from: commit, versions, machine."""
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {"commit": found.stdout.strip() or "none", "versions": versions(), "machine": machine()}


def _asked(study: Study, arguments: Sequence[str] | None) -> tuple[Asked, bool]:
    parser = argparse.ArgumentParser(description=(sys.modules["__main__"].__doc__ or study.name).partition("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="the same path on a few rows; written to a temporary folder"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no cell after so long")
    parser.add_argument("--seeds", help=f"left out: {','.join(map(str, SEEDS))}, with --quick the first of them")
    parser.add_argument(
        "--only", action="append", default=[], metavar="KEY=VALUE", help="only cells with this in their key"
    )
    parser.add_argument("--page", action="store_true", help="run nothing; write the page from the rows there are")
    parser.add_argument("--out", type=Path, help="folder of rows and page")
    parser.add_argument("--threads", type=int, default=1)
    found = parser.parse_args(arguments)
    torch.set_num_threads(found.threads)
    folder = found.out or (Path(tempfile.mkdtemp(prefix="graftwork-science-")) if found.quick else RESULTS)
    kept = Path(os.environ.get("GRAFTWORK_RUNS") or Path(tempfile.gettempdir()) / "graftwork-science")
    runs = folder / "runs" if found.quick else kept
    only = tuple((part, value) for part, _, value in (pair.partition("=") for pair in found.only))
    seeds = SEEDS[:1] if found.quick else SEEDS
    seeds = seeds if found.seeds is None else tuple(int(seed) for seed in found.seeds.split(","))
    asked = Asked(found.quick, seeds, folder, runs, only, time.monotonic() + 60 * found.minutes)
    return asked, found.page


def _meant(key: Key, only: Sequence[tuple[str, str]]) -> bool:
    return all(str(key.get(part)) == value for part, value in only)
