"""Law: every YAML file under examples/ is a recipe that loads, and begins with the command that runs it.

The counts are stated, so that a file that gets lost, or a folder that this test no longer sees, turns it red.
"""

from pathlib import Path

import pytest

from graftwork import recipe
from graftwork.errors import RecipeError
from tests.shared import ROOT

EXAMPLES = ROOT / "examples"
RECIPES = sorted(path.relative_to(EXAMPLES) for path in EXAMPLES.rglob("*.yaml"))

# folder under examples/ -> how many recipes it holds
COUNTS = {".": 3, "languages": 3, "support_desk": 4}
OWN_ROWS = ("recipe.yaml",)  # says itself that a reader puts rows of their own beside it


def opening(text: str, path: str) -> bool:
    """Whether a recipe's first line is a comment that says what it learns and ends with the command that runs it."""
    first = text.splitlines()[0]
    return first.startswith("# ") and first.endswith(f": graftwork train examples/{path}")


def test_the_expected_number_of_recipes_is_there() -> None:
    counted = {str(folder): sum(path.parent == folder for path in RECIPES) for folder in {p.parent for p in RECIPES}}
    assert counted == COUNTS
    assert not list(EXAMPLES.rglob("*.yml")), "recipes end in .yaml"


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_recipes_load(path: Path) -> None:
    recipe.load(EXAMPLES / path, check_files=False)


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_recipes_say_how_to_run_them(path: Path) -> None:
    assert opening((EXAMPLES / path).read_text("utf8"), str(path))


@pytest.mark.shared
@pytest.mark.parametrize("path", [path for path in RECIPES if str(path) not in OWN_ROWS], ids=str)
def test_recipes_find_their_rows(path: Path, shared: Path) -> None:
    if shared.resolve() != (ROOT.parent / "shared").resolve():
        pytest.skip("the shared data is not beside the repository, where the example recipes look")
    recipe.load(EXAMPLES / path)


def test_these_laws_can_fail(tmp_path: Path) -> None:
    assert opening("# Moods: graftwork train examples/a/b.yaml\nmodel: x", "a/b.yaml")
    assert not opening("# Moods: graftwork train examples/b.yaml\nmodel: x", "a/b.yaml")
    assert not opening("model: x", "a/b.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text("model: {nmae: minilm}\n", "utf8")
    with pytest.raises(RecipeError, match="nmae"):
        recipe.load(bad, check_files=False)
