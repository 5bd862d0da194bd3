"""The floor of a site: what is written out by hand multiplies what graftwork multiplies, and hooks are clocked."""

import time
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks.scripts import script

WIDTH = 128  # bottlenecks of 8, a width class of banks


def flops(run: Any) -> int:
    with torch.inference_mode(), FlopCounterMode(display=False) as seen:
        run()
    return int(seen.get_total_flops())


@pytest.mark.parametrize("name", script("written_out").SETUPS)
def test_written_out_is_the_same_arithmetic(name: str) -> None:
    written_out, ids = script("written_out"), torch.randint(0, 1000, (8, 1))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    base, bare, under = (script("steps").base_of(1, WIDTH).eval().requires_grad_(False) for _ in range(3))
    written_out.written(name, bare, WIDTH)
    run = written_out.ours(name, under, inputs)
    assert flops(lambda: bare(**inputs)) == flops(run) > flops(lambda: base(**inputs))


def test_what_hooks_take_is_a_share_of_the_base() -> None:
    written_out, ids = script("written_out"), torch.randint(0, 1000, (2, 1))
    base = script("steps").base_of(1, WIDTH).eval()
    row = written_out.measured("seq_bn", base, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, 3, "wall")
    assert row["written"]["middle"] > 0
    assert row["ours"]["middle"] > 0
    spent = [0.0]
    base.register_forward_pre_hook(lambda module, given: time.sleep(0.01))
    written_out.clocked(base, time.perf_counter, spent)
    base(input_ids=ids)
    assert spent[0] >= 0.01
