"""The scripts under benchmarks/, which import each other as neighbours: by name, from their own folder."""

import importlib
import sys
from types import ModuleType

from tests.shared import ROOT

FOLDER = ROOT / "benchmarks"


def script(name: str) -> ModuleType:
    """A script of the benchmark room as a module, by the name that its neighbours use."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    return importlib.import_module(name)
