"""The scripts under benchmarks/, which import each other as neighbours: by name, from their own folder."""

import importlib
import sys
from types import ModuleType

from tests.shared import ROOT

FOLDER = ROOT / "benchmarks"


def script(name: str, room: str = "") -> ModuleType:
    """A script of the benchmark room, or of a room in it, as a module, by the name that its neighbours use."""
    folder = str(FOLDER / room)
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)
