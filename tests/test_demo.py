"""The demo's folder: its own is gone on with, however early it was stopped, and nobody else's is written into."""

from pathlib import Path

import pytest

from graftwork.demo import run
from graftwork.errors import UserError

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "support_desk"


class Stopped(Exception):
    """Somebody stops the demo."""


def stop(said: str) -> None:
    raise Stopped(said)


def test_a_demo_that_was_stopped_in_its_first_step_can_be_run_again(tmp_path: Path) -> None:
    output = tmp_path / "demo-output"
    with pytest.raises(Stopped, match="a head on the frozen base"):
        run(EXAMPLES, output, stop)
    (output / "intent-head").mkdir()  # what the first step begins with
    with pytest.raises(Stopped, match="a head on the frozen base"):
        run(EXAMPLES, output, stop)


def test_the_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine", "utf8")
    with pytest.raises(UserError, match="holds other files; choose another folder with --output"):
        run(EXAMPLES, tmp_path, stop)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf8")
    with pytest.raises(UserError, match="file/demo-output: cannot be written: Not a directory"):
        run(EXAMPLES, tmp_path / "file" / "demo-output", stop)
