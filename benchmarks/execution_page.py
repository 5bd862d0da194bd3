"""From the rows of `execution.py` to what people read: a page with tables, notes and pictures, and the docs' table.

    python benchmarks/execution_page.py [benchmarks/results/execution.json]

The JSON file is the one source. Writes the page and the pictures beside it, and what stands between the marks
of docs/benchmarks.md.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from page import Curve, draw, table, write
from setups import parse

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "execution.json"
DOCS = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- execution: begin -->", "<!-- execution: end -->"
APART = 3  # points that a profile may differ from the ratio before the page says so
SIDES = ("graftwork", "adapters", "peft")
PICTURES = {
    "members": "Cost against members (8 rows of 16 tokens)",
    "adapters": "Cost against adapters in a batch (32 rows of 8 tokens)",
    "layers": "Cost against layers dropped (8 tasks on one text of 32 tokens)",
}


def page_of(found: dict[str, Any]) -> str:
    """The page of one run: tables, notes, pictures, and what it ran on."""
    rows: list[Row] = found["rows"]
    parts = [
        "# Execution: what a composition costs beside the frozen base",
        "Ratio to the bare base of the same side in the same process: the median quotient of calls taken in turns,\n"
        "with its quartiles. All sides run the same base and the same adapters, and take turns in one run. The floor\n"
        "is what arithmetic says, folded and with a shared trunk: multiplications, and weights read, which bind where\n"
        "few tokens share a weight. `base` is the base against itself: the noise of the run.",
        counted(rows),
        main_table(rows),
        standing(rows),
        *notes(rows),
        *above(found),
    ]
    drawn = [f"![{title}]({name})" for name, title in pictures(found)]
    end = f"Measured by\n\n    {found['command']}\n\n{found['conditions']}"
    return "\n\n".join([*parts, *drawn, end]) + "\n"


def main_table(rows: Sequence[Row]) -> str:
    """One line for every setup, batch and dtype, one column for every side."""
    groups: dict[tuple[str, str, int, int, str], dict[str, Row]] = {}
    for row in rows:
        groups.setdefault(_place(row), {})[row["side"]] = row
    lines = []
    for (setup, batch, layers, width, dtype), own in groups.items():
        first = next(iter(own.values()))
        least = f"{first['floor_multiplications']:.3f} / {first['floor_weights']:.3f}"
        cells = [cell(own[side]) if side in own else "–" for side in SIDES]
        lines.append([setup, batch, f"{layers}x{width}", dtype, *cells, least, promised(own.get("graftwork"))])
    head = ["setup", "rows x tokens", "layers x width", "dtype", *SIDES, "floor", "goal"]
    return table(head, lines)


def cell(row: Row) -> str:
    """A ratio with its quartiles."""
    mark = " ¹" if other_function(row) else ""
    return f"{row['ratio']:.3f} ({row['low']:.3f}–{row['high']:.3f}){mark}"


def other_function(row: Row) -> bool:
    """Whether a side computes something else in this setup, and says so."""
    return str(row["remark"]).startswith("another function")


def promised(row: Row | None) -> str:
    """The goal, and whether it is met; undecided where it lies between the quartiles."""
    if row is None or row["goal"] is None:
        return ""
    undecided = "undecided" if row["low"] <= row["goal"] else "**not met**"
    return f"<= {row['goal']:g}, {'met' if row['high'] <= row['goal'] else undecided}"


def counted(rows: Sequence[Row]) -> str:
    """How many pairs of calls are behind the figures: of graftwork with a goal, of the peers beside it, of others."""
    promises = {_place(row) for row in rows if row["goal"]}
    pairs: dict[str, list[int]] = {}
    for row in rows:
        ours = "a row of graftwork with a goal" if row["side"] == "graftwork" else "a row of a peer beside it"
        pairs.setdefault(ours if _place(row) in promises else "any other", []).append(row["pairs"])
    listed = ", ".join(f"{min(found)} to {max(found)} of {kind}" for kind, found in pairs.items())
    return (
        f"Pairs of calls: {listed}. A goal is met where both quartiles are at or below it,\n"
        "not met where both are above, and undecided where it lies between them."
    )


def standing(rows: Sequence[Row]) -> str:
    """Two lines: where graftwork is behind a peer and where ahead, as far as quartiles do not overlap."""
    ours = {_place(row): row for row in rows if row["side"] == "graftwork" and row["setup"] != "base"}
    places: dict[str, list[str]] = {"Behind": [], "Ahead of": []}
    for row in rows:
        own = ours.get(_place(row))
        if own is None or row["side"] == "graftwork" or other_function(row):
            continue
        size = f" of {row['layers']}x{row['width']}" if row["width"] != rows[0]["width"] else ""
        where = f"{row['setup']} {row['batch']}{size}" + (f" {row['dtype']}" if row["dtype"] != "float32" else "")
        told = f"{where} ({row['side']} {row['ratio']:.3f}, here {own['ratio']:.3f})"
        if own["low"] > row["high"]:
            places["Behind"].append(told)
        elif own["high"] < row["low"]:
            places["Ahead of"].append(told)
    return "\n\n".join(
        f"{how} a peer, by intervals that do not overlap: {'; '.join(found) or 'nowhere'}."
        for how, found in places.items()
    )


def _place(row: Row) -> tuple[str, str, int, int, str]:
    return row["setup"], row["batch"], row["layers"], row["width"], row["dtype"]


def notes(rows: Sequence[Row]) -> list[str]:
    """What a reader must know to compare: other functions, differences between sides, what dropping layers saves."""
    found = []
    others = sorted({f"{row['setup']} of {row['side']}: {row['remark']}" for row in rows if other_function(row)})
    if others:
        found.append("¹ " + "; ".join(others) + ".")
    same = [row for row in rows if row["side"] != "graftwork" and not other_function(row)]
    for dtype in dict.fromkeys(row["dtype"] for row in same):
        worst = max(row["difference"] for row in same if row["dtype"] == dtype)
        found.append(
            f"In {dtype} what the peers return differs from what graftwork returns by {worst:.0e} at most "
            "(root mean square), but for ¹."
        )
    whole = {(row["batch"], row["side"], row["dtype"]): row for row in rows if row["setup"] == "parallel8"}
    for row in rows:
        full = whole.get((row["batch"], row["side"], row["dtype"]))
        if row["setup"] == "parallel8_drop5" and full is not None and row["batch"] != "1x1":
            faster = full["ratio"] / row["ratio"] - 1
            counted = full["floor_multiplications"] / row["floor_multiplications"] - 1
            found.append(
                f"AdapterDrop, {row['side']}, 8 tasks on one text ({row['batch']}): without adapters in the first 5 "
                f"layers {faster:.0%} faster; by multiplications {counted:.0%}; the paper says 39%."
            )
    return found


def above(found: dict[str, Any]) -> list[str]:
    """Where the cost lies of each setup that is above its goal."""
    parts = []
    for one in found.get("explained", []):
        row = one["row"]
        parts += [
            f"## Above its goal: {row['setup']}, {row['batch']}",
            f"{row['ratio']:.3f} where {row['goal']:g} was the goal and {row['floor_multiplications']:.3f} "
            f"(multiplications) or {row['floor_weights']:.3f} (weights read) the floor. By a profile, "
            "medians of calls in turns with the base:",
            explained(one["profile"]),
            *disagreement(row, one["profile"]),
        ]
    return parts


def explained(profile: dict[str, dict[str, list[float]]]) -> str:
    """A table of the operators in which a setup differs most from the base, for each call."""
    base, setup = profile["base"], profile["setup"]
    total = sum(own for _, own in base.values())
    names = sorted({*base, *setup}, key=lambda name: -abs(_own(setup, name) - _own(base, name)))[:8]
    lines = [
        [
            f"`{name}`" if "::" in name else name,
            f"{_count(base, name):g}",
            f"{_count(setup, name):g}",
            f"{_own(base, name):.3f}",
            f"{_own(setup, name):.3f}",
            f"{100 * (_own(setup, name) - _own(base, name)) / total:+.2f}%",
        ]
        for name in names
    ]
    more = sum(own for _, own in setup.values()) - total
    lines.append(["all", "", "", f"{total:.3f}", f"{total + more:.3f}", f"{100 * more / total:+.2f}%"])
    head = ["operator", "calls, base", "calls, setup", "ms, base", "ms, setup", "of the base"]
    return table(head, lines)


def disagreement(row: Row, profile: dict[str, dict[str, list[float]]]) -> list[str]:
    """A sentence where a profile adds more to the base, or less, than the turns did, by over three points."""
    base, setup = (sum(own for _, own in profile[name].values()) for name in ("base", "setup"))
    added, measured = 100 * (setup / base - 1), 100 * (row["ratio"] - 1)
    if abs(added - measured) <= APART:
        return []
    return [
        f"Under the profiler it adds {added:.1f}% and without {measured:.1f}%: the table says which operators come in, "
        "and its times are not those of the ratio."
    ]


def _count(profile: dict[str, list[float]], name: str) -> float:
    return profile.get(name, [0.0, 0.0])[0]


def _own(profile: dict[str, list[float]], name: str) -> float:
    return profile.get(name, [0.0, 0.0])[1]


def pictures(found: dict[str, Any], stem: str = "execution") -> list[tuple[str, str]]:
    """File and title of each picture that a run has points for."""
    return [(f"{stem}_{name}.svg", title) for name, title in PICTURES.items() if points_of(found, name)]


def points_of(found: dict[str, Any], picture: str) -> list[Curve]:
    """The curves of a picture; none where its setups were not measured."""
    rows = [row for row in found.get("curves", []) if row["picture"] == picture]
    curves: list[Curve] = []
    keys = dict.fromkeys((row["side"], block(row)) for row in rows)
    for side, kind in sorted(keys, key=lambda one: SIDES.index(one[0])):
        own = [row for row in rows if row["side"] == side and block(row) == kind]
        named = f"{kind}, " if picture == "members" else ""
        curves.append(Curve(named + side, [(across(row, picture), row["ratio"]) for row in own]))
        if side == "graftwork":
            least = [(across(row, picture), row["floor_multiplications"]) for row in own]
            curves.append(Curve(f"{named}multiplications", least, dashed=True))
    return curves


def block(row: Row) -> str:
    """What members a row's setup counts; a single adapter is a Stack of one."""
    kind = parse(row["setup"]).kind
    return "Stack" if kind == "one" else kind.capitalize()


