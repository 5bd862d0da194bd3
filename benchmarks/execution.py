"""What does a composition cost beside the frozen base, here and in the peers' libraries?

    python benchmarks/execution.py [--setups seq_bn,fuse3] [--no-peers] [--shapes 8x64,8x1] [--dtypes float32,bfloat16]
                                   [--threads 1] [--seconds 3 | --rounds 5 | --quick] [--clock cpu] [--curves]
                                   [--json FILE] [--out FILE] [--explain SETUP]

Every side (`side.py`) holds one base with the same random weights, BERT-base by shape, and runs each setup in turns
with its own bare base, in one process; the sides take turns too. `ratio` is the median quotient of a turn, `low` and
`high` its quartiles. A setup with a goal takes three times the seconds on our side, twice on the peers', and pictures
take half. What a side returns is compared with what graftwork returns. `--out` writes the rows as JSON, and
from them the page, its pictures and the table of the docs (`execution_page.py`). `--explain` profiles instead.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from execution_page import explained, other_function, write_all
from page import command, conditions, write
from setups import DEFAULT, DISPATCH, Shape, floors, goal, parse, shaped
from side import TOLERANCE, apart
from sides import Refused, Remote, Sides, present

from graftwork.timing import CLOCKS, milliseconds, quotients

Row = dict[str, Any]
PEERS = ("adapters", "peft")
TURNS = 3  # how often the sides relieve each other on one setup; the fewest pairs of calls that it gets
DISPATCHED = ("base", "seq_bn", "idle")
# what the pictures show: name -> (shape, setups)
CURVES = {
    "members": ("8x16", ("seq_bn", "stack2", "stack3", "stack4", "fuse2", "fuse3", "fuse5", "fuse8")),
    "adapters": ("32x8", ("mixed1", "mixed8", "mixed32")),
    "layers": ("1x32", ("parallel8", "parallel8_drop2", "parallel8_drop5", "parallel8_drop8", "parallel8_drop11")),
}


@dataclass(frozen=True)
class Effort:
    """How long to measure: seconds for each setup and side, or pairs of calls; and by which clock.

    What must have more pairs than the fewest has as many times the seconds.
    """

    seconds: float
    rounds: int | None = None
    clock: str = "wall"

    def turn(self, call: float, fewest: int = TURNS) -> dict[str, Any]:
        """One turn of a side whose setup takes `call` milliseconds.

        Short calls warm up first: the side that worked before has emptied the caches.
        """
        seconds = self.seconds * fewest / TURNS
        pairs = self.rounds or max(fewest, min(300, round(1e3 * seconds / (2 * call))))
        return {"rounds": max(1, round(pairs / TURNS)), "clock": self.clock, "warm": (call < 200) + (call < 20)}


def fewest(side: str, name: str, shape: Shape) -> int:
    """Pairs of calls that a setup gets at least: more where graftwork has a goal, and beside it."""
    if goal(name, shape) is None:
        return TURNS
    return TURNS * (3 if side == "graftwork" else 2)


def measured(sides: Sides, name: str, shape: Shape, effort: Effort) -> list[Row]:
    """One row for every side that has the setup. Raises RuntimeError for what goes wrong on graftwork's side."""
    ready = prepared(sides, name, shape)
    times: dict[str, dict[str, list[float]]] = {side: {"base": [], "setup": []} for side in ready}
    for _ in range(TURNS):
        for side in ready:
            turn = effort.turn(ready[side]["call"], fewest(side, name, shape))
            found = sides.remotes[side].ask("time", **turn)
            for key, values in found.items():
                times[side][key] += values
    expected = sides.remotes["graftwork"].output()
    return [
        row(name, shape, times[side], ready[side])
        | {"side": side, "clock": effort.clock}
        | {"difference": apart(sides.remotes[side].output(), expected)}
        for side in ready
    ]


def prepared(sides: Sides, name: str, shape: Shape) -> dict[str, Row]:
    """What each side that has a setup says of it, ready to be timed."""
    own = shaped(parse(name), shape)
    sides.remotes["graftwork"].ask("write", setup=name)
    ready: dict[str, Row] = {}
    for side, remote in sides.remotes.items():
        try:
            ready[side] = _prepare(remote, name, own)
        except Refused:
            continue
        except RuntimeError as error:
            if side == "graftwork":
                raise
            print(f"FAILED: {error}", flush=True)
    return ready


