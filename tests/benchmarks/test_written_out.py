"""The floor of a site: what is written out by hand multiplies what graftwork multiplies, and hooks are clocked."""

import json
import time
from pathlib import Path
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


def test_a_run_writes_its_page_and_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["--setups", "seq_bn,mixed2", "--shape", "2x1", "--layers", "1", "--width", str(WIDTH), "--rounds", "2"]
    monkeypatch.setattr("sys.argv", ["written_out.py", *given, "--out", str(tmp_path / "w.md")])
    script("written_out").main()
    rows = json.loads((tmp_path / "w.json").read_text("utf8"))
    assert [row["setup"] for row in rows] == ["seq_bn", "mixed2"]
    text = (tmp_path / "w.md").read_text("utf8")
    assert f"Base: 1 layers, {WIDTH} wide, random weights, float32, one thread; 2x1 rows x tokens." in text
    assert "| mixed2 | 0.010 / 0.021 | " in text


def test_the_page_has_the_goal_of_the_call() -> None:
    quartiles = {"low": 0.03, "middle": 0.04, "high": 0.05}
    row = {"setup": "fuse3", "clock": "cpu", "written": quartiles, "ours": quartiles}
    written_out = script("written_out")
    text = written_out.page_of([row], written_out.Shape(8, 1))
    assert "| fuse3 | 0.047 / 0.047 | 0.040 (0.030-0.050) | 0.040 (0.030-0.050) | 1.07 |" in text


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
