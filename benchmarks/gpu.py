"""What does a composition cost on a GPU: as calls from Python, as a replayed CUDA graph, and by its bytes?

    python benchmarks/gpu.py [--dtypes bfloat16,float32] [--shapes 64x1,8x64] [--setups seq_bn,mixed64] [--layers 12]
                             [--width 768] [--parts kernels,setups,training,crowd,decode,compile,tiles]
                             [--adapters 1000] [--rounds 15] [--device cpu] [--out FILE]

`setups`: BERT-base by shape with random weights, each setup in turns with the bare base on the same weights: eager, as
time that passes, and captured as a CUDA graph, as the device's own time. What a setup adds is set against the bytes of
its adapters' weights at the bandwidth of a large copy, the floor of a decoding step. `kernels`: one site alone, each
way to do a bank's bottleneck. `tiles`: the kernels at other sizes of blocks, of which `compose/bank_triton.py` has the
quickest. `training`: a step of AdamW under bfloat16 autocast, beside one of full fine-tuning. `crowd`: batches that
draw from 1,000 adapters. `decode`: pieces a second of a decoder of 1.1 thousand million weights with none, 1, 64 and
1,000 adapters. `compile`: `mode="reduce-overhead"`, where every call has another routing. Every answer is compared with
the reference. `--out` writes the page, and its rows beside it as JSON. `--device cpu` shows that it runs, without
graphs.
"""

import argparse
import json
import math
import random
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from page import command, page, table, write
from setups import METHODS, REDUCTION, Setup, Shape, parse, shaped
from side import agreed, inputs_of
from side_graftwork import Graftwork
from sides import ROOT, write_base
from steps import Ours, base_of
from torch import Tensor
from transformers import BertModel, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from graftwork.compose.bank_bottleneck import bottleneck
from graftwork.compose.bank_kernels import bank_triton
from graftwork.compose.bank_product import BACKENDS, Call, possible
from graftwork.compose.bank_slots import Routing
from graftwork.model import AdapterModel
from graftwork.timing import Spread, alternate, milliseconds, quotients

Row = dict[str, Any]
Run = Callable[[], Any]
RESULTS = ROOT / "benchmarks" / "results" / "gpu.md"
SETUPS = ("seq_bn", "double_seq_bn", "lora", "stack2", "fuse3", "mixed8", "mixed64", "parallel8", "parallel8_drop5")
SHAPES = (Shape(8, 1), Shape(64, 1), Shape(8, 64), Shape(64, 64))
PARTS = ("kernels", "setups", "training", "crowd", "decode", "compile")
TRAINED = ("full", "seq_bn", "seq_bn_top", "double_seq_bn", "lora", "fuse3")
REPLAYS = 10  # of a graph between two events
DRAWN = 20  # routings that a crowd draws


class Card:
    """The device: its clock, its graphs, its bandwidth."""

    def __init__(self, name: str) -> None:
        self.device = torch.device(name)
        self.real = self.device.type == "cuda"
        self.copied = self._bandwidth()

    def wait(self) -> None:
        """Until everything that was asked for is done."""
        if self.real:
            torch.cuda.synchronize()

    def finished(self, run: Run) -> Run:
        """The same, until it is done on the device."""

        def whole() -> None:
            run()
            self.wait()

        return whole

    def captured(self, run: Run) -> Run | None:
        """What replays the kernels of a call, without Python; None without a GPU."""
        if not self.real:
            return None
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                kept = run()
        except RuntimeError as error:
            print(f"SKIPPED: no graph: {error}", flush=True)
            return None
        graph.kept = kept  # type: ignore[attr-defined]
        return graph.replay

    def replayed(self, rivals: Mapping[str, Run], rounds: int) -> dict[str, list[float]]:
        """Milliseconds of the device for one replay of each, in turns."""
        found: dict[str, list[float]] = {name: [] for name in rivals}
        for number in range(-1, rounds):
            for name in list(rivals)[:: 1 if number % 2 else -1]:
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                for _ in range(REPLAYS):
                    rivals[name]()
                end.record()
                end.synchronize()
                if number >= 0:
                    found[name].append(start.elapsed_time(end) / REPLAYS)
        return found

    def _bandwidth(self) -> float:
        """Bytes a second that a large copy moves, read and written."""
        size = 2**30 if self.real else 2**22
        there, here = (torch.empty(size, dtype=torch.uint8, device=self.device) for _ in range(2))
        times = alternate({"copy": self.finished(lambda: there.copy_(here))}, 9)["copy"]
        return 2 * size / (median(times) / 1e3)


