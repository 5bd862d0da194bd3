"""Tables, pages and pictures of benchmarks/page.py."""

from pathlib import Path

import pytest

from graftwork.train.outcome import machine
from tests.benchmarks.scripts import script

page = script("page")


def test_a_table_has_a_rule_under_its_head() -> None:
    assert page.table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    with pytest.raises(ValueError, match="1 cells under 2 headings"):
        page.table(["a", "b"], [["1"]])


def test_a_page_says_how_and_on_what_it_was_made() -> None:
    ran = page.command(["some/where/scale.py", "--quick"])
    text = page.page("Cost", ran, "Words.", peers={"peft": "peft 0.21.2"})
    assert text.startswith("# Cost\n\nWords.\n\n")
    assert "    python benchmarks/scale.py --quick\n" in text
    assert machine() in text
    assert "Beside: peft with peft 0.21.2." in text
    assert machine(7) in page.page("Cost", ran, threads=7)
    assert machine(7) in page.conditions(threads=7)


def test_a_picture_is_the_same_for_the_same_numbers(tmp_path: Path) -> None:
    curves = [page.Curve("ours", [(2, 1.1), (1, 1.0)]), page.Curve("limit", [(1, 1.0), (2, 1.05)], dashed=True)]
    for name in ("a.svg", "b.svg"):
        assert page.draw(tmp_path / name, "Cost", "members", "ratio", curves) == ""
    text = (tmp_path / "a.svg").read_text("utf8")
    assert (tmp_path / "b.svg").read_text("utf8") == text
    assert ">limit<" in text
    assert ">members<" in text
