"""What a comparison found: a row a method, as a table, as a page and as a picture of scores against parameters."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path

from graftwork.registry.durable import replace_file
from graftwork.train.folder import encoded

MISSING = "no picture: matplotlib is not installed (pip install 'graftwork[plots]')"
MEANT = """\
Scores are means over seeds, with Student's 95 % interval over them where there are several. Trained: all that trained,
the head included, and its share of the base's parameters. File: what would be stored. Memory: the most that was
resident in the run's own process, libraries and base included (on a GPU: what torch had allocated there). Inference:
time to answer a batch, over that of the frozen base with the same head, unmerged; median and quartiles of turns."""


@dataclass(frozen=True)
class Row:
    """One method. score: of `split`, the mean over seeds; low, high: its interval, None with a single seed.

    parameters: all that trained; `head` of them are the task's head; share: of the base's. size: bytes of what would be
    stored. seconds: training, the mean. memory: the most that a run's process held, bytes, on `device` where it has
    any. price: time to answer over that of the frozen base (price.py), with its quartiles. error: why there is no
    score, or not one of every seed.
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


def as_json(rows: Sequence[Row]) -> bytes:
    """The rows as a JSON list."""
    return encoded([asdict(row) for row in rows])


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
    price = row.price or {}
    found = {
        "method": row.method,
        "score": f"{row.score:.4f}",
        "interval": "" if row.low is None or row.high is None else f"{row.low:.4f} to {row.high:.4f}",
        "dev": f"{row.dev:.4f}",
        "trained": f"{row.parameters:,}",
        "of base": f"{row.share:.2%}",
        "file": f"{(row.size or 0) / 1e6:.2f} MB",
        "training": f"{row.seconds:.0f} s",
        "memory": f"{(row.device or row.memory or 0) / 1e6:.0f} MB",
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
    asked = f"; inference with {batch['rows']} rows of {batch['pieces']} pieces" if batch else ""
    return f"score: {row.metric} of {row.split}, {most} seed{'s' if most > 1 else ''}{asked}"


def page(name: str, rows: Sequence[Row], command: str) -> str:
    """A Markdown page of the rows."""
    found = [cells(row) for row in rows]
    columns = [column for column in COLUMNS if any(one.get(column) for one in found)]
    body = [[one.get(column, "").replace("|", "\\|").replace("\n", " ") for column in columns] for one in found]
    lines = [f"| {' | '.join(line)} |" for line in [columns, ["---"] * len(columns), *body]]
    machine = next((row.machine for row in rows if row.machine), "")
    ran = f"    {command}\n\n" if command else ""
    return (
        "\n".join(
            [f"# {name}: methods compared", "", scored(rows), "", *lines, "", MEANT, "", f"{ran}Machine: {machine}"]
        )
        + "\n"
    )


def draw(name: str, rows: Sequence[Row], file: Path) -> str:
    """Write scores against parameters as a PNG and return "", or return the reason why there is none."""
    known = [row for row in rows if row.score is not None and row.parameters]
    if not known:
        return "no picture: no method has a score"
    if find_spec("matplotlib") is None:
        return MISSING
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for row in known:
        x, y = row.parameters or 1, row.score or 0.0
        around = None if row.low is None or row.high is None else [[y - row.low], [row.high - y]]
        axes.errorbar(x, y, yerr=around, fmt="o", capsize=3)
        axes.annotate(row.method, (x, y), textcoords="offset points", xytext=(6, 5), fontsize=9)
    axes.set_xscale("log")
    axes.set_xlabel("parameters trained")
    axes.set_ylabel(f"{known[0].split} {known[0].metric}")
    axes.grid(alpha=0.3)
    axes.margins(x=0.15)
    figure.suptitle(name)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    replace_file(file, picture.getvalue())
    return ""
