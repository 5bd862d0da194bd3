"""benchmarks/overhead.py: one real run on a tiny base, and the page that it makes of rows."""

import json
from pathlib import Path

import pytest

from tests.benchmarks.scripts import script

overhead = script("overhead")


@pytest.mark.full
def test_a_run_measures_every_cell_and_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["--setups", "seq_bn,fuse2", "--rows", "1,2", "--tokens", "3", "--layers", "1", "--width", "64"]
    monkeypatch.setattr("sys.argv", ["overhead.py", *given, "--rounds", "3", "--out", str(tmp_path / "o.md")])
    overhead.main()
    rows = json.loads((tmp_path / "o.json").read_text("utf8"))
    assert [(row["setup"], row["batch"]) for row in rows] == [
        ("seq_bn", "1x3"), ("fuse2", "1x3"), ("seq_bn", "2x3"), ("fuse2", "2x3"),
    ]  # fmt: skip
    text = (tmp_path / "o.md").read_text("utf8")
    assert "| setup | 1x3 | 2x3 |" in text
    assert "Base: 1 layers, 64 wide, float32, 1 thread, random weights." in text


def test_a_cell_says_what_is_added_and_what_arithmetic_adds() -> None:
    row = {"ratio": 1.0341, "low": 0.99, "high": 1.051, "floor_multiplications": 1.0104}
    assert overhead.cell(row) == "+3.4 % (-1.0 to +5.1); +1.0 %"
    made = [
        {**row, "side": side, "setup": "lora", "shape": shape}
        for side, shape in (("graftwork", "1x8"), ("peft", "8x8"))
    ]
    assert "## peft\n\n| setup | 1x8 | 8x8 |\n| --- | --- | --- |\n| lora | – | +3.4 %" in overhead.page_of(
        made, "tiny", {"threads": 3}
    )
