"""The page of `gpu.py`, from its rows."""

from collections.abc import Mapping
from typing import Any

from gpu_card import Row
from page import page, table
from setups import METHODS

from graftwork.timing import Spread


def page_of(found: Mapping[str, Any], ran: str) -> str:
    """The page of one run."""
    parts = [
        f"BERT-base by shape ({found['layers']} layers, {found['width']} wide), random weights; adapters "
        f"`{METHODS['seq_bn']}`. A large copy moves {found['copied'] / 1e12:.2f} TB a second, read and written.",
    ]
    if rows := found.get("setups"):
        head = ["setup", "rows x tokens", "dtype", "eager, ms", "ratio to the base", "graph, µs", "ratio to the base",
                "added, µs", "bytes of its weights at the bandwidth, µs"]  # fmt: skip
        parts += [
            "## Compositions\n\nEager is time that passes until the device has answered, most of it Python's; a graph "
            "is the same kernels replayed,\nthe device's own time. Medians in turns with the bare base; quotients with "
            "their quartiles.",
            table(head, [_setup(row) for row in rows]),
        ]
    if rows := found.get("kernels"):
        head = ["items x rows of each", "slots", "dtype", "way", "eager, µs", "device, µs", "floor, µs"]
        parts += [
            "## One bottleneck of a bank\n\nEach way to do it; `bottleneck` is the fused kernel. The floor: weights of "
            "the slots that items use, read once, and what is\nread and written, at the bandwidth; what fits the "
            f"cache of the card is faster than that.{found.get('remark', '')}",
            table(head, [
                [f"{row['items']}x{row['rows']}", f"{row['slots']:,}", row["dtype"], row["way"], f"{row['eager']:.0f}",
                 "–" if row["device"] is None else f"{row['device']:.1f}", f"{row['floor']:.1f}"] for row in rows
            ]),
        ]  # fmt: skip
    if rows := found.get("tiles"):
        head = ["kernel", "items", "rows, inner, outer columns, warps, stages", "µs"]
        parts += [
            "## Sizes of blocks\n\nbfloat16, device time; the quickest by the product of its times is bold.",
            table(head, [
                [row["what"], "single rows" if row["single"] else "several rows",
                 f"**{row['tile']}**" if row.get("best") else str(row["tile"]),
                 ", ".join(f"{name} {time:.1f}" for name, time in row["times"].items())] for row in rows
            ]),
        ]  # fmt: skip
    if rows := found.get("training"):
        head = ["method", "rows x tokens", "a step, ms", "times as fast as full"]
        parts += [
            "## Training\n\nForward, backward and AdamW under bfloat16 autocast, dropout on; `seq_bn_top`: adapters in "
            "the upper half of the layers.",
            table(head, [[row["setup"], row["shape"], f"{row['step']:.2f}",
                          str(Spread(row["low"], row["times as fast"], row["high"])).replace("-", "–")]
                         for row in rows]),
        ]  # fmt: skip
    if rows := found.get("crowd"):
        head = ["adapters drawn from", "rows x tokens", "ms", "of the base", "ratio"]
        parts += [
            f"## Crowds\n\nEager; every call draws its 64 rows anew, from adapters that lie in their slots. Adding "
            f"{found['adapters']:,} took {rows[0]['seconds to add']:.1f} s, running each for the first time "
            f"{rows[0]['first']:.1f} s.",
            table(head, [
                [f"{row['adapters']:,}", f"64x{row['tokens']}", f"{row['eager']['setup']:.2f}",
                 f"{row['eager']['base']:.2f}", _ratio(row["eager"])] for row in rows
            ]),
        ]  # fmt: skip
    if rows := found.get("decode"):
        head = ["adapters held", "rows", "a step, ms", "pieces a second"]
        parts += [
            "## Decoding\n\n`generate` with a cache, 64 rows of 32 pieces, 64 new ones; a Llama of 22 layers, 2,048 "
            "wide, bfloat16; `seq_bn[reduction_factor=64]`.\n0: the base; 1: all rows the same; else every row an "
            "adapter of its own, drawn anew for every text.",
            table(head, [[f"{row['adapters']:,}", "64", f"{1e3 * row['a step']:.2f}", f"{row['pieces a second']:,.0f}"]
                         for row in rows]),
        ]  # fmt: skip
    if rows := found.get("compile"):
        head = ["rows x tokens", "dtype", "eager, ms", "ratio", "compiled, ms", "ratio", "to compile, s", "base, s"]
        parts += [
            "## Compiled with mode=\"reduce-overhead\"\n\n64 rows, 64 adapters, every call another routing, one graph.",
            table(head, [
                [row["shape"], row["dtype"], f"{row['eager']['setup']:.2f}", _ratio(row["eager"]),
                 f"{row['compiled']['setup']:.3f}", _ratio(row["compiled"]), f"{row['seconds']['setup']:.0f}",
                 f"{row['seconds']['base']:.0f}"] for row in rows
            ]),
        ]  # fmt: skip
    return page("Compositions on a GPU", ran, *parts)


def _setup(row: Row) -> list[str]:
    eager, graph = row["eager"], row.get("graph")
    own = [f"{eager['setup']:.2f}", _ratio(eager)]
    if graph is None:
        return [row["setup"], row["shape"], row["dtype"], *own, "–", "–", "–", f"{1e3 * row['floor']:.1f}"]
    added = 1e3 * (graph["setup"] - graph["base"])
    return [row["setup"], row["shape"], row["dtype"], *own, f"{1e3 * graph['setup']:.0f}", _ratio(graph),
            f"{added:.0f}", f"{1e3 * row['floor']:.1f}"]  # fmt: skip


def _ratio(found: Row) -> str:
    return str(Spread(found["low"], found["ratio"], found["high"])).replace("-", "–")
