"""benchmarks/gpu.py without a GPU: it runs, its answers agree, and its page says what its rows do."""

import json
from pathlib import Path

import pytest

from tests.benchmarks.scripts import script


def test_it_runs_without_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, file = script("gpu"), tmp_path / "gpu.md"
    sizes = ["--layers", "2", "--width", "64", "--adapters", "66", "--rounds", "1", "--dtypes", "float32"]
    chosen = ["--parts", "kernels,setups,training,crowd,decode", "--shapes", "64x1,8x4", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["gpu.py", *sizes, *chosen, "--out", str(file)])
    gpu.main()
    found, told = json.loads(file.with_suffix(".json").read_text("utf8")), file.read_text("utf8")
    assert {row["way"] for row in found["kernels"]} >= {"loop", "gather"}
    asked = [(row["setup"], row["shape"]) for row in found["setups"]]
    assert len(asked) == len(set(asked))
    assert ("mixed64", "64x1") in asked
    assert ("mixed64", "8x4") not in asked, "eight rows have no 64 adapters"
    assert ("parallel8", "1x4") in asked
    assert [row["adapters"] for row in found["decode"]] == [0, 1, 64, 66]
    assert [row["setup"] for row in found["training"]][:2] == ["full", "seq_bn"]
    for row in found["setups"]:
        assert f"| {row['setup']} | {row['shape']} | float32 | {row['eager']['setup']:.2f} |" in told


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["gpu.py"])
    with pytest.raises(SystemExit):
        script("gpu").main()
    assert "there is no GPU here; --device cpu shows that it runs" in capsys.readouterr().err


def test_the_page_that_is_kept_is_that_of_its_rows() -> None:
    kept = Path(script("gpu").__file__).parent / "results" / "gpu.md"
    found = json.loads(kept.with_suffix(".json").read_text("utf8"))
    made = script("gpu_page").page_of(found, "a command")
    assert made.partition("Measured by")[0] == kept.read_text("utf8").partition("Measured by")[0]