def across(row: Row, picture: str) -> int:
    """Where a row lies on the axis of a picture."""
    setup = parse(row["setup"])
    return setup.drop if picture == "layers" else setup.members


def write_all(results: Path = RESULTS, docs: Path | None = DOCS) -> None:
    """Write the page and the pictures beside the results, and the block of the docs where there are rows for it."""
    found = json.loads(results.read_text("utf8"))
    write(results.with_suffix(".md"), page_of(found))
    axes = {"members": "members", "adapters": "different adapters", "layers": "lowest layers without adapters"}
    for name, title in PICTURES.items():
        if curves := points_of(found, name):
            file = results.with_name(f"{results.stem}_{name}.svg")
            print(draw(file, title, axes[name], "time / base", curves) or f"wrote {file.name}")
    rows = chosen(found["rows"])
    if docs is not None and rows:
        shown = [f"![{title}](../benchmarks/results/{name})" for name, title in pictures(found, results.stem)]
        write(docs, with_block(docs.read_text("utf8"), "\n\n".join([main_table(rows), standing(rows), *shown])))


def chosen(rows: Sequence[Row]) -> list[Row]:
    """The rows of the table in the docs: float32, and not the base against itself."""
    return [row for row in rows if row["dtype"] == "float32" and row["setup"] != "base"]


def with_block(text: str, new: str) -> str:
    """A page with something new between its marks. Raises ValueError for a page without them."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} … {END}")
    return f"{before}{BEGIN}\n\n{new}\n\n{END}{after}"


if __name__ == "__main__":
    write_all(*map(Path, sys.argv[1:2]))
