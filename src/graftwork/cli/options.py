"""Options that several commands share, each described once, and what is asked of the files that they name."""

import os
from pathlib import Path
from typing import Annotated

import typer

from graftwork.errors import UserError

Root = Annotated[
    Path | None, typer.Option("--registry", help="the registry's folder [default: $GRAFTWORK_HOME/registry]")
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON for a machine")]
Model = Annotated[str, typer.Option("--model", "-m", help="the frozen base: an id, a folder, or minilm")]
Head = Annotated[str | None, typer.Option(help="the package whose head answers, where the composition leaves it open")]


def need_writable(file: Path, what: str) -> None:
    """Raise UserError for a file that could not be written in the end, before the work for it begins."""
    if not file.resolve().parent.is_dir():
        raise UserError(f"{file}: no such folder; make it first, or write {what} elsewhere")
    if file.is_dir() or not os.access(file if file.exists() else file.resolve().parent, os.W_OK):
        why = "is a folder" if file.is_dir() else "cannot be written"
        raise UserError(f"{file}: {why}; name a file for {what} that can be written")
