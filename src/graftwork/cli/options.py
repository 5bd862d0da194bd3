"""Options that several commands share, each described once, and what is asked of the files that they name."""

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


def need_folder(file: Path, what: str) -> None:
    """Raise UserError where the folder of a file to be written is not there, before the work for it begins."""
    if not file.resolve().parent.is_dir():
        raise UserError(f"{file}: no such folder; make it first, or write {what} elsewhere")
