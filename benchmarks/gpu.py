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
1,000 adapters. `compile`: `mode="reduce-overhead"`, where every call has another routing. Answers are compared with the
reference's. `--out` writes the page, and its rows beside it as JSON. `--device cpu` shows that it runs, without
graphs.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from gpu_bank import kernels, tiles
from gpu_card import Card, Row, Run, sided
from gpu_many import compiled, crowd, decode, opened
from gpu_page import page_of
from page import command, write
from setups import Setup, Shape, parse, shaped
from side import inputs_of
from side_graftwork import Graftwork
from steps import Ours, base_of
from transformers import BertModel
from transformers.utils import logging

from graftwork.timing import alternate, milliseconds, quotients

SETUPS = ("seq_bn", "double_seq_bn", "lora", "stack2", "fuse3", "mixed8", "mixed64", "parallel8", "parallel8_drop5")
SHAPES = (Shape(8, 1), Shape(64, 1), Shape(8, 64), Shape(64, 64))
PARTS = ("kernels", "setups", "training", "crowd", "decode", "compile")
TRAINED = ("full", "seq_bn", "seq_bn_top", "double_seq_bn", "lora", "fuse3")


def setups(card: Card, asked: argparse.Namespace) -> Iterator[Row]:
    """Each setup beside the bare base, eager and captured."""
    for dtype in asked.dtypes:
        with tempfile.TemporaryDirectory() as temporary:
            bare, side = opened(card, asked, dtype, Path(temporary))
            pairs = dict.fromkeys(
                (shaped(one, shape), one) for shape in asked.shapes for one in map(parse, asked.setups)
            )
            for shape, setup in pairs:
                crowded = setup.kind == "mixed" and setup.members > shape.rows
                if not crowded and not (setup.kind == "parallel" and shape.tokens == 1):
                    yield {"dtype": dtype, **measured(card, bare, side, setup, shape, asked)}


def measured(
    card: Card, bare: BertModel, side: Graftwork, setup: Setup, shape: Shape, asked: argparse.Namespace
) -> Row:
    """One setup at one shape: the row."""
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


def weights_of(side: Graftwork, setup: Setup) -> int:
    """Bytes of the weights of a setup's adapters and its fusion as they are: each is read once at least."""
    parts = side.model.parts
    modules = [module for name in setup.adapters for module in parts.modules_of("adapters", name).values()]
    if setup.kind == "fuse":
        modules += parts.modules_of("fusions", setup.name).values()
    return sum(weight.nbytes for module in modules for weight in module.parameters())


def training(card: Card, asked: argparse.Namespace) -> Iterator[Row]:
    """Milliseconds of a step of each method, in turns with one of full fine-tuning."""
    for shape in (Shape(32, 128), Shape(32, 32)):
        steps = {setup: _step(card, asked, setup, shape) for setup in TRAINED}
        times = alternate(steps, asked.rounds, warm=3)
        for setup, own in times.items():
            found = quotients(times["full"], own)
            speed = {"times as fast": found.middle, "low": found.low, "high": found.high}
            yield {"setup": setup, "shape": str(shape), "step": milliseconds(own)} | speed


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


MEASURES: dict[str, Callable[[Card, argparse.Namespace], Iterable[Row]]] = {
    "kernels": kernels,
    "tiles": tiles,
    "setups": setups,
    "training": training,
    "crowd": crowd,
    "decode": decode,
    "compile": compiled,
}


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
    failed: list[str] = []
    for part in asked.parts.split(","):
        started, found[part] = time.perf_counter(), []
        try:
            for row in MEASURES[part](card, asked):
                print(row, flush=True)
                found[part].append(row)
                if asked.out is not None:  # what is measured is kept, whatever becomes of the rest
                    write(asked.out.with_suffix(".json"), json.dumps(found, indent=1) + "\n")
                    write(asked.out, page_of(found, command()))
        except Exception as error:  # the other parts go on
            failed.append(part)
            print(f"FAILED: {part}: {type(error).__name__}: {error}", flush=True)
        print(f"{part}: {time.perf_counter() - started:.0f} s", flush=True)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
