"""Runs in processes of their own: forked, or as programs of their own where there is an accelerator."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from graftwork.recipe import dump
from graftwork.train import apart
from graftwork.train.apart import Apart
from graftwork.train.run import How
from tests.train import small


def job(tmp_path: Path, name: str, **changes: Any) -> dict[str, Any]:
    made = small.recipe(tmp_path, {"training.epochs": 1, "output": str(tmp_path / name), **changes}, train=16, dev=6)
    return {"recipe": dump(made), "registry": None, "how": asdict(How()), "priced": False, "threads": 1}


def test_a_program_of_its_own_answers_as_a_fork_does(tmp_path: Path) -> None:
    begun = apart._begun(job(tmp_path, "begun"))
    with Apart() as forked:
        made = small.recipe(tmp_path, {"training.epochs": 1, "output": str(tmp_path / "forked")}, train=16, dev=6)
        answer = forked.run(made, None, How(), priced=False)
    assert begun["price"] is None
    assert begun["result"]["scores"] == answer["result"]["scores"]
    assert begun["size"] == answer["size"] > 0


def test_what_a_program_of_its_own_refuses_is_its_answer(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes.txt").write_text("somebody's")
    answer = apart._begun(job(tmp_path, "there"))
    assert "there" in answer["error"]
    assert "result" not in answer


@pytest.mark.parametrize(
    ("code", "said"), [(-9, "killed by signal 9, as a machine out of memory does"), (3, "the run ended with code 3")]
)
def test_how_a_run_died(code: int, said: str) -> None:
    for text in ("", '{"result": {"sco'):
        assert said in apart._read(text, code)["error"]


def test_what_was_answered_counts_however_the_process_ends() -> None:
    assert apart._read('a library says hello\n{"error": "no"}', -6) == {"error": "no"}
