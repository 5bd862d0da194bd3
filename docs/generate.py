"""Write docs/cli.md from the commands themselves: what `--help` says, as one page.

python docs/generate.py            write the page
python docs/generate.py --check    exit 1 if the page on disk says something else
"""

import inspect
import sys
from pathlib import Path

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption
from typer.main import get_command

from graftwork.cli.main import app

PAGE = Path(__file__).with_name("cli.md")
OPENING = """# Commands

Written by `make docs` from `graftwork --help`; do not edit. Exit codes: 0 done, 1 failed, 2 the request was wrong.
"""


def page() -> str:
    """The whole page: one section per command, groups before their members."""
    root = get_command(app)
    return "\n".join([OPENING, *section(root, typer.Context(root, info_name="graftwork"), 2)])


def section(command: TyperCommand | TyperGroup, context: typer.Context, level: int) -> list[str]:
    """One command: its help, its arguments and options, then its subcommands."""
    text = inspect.cleandoc(command.help or "").replace("\b\n", "")
    lines = [f"{'#' * level} `{context.command_path}`", "", text, ""]
    rows = [row for parameter in command.get_params(context) if (row := described(parameter, context))]
    if rows:
        lines += ["| option | meaning |", "|---|---|", *rows, ""]
    if isinstance(command, TyperGroup):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None and not child.hidden:
                lines += section(child, typer.Context(child, info_name=name, parent=context), min(level + 1, 3))
    return lines


def described(parameter: TyperOption, context: typer.Context) -> str:
    """One row of the table of options; empty for what is hidden."""
    record = parameter.get_help_record(context)
    if record is None:
        return ""
    name, meaning = (text.replace("|", "\\|") for text in record)
    return f"| `{name}` | {' '.join(meaning.split())} |"


def main(arguments: list[str]) -> int:
    text = page()
    if arguments == ["--check"]:
        same = PAGE.is_file() and PAGE.read_text("utf8") == text
        print("docs/cli.md is current" if same else "docs/cli.md is stale: run `make docs`")
        return 0 if same else 1
    PAGE.write_text(text, "utf8")
    print(f"wrote {PAGE.name}: {text.count(chr(10) + '##')} commands")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
