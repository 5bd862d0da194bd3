"""The benchmark of training: every setup takes a step, the textbook fusion is ours, the page says what was measured."""

from argparse import Namespace

import pytest
import torch

from tests.benchmarks.scripts import script

SHAPE = (2, 5, 2, 64)  # rows, tokens, layers, width


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, object]]:
    training = script("training")
    found = script("steps").measured("graftwork", [*training.COMMON, *training.OWN], SHAPE, 1, "cpu")
    return {row["setup"]: row for row in found}


def test_every_setup_takes_a_step(rows: dict[str, dict[str, object]]) -> None:
    training = script("training")
    assert set(rows) == {*training.COMMON, *training.OWN}
    kept = {name: float(str(row["kept_megabytes"])) for name, row in rows.items()}
    assert kept["head"] < kept["seq_bn_top_kept"] <= kept["seq_bn_top"] < kept["seq_bn"] < kept["fuse3"] < kept["fuse8"]
    assert kept["fuse3"] < kept["fuse3_textbook"]
    assert kept["fuse8"] < kept["fuse8_textbook"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_has_the_dtype_that_is_asked_for(dtype: str) -> None:
    (row,) = script("steps").measured("graftwork", ["lora"], SHAPE, 1, "cpu", dtype)
    assert (row["dtype"], row["side"]) == (dtype, "graftwork")


def test_peft_takes_a_step_of_lora() -> None:
    pytest.importorskip("peft", reason="NOT CHECKED: peft is not installed here")
    steps = script("steps")
    (row,) = steps.measured("peft", ["lora"], SHAPE, 1, "cpu")
    (own,) = steps.measured("graftwork", ["lora"], SHAPE, 1, "cpu")
    assert row["side"] == "peft"
    assert row["kept_megabytes"] == pytest.approx(own["kept_megabytes"], rel=0.2)


def test_every_peer_is_asked_for_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    training, asked = script("training"), []
    monkeypatch.setattr(training, "present", lambda names: names)
    monkeypatch.setattr(training, "steps", lambda library, setups, *_: asked.append((library, setups)) or [])
    training.all_steps(Namespace(quick=True, setups=None, no_peers=False), 3)
    assert [library for library, _ in asked] == ["graftwork", *training.PEERS] == ["graftwork", "adapters", "peft"]
    assert asked[1:] == [("adapters", ["seq_bn", "double_seq_bn", "lora", "fuse3"]), ("peft", ["lora"])]


def test_the_textbook_fusion_is_the_same_function() -> None:
    steps, fusion = script("steps"), pytest.importorskip("graftwork.core.fusion")
    torch.manual_seed(0)
    module = fusion.Fusion(8, fusion.FUSIONS["dynamic"]).double()
    x, *changes = torch.randn(4, 2, 3, 8, dtype=torch.float64)
    ours = module(x, changes)
    module.__class__ = steps.textbook()
    torch.testing.assert_close(module(x, changes), ours)


def test_the_page_says_what_was_measured(rows: dict[str, dict[str, object]]) -> None:
    epoch = {
        "setup": "head only",
        "rows": 400,
        "epoch_seconds": 4.0,
        "kept_epoch_seconds": 0.5,
        "faster": 8.0,
        "keeping_seconds": 1.0,
        "megabytes": 12.0,
        "weights_differ_by": 1e-7,
    }
    steps = [{**row, "clock": "cpu"} for row in rows.values()]
    text = script("training").written({"command": "python benchmarks/training.py", "steps": steps, "epochs": [epoch]})
    assert "| `seq_bn` | graftwork | " in text
    assert "| head only | 400 | 4.0 | 0.5 | 8.0× | 1.0 | 12 | 1e-07 |" in text
    assert "    python benchmarks/training.py\n" in text
