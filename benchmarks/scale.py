"""What do the first, the 100th and the 1,000th adapter cost, and batches whose rows run different ones?

    python benchmarks/scale.py [--quick] [--no-peers] [--sweep] [--compile] [--counts 1,100,1000] [--clock cpu]
                               [--threads 1] [--dtype float32] [--out FILE]

Each side (`side.py`, `crowd.py`) adds adapters until its time is up. When it holds 1, 100, 1,000 it loads one from
files and runs one that has never run. Then it runs batches whose rows draw from 1, 8, 32, 128, 1,000 of them, in turns
with its bare base. PEFT has no bottleneck adapters: there it is LoRA of rank 8. `--quick`: a base of 6 layers, 384
wide; else BERT-base. `--sweep`: one adapter and a Fuse of three, 1 to 512 tokens in batches of 1 to 64, as far as rows
times tokens are at most 4,096. `--compile`: graftwork under torch.compile. Without `--quick` both are measured too.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from execution import PEERS, Effort, Room
from page import Curve, command, draw, page, table, write
from setups import METHODS, Shape
from sides import ROOT, Remote, present

from graftwork.timing import CLOCKS, milliseconds, quotients

Found = dict[str, Any]
RESULTS = ROOT / "benchmarks" / "results" / "scale.md"
DISTINCT = (1, 8, 32, 128, 1000)
MOST = 4096  # rows times tokens of a sweep
SWEEP = [Shape(rows, tokens) for rows in (1, 8, 64) for tokens in (1, 8, 64, 512) if rows * tokens <= MOST]
SWEPT = ("seq_bn", "fuse3")
COMPILED = ("seq_bn", "fuse3", "mixed8")
WINDOW = 10  # adds before a count whose median stands for it


def growth(remote: Remote, counts: Sequence[int], seconds: float) -> list[Found]:
    """For each count that a side reaches in time: milliseconds to add, load, run the first time and again."""
    rows: list[Found] = []
    for count in counts:
        grown = remote.ask("grow", to=count, seconds=seconds)
        if grown["count"] < count:
            print(f"SKIPPED: {remote.name} had {grown['count']} adapters after {seconds:g} s; {count} was asked for")
            break
        ran = remote.ask("switch", rows=1, tokens=16, count=3)
        rows.append(
            {
                "side": remote.name,
                "count": count,
                "add": median(grown["times"][-WINDOW:]),
                "load": median(remote.ask("load", count=3)["times"]),
                "first": median(ran["first"]) if ran["first"] else None,
                "again": median(ran["again"]) if ran["again"] else None,
                "bytes": grown["bytes"] / len(grown["times"]) if len(grown["times"]) >= WINDOW else None,
            }
        )
        print(growth_line(rows[-1]), flush=True)
    return rows


def growth_line(row: Found) -> str:
    """A row as text."""
    ran = f"first call {row['first']:.1f} ms, again {row['again']:.1f} ms, " if row["first"] else ""
    held = f"{row['bytes'] / 1e6:.2f} MB held" if row["bytes"] else ""
    return f"{row['side']:10} adapter {row['count']:5}: add {row['add']:.1f} ms, load {row['load']:.1f} ms, {ran}{held}"


def mixtures(remote: Remote, held: int, shape: Shape, effort: Effort) -> list[Found]:
    """Rows a second for crowds that a side holds, drawn from alike and by Zipf's law."""
    rows = []
    for distinct in (count for count in DISTINCT if count <= held):
        for law in ("uniform", "zipf") if distinct > 1 else ("uniform",):
            asked = {"rows": shape.rows, "tokens": shape.tokens, "distinct": distinct, "law": law}
            times = remote.ask("mixed", rounds=effort.rounds, clock=effort.clock, **asked)
            rows.append({"side": remote.name, "batch": str(shape), **asked, **mixture(times, shape.rows)})
            print(mixture_line(rows[-1]), flush=True)
    return rows


def mixture(times: dict[str, list[float]], rows: int) -> Found:
    """What one crowd took: rows a second, and the quotients to the base and to one adapter."""
    to_base, to_one = quotients(times["mixed"], times["base"]), quotients(times["mixed"], times["one"])
    return {
        "rows_a_second": 1e3 * rows / milliseconds(times["mixed"]),
        "base_rows_a_second": 1e3 * rows / milliseconds(times["base"]),
        "ratio": to_base.middle,
        "low": to_base.low,
        "high": to_base.high,
        "to_one": to_one.middle,
    }


