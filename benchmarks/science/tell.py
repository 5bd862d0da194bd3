"""Write the studies of this room into docs/science.md, from their rows: claim, design, bar, result, command.

    python benchmarks/science/tell.py [--check]

Everything between the two marks of the page is written here; what stands around them is told by hand. A study is a
script of this folder with a STUDY that has a claim.
"""

import argparse
import importlib
import math
import sys
from pathlib import Path

import room
import rows as book
from room import ROOT, Asked, Study, page
from telling import title

PAGE = ROOT / "docs" / "science.md"
MARKS = ("<!-- studies: written by benchmarks/science/tell.py -->", "<!-- end of studies -->")


def studies() -> list[Study]:
    """Every study of the folder, in the order of its number."""
    files = sorted(Path(__file__).parent.glob("e*_*.py"), key=lambda file: int(file.stem.partition("_")[0][1:]))
    found = [getattr(importlib.import_module(file.stem), "STUDY", None) for file in files]
    return [study for study in found if study is not None and study.claim]


def section(study: Study, results: Path) -> str:
    """One study as a section of the page."""
    asked = Asked(False, room.SEEDS, results, results, (), math.inf)
    found = book.read(results / f"{study.name}.jsonl")
    said = study.result(found, asked) if found else ""
    where = f"[{len(found)} rows](../benchmarks/results/science/{study.name}.md)" if found else "none yet"
    return "\n\n".join([
        f"## {title(study)}",
        f"**Claim.** {study.claim}",
        f"**Design.** {study.design}",
        f"**Bar.** {study.bar}",
        f"**Result.** {said or 'The rows that it takes are not all there yet.'} ({where})",
        f"    python benchmarks/science/{study.name}.py",
    ])  # fmt: skip


def told(text: str, results: Path) -> str:
    """The page with its studies written anew. Raises ValueError for a page without the two marks."""
    before, first, rest = text.partition(MARKS[0])
    _, second, after = rest.partition(MARKS[1])
    if not (first and second):
        raise ValueError(f"the page has no {MARKS[0]} … {MARKS[1]}; put both back")
    sections = [section(study, results) for study in studies()]
    return "\n\n".join([before + first, *sections, second + after])


def main() -> None:
    """Write the page, or say whether it is what the rows say."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the page is behind the rows")
    there = PAGE.read_text("utf8")
    now = told(there, room.RESULTS)
    if parser.parse_args().check:
        sys.exit(f"{PAGE.name} is behind the rows: run benchmarks/science/tell.py" if now != there else 0)
    page.write(PAGE, now)


if __name__ == "__main__":
    main()
