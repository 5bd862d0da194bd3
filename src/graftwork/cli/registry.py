"""`graftwork registry`: packages by name and version. `name@3` is a version, `name@prod` an alias."""

import os
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from graftwork.cli.options import AsJson, Root
from graftwork.cli.printing import emit, table
from graftwork.registry.package import read_manifest
from graftwork.registry.store import Registry, default_root

FOREIGN = {"import", "export"}  # need models, which take seconds to load: their file is read when one is called


class WithForeign(TyperGroup):
    """The commands of this file, and those of `foreign.py`."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, in the order of the files."""
        return [*super().list_commands(ctx), *sorted(FOREIGN, reverse=True)]

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | TyperGroup | None:
        """A command of this file, else one that is loaded now; None for a name that is neither."""
        if cmd_name in FOREIGN:
            group: Any = get_command(import_module("graftwork.cli.foreign").app)
            return group.get_command(ctx, cmd_name)  # type: ignore[no-any-return]
        return super().get_command(ctx, cmd_name)  # type: ignore[return-value]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The lines of the commands, without loading what `foreign.py` needs."""
        rows = [(name, super(WithForeign, self).get_command(ctx, name)) for name in super().list_commands(ctx)]
        lines = [(name, command.get_short_help_str(100)) for name, command in rows if command is not None]
        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    *lines,
                    ("import", "Read files of AdapterHub, PEFT or LLM-Adapters."),
                    ("export", "Write a package for AdapterHub or PEFT."),
                ]
            )


app = typer.Typer(
    cls=WithForeign,
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
