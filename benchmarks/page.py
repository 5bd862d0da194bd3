"""What benchmarks write: tables, pictures, and pages that say on what, when and by which command they were made.

    page(title, command, *parts)      a Markdown page that ends with command, machine, versions and date
    table(head, rows)                 a Markdown table
    draw(file, ...)                   curves as SVG, the same bytes for the same numbers; needs matplotlib ([plots])

Results lie in benchmarks/results/, a page a question, with the rows beside it as JSON.
"""

import datetime
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from graftwork.registry.durable import replace_file
from graftwork.train.outcome import machine, versions

Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """One curve of a picture; dashed for what is arithmetic and not measured."""

    name: str
    points: Sequence[Point]
    dashed: bool = False


def command(arguments: Sequence[str] | None = None) -> str:
    """How this process was called, without the paths of one machine."""
    script, *given = sys.argv if arguments is None else arguments
    return " ".join(["python", f"benchmarks/{Path(script).name}", *given])


def conditions(peers: Mapping[str, str] | None = None) -> str:
    """Machine, versions (those of peers too) and date, in a paragraph."""
    libraries = {name: number for name, number in versions().items() if name in ("graftwork", "transformers")}
    listed = ", ".join(f"{name} {number}" for name, number in libraries.items())
    others = "".join(f" Beside: {name} with {what}." for name, what in (peers or {}).items() if name != "graftwork")
    return f"Machine: {machine()}. {listed}.{others} Date: {datetime.date.today().isoformat()}."


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table. Raises ValueError for a row of another length than its head."""
    for row in rows:
        if len(row) != len(head):
            raise ValueError(f"a row has {len(row)} cells under {len(head)} headings: {row}")
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(title: str, ran: str, *parts: str, peers: Mapping[str, str] | None = None) -> str:
    """A Markdown page: title, parts, and the command with the conditions that it ran under."""
    end = f"Measured by\n\n    {ran}\n\n{conditions(peers)}"
    return "\n\n".join([f"# {title}", *parts, end]) + "\n"


def write(file: Path, text: str) -> None:
    """Put a page into place, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, text.encode("utf8"))


def draw(file: Path, title: str, across: str, up: str, curves: Sequence[Curve]) -> str:
    """Write curves as SVG and return "", or return the reason why there is none."""
    if find_spec("matplotlib") is None:
        return f"no picture {file.name}: matplotlib is not installed (pip install 'graftwork[plots]')"
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "graftwork", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7.5, 3.6), layout="constrained")
        axes = figure.subplots()
        for curve in curves:
            style = {"linestyle": "--", "color": "gray"} if curve.dashed else {"marker": "o"}
            axes.plot(*zip(*sorted(curve.points), strict=True), label=curve.name, **style)
        axes.set(title=title, xlabel=across, ylabel=up)
        axes.grid(alpha=0.3)
        figure.legend(loc="outside right upper")
        picture = io.BytesIO()
        figure.savefig(picture, format="svg", metadata={"Date": None})
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, picture.getvalue())
    return ""
