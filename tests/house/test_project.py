"""Law: the project's papers agree with each other: version, changelog, declared dependencies, pinned environment."""

import re
import sys
import tomllib
from importlib.metadata import packages_distributions, version

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.house.source import Module, modules
from tests.house.test_imports import targets
from tests.shared import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]
LIBRARIES = packages_distributions()
BROUGHT = {"triton": "torch"}  # by builds for GPUs, and used only where it is there


def declared() -> list[Requirement]:
    """What pyproject.toml asks for, extras included, the project itself left out."""
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    every = [Requirement(line) for line in [*PROJECT["dependencies"], *extras]]
    return [requirement for requirement in every if requirement.name != PROJECT["name"]]


def pinned() -> dict[str, str]:
    """What constraints.txt pins: canonical name -> version."""
    lines = (ROOT / "constraints.txt").read_text("utf8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): number for name, number in pairs}


def undeclared(sources: tuple[Module, ...], names: set[str]) -> set[str]:
    """Libraries that the code imports although none of the named distributions holds them."""
    imported = {target.split(".")[0] for module in sources for target, _ in targets(module)}
    others = {BROUGHT.get(name, name) for name in imported} - {"graftwork", *sys.stdlib_module_names}
    return {name for name in others if not names & {canonicalize_name(d) for d in LIBRARIES.get(name, [name])}}


def test_the_newest_heading_of_the_changelog_is_the_version() -> None:
    newest = re.search(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text("utf8"), re.M)
    assert newest is not None
    assert newest.group(1) == PROJECT["version"] == version("graftwork")


def test_what_is_imported_is_declared() -> None:
    assert undeclared(modules(), {canonicalize_name(requirement.name) for requirement in declared()}) == set()


def test_the_pinned_environment_satisfies_what_is_declared() -> None:
    pins = pinned()
    missing = [str(r) for r in declared() if not r.specifier.contains(pins.get(canonicalize_name(r.name), "0"))]
    assert missing == []
    assert not any("+" in number for number in pins.values()), "a pin names one build of a version"


def test_the_tests_have_every_extra() -> None:
    extras = PROJECT["optional-dependencies"]
    asked = next(Requirement(line).extras for line in extras["dev"] if Requirement(line).name == PROJECT["name"])
    assert asked == {*extras} - {"dev"}, "or the tests of an extra are skipped wherever they run"


def test_this_run_uses_the_pinned_versions() -> None:
    running = {r.name: version(r.name).split("+")[0] for r in declared()}
    assert {name: pinned()[canonicalize_name(name)] for name in running} == running


def test_the_licence_is_the_unmodified_text() -> None:
    text = (ROOT / "LICENSE").read_text("utf8")
    assert text.splitlines()[1].strip() == "Apache License"
    assert len(text) == 11358
    assert PROJECT["license"] == "Apache-2.0"


def test_these_laws_can_fail() -> None:
    source = Module("graftwork.core.x", "import os\nimport yaml\nimport nowhere\nfrom graftwork import errors")
    assert undeclared((source,), set()) == {"yaml", "nowhere"}
    assert undeclared((source,), {"pyyaml"}) == {"nowhere"}
