"""What a comparison found: a row a method, as a table, as a page and as a picture of scores against parameters."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from pydantic import TypeAdapter
from scipy.stats import t as student

from graftwork.recipe import Recipe
from graftwork.train.folder import encoded
from graftwork.train.plots import can_draw, missing, save

INSIDE = 0.95
MISSING = missing("picture")
MEANT = {  # what a column says, where a page has it
    "score": "Scores are means over seeds, with Student's 95 % interval over them where there are several.",
    "trained": "Trained: all that trained, the head included, and its share of the base's parameters.",
    "file": "File: what would be stored.",
    "memory": "Memory: the most that was resident in the run's own process, libraries and base included (on a GPU: "
    "what torch had allocated there).",
    "inference": "Inference: time to answer a batch, over that of the frozen base with the same head, unmerged; median "
    "and quartiles of turns.",
}


@dataclass(frozen=True)
class Row:
    """One method. score: of `split`, the mean over seeds; low, high: its interval, None with a single seed.

    parameters: all that trained; `head` of them are the task's head; share: of the base's. size: bytes of what would be
    stored. seconds: training, the mean. memory: the most that a run's process held, bytes, on `device` where it has
    any. Both are None where runs that share a process share them. price: time to answer over that of the frozen base
    (price.py), with its quartiles. error: why there is no score, or not one of every seed.
    """

    method: str
    score: float | None
    low: float | None = None
    high: float | None = None
    split: str = ""
    metric: str = ""
    dev: float | None = None
    seeds: Mapping[str, float] = field(default_factory=dict)
    parameters: int | None = None
    head: int | None = None
    share: float | None = None
    size: int | None = None
    seconds: float | None = None
    memory: int | None = None
    device: int | None = None
    price: Mapping[str, float] | None = None
    learning_rate: float | None = None
    epochs: int | None = None
    folders: Sequence[str] = ()
    machine: str = ""
    error: str | None = None


@dataclass(frozen=True)
class Run:
    """One recipe of one method and seed, and what became of it: "result", "size" and "price", or "error"."""

    method: str
    recipe: Recipe
    answer: Mapping[str, Any]


def row_of(method: str, done: Sequence[Run], price: Mapping[str, float] | None = None) -> Row:
    """What the runs of one method came to."""
    runs = [run for run in done if run.method == method]
    good = [run for run in runs if "result" in run.answer]
    training, error = runs[0].recipe.training, _errors(runs)
    if not good:
        return Row(method, None, error=error, learning_rate=training.learning_rate, epochs=training.epochs)
    first = good[0].answer["result"]
    main, split = first["main"], "test" if "test" in first["scores"] else "dev"
    scores = {str(run.recipe.training.seed): run.answer["result"]["scores"][split][main] for run in good}
    low, high = interval([*scores.values()])
    results = [run.answer["result"] for run in good]
    counts = first["parameters"]
    return Row(
        method,
        mean(scores.values()),
        low,
        high,
        split,
        main,
        dev=mean(one["scores"]["dev"][main] for one in results),
        seeds=scores,
        parameters=counts["trained"],
        head=counts["head"],
        share=counts["trained"] / counts["base"],
        size=good[0].answer["size"],
        seconds=mean(one["seconds"] for one in results),
        memory=max(one["memory"].get("resident", 0) for one in results) or None,
        device=max(one["memory"].get("device", 0) for one in results) or None,
        price=price,
        learning_rate=training.learning_rate,
        epochs=training.epochs,
        folders=[run.recipe.output for run in good],
        machine=first["machine"],
        error=error,
    )


def _errors(runs: Sequence[Run]) -> str | None:
    """Why runs of a method failed, each reason once with its seeds."""
    failed: dict[str, list[str]] = {}
    for run in runs:
        if "error" in run.answer:
            failed.setdefault(run.answer["error"], []).append(str(run.recipe.training.seed))
    return "; ".join(f"{why} (seed {', '.join(seeds)})" for why, seeds in failed.items()) or None


def interval(scores: Sequence[float]) -> tuple[float | None, float | None]:
    """Student's interval of the mean of some scores, at 95 %; None, None of a single one."""
    if len(scores) < 2:
        return None, None
    half = float(student.ppf((1 + INSIDE) / 2, len(scores) - 1)) * stdev(scores) / len(scores) ** 0.5
    return mean(scores) - half, mean(scores) + half


