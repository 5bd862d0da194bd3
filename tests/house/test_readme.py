"""Law: what the pages show works. Python blocks run, recipes load, commands and options exist, links lead somewhere."""

import re
from pathlib import Path

import pytest
import yaml

from graftwork import recipe
from tests.house.pages import PAGES, anchors, blocks, commands, headings, links, title
from tests.house.source import SRC
from tests.shared import ROOT

CLI_PAGE = ROOT / "docs" / "cli.md"


def sections(page: str) -> dict[str, str]:
    """The reference of commands: "graftwork train" -> the text below its heading."""
    parts = re.split(r"^##+ `(graftwork[^`]*)`\s*$", page, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def unknown(command: str, reference: dict[str, str]) -> list[str]:
    """What a command line uses that the reference does not have: the command itself, or an option."""
    words = re.split(r"\s[|>&]+\s", command)[0].split()
    name = next((n for n in (" ".join(words[:3]), " ".join(words[:2])) if n in reference), None)
    if name is None:
        return [" ".join(words[:2])] if not words[1].startswith("-") else []
    options = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)} - {"--help"}
    return sorted(f"{name} {option}" for option in options if option not in reference[name])


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_python_blocks_run_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "page"}
    for block in blocks(page.read_text("utf8"), "python"):
        padded = "\n" * (block.line - 1) + block.text
        exec(compile(padded, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_recipes_load(page: Path, tmp_path: Path) -> None:
    for block in blocks(page.read_text("utf8"), "yaml"):
        if "model" in yaml.safe_load(block.text):
            path = tmp_path / f"line-{block.line}.yaml"
            path.write_text(block.text, "utf8")
            recipe.load(path, check_files=False)


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_commands_exist(page: Path) -> None:
    reference = sections(CLI_PAGE.read_text("utf8"))
    found = [(line, unknown(command, reference)) for command, line in commands(page.read_text("utf8"))]
    assert [(line, words) for line, words in found if words] == []


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_what_is_pushed_is_the_package_in_a_run(page: Path) -> None:
    text = page.read_text("utf8")
    pushed = re.findall(r"^graftwork registry push (\S+)", text, re.M)
    assert [folder for folder in pushed if folder.startswith("runs/") and not folder.endswith("/package")] == []
    assert not re.search(r"^    graftwork ", text, re.M), "a command that no test reads: fence it"


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_links_lead_somewhere(page: Path) -> None:
    assert [target for target in links(page.read_text("utf8")) if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_links_lead_to_headings(page: Path) -> None:
    for target, anchor in anchors(page.read_text("utf8")):
        assert anchor in headings((page.parent / target if target else page).read_text("utf8")), f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_files_that_pages_name_exist(page: Path) -> None:
    named = re.findall(r"`((?:src/graftwork/|tests/|docs/)?[a-z_]+(?:/[a-z_]+)*\.py)`", page.read_text("utf8"))
    assert [name for name in named if not (ROOT / name).exists() and not (SRC / "graftwork" / name).exists()] == []


def test_the_map_names_every_room() -> None:
    tree = next(
        block.text for block in blocks((ROOT / "README.md").read_text("utf8"), "") if "src/graftwork/" in block.text
    )
    rooms = {
        path.name + ("/" if path.is_dir() else "")
        for path in (SRC / "graftwork").glob("[a-z]*")
        if path.suffix in ("", ".py")
    }
    assert {room for room in rooms if room not in tree} == set()


def test_the_first_screen_shows_what_it_promises() -> None:
    text = (ROOT / "README.md").read_text("utf8")
    assert "make demo" in text
    assert "make test" in text
    assert len(blocks(text, "python")[0].text.splitlines()) <= 12
    assert len(blocks(text, "yaml")[0].text.splitlines()) <= 12


def test_these_laws_can_fail() -> None:
    page = "x\n```python\nraise KeyError\n```\n```bash\ngraftwork train a.yaml \\\n  --jsn  # why\nls\n```\n[a](no.md)"
    assert [(block.text, block.line) for block in blocks(page, "python")] == [("raise KeyError\n", 3)]
    assert links(page) == ["no.md"]
    assert anchors("[a](b.md#c-d) [e](#f) [g](https://h#i)") == [("b.md", "c-d"), ("", "f")]
    assert headings("# A `b`, c\n```bash\n# no\n```\n### D-e: f") == {"a-b-c", "d-e-f"}
    reference = sections("# c\n## `graftwork train`\n--json\n### `graftwork registry push`\n--name\n")
    assert unknown(commands(page)[0][0], reference) == ["graftwork train --jsn"]
    assert unknown("graftwork train a.yaml --json | jq .x", reference) == []
    assert unknown("graftwork registry push run --name=x", reference) == []
    assert unknown("graftwork trian a.yaml", reference) == ["graftwork trian"]
