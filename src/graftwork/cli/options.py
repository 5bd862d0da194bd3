"""Options that several commands share, each described once."""

from pathlib import Path
from typing import Annotated

import typer

Root = Annotated[
    Path | None, typer.Option("--registry", help="the registry's folder [default: $GRAFTWORK_HOME/registry]")
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON for a machine")]
Model = Annotated[str, typer.Option("--model", "-m", help="the frozen base: an id, a folder, or minilm")]
Head = Annotated[str | None, typer.Option(help="the package whose head answers, where the composition leaves it open")]
