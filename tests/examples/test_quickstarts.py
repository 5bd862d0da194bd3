"""The quick starts run as people run them, as processes of their own, and print scores that mean something."""

import os
import re
import subprocess
import sys
from functools import cache

import pytest

from tests.shared import ROOT

EXAMPLES = ROOT / "examples"
pytestmark = pytest.mark.timeout(900)  # seconds, for a busy machine; about 30 a script on two idle cores
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("quickstart_*.py"))


@cache
def printed(script: str) -> str:
    """What a script prints; it must end well."""
    quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TQDM_DISABLE": "1"}
    environment = {**os.environ, **quiet, "OMP_WAIT_POLICY": "PASSIVE"}  # on a busy machine, spinning threads crawl
    ran = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{script}.py")], capture_output=True, text=True, check=False, env=environment
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    return ran.stdout


def score(text: str, line: str) -> float:
    """The number at the end of the printed line that begins so."""
    found = re.search(rf"^{re.escape(line)}.*: ([\d.]+)$", text, flags=re.M)
    assert found is not None, f"{line!r} was not printed:\n{text}"
    return float(found.group(1))


def test_all_quick_starts_are_run_here() -> None:
    assert SCRIPTS == ["quickstart_fusion", "quickstart_sentiment", "quickstart_stack"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_only_the_import_line_names_this_package(script: str) -> None:
    lines = [line for line in (EXAMPLES / f"{script}.py").read_text("utf8").splitlines() if "graftwork" in line]
    assert len(lines) == 1
    assert lines[0].startswith("from graftwork import ")


def test_a_sentiment_adapter_is_trained_kept_and_loaded() -> None:
    text = printed("quickstart_sentiment")
    before, after, loaded = (score(text, f"accuracy {when}") for when in ("before", "after training", "after loading"))
    assert before < 0.5 < 0.75 < after
    assert loaded == after
    assert "The zip broke on the first day. -> negative" in text
    assert re.search(r"^sentiment +bottleneck +113,040 ", text, flags=re.M)


def test_three_adapters_are_fused() -> None:
    text = printed("quickstart_fusion")
    for task, chance in {"sentiment": 1 / 3, "category": 1 / 8, "intent": 1 / 8}.items():
        assert score(text, f"{task} alone") > chance + 0.35
    assert score(text, "fused, after training") > max(0.75, score(text, "fused, before training"))
    assert "saved: category, fusion, intent, sentiment, urgent" in text
    trains = {name for name, _ in re.findall(r"^(\S+) .*  (yes)$", text, flags=re.M)}
    assert trains == {"sentiment,category,intent", "urgent"}


def test_a_task_moves_from_one_language_to_another() -> None:
    text = printed("quickstart_stack")
    assert score(text, "Stack(en, mood)") > 0.65
    assert score(text, "Stack(hi, mood)") > 0.42  # three labels; no row of this language was trained on
    trains = {name for name, _ in re.findall(r"^(\S+) .*  (yes)$", text, flags=re.M)}
    assert trains == {"mood"}
