"""`graftwork registry`: packages by name and version. `name@3` is a version, `name@prod` an alias."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from graftwork.cli.options import AsJson, Root
from graftwork.cli.printing import emit, table
from graftwork.registry.package import read_manifest
from graftwork.registry.store import Registry, default_root
from graftwork.workflow import export_files, import_files

app = typer.Typer(
    help="List, show, push, pull, import, export, alias and verify packages.\n\n"
    "Example: graftwork registry push runs/intent/package intent",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

Ref = Annotated[str, typer.Argument(help="name, name@3 or name@alias")]


def open_registry(root: Path | None) -> Registry:
    """The registry at `root`, else the person's own."""
    return Registry(root or default_root(os.environ))


@app.command("list")
def list_(root: Root = None, as_json: AsJson = False) -> None:
    """Every version of every name.

    Example: graftwork registry list --json
    """
    rows = [asdict(entry) for entry in open_registry(root).list()]
    emit(rows) if as_json else table(
        [{**row, "digest": row["digest"][:12]} for row in rows],
        ["name", "version", "role", "aliases", "size", "digest", "problem"],
    )


@app.command()
def show(reference: Ref, root: Root = None, as_json: AsJson = False) -> None:
    """What graft.json says of one package.

    Example: graftwork registry show intent@prod
    """
    found = open_registry(root).resolve(reference)
    manifest, contents = read_manifest(found.path)
    data = {"reference": str(found), "path": str(found.path), "digest": contents.digest} | manifest.model_dump(
        mode="json"
    )
    if as_json:
        emit(data)
        return
    table(
        [{"key": key, "value": value} for key, value in data.items() if value not in (None, "", [], {})],
        ["key", "value"],
    )


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="a package folder, as `graftwork train` writes it")],
    name: Annotated[str, typer.Argument(help="the name it is to have")],
    version: Annotated[int | None, typer.Option(help="a version of your own; else the next one")] = None,
    root: Root = None,
) -> None:
    """Store a package under a name; versions never change once pushed.

    Example: graftwork registry push runs/intent/package intent
    """
    typer.echo(open_registry(root).push(folder, name, version))


@app.command()
def pull(
    reference: Ref,
    folder: Annotated[Path, typer.Argument(help="where to write it")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace another package there")] = False,
    root: Root = None,
) -> None:
    """Copy a verified package out of the registry.

    Example: graftwork registry pull intent@3 ./intent
    """
    found = open_registry(root).pull(reference, folder, overwrite=overwrite)
    typer.echo(f"{found} -> {folder}")


@app.command()
def alias(
    name: Annotated[str, typer.Argument(help="a name in the registry")],
    alias: Annotated[str, typer.Argument(help="the alias, such as prod")],
    version: Annotated[int, typer.Argument(help="the version it means from now on")],
    root: Root = None,
) -> None:
    """Let name@alias mean a version; an alias that exists moves.

    Example: graftwork registry alias intent prod 3
    """
    typer.echo(f"{name}@{alias} -> {open_registry(root).alias(name, alias, version)}")


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


@app.command()
def verify(
    reference: Annotated[str | None, typer.Argument(help="one package; left out, all of them")] = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Read every byte again and compare with the digests; exit code 1 if anything is damaged.

    Example: graftwork registry verify
    """
    verdicts = open_registry(root).verify(reference)
    rows = [{"reference": v.reference, "verdict": "ok" if v.ok else "DAMAGED", "problem": v.problem} for v in verdicts]
    emit(rows) if as_json else table(rows, ["reference", "verdict", "problem"])
    if not all(verdict.ok for verdict in verdicts):
        raise typer.Exit(1)
