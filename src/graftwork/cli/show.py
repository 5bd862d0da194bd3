"""`graftwork show`: what a model, a method, a package or a composition is."""

from collections.abc import Iterator, Mapping
from textwrap import fill
from typing import Annotated, Any

import typer

from graftwork.cli.options import AsJson, Root
from graftwork.cli.printing import emit, table
from graftwork.cli.registry import open_registry
from graftwork.describe import describe

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def show(
    what: Annotated[str, typer.Argument(help="methods, families, a model, method, package or composition")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="count methods or a composition, or list sites, on this model")
    ] = None,
    method: Annotated[str | None, typer.Option(help="count only this method on a model")] = None,
    store: Annotated[
        list[str] | None, typer.Option(help="disk for so many adapters on a model, '16*seq_bn'; repeatable")
    ] = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Say what something is, with its parameters counted; no weights are loaded.

    \b
    Examples:
      graftwork show methods --model bert-base-uncased
      graftwork show families
      graftwork show minilm
      graftwork show bert-base-uncased --method 'double_seq_bn[reduction_factor=12]'
      graftwork show bert-large-uncased --store '26*seq_bn'
      graftwork show 'Stack(hi, intent)'
      graftwork show 'Fuse(a, b, c)' --model bert-base-uncased
    """
    described = describe(what, open_registry(root), model=model, method=method, store=store or ())
    if as_json:
        emit(described)
        return
    for key, value in described.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            typer.echo(f"\n{key}")
            table(value, list(dict.fromkeys(column for row in value for column in row)))
        elif isinstance(value, dict):
            typer.echo(f"\n{key}")
            for line in _listed({k: v for k, v in value.items() if v not in (None, "", [], {})}):
                typer.echo(line)
        else:
            typer.echo(f"{key}: {_plain(value)}")


def _listed(values: Mapping[str, Any]) -> Iterator[str]:
    """A key and its value a line; a value that is long goes on in the next line, below itself."""
    width = max(map(len, values), default=0) + 2
    for key, value in values.items():
        begin, below = key.ljust(width), " " * width
        text = _plain(value).removeprefix("{").removesuffix("}") if isinstance(value, dict) else _plain(value)
        yield fill(text, 120, initial_indent=begin, subsequent_indent=below, break_on_hyphens=False)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}={_plain(one)}" for key, one in value.items()) + "}"
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