def mixture_line(row: Found) -> str:
    """A row as text."""
    return (
        f"{row['side']:10} {row['batch']:>6} from {row['distinct']:5} {row['law']:8} "
        f"{row['rows_a_second']:8.1f} rows/s, base x {row['ratio']:.3f} ({row['low']:.3f}-{row['high']:.3f}), "
        f"one adapter x {row['to_one']:.3f}"
    )


def compilation(remote: Remote, setup: str, shape: Shape, effort: Effort) -> Found:
    """One setup of graftwork's under torch.compile, beside the base under it; what is compiled stays so."""
    remote.ask("prepare", setup=setup, rows=shape.rows, tokens=shape.tokens, output=str(remote.result()))
    found = remote.ask("compile", rounds=effort.rounds, clock=effort.clock)
    eager, fast = found["eager"], found["compiled"]
    row = {
        "setup": setup,
        "batch": str(shape),
        "seconds": found["first"]["setup"],
        "base_seconds": found["first"]["base"],
        "eager": quotients(eager["setup"], eager["base"]).middle,
        "compiled": quotients(fast["setup"], fast["base"]).middle,
        "faster": milliseconds(eager["setup"]) / milliseconds(fast["setup"]),
        "base_faster": milliseconds(eager["base"]) / milliseconds(fast["base"]),
    }
    print(row, flush=True)
    return row


def page_of(found: Found, ran: str, drawn: str = "scale_crowd.svg") -> str:
    """The page of one run; drawn: its picture."""
    parts = [
        f"Base: {found['layers']} layers, {found['width']} wide, random weights, {found['dtype']}. graftwork and\n"
        f"adapters: `{METHODS['seq_bn']}`; PEFT: LoRA of rank 8 on query and value, for it has no bottleneck adapters.",
        "## The next adapter\n\nMilliseconds. `add`: a fresh one, the median of the ten up to there; `load`: one from "
        "files; `first call`: one row of\n16 tokens with an adapter that has never run, and the call after it.",
        growth_table(found["growth"]),
        *stopped(found),
        "## Batches that mix adapters\n\nEvery row draws an adapter, alike or by Zipf's law (the k-th as often as\n"
        "1/k), and every call draws anew. The base and the batch take turns; median quotient, with its quartiles.",
        mixture_table(found["mixtures"]),
        f"![Cost against the crowd that rows draw from]({drawn})",
    ]
    if found["sweep"]:
        said = f"{' and '.join(SWEPT)}, rows times tokens up to {MOST:,}; ratio to the base, here alone."
        parts += [f"## Batch and length\n\n{said}", sweep_table(found["sweep"])]
    if found["compile"]:
        parts += ["## torch.compile", compile_table(found["compile"])]
    title = "Scale: many adapters on one base"
    return page(title, ran, *parts, peers=found["versions"], threads=found["threads"])


def stopped(found: Found) -> list[str]:
    """Which sides did not reach the largest crowd in their time, and from how many their batches draw for that."""
    said = []
    for side in dict.fromkeys(row["side"] for row in found["growth"]):
        reached = max(row["count"] for row in found["growth"] if row["side"] == side)
        if reached < found["asked"]:
            drawn = max((row["distinct"] for row in found["mixtures"] if row["side"] == side), default=0)
            said.append(
                f"{side} stopped at adapter {reached:,}: {found['asked']:,} were not reached within the "
                f"{found['seconds']:g} s that each count has, and its batches draw from {drawn:,} at most."
            )
    return ["\n".join(said)] if said else []


def growth_table(rows: Sequence[Found]) -> str:
    """Add, load and first call by side and count."""
    head = ["side", "adapter", "add", "load", "first call", "the next call", "memory for each"]
    return table(head, [[one["side"], f"{one['count']:,}", *_growth(one)] for one in rows])


def _growth(row: Found) -> list[str]:
    times = [f"{row[key]:.1f}" if row[key] is not None else "–" for key in ("add", "load", "first", "again")]
    return [*times, f"{row['bytes'] / 1e6:.2f} MB" if row["bytes"] else "–"]


def mixture_table(rows: Sequence[Found]) -> str:
    """Rows a second by side, crowd and law."""
    head = ["side", "batch", "adapters", "drawn", "rows a second", "of the base", "ratio to the base", "to one adapter"]
    return table(
        head,
        [
            [
                one["side"], one["batch"], f"{one['distinct']:,}", one["law"], f"{one['rows_a_second']:.0f}",
                f"{one['base_rows_a_second']:.0f}", f"{one['ratio']:.3f} ({one['low']:.3f}–{one['high']:.3f})",
                f"{one['to_one']:.3f}",
            ]
            for one in rows
        ],
    )  # fmt: skip


