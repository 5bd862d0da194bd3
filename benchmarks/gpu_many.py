"""Many adapters on one base on a GPU: crowds that batches draw from, decoding, and a compiled trunk (`gpu.py`)."""

import argparse
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from gpu_card import Card, Row, Run, sided
from setups import Shape, parse
from side import Inputs, agreed, inputs_of, twins
from side_graftwork import Graftwork
from sides import write_base
from torch import Tensor, nn
from transformers import BertModel, LlamaConfig, LlamaForCausalLM

from graftwork.model import AdapterModel
from graftwork.timing import alternate

DRAWN = 20  # routings that a crowd draws


def opened(card: Card, asked: argparse.Namespace, dtype: str, folder: Path) -> tuple[BertModel, Graftwork]:
    """The bare base, and our side on the same weights."""
    write_base(folder / "base", Shape(1, 1, asked.layers, asked.width))
    bare, under = twins(folder / "base", dtype, card.device)
    side = Graftwork()
    side.open(under, folder, {})
    return bare, side


def crowd(card: Card, asked: argparse.Namespace) -> Iterator[Row]:
    """Batches of 64 rows that draw from many adapters, every call anew."""
    with tempfile.TemporaryDirectory() as temporary:
        bare, side = opened(card, asked, asked.dtypes[0], Path(temporary))
        started = time.perf_counter()
        names = [f"crowd_{number}" for number in range(asked.adapters)]
        for name in names:
            side.add(name)
        added = time.perf_counter() - started
        for parameter in side.model.parts.adapters.parameters():  # at birth they would change nothing, whoever ran them
            nn.init.normal_(parameter, std=0.02)
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
                compare(side, draw.choices(names, k=64), {"input_ids": ids})
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
                    took = {"seconds to add": added, "first": first}
                    yield {"tokens": tokens, "adapters": distinct} | took | sided("eager", times)


def compare(side: Graftwork, names: list[str], inputs: Inputs) -> None:
    """Raise RuntimeError where a mixed batch is not what the reference makes of it."""
    found, chosen = side.rows(names, inputs), side.model.execution
    side.model.execution = "reference"
    agreed(found, side.rows(names, inputs), "a mixed batch beside the reference")
    side.model.execution = chosen


def decode(card: Card, asked: argparse.Namespace) -> Iterator[Row]:
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
    draw, count = random.Random(0), 64
    ids = inputs_of(count, 32)["input_ids"].clamp(max=config.vocab_size - 1).to(card.device)
    new, names = 4 if small else 64, [f"d{number}" for number in range(asked.adapters)]

    def said(setup: Any) -> Tensor:
        return model.generate(ids, adapters=setup, do_sample=False, max_new_tokens=new, min_new_tokens=new)  # type: ignore[no-any-return]

    held = 0
    for distinct in sorted({min(one, asked.adapters) for one in (0, 1, count, asked.adapters)}):
        for name in names[held:distinct]:
            model.add_adapter(name, "seq_bn[reduction_factor=64]")
        held = max(held, distinct)
        model.eval().requires_grad_(False)
        times = []
        with torch.inference_mode():
            for start in range(0, distinct, count):  # a first run folds an adapter, which is not what is asked here
                model(ids[:, :1], adapters=(names[start:distinct] * count)[:count])
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
        yield {"adapters": distinct, "pieces a second": count * new / median(times), "a step": median(times) / new}


def compiled(card: Card, asked: argparse.Namespace) -> Iterator[Row]:
    """`model.compile(mode="reduce-overhead")` on a mixed batch, beside the base compiled alike."""
    shape = Shape(64, 1, asked.layers, asked.width)
    dtype = asked.dtypes[0]
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
        row = {"dtype": dtype, "shape": str(shape), "off": max(off), "seconds": first}
        yield row | sided("eager", eager) | sided("compiled", times)


def _pair(card: Card, bare: Any, model: AdapterModel, ids: Tensor, routings: list[list[str]]) -> dict[str, Run]:
    turn = iter(routings * 10)
    return {
        "base": card.finished(lambda: bare(input_ids=ids)),
        "setup": card.finished(lambda: model(input_ids=ids, adapters=next(turn))),
    }
