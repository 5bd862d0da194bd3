"""Pictures of a run, as PNG files: what those of curves, attention and comparisons have in common.

They need matplotlib, the [plots] extra; without it there is a reason in the place of a picture.
"""

import io
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from graftwork.registry.durable import replace_file


def missing(what: str) -> str:
    """Why there is no picture of something on a machine without matplotlib."""
    return f"no {what}: matplotlib is not installed (pip install 'graftwork[plots]')"


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def save(figure: Any, title: str, file: Path) -> None:
    """Write a matplotlib figure under a title, whole or not at all. Raises OSError."""
    figure.suptitle(title)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    replace_file(file, picture.getvalue())
