"""The attention of a trained fusion as lines, sentences and a picture."""

from pathlib import Path
from typing import Any

import pytest

from graftwork.train import plots
from graftwork.train.attention import MISSING, by_label, by_site, draw, findings, lines


def told(sites: dict[str, list[float]], entropy: float = 0.5, labels: dict[str, Any] | None = None) -> dict[str, Any]:
    members = [f"{name}@1" for name in "abc"[: len(next(iter(sites.values())))]]
    spread = dict.fromkeys(sites, entropy)
    return {"members": members, "tokens": 1234, "sites": sites, "entropy": spread, "labels": labels or {}}


TWO = {"layer.0/ffn": [0.2, 0.7, 0.1], "layer.1/ffn": [0.6, 0.3, 0.1]}


def test_the_table_by_layer_and_by_label() -> None:
    found = told(TWO, labels={"good": TWO})
    assert by_site(found)[1] == {"site": "layer.1/ffn", "a@1": 0.6, "b@1": 0.3, "c@1": 0.1, "entropy": 0.5}
    (row,) = by_label(found)
    assert row["label"] == "good"
    assert [row[member] for member in found["members"]] == pytest.approx([0.4, 0.5, 0.1])
    assert list(lines(found)) == [
        "attention over 1,234 tokens of dev, and how evenly a token spreads it (1: to all alike):",
        "  layer.0/ffn: a@1 0.20, b@1 0.70, c@1 0.10; 0.50",
        "  layer.1/ffn: a@1 0.60, b@1 0.30, c@1 0.10; 0.50",
        "  label good, mean over layers: a@1 0.40, b@1 0.50, c@1 0.10",
    ]
    assert list(lines({})) == []


def test_it_is_uniform_where_no_layer_chooses() -> None:
    even = {"layer.0/ffn": [0.5, 0.5], "layer.1/ffn": [0.5, 0.5]}
    (said,) = findings(told(even, 0.99), "mix")
    assert said.startswith("the attention of fusion mix is uniform: in no layer is its tokens' mean entropy below 0.98")
    one_that_chooses = told(even, 0.99)
    one_that_chooses["entropy"]["layer.1/ffn"] = 0.97  # shares are even, but each token has its own
    assert list(findings(one_that_chooses, "mix")) == []
    assert list(findings({}, "mix")) == []


def test_two_members_that_get_nearly_everything_lead_to_pruning() -> None:
    (said,) = findings(told({"layer.0/ffn": [0.25, 0.7, 0.05]}), "mix")
    assert said.startswith(
        "the 2 most attended of 3 members get 95% of the attention: graftwork prune mix --data <rows>"
    )
    assert list(findings(told({"layer.0/ffn": [0.4, 0.3, 0.3]}), "mix")) == []
    assert list(findings(told({"layer.0/ffn": [0.9, 0.1]}), "mix")) == []


def test_the_picture_or_why_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = {str(number): TWO for number in range(12)}  # more than there are panels
    assert draw(told(TWO, labels=labels), "mix", tmp_path / "a.png") == ""
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    prices = dict.fromkeys(("$", "$$", r"$\\frac$", "$5-$10"), TWO)  # no formulas
    assert draw(told(TWO, labels=prices), "mix", tmp_path / "c.png") == ""
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    assert draw(told(TWO), "mix", tmp_path / "b.png") == MISSING
    assert not (tmp_path / "b.png").exists()