def sweep_table(rows: Sequence[Found]) -> str:
    """Ratios by batch and setup."""
    head = ["setup", "rows x tokens", "ratio", "base, ms"]
    cells = [
        [one["setup"], one["batch"], f"{one['ratio']:.3f} ({one['low']:.3f}–{one['high']:.3f})",
         f"{one['base_milliseconds']:.2f}"]
        for one in rows
    ]  # fmt: skip
    return table(head, cells)


def compile_table(rows: Sequence[Found]) -> str:
    """Time to compile, and what it brings."""
    head = [
        "setup", "batch", "compile after the base, s", "base, s", "ratio, eager", "ratio, compiled", "faster", "base",
    ]  # fmt: skip
    cells = [
        [one["setup"], one["batch"], f"{one['seconds']:.1f}", f"{one['base_seconds']:.1f}", f"{one['eager']:.3f}",
         f"{one['compiled']:.3f}", f"{one['faster']:.2f} x", f"{one['base_faster']:.2f} x"]
        for one in rows
    ]  # fmt: skip
    return table(head, cells)


def picture(rows: Sequence[Found], file: Path) -> None:
    """The cost of a batch against the crowd that its rows draw from."""
    keys = dict.fromkeys((one["side"], one["law"]) for one in rows if one["distinct"] > 1)
    curves = [
        Curve(f"{side}, {law}", [(one["distinct"], one["ratio"]) for one in rows if _drawn(one, side, law)])
        for side, law in keys
    ]
    print(draw(file, "Cost against adapters to draw from", "adapters", "time / base", curves) or f"wrote {file.name}")


def _drawn(row: Found, side: str, law: str) -> bool:
    return row["side"] == side and (row["law"] == law or row["distinct"] == 1)


def measure(asked: argparse.Namespace, names: list[str]) -> Found:
    """Everything that was asked for."""
    layers, width = (6, 384) if asked.quick else (12, 768)
    layers, width = asked.layers or layers, asked.width or width
    shape = Shape(*((32, 16) if asked.quick else (64, 32)), layers, width)
    effort = Effort(0, asked.rounds or (3 if asked.quick else 11), asked.clock)
    seconds = asked.seconds or (8 if asked.quick else 300)
    counts = [int(one) for one in asked.counts.split(",")]
    room, alone = (Room(sides, effort, asked.threads, asked.execution) for sides in (names, ["graftwork"]))
    found: Found = {"layers": layers, "width": width, "growth": [], "mixtures": [], "sweep": [], "compile": []}
    found |= {"dtype": asked.dtype, "threads": asked.threads, "seconds": seconds, "asked": max(counts)}
    with room.open(shape, asked.dtype) as sides:
        found["versions"] = sides.versions
        for setup in ("seq_bn", "lora"):
            sides.remotes["graftwork"].ask("write", setup=setup)
        for remote in sides.remotes.values():
            grown = growth(remote, counts, seconds)
            found["growth"] += grown
            found["mixtures"] += mixtures(remote, max((one["count"] for one in grown), default=0), shape, effort)
    if asked.sweep:
        with alone.open(shape, asked.dtype) as sides:
            for one in SWEEP:
                found["sweep"] += alone.rows(sides, SWEPT, one._replace(layers=layers, width=width), asked.dtype)
    for setup in COMPILED if asked.compile else ():
        with alone.open(shape, asked.dtype) as sides:
            batch = shape._replace(rows=8, tokens=8)
            found["compile"].append(compilation(sides.remotes["graftwork"], setup, batch, effort))
    return found


def main() -> None:
    """Measure, print, and write the page, its rows and its picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller base, fewer calls, no sweep")
    parser.add_argument("--no-peers", action="store_true", help="graftwork alone")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--counts", default="1,100,1000")
    parser.add_argument("--seconds", type=float, help="for a side to reach each count")
    parser.add_argument("--rounds", type=int, help="calls of each")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--execution", default="auto", help="graftwork's executor")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    if not asked.quick:
        asked.sweep = asked.compile = True
    found = measure(asked, ["graftwork", *([] if asked.no_peers else present(list(PEERS)))])
    drawn = asked.out.with_name(f"{asked.out.stem}_crowd.svg")
    picture(found["mixtures"], drawn)
    write(asked.out.with_suffix(".json"), json.dumps(found, indent=1) + "\n")
    write(asked.out, page_of(found, command(), drawn.name))


if __name__ == "__main__":
    main()
