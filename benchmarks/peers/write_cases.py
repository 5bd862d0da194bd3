"""Golden cases of AdapterHub, read here and written back in its layout, for the real library to load (`load_cases.py`).

    python benchmarks/peers/write_cases.py CONFORMANCE OUT        in an environment with graftwork

CONFORMANCE is a folder with `index.json`, `bases/` and `cases/`; OUT is made anew: OUT/<case>/<adapter or fusion>/.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from graftwork.build import without_bars
from graftwork.core.backbone import Backbone, load_model
from graftwork.errors import GraftworkError
from graftwork.importing import facts_of, packages, read
from graftwork.registry.foreign.adapterhub_write import write_adapterhub


def write_case(folder: Path, out: Path, bases: dict[str, Backbone]) -> int:
    """Write every adapter and fusion of one case; returns how many."""
    case: dict[str, Any] = json.loads((folder / "case.json").read_text("utf8"))
    if case["family"] not in bases:
        bases[case["family"]] = Backbone(load_model(folder / case["base"]))
    base = bases[case["family"]]
    parts = [*case["adapters"], *case["fusions"]]
    imports = [imported for part in parts for imported in read(folder / part["path"], base)[1]]
    for package in packages(imports, base):
        write_adapterhub(package, out / package.manifest.name, facts_of(base))
    return len(imports)


def main(root: Path, out: Path) -> int:
    """Write all cases; the number of those that could not be."""
    shutil.rmtree(out, ignore_errors=True)
    bases: dict[str, Backbone] = {}
    written, failed = 0, 0
    for entry in json.loads((root / "index.json").read_text("utf8")):
        try:
            written += write_case(root / entry["path"], out / entry["id"], bases)
        except GraftworkError as error:
            failed += 1
            print(f"{entry['id']}: {error}")
    print(f"{written} adapters and fusions written, {failed} cases failed")
    return failed


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with without_bars():
        sys.exit(1 if main(Path(sys.argv[1]), Path(sys.argv[2])) else 0)