def setups(card: Card, asked: argparse.Namespace) -> list[Row]:
    """Each setup beside the bare base, eager and captured."""
    rows = []
    for dtype in asked.dtypes:
        with tempfile.TemporaryDirectory() as temporary:
            bare, side = opened(card, asked, dtype, Path(temporary))
            for shape in asked.shapes:
                for setup in map(parse, asked.setups):
                    if setup.kind == "parallel" and shape.tokens == 1:
                        continue
                    if setup.kind == "mixed" and setup.members > shape.rows:
                        continue
                    rows.append({"dtype": dtype, **measured(card, bare, side, setup, shape, asked)})
                    print(rows[-1], flush=True)
    return rows


def opened(card: Card, asked: argparse.Namespace, dtype: str, folder: Path) -> tuple[BertModel, Graftwork]:
    """The bare base, and our side on the same weights."""
    write_base(folder / "base", Shape(1, 1, asked.layers, asked.width))
    made = [BertModel.from_pretrained(folder / "base", dtype=getattr(torch, dtype)).eval() for _ in range(2)]
    bare, under = (model.to(card.device) for model in made)
    under.load_state_dict(bare.state_dict(), assign=True)
    bare.requires_grad_(False)
    side = Graftwork()
    side.open(under, folder, {})
    return bare, side


def measured(
    card: Card, bare: BertModel, side: Graftwork, setup: Setup, shape: Shape, asked: argparse.Namespace
) -> Row:
    """One setup at one shape: the row."""
    shape = shaped(setup, shape)
    ids = inputs_of(shape.rows, shape.tokens)["input_ids"].to(card.device)
    inputs = {"input_ids": ids}  # a mask of ones is looked at, which a capture cannot do
    call, remark = side.prepare(setup, inputs)
    rivals: dict[str, Run] = {"base": lambda: bare(**inputs).last_hidden_state, "setup": call}
    with torch.inference_mode():
        eager = alternate({name: card.finished(run) for name, run in rivals.items()}, asked.rounds, warm=3)
        graphs = {name: graph for name, run in rivals.items() if (graph := card.captured(run)) is not None}
        replays = card.replayed(graphs, asked.rounds) if len(graphs) == len(rivals) else {}
    row: Row = {"setup": setup.name, "shape": str(shape), "remark": remark, "bytes": weights_of(side, setup)}
    row |= sided("eager", eager) | (sided("graph", replays) if replays else {})
    return row | {"floor": 1e3 * row["bytes"] / card.copied}


def sided(name: str, times: Mapping[str, list[float]]) -> Row:
    """Milliseconds of both, and the spread of their quotients."""
    found = quotients(times["setup"], times["base"])
    own = {"ratio": found.middle, "low": found.low, "high": found.high}
    return {name: own | {"base": milliseconds(times["base"]), "setup": milliseconds(times["setup"])}}


def weights_of(side: Graftwork, setup: Setup) -> int:
    """Bytes of the weights of a setup's adapters and its fusion as they are: each is read once at least."""
    parts = side.model.parts
    modules = [module for name in setup.adapters for module in parts.modules_of("adapters", name).values()]
    if setup.kind == "fuse":
        modules += parts.modules_of("fusions", setup.name).values()
    return sum(weight.nbytes for module in modules for weight in module.parameters())


