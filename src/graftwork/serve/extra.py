"""Whether the libraries of the `[serve]` extra are there.

`app.py`, `metrics.py` and `server.py` can be imported without them, so that whatever stands above them can be too.
"""

from graftwork.errors import UserError


def need_extra() -> None:
    """Raise UserError that says what to install unless a server can be made."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"serving over HTTP needs {error.name}: pip install 'graftwork[serve]'") from error