def _prepare(remote: Remote, name: str, shape: Shape) -> Row:
    return remote.ask("prepare", setup=name, rows=shape.rows, tokens=shape.tokens, output=str(remote.result()))


def row(name: str, shape: Shape, times: dict[str, list[float]], told: Row) -> Row:
    """What one side took for one setup, beside what it should."""
    own = shaped(parse(name), shape)
    ratio = quotients(times["setup"], times["base"])
    least = floors(parse(name), own)
    return {
        "setup": name,
        "ratio": ratio.middle,
        "low": ratio.low,
        "high": ratio.high,
        "milliseconds": milliseconds(times["setup"]),
        "base_milliseconds": milliseconds(times["base"]),
        "pairs": len(times["base"]),
        "shape": str(shape),
        "batch": str(own),
        "layers": shape.layers,
        "width": shape.width,
        "floor_multiplications": least.multiplications,
        "floor_weights": least.weights,
        "goal": goal(name, shape),
        "finite": told["finite"],
        "remark": told["remark"],
    }


def check(row: Row) -> None:
    """Raise RuntimeError for an answer that is no number, or that differs from ours where the function is the same."""
    allowed = float("inf") if other_function(row) else TOLERANCE[row["dtype"]]
    if not row["finite"] or not row["difference"] <= allowed:
        raise RuntimeError(f"{row['setup']} of {row['side']} differs by {row['difference']:.1e}, at most {allowed:g}")


@dataclass(frozen=True)
class Room:
    """Which sides are measured, how long, and how graftwork executes."""

    names: list[str]
    effort: Effort
    threads: int = 1
    execution: str | None = None

    def open(self, shape: Shape, dtype: str) -> Sides:
        """The sides on a base of this shape."""
        return Sides(self.names, shape, dtype, self.threads, {"execution": self.execution})

    def rows(self, sides: Sides, setups: Sequence[str], shape: Shape, dtype: str) -> Iterator[Row]:
        """The rows of some setups at one shape, printed as they come."""
        for name in setups:
            for found in measured(sides, name, shape, self.effort):
                one = found | {"dtype": dtype, "threads": self.threads}
                print(line(one), flush=True)
                check(one)
                yield one


HEAD = (
    f"{'setup':16} {'side':10} {'batch':>6} {'layers':>7} {'dtype':9} {'ms':>9} {'ratio (quartiles)':>22} "
    f"{'floors: multiplied, read':>24} {'goal':>6}"
)


def line(row: Row) -> str:
    """A row as text."""
    spread = f"{row['ratio']:.3f} ({row['low']:.3f}-{row['high']:.3f})"
    least = f"{row['floor_multiplications']:.3f} {row['floor_weights']:.3f}"
    wanted = f"{row['goal']:.3f}" if row["goal"] and row["side"] == "graftwork" else ""
    size = f"{row['layers']}x{row['width']}"
    return (
        f"{row['setup']:16} {row['side']:10} {row['batch']:>6} {size:>7} {row['dtype']:9} {row['milliseconds']:9.2f} "
        f"{spread:>22} {least:>24} {wanted:>6}  differs by {row['difference']:.0e}; {row['remark']}"
    )


def shapes_of(text: str, layers: int, width: int) -> list[Shape]:
    """`8x64,8x1` as shapes of a base."""
    return [Shape(*map(int, one.split("x")), layers, width) for one in text.split(",")]


