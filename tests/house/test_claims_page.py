"""Law: docs/claims.md has forty claims, each with a verdict, a source, and something that exists and shows it."""

import ast
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from functools import cache

import pytest

from graftwork.cli.main import run
from tests.house.source import require_none
from tests.house.test_readme import CLI_PAGE, sections, unknown
from tests.shared import ROOT

PAGE = (ROOT / "docs" / "claims.md").read_text("utf8")
VERDICTS = {"true": "True", "false": "False", "conditional": "Conditional", "not checked": "Not checked"}


def claims(page: str) -> dict[int, str]:
    """The text below each heading `### 7. …`, up to the next heading."""
    parts = re.split(r"^#{2,3} (?:(\d+)\. )?.*$", page, flags=re.M)
    return {int(number): text for number, text in zip(parts[1::2], parts[2::2], strict=True) if number}


def verdict(text: str) -> str:
    """The word in bold that a claim begins with, or nothing."""
    found = re.match(r"\s*\*\*([\w ]+)\.?\*\*", text)
    return found[1] if found else ""


def shown_by(text: str) -> list[str]:
    """What stands in backticks behind `Shown by:`."""
    return re.findall(r"`([^`]+)`", text.split("Shown by:")[1]) if "Shown by:" in text else []


@cache
def functions(file: str) -> set[str]:
    path = ROOT / file
    tree = ast.parse(path.read_text("utf8")) if path.is_file() else ast.Module([], [])
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def missing(reference: str) -> str | None:
    """Why a reference shows nothing: a test, script, target, command or option that is not there."""
    if re.fullmatch(r"tests/[\w/]+\.py::test_\w+", reference):
        file, name = reference.split("::")
        return None if name in functions(file) else "no such test"
    if reference.startswith("graftwork "):
        return ", ".join(unknown(reference, sections(CLI_PAGE.read_text("utf8")))) or None
    if reference.startswith("make "):
        named = re.search(rf"^{reference.removeprefix('make ')}:", (ROOT / "Makefile").read_text("utf8"), re.M)
        return None if named else "no such target"
    if reference.startswith("python "):
        script, *options = reference.split()[1:]
        text = (ROOT / script).read_text("utf8") if (ROOT / script).is_file() else ""
        return None if text and all(option in text for option in options) else "no such script or option"
    return None  # the name of something in passing


def faults(page: str) -> Iterator[str]:
    for number, text in claims(page).items():
        references = shown_by(text)
        if verdict(text) not in VERDICTS.values():
            yield f"{number}: {verdict(text)!r} is no verdict"
        if "Source: " not in text:
            yield f"{number}: no source"
        if not any(re.match(r"tests/|graftwork |make |python ", reference) for reference in references):
            yield f"{number}: nothing shows it"
        yield from (f"{number}: {one}: {why}" for one in references for why in [missing(one)] if why)


def test_every_claim_has_a_verdict_a_source_and_what_shows_it() -> None:
    require_none([*faults(PAGE)])
    assert [*claims(PAGE)] == [*range(1, 41)]


def test_verdicts_are_counted_as_they_are() -> None:
    stated = re.findall(r"(\d+) (?:are )?(true|false|conditional|not checked)", PAGE.split("##")[0])
    assert {VERDICTS[word]: int(number) for number, word in stated} == Counter(map(verdict, claims(PAGE).values()))


@pytest.mark.parametrize("command", sorted(set(re.findall(r"`(graftwork show [^`]+)`", PAGE))))
def test_what_is_shown_is_shown(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(shlex.split(command)[1:]) == 0, capsys.readouterr().err


def test_these_laws_can_fail() -> None:
    page = "# C\n### 1. a\n**True.** Source: y.\n\nShown by: `make nothing`, `x`\n### 2. b\n**Maybe.**\nShown by: `x`\n"
    assert [*faults(page)] == [
        "1: make nothing: no such target", "2: 'Maybe' is no verdict", "2: no source", "2: nothing shows it",
    ]  # fmt: skip
    assert missing("tests/house/test_claims_page.py::test_nobody") == "no such test"
    assert missing("tests/house/no_page.py::test_nobody") == "no such test"
    assert missing("python benchmarks/overhead.py --quicker") == "no such script or option"
    assert missing("python benchmarks/no_script.py") == "no such script or option"
    assert missing("graftwork show bert-base-uncased --stores x") == "graftwork show --stores"
