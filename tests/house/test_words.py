"""Law: tracked files name no private place: no path of one machine, no package-registry host, no index setting."""

import re
from pathlib import Path

from tests.house.source import tracked_files
from tests.shared import ROOT

FORBIDDEN = {
    "an absolute path of one machine": re.compile(r"(?<![\w./:}~])/(?:root|home|Users|work|opt|mnt|tmp)/[\w.]"),
    "a package-registry host": re.compile(r"(?:pypi|pythonhosted|anaconda|download\.pytorch)\.(?:org|com|io)", re.I),
    "a package-index setting": re.compile(r"--(?:extra-)?index-url|--find-links|--trusted-host"),
    "an editable or local requirement": re.compile(r"^-e |@ file://", re.M),
}
BINARY = {".safetensors", ".bin", ".png", ".parquet", ".gz", ".zip", ".ico"}
HERE = Path(__file__).relative_to(ROOT)


def named(text: str) -> list[str]:
    """What a text says that belongs to one machine or one network."""
    return [f"{what}: {match.group(0)!r}" for what, words in FORBIDDEN.items() for match in words.finditer(text)]


def test_no_file_names_a_private_place() -> None:
    files = [path.relative_to(ROOT) for path in tracked_files() if path.suffix not in BINARY]
    assert [
        f"{path}: {what}" for path in files if path != HERE for what in named((ROOT / path).read_text("utf8"))
    ] == []


def test_this_law_can_fail() -> None:
    for bad in (
        "cd /home/someone/project",
        'open("/work/data.txt")',
        "https://pypi.org/simple",
        "pip install --index-url x",
        "-e /src",
        "torch @ file://wheel",
    ):
        assert named(bad) != [], bad
    for good in ("../shared/data", "tests/work/data", "python -m venv .venv", "GET /v1/adapters", "$HOME/.graftwork"):
        assert named(good) == [], good