def measure(room: Room, asked: argparse.Namespace) -> dict[str, Any]:
    """Everything that was asked for: rows, curves, and profiles of what is above its goal."""
    setups, shapes = asked.setups.split(","), shapes_of(asked.shapes, asked.layers, asked.width)
    rows: list[Row] = []
    curves: list[Row] = []
    profiles: list[dict[str, Any]] = []
    versions: dict[str, str] = {}
    for dtype in asked.dtypes.split(","):
        with room.open(shapes[0], dtype) as sides:
            versions = sides.versions
            for shape in shapes:
                rows += room.rows(sides, setups, shape, dtype)
            if asked.curves and dtype == "float32":
                brief = replace(room, effort=replace(room.effort, seconds=room.effort.seconds / 2))
                for picture, (text, names) in CURVES.items():
                    (shape,) = shapes_of(text, asked.layers, asked.width)
                    curves += [one | {"picture": picture} for one in brief.rows(sides, names, shape, dtype)]
            profiles += above_goal(sides, rows, dtype)
        called = [name for name in DISPATCHED if name in setups]
        if called and not asked.no_dispatch:
            with room.open(DISPATCH, dtype) as sides:
                rows += room.rows(sides, called, DISPATCH, dtype)
                profiles += above_goal(sides, [one for one in rows if one["width"] == DISPATCH.width], dtype)
    ran = {"command": command(), "conditions": conditions(versions, asked.threads)}
    return {**ran, "rows": rows, "curves": curves, "explained": profiles}


def above_goal(sides: Sides, rows: Sequence[Row], dtype: str) -> list[dict[str, Any]]:
    """Profiles of what graftwork does in the setups that miss their goal."""
    missed = [
        one
        for one in rows
        if one["side"] == "graftwork" and one["dtype"] == dtype and one["goal"] and one["ratio"] > one["goal"]
    ]
    found = []
    for one in missed:
        shape = Shape(*map(int, one["shape"].split("x")), one["layers"], one["width"])
        found.append({"row": one, "profile": profile(sides, "graftwork", one["setup"], shape)})
    return found


def profile(sides: Sides, side: str, setup: str, shape: Shape) -> dict[str, Any]:
    """Operators of the base and of a setup, with how often and how long a call runs them."""
    told = _prepare(sides.remotes[side], setup, shaped(parse(setup), shape))
    return sides.remotes[side].ask("explain", calls=max(7, min(15, round(3000 / told["call"]))))


def explain(room: Room, asked: argparse.Namespace) -> None:
    """Print where the time of one setup goes, on every side that has it."""
    for shape in shapes_of(asked.shapes, asked.layers, asked.width):
        with room.open(shape, asked.dtypes) as sides:
            for side in prepared(sides, asked.explain, shape):
                print(f"\n{asked.explain}, {shape}, {side}\n")
                print(explained(profile(sides, side, asked.explain, shape)), flush=True)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line. Raises ValueError for a setup that is none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setups", default=",".join(DEFAULT))
    parser.add_argument("--shapes", default="8x64,8x1", help="rows x tokens")
    parser.add_argument("--dtypes", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-peers", action="store_true", help="graftwork alone")
    parser.add_argument("--seconds", type=float, default=3, help="for a setup, shape and side; goals: 3 times, peers 2")
    parser.add_argument("--rounds", type=int, help="pairs of calls instead of seconds")
    parser.add_argument("--quick", action="store_true", help="one second")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--execution", default="auto", help="graftwork's executor")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768, help="of the base's stream")
    parser.add_argument("--no-dispatch", action="store_true", help="without the base whose time goes into calls")
    parser.add_argument("--curves", action="store_true", help="measure what the pictures show, too")
    parser.add_argument("--explain", metavar="SETUP", help="profile this setup instead")
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--out", type=Path, help="write rows there (.json) and the page beside them")
    asked = parser.parse_args(given)
    for name in asked.setups.split(","):
        parse(name)
    return asked


def main() -> None:
    """Measure, print the table, write what was asked for."""
    asked = arguments()
    effort = Effort(1 if asked.quick else asked.seconds, asked.rounds, asked.clock)
    names = ["graftwork", *([] if asked.no_peers else present(list(PEERS)))]
    room = Room(names, effort, asked.threads, asked.execution)
    if asked.explain:
        explain(room, asked)
        return
    print(HEAD)
    found = measure(room, asked)
    for file in filter(None, (asked.json, asked.out and asked.out.with_suffix(".json"))):
        write(file, json.dumps(found, indent=1) + "\n")
    if asked.out:
        write_all(asked.out.with_suffix(".json"))


if __name__ == "__main__":
    main()
