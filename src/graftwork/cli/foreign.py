"""`graftwork registry import` and `export`: files of AdapterHub, PEFT and LLM-Adapters, in and out."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from graftwork.cli.options import AsJson, Root
from graftwork.cli.printing import emit, table
from graftwork.cli.registry import Ref, open_registry
from graftwork.workflow import export_files, import_files

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(help="a folder, a repository owner/name, or an id: sentiment/sst-2@ukp")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="the base [default: the one the files name]")
    ] = None,
    name: Annotated[str | None, typer.Option(help="a name of your own, for one adapter [default: its own]")] = None,
    config: Annotated[str | None, typer.Option(help="which adapter of an id: pfeiffer, houlsby, or a hash")] = None,
    revision: Annotated[str | None, typer.Option(help="a branch, tag or commit of the repository")] = None,
    subtract: Annotated[
        bool | None, typer.Option("--subtract/--no-subtract", help="a ReFT is NoReFT, or DiReFT: files do not say")
    ] = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Read files of AdapterHub, PEFT or LLM-Adapters, try them on the base, and say what became of every tensor.

    Example: graftwork registry import sentiment/sst-2@ukp --model bert-base-uncased
    """
    options = {"model": model, "name": name, "config": config, "revision": revision}
    found = import_files(source, open_registry(root), subtract_projection=subtract, **options)
    if as_json:
        emit([asdict(one) for one in found])
        return
    for one in found:
        typer.echo(f"{one.reference}  ({one.role}, from {one.source})")
        table([asdict(fate) for fate in one.fates], ["source", "target", "how"])
        for note in one.notes:
            typer.echo(f"note: {note}")
    if found and found[0].composition:
        typer.echo(f"composition: {found[0].composition}")


@app.command()
def export(
    reference: Ref,
    folder: Annotated[Path, typer.Argument(help="where to write it; a new folder")],
    to: Annotated[Literal["adapterhub", "peft"], typer.Option(help="whose layout")],
    model: Annotated[str | None, typer.Option("--model", "-m", help="the base [default: the package's own]")] = None,
    bare: Annotated[bool, typer.Option("--bare", help="PEFT: name modules as the bare model does")] = False,
    root: Root = None,
) -> None:
    """Write a package as a folder that AdapterHub or PEFT loads; what they lack is refused with the reason.

    Example: graftwork registry export intent@3 ./intent-hub --to adapterhub
    """
    files = export_files(reference, open_registry(root), folder, to, model=model, bare=bare)
    typer.echo(f"{folder}: {', '.join(files)}")
