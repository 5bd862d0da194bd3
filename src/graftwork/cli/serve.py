"""`graftwork serve`: every package of the registry over HTTP, from one copy of the base."""

from typing import Annotated

import typer

from graftwork.cli.options import Model, Root
from graftwork.cli.registry import open_registry
from graftwork.serve.limits import Limits
from graftwork.workflow import open_engine, serve

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def command(
    model: Model = "minilm",
    host: Annotated[str, typer.Option(help="0.0.0.0 opens it to the network")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free port and says which")] = 8000,
    cache: Annotated[int, typer.Option(min=1, help="how many adapters are kept in memory")] = 32,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto")] = "float32",
    max_rows: Annotated[int, typer.Option(min=1, help="rows a request may have")] = Limits().max_rows,
    root: Root = None,
) -> None:
    """Serve every package of the registry over HTTP.

    \b
    Example: graftwork serve --model minilm --port 8000
      curl -s localhost:8000/v1/predict -H 'content-type: application/json' \\
           -d '{"rows": [{"text": "where is my order", "adapters": "intent"}]}'
    """
    registry = open_registry(root)
    serve(
        lambda: open_engine(model, registry, dtype=dtype, adapter_cache_size=cache),
        host=host,
        port=port,
        limits=Limits(max_rows=max_rows),
        announce=typer.echo,  # flushed, so that whoever started the server can read the port
    )