def as_json(rows: Sequence[Row]) -> bytes:
    """The rows as a JSON list."""
    return encoded([asdict(row) for row in rows])


def from_json(data: bytes) -> list[Row]:
    """The rows of `as_json`. Raises ValueError for anything else."""
    try:
        found = json.loads(data)
        TypeAdapter(list[Row]).validate_python(found)
        return [Row(**row) for row in found]
    except TypeError as error:
        raise ValueError(error) from error


COLUMNS = (
    "method",
    "score",
    "interval",
    "dev",
    "trained",
    "of base",
    "file",
    "training",
    "memory",
    "inference",
    "note",
)


def cells(row: Row) -> dict[str, str]:
    """A row as people read it, by COLUMNS."""
    if row.score is None:
        return {"method": row.method, "note": row.error or ""}
    price, memory = row.price or {}, row.device or row.memory
    found = {
        "method": row.method,
        "score": f"{row.score:.4f}",
        "interval": "" if row.low is None or row.high is None else f"{row.low:.4f} to {row.high:.4f}",
        "dev": f"{row.dev:.4f}",
        "trained": f"{row.parameters:,}",
        "of base": f"{row.share:.2%}",
        "file": f"{(row.size or 0) / 1e6:.2f} MB",
        "training": "" if row.seconds is None else f"{row.seconds:.0f} s",
        "memory": f"{memory / 1e6:.0f} MB" if memory else "",
        "inference": f"{price['middle']:.2f} ({price['low']:.2f}-{price['high']:.2f})" if price else "",
        "note": row.error or "",
    }
    return found


def scored(rows: Sequence[Row]) -> str:
    """Which score, of which rows, over how many seeds: a line above the table."""
    row = next((one for one in rows if one.score is not None), None)
    if row is None:
        return "no method has a score"
    most = max(len(one.seeds) for one in rows)
    batch = next((one.price for one in rows if one.price), None)
    length = f" of {batch['pieces']} pieces" if batch and batch["pieces"] else ""
    asked = f"; inference with {batch['rows']} rows{length}" if batch else ""
    return f"score: {row.metric} of {row.split}, {most} seed{'s' if most > 1 else ''}{asked}"


def page(title: str, rows: Sequence[Row], command: str, *told: str) -> str:
    """A Markdown page of the rows, and paragraphs below them."""
    found = [cells(row) for row in rows]
    columns = [column for column in COLUMNS if any(one.get(column) for one in found)]
    body = [[one.get(column, "").replace("|", "\\|").replace("\n", " ") for column in columns] for one in found]
    lines = [f"| {' | '.join(line)} |" for line in [columns, ["---"] * len(columns), *body]]
    machine = next((row.machine for row in rows if row.machine), "")
    ran = [f"    {command}"] if command else []
    meant = " ".join(text for column, text in MEANT.items() if column in columns)
    parts = [f"# {title}", scored(rows), "\n".join(lines), *told, *filter(None, [meant]), *ran, f"Machine: {machine}"]
    return "\n\n".join(parts) + "\n"


def draw(name: str, rows: Sequence[Row], file: Path) -> str:
    """Write scores against parameters as a PNG and return "", or return the reason why there is none."""
    known = [row for row in rows if row.score is not None and row.parameters]
    if not known:
        return "no picture: no method has a score"
    if not can_draw():
        return MISSING
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for row in known:
        x, y = row.parameters or 1, row.score or 0.0
        around = None if row.low is None or row.high is None else [[y - row.low], [row.high - y]]
        axes.errorbar(x, y, yerr=around, fmt="o", capsize=3)
        axes.annotate(row.method, (x, y), textcoords="offset points", xytext=(6, 5), fontsize=9, parse_math=False)
    axes.set_xscale("log")
    axes.set_xlabel("parameters trained")
    axes.set_ylabel(f"{known[0].split} {known[0].metric}")
    axes.grid(alpha=0.3)
    axes.margins(x=0.15)
    save(figure, name, file)
    return ""
