"""What benchmarks/shared_trunk.py works out, and its calls on a tiny base."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch

from tests.benchmarks.scripts import script

shared_trunk = script("shared_trunk")


def test_the_arithmetic_is_that_of_the_paper() -> None:
    assert shared_trunk.arithmetic(8, 5, 12) == pytest.approx(96 / 61)
    assert shared_trunk.arithmetic(8, 0, 12) == 1
    assert shared_trunk.arithmetic(8, 12, 12) == 8
    assert shared_trunk.arithmetic(1, 7, 12) == 1


def test_what_is_counted_shares_the_layer_in_which_lanes_part() -> None:
    assert shared_trunk.counted(8, 5, 12) == pytest.approx((1 + 8 * 11) / (6 + 8 * 6))
    assert shared_trunk.counted(8, 0, 12) == shared_trunk.counted(1, 7, 12) == 1
    assert shared_trunk.entered(8, 12) == pytest.approx(89 / 96)
    assert shared_trunk.counted(8, 12, 12) == shared_trunk.counted(8, 11, 12) == pytest.approx(89 / 12)


def test_the_law_and_the_pruning_are_measured_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_trunk, "BERT", (6, 64))
    asked = Namespace(rounds=1, clock="cpu", tokens=4, threads=1, claim_threads="1,2")
    model, inputs = shared_trunk.made(6, 64, 8), shared_trunk.text(4)
    with torch.no_grad():
        rows = shared_trunk.law(model, inputs, 8, [0, 5, 6], asked)
        claim = shared_trunk.claimed(asked)
        pruned = shared_trunk.pruning(model, inputs, asked)
    assert [row["setup"] for row in rows] == ["parallel8_drop0", "parallel8_drop5", "parallel8_drop6"]
    assert [(row["threads"], row["setup"], row["shared"]) for row in claim] == [
        (threads, setup, shared)
        for threads in (1, 2)
        for setup, shared in (
            ("parallel8_drop0", True), ("parallel8_drop5", True), ("parallel8_drop5 at the entry", False),
        )
    ]  # fmt: skip
    assert torch.get_num_threads() == 1
    assert [row["setup"] for row in pruned] == [
        "base", "fuse8, reference", "fuse8 pruned to 2, reference", "fuse8, folded", "fuse8 pruned to 2, folded",
    ]  # fmt: skip
    assert pruned[1]["faster"] == 1
    assert shared_trunk.picture(rows, tmp_path / "x.svg") == "" or "matplotlib" in shared_trunk.picture(rows, tmp_path)
    written = shared_trunk.page_of(rows, claim, pruned, "tiny", "x.svg")
    assert "| 5 | " in written
    assert "The paper measured 1.39" in written
    assert "| 2 | parallel8_drop5 at the entry | " in written