def kernels(card: Card, asked: argparse.Namespace) -> list[Row]:
    """One bottleneck of a bank alone: every way, 64 items that draw from `slots`, beside the bytes it must read."""
    rows = []
    width = asked.width // REDUCTION
    for dtype in asked.dtypes:
        for items, per, slots in ((64, 1, 64), (64, 1, 1000), (1000, 1, 1000), (8, 64, 8), (64, 64, 1000)):
            found = one_site(card, asked, getattr(torch, dtype), (items, per, slots), width)
            rows += [{"dtype": dtype, "items": items, "rows": per, "slots": slots, **one} for one in found]
            print(found, flush=True)
    return rows


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
    if card.real:
        torch.use_deterministic_algorithms(True)  # what is measured is the kernel, whatever would be chosen
        ways["bottleneck"] = lambda: bottleneck(x, inner, torch.relu, outer, routing, "relu")
    with torch.inference_mode():
        expected = ways["loop"]()
        found = []
        for name, run in ways.items():
            off = float((run().float() - expected.float()).abs().max() / expected.float().abs().max())
            if off > 0.03:
                raise RuntimeError(f"{name} is off by {off:.1e} at {sizes} in {dtype}")
            graph = card.captured(run)
            times = alternate({name: card.finished(run)}, asked.rounds, warm=3)[name]
            device = card.replayed({name: graph}, asked.rounds)[name] if graph is not None else times
            found.append({"way": name, "off": off, "eager": 1e3 * median(times), "device": 1e3 * median(device)})
    torch.use_deterministic_algorithms(False)
    distinct = len(set(order))
    read = distinct * sum(one[0].nbytes for one in (*inner, *outer)) + 2 * x.nbytes
    return [one | {"floor": 1e6 * read / card.copied} for one in found]


# candidates beside those of TILES: (rows, inner, outer columns, warps, stages)
CANDIDATES = {
    True: [(1, 64, 64, 4, 2), (1, 128, 64, 4, 3), (1, 128, 128, 8, 3), (1, 256, 128, 8, 1), (1, 256, 256, 8, 3)],
    False: [(16, 64, 64, 4, 2), (16, 128, 128, 4, 3), (32, 128, 64, 4, 2), (32, 128, 128, 8, 3), (64, 64, 64, 4, 3)],
}
NARROW = {
    True: [(1, 128, 16, 4, 2), (1, 256, 16, 4, 3), (1, 128, 32, 4, 3), (1, 512, 16, 8, 2)],
    False: [(16, 64, 16, 4, 3), (16, 128, 16, 4, 3), (32, 128, 32, 4, 3), (64, 64, 64, 4, 3)],
}


def tiles(card: Card, asked: argparse.Namespace) -> list[Row]:
    """The kernels in bfloat16 at every tile: microseconds of the device over some batches, and the quickest."""
    rows: list[Row] = []
    for (what, single), own in list(bank_triton.TILES.items()):
        batches = [(64, 1), (1000, 1)] if single else [(8, 64), (64, 64)]
        known = NARROW if what == "narrow" else CANDIDATES
        for tile in dict.fromkeys([own, *map(bank_triton.Tile._make, known[single])]):
            bank_triton.TILES[what, single] = tile
            times = {f"{items}x{per}": _kernel_time(card, asked, what, items, per) for items, per in batches}
            rows.append({"what": what, "single": single, "tile": list(tile), "times": times})
        best = min((row for row in rows if (row["what"], row["single"]) == (what, single)), key=_geometric)
        bank_triton.TILES[what, single] = bank_triton.Tile(*best["tile"])
        best["best"] = True
        print(best, flush=True)
    return rows


def _geometric(row: Row) -> float:
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


