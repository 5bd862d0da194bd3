"""benchmarks/science/e3_drop.py: which cells there are, and what rows say to the bars."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks.scripts import script
from tests.benchmarks.test_science import asked, book, row

e3 = script("e3_drop", "science")


def rows(told: Any, shares: dict[str, list[float]]) -> list[dict[str, Any]]:
    """A row for each cell of quality: of 500 items the share of a variant at each depth, the same ones in all seeds."""
    cells = [key for key in e3.plan([], told) if key["part"] == "quality"]
    return [row(key, [item < 500 * shares[key["variant"]][key["dropped"]] for item in range(500)]) for key in cells]


SHARES = {
    "standard": [0.9, 0.88, 0.86, 0.6, 0.5, 0.4, 0.2],
    "specialised 2": [0.0, 0.0, 0.89, 0.7, 0.5, 0.4, 0.2],  # what lies below its own n is never asked for
    "specialised 3": [0.0, 0.0, 0.0, 0.88, 0.6, 0.4, 0.2],
    "robust": [0.9, 0.89, 0.88, 0.87, 0.8, 0.7, 0.3],
}


def test_every_depth_of_every_run_is_a_cell_but_those_that_are_the_same(tmp_path: Path) -> None:
    cells = e3.plan([], asked(tmp_path))
    assert len({book.name(key) for key in cells}) == len(cells) == 3 + 9 + 3 * 2 * (7 + 5 + 4 + 7)
    quality = [key for key in cells if key["part"] == "quality"]
    assert min(key["dropped"] for key in quality if key["variant"] == "specialised 3") == 3
    # a run's depths follow one another, so that it is opened once
    opened = [(key["seed"], key["task"], key["variant"]) for key in quality]
    assert sum(one != other for one, other in pairwise(opened)) == 3 * 2 * 4 - 1


def test_what_is_kept_is_held_against_the_undropped_standard(tmp_path: Path) -> None:
    told = asked(tmp_path)
    found = rows(told, SHARES)
    assert e3.kept(found, "specialised 2", 2) == pytest.approx(0.89 / 0.9)
    assert e3.kept(found, "specialised 3", 1) == pytest.approx(0.88 / 0.9)  # the same as with its own three
    assert e3.kept(found[:2], "robust", 2) is None
    assert e3.above(found, e3.TASKS, 3).value == pytest.approx(27.0)
    said = e3.result(found, told)
    assert "specialised keeps 98.9% and robust 97.8% with two of six layers dropped" in said
    assert "at n = 3 robust keeps 96.7% and standard 66.7%" in said
    assert "the bar is met" in said
    for variant, depth, share in (("specialised 2", 2, 0.8), ("robust", 2, 0.8), ("robust", 3, 0.61)):
        worse = {**SHARES, variant: [*SHARES[variant]]}
        worse[variant][depth] = share
        assert "the bar is not met" in e3.result(rows(told, worse), told), variant
    assert e3.result([], told) == ""
    page = e3.told(found, told)
    assert "| specialised 3 | 88.00 ± 0.00 | 88.00 ± 0.00 |" in page
    assert "specialised 3" in (tmp_path / "e3_drop_sst2.svg").read_text("utf8")


def timed(full: float, adapter: float, gain: float, apart: float) -> list[dict[str, Any]]:
    step = {str(n): [full / adapter] * 3 for n in range(6)}
    times = {"full": full, **{str(n): adapter for n in range(6)}}
    conditions = {"commit": "abc", "versions": {"torch": "2"}, "machine": "a machine", "cpu": 1.0}
    found: list[dict[str, Any]] = [
        {"key": {"part": "step", "tokens": 32}, "milliseconds": times, "faster": step, "monitor": 0.1, **conditions}
    ]
    return found + [
        {"key": {"part": "prefix", "tasks": 8, "dropped": k}, "faster": [gain * e3.arithmetic(8, k, 6)] * 3,
         "arithmetic": e3.arithmetic(8, k, 6), "milliseconds": {}, "apart": apart, **conditions}
        for k in (1, 2, 3)
    ]  # fmt: skip


def test_times_are_held_against_their_bars(tmp_path: Path) -> None:
    told = asked(tmp_path)
    assert e3.result(timed(1.5, 1.0, 0.9, 1e-6), told).count("the bar is met") == 2
    for slow in (timed(1.3, 1.0, 0.9, 1e-6), timed(1.5, 1.0, 0.8, 1e-6), timed(1.5, 1.0, 0.9, 1e-4)):
        assert e3.result(slow, told).count("the bar is not met") == 1
    page = e3.told(timed(1.5, 1.0, 0.9, 1e-6), told)
    assert "| 32 | 2 ms | 1 ms, 1.50x |" in page
    assert "| 8 | 1.05 (1.05-1.05) / 1.17, 90% |" in page


def test_tasks_on_one_text_answer_as_they_do_apart() -> None:
    found = e3.prefix(3, 2, rounds=1)
    assert found["apart"] < 1e-5
    assert found["arithmetic"] == pytest.approx(3 * 6 / (2 + 3 * 4), abs=1e-4)
    made = e3.model(2).eval()
    with torch.no_grad():
        one, other = (made(input_ids=torch.tensor([[5, 6]]), adapters=name, head="none")[0] for name in ("t0", "t1"))
    assert (one - other).abs().max() > 0.01  # so that answers of one in the place of another would be seen
