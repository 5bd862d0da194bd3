"""Where the shared data lies: conformance cases and corpora too large for the repository, in a folder beside it.

The folder may be absent. Tests that need it ask `shared_folder()` (while collecting), carry the mark `shared` or take
the fixture `shared`; without it they are skipped, and the summary of the run says how many.
"""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ABSENT = "shared data absent"


def shared_folder() -> Path | None:
    """The folder named by $GRAFTWORK_SHARED, else `../shared` beside the repository; None when it is not there."""
    folder = Path(os.environ.get("GRAFTWORK_SHARED") or ROOT.parent / "shared")
    return folder if folder.is_dir() else None
