"""benchmarks/execution.py: one real run on a tiny base without peers, and what it makes of rows."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks.scripts import script

execution, pages = script("execution"), script("execution_page")
FIELDS = {
    "setup", "side", "ratio", "low", "high", "milliseconds", "base_milliseconds", "pairs", "shape", "batch", "dtype",
    "threads", "layers", "width", "clock", "goal", "floor_multiplications", "floor_weights", "finite", "difference",
    "remark",
}  # fmt: skip


def made(setup: str, side: str = "graftwork", ratio: float = 1.03, **changes: Any) -> dict[str, Any]:
    """A row as `execution.py` writes it."""
    shape = execution.Shape(8, 64)
    times = {"base": [100.0, 100.0, 100.0], "setup": [99 * ratio, 100 * ratio, 101 * ratio]}
    row = execution.row(setup, shape, times, {"finite": True, "remark": ""})
    rest = {"side": side, "dtype": "float32", "threads": 1, "clock": "wall", "difference": 1e-6}
    return {**row, **rest, **changes}


def test_a_run_without_peers_writes_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.json"
    options = ["--quick", "--no-peers", "--setups", "seq_bn", "--shapes", "2x3", "--layers", "1", "--width", "64"]
    monkeypatch.setattr("sys.argv", ["execution.py", *options, "--rounds", "3", "--no-dispatch", "--json", str(file)])
    execution.main()
    found = json.loads(file.read_text("utf8"))
    (row,) = found["rows"]
    assert set(row) == FIELDS
    assert (row["setup"], row["side"], row["shape"], row["batch"]) == ("seq_bn", "graftwork", "2x3", "2x3")
    assert (row["dtype"], row["threads"], row["pairs"], row["difference"]) == ("float32", 1, 3, 0.0)
    assert 0 < row["low"] <= row["ratio"] <= row["high"]
    assert "from the reference" in row["remark"]
    assert "--setups seq_bn" in found["command"]
    assert "seq_bn           graftwork" in capsys.readouterr().out


def test_a_row_has_the_median_quotient_between_its_quartiles() -> None:
    row = made("seq_bn", ratio=1.03)
    assert (row["low"], row["ratio"], row["high"]) == pytest.approx((0.995 * 1.03, 1.03, 1.005 * 1.03))
    assert (row["milliseconds"], row["base_milliseconds"]) == pytest.approx((103.0, 100.0))


def test_answers_are_apart_by_their_root_mean_square() -> None:
    side = script("side")
    one, other = torch.zeros(2, 2, dtype=torch.bfloat16), torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    assert side.apart(one, other) == 2.5
    assert math.isnan(side.apart(one, other / 0))


def test_answers_that_differ_end_the_run() -> None:
    execution.check(made("seq_bn", "adapters"))
    execution.check(made("average3", "adapters", difference=1.0, remark="another function: half of it"))
    with pytest.raises(RuntimeError, match=r"seq_bn of adapters differs by 1\.0e\+00, at most 1e-05"):
        execution.check(made("seq_bn", "adapters", difference=1.0))
    with pytest.raises(RuntimeError, match="differs by nan"):
        execution.check(made("seq_bn", difference=float("nan")))
    with pytest.raises(RuntimeError, match="seq_bn of graftwork"):
        execution.check(made("seq_bn", finite=False))


def test_effort_is_a_time_or_a_number_of_pairs() -> None:
    assert execution.Effort(6).turn(1000.0) == {"rounds": 1, "clock": "wall", "warm": 0}
    assert execution.Effort(6).turn(50.0) == {"rounds": 20, "clock": "wall", "warm": 1}
    assert execution.Effort(6).turn(5.0)["warm"] == 2
    assert execution.Effort(6, rounds=9, clock="cpu").turn(1000.0)["rounds"] == 3


def test_a_goal_has_three_times_the_pairs_and_what_stands_beside_it_twice() -> None:
    at, elsewhere = execution.Shape(8, 64), execution.Shape(8, 16)
    assert [execution.fewest(side, "seq_bn", at) for side in ("graftwork", "peft")] == [9, 6]
    assert execution.fewest("graftwork", "lora", at) == execution.fewest("graftwork", "seq_bn", elsewhere) == 3
    assert execution.Effort(1).turn(1000.0, 9)["rounds"] == 3
    assert execution.Effort(6).turn(50.0, 9)["rounds"] == 3 * execution.Effort(6).turn(50.0)["rounds"]


def test_a_goal_between_the_quartiles_is_undecided() -> None:
    said = [pages.promised(made("seq_bn", ratio=ratio)) for ratio in (1.01, 1.019, 1.023, 1.026)]
    assert said == ["<= 1.02, met", "<= 1.02, undecided", "<= 1.02, undecided", "<= 1.02, **not met**"]
    assert pages.promised(None) == pages.promised(made("lora")) == ""


def test_the_page_says_where_it_is_behind_a_peer_and_where_ahead() -> None:
    rows = [
        made("base", ratio=1.1),
        made("base", "adapters", ratio=1.0),
        made("seq_bn", ratio=1.05),
        made("seq_bn", "adapters", ratio=1.02),
        made("lora", ratio=1.01),
        made("lora", "adapters", ratio=1.015),  # intervals overlap
        made("lora", "peft", ratio=1.05),
        made("mixed8", ratio=1.01),
        made("mixed8", "peft", ratio=1.2, remark="another function: LoRA"),
        made("idle", ratio=1.2, width=64, dtype="bfloat16"),
        made("idle", "peft", ratio=1.4, width=64, dtype="bfloat16"),
    ]
    behind, ahead = pages.standing(rows).split("\n\n")
    assert behind == "Behind a peer, by intervals that do not overlap: seq_bn 8x64 (adapters 1.020, here 1.050)."
    assert ahead.endswith("lora 8x64 (peft 1.050, here 1.010); idle 8x64 of 12x64 bfloat16 (peft 1.400, here 1.200).")
    assert pages.standing(rows[:2]).count("overlap: nowhere.") == 2


def test_the_page_says_how_many_pairs_are_behind_its_figures() -> None:
    rows = [made("seq_bn", pairs=9), made("seq_bn", "peft", pairs=6), made("lora", pairs=3), made("base", pairs=30)]
    assert "9 to 9 of a row of graftwork with a goal, 6 to 6 of a row of a peer beside it, 3 to 30 of any other." in (
        pages.counted(rows)
    )


def test_a_profile_that_contradicts_the_ratio_is_told() -> None:
    profile = {"base": {"aten::addmm": [72, 10.0]}, "setup": {"aten::addmm": [120, 10.5], "aten::relu": [24, 0.5]}}
    assert pages.disagreement(made("seq_bn", ratio=1.08), profile) == []
    (said,) = pages.disagreement(made("seq_bn", ratio=1.02), profile)
    assert said.startswith("Under the profiler it adds 10.0% and without 2.0%: ")


def test_a_profile_takes_turns_in_both_orders() -> None:
    side, ran = script("side"), []
    rivals = {name: lambda name=name: ran.append((name, torch.ones(2).add(1))) for name in ("base", "setup")}
    found = side.profiled(rivals, 2)
    assert [name for name, _ in ran] == ["base", "setup", "setup", "base", "base", "setup"]
    assert found["base"]["aten::add"][0] == 1
    assert found["setup"]["between operators"][1] > 0


def test_the_page_says_what_was_promised_and_what_was_not_kept() -> None:
    rows = [
        made("seq_bn", ratio=1.01),
        made("seq_bn", "adapters", ratio=1.05),
        made("double_seq_bn", ratio=1.05),
        made("average3", "adapters", ratio=1.2, remark="another function: half of it"),
        made("parallel8", ratio=7.0),
        made("parallel8_drop5", ratio=5.0),
    ]
    profile = {"base": {"aten::addmm": [72, 10.0]}, "setup": {"aten::addmm": [120, 10.5], "aten::relu": [24, 0.5]}}
    found = {
        "rows": rows,
        "explained": [{"row": rows[2], "profile": profile}],
        "command": "python x",
        "conditions": "M.",
    }
    text = pages.page_of(found)
    assert "| 1.010 (1.005–1.015) | 1.050 (1.045–1.055) | – | 1.010 / 1.010 | <= 1.02, met |" in text
    assert "<= 1.035, **not met** |" in text
    assert "average3 of adapters: another function: half of it." in text
    assert "without adapters in the first 5 layers 40% faster" in text
    assert "## Above its goal: double_seq_bn, 8x64" in text
    assert "| `aten::addmm` | 72 | 120 | 10.000 | 10.500 | +5.00% |" in text
    assert "| all |  |  | 10.000 | 11.000 | +10.00% |" in text
    assert text.endswith("    python x\n\nM.\n")


def test_the_table_of_the_docs_stands_between_its_marks() -> None:
    page = f"a\n\n{pages.BEGIN}\nold\n{pages.END}\n\nb\n"
    assert pages.with_block(page, "new") == f"a\n\n{pages.BEGIN}\n\nnew\n\n{pages.END}\n\nb\n"
    with pytest.raises(ValueError, match="the page has no"):
        pages.with_block("a", "new")


def test_results_become_a_page_pictures_and_the_block_of_the_docs(tmp_path: Path) -> None:
    results, docs = tmp_path / "execution.json", tmp_path / "benchmarks.md"
    curves = [made(name, picture="members") for name in ("fuse2", "fuse3")]
    found = {"rows": [made("seq_bn", ratio=1.015)], "curves": curves, "command": "python x", "conditions": "M."}
    results.write_text(json.dumps(found), "utf8")
    docs.write_text(f"Before.\n{pages.BEGIN}{pages.END}\nAfter.\n", "utf8")
    pages.write_all(results, docs)
    assert {file.name for file in tmp_path.iterdir()} == {
        "execution.json", "execution.md", "execution_members.svg", "benchmarks.md"
    }  # fmt: skip
    assert "(execution_members.svg)" in (tmp_path / "execution.md").read_text("utf8")
    block = docs.read_text("utf8")
    assert "1.015 (1.010–1.020)" in block
    assert "(../benchmarks/results/execution_members.svg)" in block
    assert block.endswith("After.\n")
    halved = {**found, "rows": [{**made("seq_bn", ratio=1.3), "dtype": "bfloat16"}]}
    results.write_text(json.dumps(halved), "utf8")
    pages.write_all(results, docs)
    assert "1.300" in (tmp_path / "execution.md").read_text("utf8")
    assert docs.read_text("utf8") == block, "a run of another dtype alone leaves the table of the docs"


def test_pictures_have_a_curve_for_each_side_and_one_for_arithmetic() -> None:
    rows = [
        made(name, side, picture="members")
        for name in ("seq_bn", "fuse2", "fuse3")
        for side in ("graftwork", "adapters")
    ]
    curves = pages.points_of({"curves": rows}, "members")
    assert [(curve.name, curve.dashed) for curve in curves] == [
        ("Stack, graftwork", False), ("Stack, multiplications", True),
        ("Fuse, graftwork", False), ("Fuse, multiplications", True),
        ("Stack, adapters", False), ("Fuse, adapters", False),
    ]  # fmt: skip
    assert curves[0].points == [(1, pytest.approx(1.03))]
    assert curves[2].points == [(2, pytest.approx(1.03)), (3, pytest.approx(1.03))]
    assert pages.points_of({"curves": rows}, "layers") == []
