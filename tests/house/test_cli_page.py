"""Law: docs/cli.md says what `--help` says; the README and the changelog leave out no command, the README no extra."""

import re
import subprocess
import sys

from graftwork.cli.main import COMMANDS
from tests.house.test_project import PROJECT
from tests.shared import ROOT


def test_the_page_of_commands_is_current() -> None:
    command = [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_readme_and_the_changelog_name_every_command() -> None:
    readme = re.findall(r"^\| `graftwork (\w+)` \|", (ROOT / "README.md").read_text("utf8"), re.M)
    line = re.search(r"^- Commands (.*)\.$", (ROOT / "CHANGELOG.md").read_text("utf8"), re.M)
    assert line is not None
    assert sorted(readme) == sorted(re.findall(r"`(\w+)`", line[1])) == sorted(COMMANDS)


def test_the_readme_installs_every_extra() -> None:
    listed = re.findall(r"^pip install '\.\[([\w,]+)\]'", (ROOT / "README.md").read_text("utf8"), re.M)
    assert {name for names in listed for name in names.split(",")} == {*PROJECT["optional-dependencies"]} - {"dev"}
