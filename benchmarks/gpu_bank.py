"""One bottleneck of a bank on a GPU, alone: every way to do it, and the kernels at other sizes of blocks (`gpu.py`)."""

import argparse
import math
import random
from collections.abc import Iterator
from statistics import median

import torch
from gpu_card import Card, Row, Run
from setups import REDUCTION
from torch import Tensor

from graftwork.compose.bank_kernels import bank_triton, try_kernels
from graftwork.compose.bank_product import BACKENDS, Call, possible
from graftwork.compose.bank_slots import Routing
from graftwork.timing import alternate

# candidates beside those of TILES: (rows, inner, outer columns, warps, stages)
CANDIDATES = {
    True: [(1, 64, 64, 4, 2), (1, 128, 64, 4, 3), (1, 128, 128, 8, 3), (1, 256, 128, 8, 1), (1, 256, 256, 8, 3)],
    False: [(16, 64, 64, 4, 2), (16, 128, 128, 4, 3), (32, 128, 64, 4, 2), (32, 128, 128, 8, 3), (64, 64, 64, 4, 3)],
}
NARROW = {
    True: [(1, 128, 16, 4, 2), (1, 256, 16, 4, 3), (1, 128, 32, 4, 3), (1, 512, 16, 8, 2)],
    False: [(16, 64, 16, 4, 3), (16, 128, 16, 4, 3), (32, 128, 32, 4, 3), (64, 64, 64, 4, 3)],
}


def kernels(card: Card, asked: argparse.Namespace) -> Iterator[Row]:
    """One bottleneck of a bank alone: every way, 64 items that draw from `slots`, beside the bytes it must read."""
    width = asked.width // REDUCTION
    try_kernels(card.device)
    for dtype in asked.dtypes:
        for items, per, slots in ((64, 1, 64), (64, 1, 1000), (1000, 1, 1000), (8, 64, 8), (64, 64, 1000)):
            found = one_site(card, asked, getattr(torch, dtype), (items, per, slots), width)
            yield from ({"dtype": dtype, "items": items, "rows": per, "slots": slots, **one} for one in found)


def one_site(
    card: Card, asked: argparse.Namespace, dtype: torch.dtype, sizes: tuple[int, int, int], width: int
) -> list[Row]:
    """The ways to do one bottleneck, each as a captured graph: microseconds of the device."""
    items, per, slots = sizes
    draw = random.Random(0)
    order = tuple(
        draw.sample(range(1, slots + 1), items) if slots >= items else draw.choices(range(1, slots + 1), k=items)
    )
    routing = Routing(order)

    def random_(*shape: int) -> Tensor:
        return (0.05 * torch.randn(shape, device=card.device)).to(dtype)

    x, inner = random_(items * per, asked.width), (random_(slots + 1, asked.width, width), random_(slots + 1, width))
    outer = random_(slots + 1, width, asked.width), random_(slots + 1, asked.width)
    ways: dict[str, Run] = {}
    for name in possible(Call(x, inner[0], inner[1], None, routing)):
        ways[name] = lambda way=BACKENDS[name]: way(  # type: ignore[misc]
            Call(torch.relu(way(Call(x, *inner, None, routing))), *outer, None, routing)
        )
    if "kernel" in ways:
        ways["bottleneck"] = lambda: bank_triton.slot_bottleneck(x, *inner, *outer, "relu", routing.on(x.device))
    with torch.inference_mode():
        expected = ways["loop"]()
        found = []
        for name, run in ways.items():
            off = float((run().float() - expected.float()).abs().max() / expected.float().abs().max())
            if off > 0.03:
                raise RuntimeError(f"{name} is off by {off:.1e} at {sizes} in {dtype}")
            graph = card.captured(run)
            times = alternate({name: card.finished(run)}, asked.rounds, warm=3)[name]
            device = None if graph is None else 1e3 * median(card.replayed({name: graph}, asked.rounds)[name])
            found.append({"way": name, "off": off, "eager": 1e3 * median(times), "device": device})
    distinct = len(set(order))
    read = distinct * sum(one[0].nbytes for one in (*inner, *outer)) + 2 * x.nbytes
    return [one | {"floor": 1e6 * read / card.copied} for one in found]


def tiles(card: Card, asked: argparse.Namespace) -> Iterator[Row]:
    """The kernels in bfloat16 at every tile: microseconds of the device over some batches. The quickest stays."""
    for (what, single), own in list(bank_triton.TILES.items()):
        batches = [(64, 1), (1000, 1)] if single else [(8, 64), (64, 64)]
        known = NARROW if what == "narrow" else CANDIDATES
        rows: list[Row] = []
        for tile in dict.fromkeys([own, *map(bank_triton.Tile._make, known[single])]):
            bank_triton.TILES[what, single] = tile
            times = {f"{items}x{per}": _kernel_time(card, asked, what, items, per) for items, per in batches}
            rows.append({"what": what, "single": single, "tile": list(tile), "times": times})
        best = min(rows, key=_product)
        bank_triton.TILES[what, single] = bank_triton.Tile(*best["tile"])
        best["best"] = True
        yield from rows


def _product(row: Row) -> float:
    return math.prod(row["times"].values())


def _kernel_time(card: Card, asked: argparse.Namespace, what: str, items: int, per: int) -> float:
    width = asked.width // REDUCTION
    deep, wide = (width, asked.width) if what == "broad" else (asked.width, width)

    def made(*shape: int) -> Tensor:
        return (0.05 * torch.randn(shape, device=card.device)).to(torch.bfloat16)

    x, slots = made(items * per, deep), torch.randperm(items, device=card.device)
    weight, bias = made(items, deep, wide), made(items, wide)
    up, constant = made(items, wide, deep), made(items, deep)
    if what == "bottleneck":
        run: Run = lambda: bank_triton.slot_bottleneck(x, weight, bias, up, constant, "relu", slots)  # noqa: E731
    else:
        run = lambda: bank_triton.slot_product(x, weight, bias, None, slots)  # noqa: E731
    run()
    graph = card.captured(run)
    assert graph is not None
    return 1e3 * median(card.replayed({"one": graph}, 9)["one"])
