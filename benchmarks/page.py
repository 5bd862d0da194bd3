"""What benchmarks write: tables, pictures, and pages that say on what, when and by which command they were made.

    page(title, command, *parts)      a Markdown page that ends with command, machine, versions and date
    table(head, rows)                 a Markdown table
    draw(file, ...), heat(file, ...)  curves, and coloured squares, as SVG: the same bytes for the same numbers; they
                                      need matplotlib ([plots])

Results lie in benchmarks/results/, a page a question, with the rows beside it as JSON.
"""

import datetime
import io
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftwork.registry.durable import replace_file
from graftwork.train.outcome import machine, versions
from graftwork.train.plots import can_draw, missing

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


def conditions(peers: Mapping[str, str] | None = None, threads: int | None = None) -> str:
    """Machine, versions (those of peers too) and date, in a paragraph. threads: of the sides, where they are others."""
    libraries = {name: number for name, number in versions().items() if name in ("graftwork", "transformers")}
    listed = ", ".join(f"{name} {number}" for name, number in libraries.items())
    others = "".join(f" Beside: {name} with {what}." for name, what in (peers or {}).items() if name != "graftwork")
    return f"Machine: {machine(threads)}. {listed}.{others} Date: {datetime.date.today().isoformat()}."


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table. Raises ValueError for a row of another length than its head."""
    for row in rows:
        if len(row) != len(head):
            raise ValueError(f"a row has {len(row)} cells under {len(head)} headings: {row}")
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(title: str, ran: str, *parts: str, peers: Mapping[str, str] | None = None, threads: int | None = None) -> str:
    """A Markdown page: title, parts, and the command with the conditions that it ran under."""
    end = f"Measured by\n\n    {ran}\n\n{conditions(peers, threads)}"
    return "\n\n".join([f"# {title}", *parts, end]) + "\n"


def write(file: Path, text: str) -> None:
    """Put a page into place, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, text.encode("utf8"))


def heat(file: Path, title: str, across: str, up: str, table: Sequence[Sequence[float | None]]) -> str:
    """Write a table of numbers as coloured squares with the numbers in them, None left white; returns as `draw`."""
    if without := _without(file):
        return without
    figure, axes = _figure((5.2, 4.4))
    numbers = [[math.nan if one is None else one for one in row] for row in table]
    axes.imshow(numbers, cmap="OrRd")
    limit = max((one for row in table for one in row if one is not None), default=0.0) / 2
    for down, row in enumerate(table):
        for right, one in enumerate(row):
            if one is not None:
                colour = "white" if one > limit else "black"
                axes.text(right, down, f"{one:.1f}", ha="center", va="center", color=colour)
    axes.set(title=title, xlabel=across, ylabel=up)
    return _saved(figure, file)


def draw(file: Path, title: str, across: str, up: str, curves: Sequence[Curve]) -> str:
    """Write curves as SVG and return "", or return the reason why there is none."""
    if without := _without(file):
        return without
    figure, axes = _figure((7.5, 3.6))
    for curve in curves:
        style = {"linestyle": "--", "color": "gray"} if curve.dashed else {"marker": "o"}
        axes.plot(*zip(*sorted(curve.points), strict=True), label=curve.name, **style)
    axes.set(title=title, xlabel=across, ylabel=up)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    return _saved(figure, file)


def _without(file: Path) -> str:
    return "" if can_draw() else missing(f"picture {file.name}")


def _figure(size: tuple[float, float]) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots()


def _saved(figure: Any, file: Path) -> str:
    """Write a figure as SVG, the same bytes for the same figure."""
    import matplotlib

    picture = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "graftwork", "svg.fonttype": "none"}):
        figure.savefig(picture, format="svg", metadata={"Date": None})
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, picture.getvalue())
    return ""
