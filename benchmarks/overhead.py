"""How much slower is inference with adapters, by rows and tokens of a batch? There is no one figure.

    python benchmarks/overhead.py [--setups seq_bn,stack2] [--rows 1,8,32] [--tokens 32,128] [--layers 6 --width 384]
                                  [--seconds 4 | --rounds 5 | --quick] [--clock cpu] [--threads 1] [--dtype float32]
                                  [--peers] [--out FILE]

Each cell is the time of a call beside the bare base's, in turns in one process (`execution.py` measures it); MiniLM's
shape unless told otherwise. `--peers` puts `adapters` and `peft` beside us. `--out` writes the page, and rows as JSON.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from execution import PEERS, Effort, Room
from page import command, page, table, write
from setups import Shape, parse
from sides import present

from graftwork.timing import CLOCKS

SETUPS = "seq_bn,double_seq_bn,lora,stack2,stack3,fuse3"
Row = dict[str, Any]


def added(ratio: float) -> str:
    """A ratio as what it adds: 1.034 is +3.4 %."""
    return f"{100 * (ratio - 1):+.1f} %"


def cell(row: Row | None) -> str:
    """What one setup adds at one shape, between its quartiles, beside what its multiplications add."""
    if row is None:
        return "–"
    spread = f"{added(row['ratio'])} ({added(row['low'])[:-2]} to {added(row['high'])[:-2]})"
    return f"{spread}; {added(row['floor_multiplications'])}"


def page_of(rows: Sequence[Row], base: str, sides: Mapping[str, Any]) -> str:
    """The page: a table for each side, setups down, shapes across. sides: what `page` asks of them."""
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    found = {(row["side"], row["setup"], row["shape"]): row for row in rows}
    parts = [
        f"Base: {base}, random weights. Each cell: what a call takes more than the bare base, the median of turns and "
        "its quartiles; then what the multiplications of its matrix products add. Batches are rows x tokens.",
    ]
    for side in dict.fromkeys(row["side"] for row in rows):
        setups = dict.fromkeys(row["setup"] for row in rows if row["side"] == side)
        cells = [[setup, *(cell(found.get((side, setup, shape))) for shape in shapes)] for setup in setups]
        parts += [f"## {side}", table(["setup", *shapes], cells)]
    return page("What adapters add to inference, by rows and tokens", command(), *parts, **sides)


def main() -> None:
    """Measure, print, and write what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setups", default=SETUPS)
    parser.add_argument("--rows", default="1,8,32")
    parser.add_argument("--tokens", default="32,128")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384, help="of the base's stream")
    parser.add_argument("--seconds", type=float, default=4, help="for each cell and side")
    parser.add_argument("--rounds", type=int, help="pairs of calls instead of seconds")
    parser.add_argument("--quick", action="store_true", help="half a second")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--peers", action="store_true", help="adapters and peft too, where they are installed")
    parser.add_argument("--out", type=Path, help="write the page there, and its rows beside it as .json")
    asked = parser.parse_args()
    setups = asked.setups.split(",")
    for name in setups:
        parse(name)
    sizes = [(int(tokens), int(rows)) for tokens in asked.tokens.split(",") for rows in asked.rows.split(",")]
    shapes = [Shape(rows, tokens, asked.layers, asked.width) for tokens, rows in sizes]
    sides = ["graftwork", *(present(list(PEERS)) if asked.peers else [])]
    room = Room(sides, Effort(0.5 if asked.quick else asked.seconds, asked.rounds, asked.clock), asked.threads, "auto")
    with room.open(shapes[0], asked.dtype) as opened:
        peers = opened.versions
        rows = [row for shape in shapes for row in room.rows(opened, setups, shape, asked.dtype)]
    threads = f"{asked.threads} thread{'s' * (asked.threads > 1)}"
    base = f"{asked.layers} layers, {asked.width} wide, {asked.dtype}, {threads}"
    written = page_of(rows, base, {"peers": peers, "threads": asked.threads})
    print(written)
    if asked.out is not None:
        write(asked.out.with_suffix(".json"), json.dumps(rows, indent=1) + "\n")
        write(asked.out, written)


if __name__ == "__main__":
    main()
