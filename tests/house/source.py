"""The repository as the laws read it: files, dotted names, syntax trees. Nothing here imports the package."""

import ast
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.shared import ROOT

SRC = ROOT / "src"


@dataclass(frozen=True)
class Module:
    """One Python file: its dotted name, its text, and whether it is a package's `__init__`."""

    name: str
    text: str
    is_package: bool = False

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)


@cache
def modules() -> tuple[Module, ...]:
    """Every file of the package, in the order of their names."""
    return tuple(read(path) for path in sorted(SRC.rglob("*.py")))


def read(path: Path) -> Module:
    """One file under src/ as a Module."""
    parts = path.relative_to(SRC).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    return Module(".".join(parts[:-1] if is_package else parts), path.read_text("utf8"), is_package)


def require_none(found: list[str]) -> None:
    """Fail with every finding in full, one a line."""
    assert not found, "\n" + "\n".join(found)


def tracked_files() -> list[Path]:
    """What the repository holds; in an unpacked archive without git, every file that is not a leftover."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    leftovers = {".venv", ".git", "__pycache__", "build"}
    return [path for path in ROOT.rglob("*") if path.is_file() and not leftovers & set(path.relative_to(ROOT).parts)]
