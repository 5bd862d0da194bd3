"""The Markdown pages as the laws read them: fenced blocks with their language and line, and headings."""

import re
from dataclasses import dataclass
from pathlib import Path

from tests.shared import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```\s*$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its text, and the line of the page where the text begins."""

    language: str
    text: str
    line: int


def blocks(page: str, language: str) -> list[Block]:
    """The fenced blocks of one language, in order."""
    found = [Block(m.group(1), m.group(2), page.count("\n", 0, m.start(2)) + 1) for m in FENCE.finditer(page)]
    return [block for block in found if block.language == language]


def commands(page: str) -> list[tuple[str, int]]:
    """The `graftwork …` commands of a page's bash blocks, continuation lines joined, comments cut off."""
    found = []
    for block in blocks(page, "bash"):
        text = block.text.replace("\\\n", "  ")
        for number, line in enumerate(text.splitlines()):
            command = line.split(" #")[0].strip()
            if command.startswith("graftwork "):
                found.append((command, block.line + number))
    return found


def links(page: str) -> list[str]:
    """The relative targets that a page links to, without anchors."""
    found = re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page))
    return [target.split("#")[0] for target in found if not re.match(r"https?:|mailto:|#", target)]


def anchors(page: str) -> list[tuple[str, str]]:
    """The places in pages that a page links to: the page, "" for itself, and the anchor."""
    return re.findall(r"\]\((?!https?:)([^)\s#]*)#([^)\s]+)\)", FENCE.sub("", page))


def headings(page: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    found = re.findall(r"^#+ (.*)$", FENCE.sub("", page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in found}


def title(path: Path) -> str:
    """A short name for a page in a test's id."""
    return str(path.relative_to(ROOT))
