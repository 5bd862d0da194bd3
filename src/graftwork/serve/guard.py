"""What surrounds every route: a number for each request, a count of how it ended, and no traceback for the client.

Plain ASGI, so that it stands outside of whatever the framework does with errors.
"""

import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]
Count: TypeAlias = Callable[[str, int, float], None]

log = logging.getLogger("graftwork.serve")


class Guard:
    """Passes requests on. `count` is told route, status and seconds of each; an unknown path counts as "other"."""

    def __init__(self, app: Application, count: Count) -> None:
        self.app = app
        self.count = count

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        number, started, status = uuid.uuid4().hex[:16], time.perf_counter(), 0
        scope.setdefault("state", {})["request_id"] = number

        async def numbered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", number.encode())]
            await send(message)

        try:
            await self.app(scope, receive, numbered)
        except Exception:
            log.exception("request %s to %s failed", number, scope["path"])
            if status:
                raise  # the answer has begun: all that is left is to break the connection
            await _internal(numbered, number)
        finally:
            self.count(getattr(scope.get("route"), "path", "other"), status or 500, time.perf_counter() - started)


async def _internal(send: Send, number: str) -> None:
    message = f"this request could not be answered; the server's log has it as {number}"
    body = json.dumps({"error": {"code": "internal", "message": message, "request_id": number}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 500, "headers": headers})
    await send({"type": "http.response.body", "body": body})
