"""Law: docs/cli.md says what `--help` says."""

import subprocess
import sys

from tests.shared import ROOT


def test_the_page_of_commands_is_current() -> None:
    command = [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
