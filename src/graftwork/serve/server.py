"""A server in this process: one address, one engine, until it is told to stop. Needs the `[serve]` extra.

The port is open before the model is loaded: whoever comes too early gets 503 and a Retry-After. SIGINT and SIGTERM end
it in order: no new requests, the accepted ones are answered, then `serve` returns.
"""

from __future__ import annotations  # the library that the signatures name may be missing

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from graftwork.errors import UserError
from graftwork.serve.app import app_of
from graftwork.serve.engine import Engine
from graftwork.serve.extra import need_extra
from graftwork.serve.limits import Limits
from graftwork.serve.worker import Worker

with suppress(ImportError):  # `need_extra` says so as soon as a server is asked for
    import uvicorn

_PATIENCE = 30  # seconds that accepted requests may take after a signal


def serve(
    engine_factory: Callable[[], Engine],
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: Limits | None = None,
    announce: Callable[[str], None] = print,
) -> None:
    """Serve until SIGINT or SIGTERM. `announce` is told the address as soon as it is open; port 0 takes any free one.

    Raises UserError for an address that cannot be had or a library of the `[serve]` extra that is missing, and whatever
    `engine_factory` raises.
    """
    need_extra()
    listener = _listen(host, port)
    try:
        worker = Worker(engine_factory, limits or Limits(), on_failure=lambda: _end(server))
        config = uvicorn.Config(
            app_of(worker), log_config=None, access_log=False, timeout_graceful_shutdown=_PATIENCE, lifespan="on"
        )
        server = uvicorn.Server(config)
        shown = f"[{host}]" if ":" in host else host
        announce(f"listening on http://{shown}:{listener.getsockname()[1]}")
        with _quiet_signals():
            server.run(sockets=[listener])
    finally:
        listener.close()
    if worker.failure is not None:
        raise worker.failure


def _end(server: uvicorn.Server) -> None:
    server.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = str(getattr(error, "strerror", None) or error).partition(" (while")[0]
        raise UserError(
            f"cannot listen on {host}:{port}: {reason}; choose another --port, or 0 for any that is free"
        ) from error


@contextmanager
def _quiet_signals() -> Iterator[None]:
    """uvicorn stops on a signal and then raises it again, which would end the process before `serve` returns."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