def training(card: Card, asked: argparse.Namespace) -> list[Row]:
    """Milliseconds of a step of each method, in turns with one of full fine-tuning."""
    rows = []
    for shape in (Shape(32, 128), Shape(32, 32)):
        steps = {setup: _step(card, asked, setup, shape) for setup in TRAINED}
        times = alternate(steps, asked.rounds, warm=3)
        for setup, own in times.items():
            found = quotients(times["full"], own)
            rows.append({"setup": setup, "shape": str(shape), "step": milliseconds(own), "times as fast": found.middle,
                         "low": found.low, "high": found.high})  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def _step(card: Card, asked: argparse.Namespace, setup: str, shape: Shape) -> Run:
    side = Ours(base_of(asked.layers, asked.width).to(card.device))
    side.model.requires_grad_(False)
    inputs = {key: value.to(card.device) for key, value in inputs_of(shape.rows, shape.tokens).items()}
    run = side.run(setup, inputs)
    optimizer = torch.optim.AdamW([one for one in side.model.parameters() if one.requires_grad], lr=1e-6, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(card.device.type, torch.bfloat16):
            loss = run()
        loss.backward()
        optimizer.step()
        card.wait()

    return step


def crowd(card: Card, asked: argparse.Namespace) -> list[Row]:
    """Batches of 64 rows that draw from many adapters, every call anew."""
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        bare, side = opened(card, asked, asked.dtypes[0], Path(temporary))
        started = time.perf_counter()
        names = [f"crowd_{number}" for number in range(asked.adapters)]
        for name in names:
            side.add(name)
        added = time.perf_counter() - started
        side.model.eval().requires_grad_(False)
        side.model.reserve(asked.adapters)
        draw = random.Random(0)
        for tokens in (1, 32):
            ids = inputs_of(64, tokens)["input_ids"].to(card.device)
            with torch.inference_mode():
                started = time.perf_counter()
                for start in range(0, len(names), 64):
                    own = (names[start : start + 64] * 64)[:64]
                    side.rows(own, {"input_ids": ids})
                card.wait()
                first = time.perf_counter() - started
                for distinct in (1, 64, asked.adapters):
                    rivals = {
                        "base": card.finished(lambda ids=ids: bare(input_ids=ids)),  # type: ignore[misc]
                        "setup": card.finished(
                            lambda ids=ids, some=names[:distinct]: side.rows(
                                draw.choices(some, k=64), {"input_ids": ids}
                            )  # type: ignore[misc]
                        ),
                    }
                    times = alternate(rivals, DRAWN, warm=3)
                    rows.append({"tokens": tokens, "adapters": distinct, "seconds to add": added, "first": first}
                                | sided("eager", times))  # fmt: skip
                    print(rows[-1], flush=True)
    return rows


def decode(card: Card, asked: argparse.Namespace) -> list[Row]:
    """Pieces a second of 64 rows, each with an adapter of its own, by `generate`."""
    small = not card.real
    config = LlamaConfig(
        vocab_size=100 if small else 32000, hidden_size=64 if small else 2048, num_hidden_layers=2 if small else 22,
        intermediate_size=128 if small else 5632, num_attention_heads=4 if small else 32, num_key_value_heads=4,
        max_position_embeddings=512, pad_token_id=0, eos_token_id=None, bos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(card.device):
        base = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    model = AdapterModel(base)
    draw, rows, count = random.Random(0), [], 64
    ids = inputs_of(count, 32)["input_ids"].clamp(max=config.vocab_size - 1).to(card.device)
    new, names = 4 if small else 64, [f"d{number}" for number in range(asked.adapters)]

    def said(setup: Any) -> Tensor:
        return model.generate(ids, adapters=setup, do_sample=False, max_new_tokens=new, min_new_tokens=new)  # type: ignore[no-any-return]

    held = 0
    for distinct in (0, 1, 64, asked.adapters):
        for name in names[held:distinct]:
            model.add_adapter(name, "seq_bn[reduction_factor=64]")
        held = max(held, distinct)
        model.eval().requires_grad_(False)
        times = []
        with torch.inference_mode():
            for number in range(3):
                setup = (
                    None if not distinct else draw.sample(names[:distinct], count) if distinct >= count else names[0]
                )
                card.wait()
                started = time.perf_counter()
                said(setup)
                card.wait()
                if number:
                    times.append(time.perf_counter() - started)
        rows.append(
            {"adapters": distinct, "pieces a second": count * new / median(times), "a step": median(times) / new}
        )
        print(rows[-1], flush=True)
    return rows


def compiled(card: Card, asked: argparse.Namespace) -> list[Row]:
    """`model.compile(mode="reduce-overhead")` on a mixed batch, beside the base compiled alike."""
    shape, rows = Shape(64, 1, asked.layers, asked.width), []
    for dtype in asked.dtypes[:1]:
        with tempfile.TemporaryDirectory() as temporary:
            bare, side = opened(card, asked, dtype, Path(temporary))
            side._need(parse("mixed64"))
            model, names = side.model, list(parse("mixed64").adapters)
            ids = inputs_of(shape.rows, shape.tokens)["input_ids"].to(card.device)
            draw = random.Random(1)
            routings = [draw.choices(names, k=shape.rows) for _ in range(DRAWN)]
            mode = "reduce-overhead" if card.real else "default"
            with torch.inference_mode():
                model.execution = "reference"
                expected = [model(input_ids=ids, adapters=one).last_hidden_state.clone() for one in routings[:3]]
                model.execution = "banked"
                eager = alternate(_pair(card, bare, model, ids, routings), DRAWN, warm=3)
                model.compile(mode=mode, slots=80)
                bare.compile(mode=mode, fullgraph=True)
                first = {}
                for name, run in _pair(card, bare, model, ids, routings).items():
                    started = time.perf_counter()
                    run()
                    first[name] = time.perf_counter() - started
                off = [agreed(model(input_ids=ids, adapters=one).last_hidden_state, want, f"{one} compiled")
                       for one, want in zip(routings, expected, strict=False)]  # fmt: skip
                times = alternate(_pair(card, bare, model, ids, routings), DRAWN, warm=5)
            rows.append({"dtype": dtype, "shape": str(shape), "off": max(off), "seconds": first}
                        | sided("eager", eager) | sided("compiled", times))  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def _pair(card: Card, bare: Any, model: AdapterModel, ids: Tensor, routings: list[list[str]]) -> dict[str, Run]:
    turn = iter(routings * 10)
    return {
        "base": card.finished(lambda: bare(input_ids=ids)),
        "setup": card.finished(lambda: model(input_ids=ids, adapters=next(turn))),
    }


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
            "cache of the card is faster than that.",
            table(head, [
                [f"{row['items']}x{row['rows']}", f"{row['slots']:,}", row["dtype"], row["way"], f"{row['eager']:.0f}",
                 f"{row['device']:.1f}", f"{row['floor']:.1f}"] for row in rows
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


def main() -> None:
    """Measure, print, and write the page and its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--shapes", default=",".join(map(str, SHAPES)))
    parser.add_argument("--setups", default=",".join(SETUPS))
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--adapters", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.device != "cpu" and not torch.cuda.is_available():
        parser.error("there is no GPU here; --device cpu shows that it runs, without graphs")
    asked.dtypes, asked.setups = asked.dtypes.split(","), asked.setups.split(",")
    asked.shapes = [Shape(*map(int, one.split("x"))) for one in asked.shapes.split(",")]
    logging.set_verbosity_error()
    card = Card(asked.device)
    found: dict[str, Any] = {"layers": asked.layers, "width": asked.width, "adapters": asked.adapters}
    found["copied"] = card.copied
    measures = {
        "kernels": kernels, "setups": setups, "training": training, "tiles": tiles, "crowd": crowd, "decode": decode,
        "compile": compiled,
    }  # fmt: skip
    for part in asked.parts.split(","):
        started = time.perf_counter()
        try:
            found[part] = measures[part](card, asked)
        except Exception as error:  # the other parts of a run that cannot be had again soon
            print(f"FAILED: {part}: {type(error).__name__}: {error}", flush=True)
        print(f"{part}: {time.perf_counter() - started:.0f} s", flush=True)
        if asked.out is not None:
            write(asked.out.with_suffix(".json"), json.dumps(found, indent=1) + "\n")
            write(asked.out, page_of(found, command()))


if __name__ == "__main__":
    main()
