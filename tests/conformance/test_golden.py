"""Every golden case: what the real `adapters` saved gives the same numbers here, hidden state by hidden state.

Thirty-two cases stand in the repository; the whole set lies in the shared folder, with one test for each of its cases.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks import conformance
from tests.shared import ABSENT, ROOT, shared_folder

GOLDEN = Path(__file__).parent / "golden"


def cases(folder: Path | None) -> list[Path]:
    return sorted(file.parent for file in (folder / "cases").glob("*/case.json")) if folder else []


HERE = cases(GOLDEN)
SHARED = shared_folder()
BESIDE = [case for case in cases(SHARED / "conformance" if SHARED else None) if case.name not in {h.name for h in HERE}]


@pytest.mark.parametrize("folder", HERE, ids=lambda folder: folder.name)
def test_a_case_of_the_repository(folder: Path) -> None:
    check(folder)


@pytest.mark.shared
@pytest.mark.parametrize("folder", BESIDE or [None], ids=lambda folder: folder.name if folder else ABSENT)
def test_a_case_of_the_shared_folder(folder: Path | None) -> None:
    assert folder is not None, "the shared folder holds no golden cases"
    check(folder)


def check(folder: Path) -> None:
    outcome = conformance.run(folder)
    assert outcome.passed, f"{outcome.problem} {outcome.differences}"


def test_the_cases_of_the_repository_span_eras_methods_and_compositions() -> None:
    kinds = {json.loads((case / "case.json").read_text("utf8"))["group"] for case in HERE}
    assert len(HERE) >= 30
    assert kinds == set("ABCDE")


def copied(tmp_path: Path, name: str) -> Path:
    """A case with its base in a folder of its own."""
    case = json.loads((GOLDEN / "cases" / name / "case.json").read_text("utf8"))
    base = Path(case["base"]).name
    shutil.copytree(GOLDEN / "cases" / name, tmp_path / "cases" / name)
    shutil.copytree(GOLDEN / "bases" / base, tmp_path / "bases" / base)
    return tmp_path / "cases" / name


def test_a_number_that_is_off_fails_a_case(tmp_path: Path) -> None:
    folder = copied(tmp_path, "a-llama-seq_bn")
    expected = load_file(folder / "expected.safetensors")
    expected["last_hidden_state"][0, 0, 0] += 2e-4
    save_file(expected, folder / "expected.safetensors")
    outcome = conformance.run(folder)
    assert not outcome.passed
    assert outcome.worst == pytest.approx(2e-4, rel=0.1)


def test_a_tensor_that_nothing_computes_fails_a_case(tmp_path: Path) -> None:
    folder = copied(tmp_path, "a-llama-seq_bn")
    save_file({"pooler_output": torch.zeros(4, 64)}, folder / "expected.safetensors")
    assert conformance.run(folder).problem == "not computed: pooler_output"


def test_the_command_counts_every_case_and_says_by_its_status_whether_one_failed(tmp_path: Path) -> None:
    folder = copied(tmp_path, "a-llama-seq_bn")
    copied(tmp_path / "more", "a-albert-seq_bn")
    assert command(tmp_path) == (0, "2 passed, 0 failed")
    (folder / "adapters/a/adapter_config.json").unlink()
    assert command(tmp_path) == (1, "1 passed, 1 failed")


def command(folder: Path) -> tuple[int, str]:
    ran = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/conformance.py"), str(folder)],
        capture_output=True, text=True, check=False, cwd=folder,
    )  # fmt: skip
    return ran.returncode, ran.stdout.strip().splitlines()[-1]
