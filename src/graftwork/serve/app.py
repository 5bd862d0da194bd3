"""The HTTP face of an engine: routes, status codes, and the form of what goes in and out. Needs the `[serve]` extra.

A request is refused as a whole only when it is wrong as a whole; the table `STATUS` says with which status. Everything
else is an outcome of one row. No state but that of the app it makes, no torch.
"""

from __future__ import annotations  # the libraries that the signatures name may be missing

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from graftwork.serve.engine import Engine
from graftwork.serve.extra import need_extra
from graftwork.serve.guard import Guard
from graftwork.serve.limits import Gone, Limits, Malformed, NotJson, NotReady, QueueFull, Refused, TooLarge
from graftwork.serve.metrics import Metrics
from graftwork.serve.outcomes import Outcome, public
from graftwork.serve.worker import Worker

with suppress(ImportError):  # `need_extra` says so as soon as an app is asked for
    from fastapi import FastAPI, Request, Response
    from fastapi.responses import JSONResponse

# why a whole request is refused -> status and code
STATUS: dict[type[Refused], tuple[int, str]] = {
    NotJson: (400, "not_json"),
    TooLarge: (413, "too_large"),
    Malformed: (422, "malformed"),
    QueueFull: (429, "queue_full"),
    Gone: (499, "client_gone"),  # nobody reads it; it is counted
    NotReady: (503, "not_ready"),
}
COME_AGAIN = (429, 503)  # statuses that come with Retry-After

EXAMPLE = {
    "rows": [{"text": "where is my parcel", "adapters": "intent@stable"}, {"text": "ok", "adapters": "a", "head": "b"}]
}
ROW = {
    "type": "object",
    "required": ["adapters"],
    "properties": {
        "text": {"type": "string"},
        "text_pair": {"type": "string", "description": "the second text of a pair"},
        "choices": {"type": "array", "items": {"type": "string"}, "description": "texts to choose from"},
        "target": {"type": "string", "description": "a text to say, of which the answer tells how sure it is"},
        "max_new_tokens": {"type": "integer", "description": "the most pieces of the text that is said"},
        "image_base64": {"type": "string", "description": "an image file in base 64, instead of text"},
        "tokens": {"type": "array", "items": {"type": "string"}, "description": "words, instead of text"},
        "adapters": {
            "type": "string",
            "nullable": True,
            "description": "a composition such as Stack(hi, ner@2), or none",
        },
        "head": {"type": "string", "description": "which head answers, where the composition does not say"},
    },
}
BODY = {
    "type": "object",
    "required": ["rows"],
    "properties": {"rows": {"type": "array", "items": ROW}},
    "example": EXAMPLE,
}
OUTCOME = {"type": "object", "description": 'an answer, or {"error": {"code", "message"}}'}
ANSWERS = {"type": "object", "properties": {"answers": {"type": "array", "items": OUTCOME}}}


def create_app(engine: Engine, limits: Limits | None = None) -> FastAPI:
    """The app of an engine that is there already. Raises as `app_of` does."""
    return app_of(Worker(lambda: engine, limits or Limits()))


def app_of(worker: Worker) -> FastAPI:
    """The app of a worker, which starts and stops with it; it refuses rows until the worker's engine is built.

    Raises UserError where a library of the `[serve]` extra is missing.
    """
    need_extra()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        await asyncio.to_thread(worker.stop)

    app = FastAPI(
        title="graftwork", description="Answers from many adapters on one frozen transformer.", lifespan=lifespan
    )
    metrics = Metrics(worker)
    app.add_middleware(Guard, count=metrics.request)
    _add_errors(app, worker.limits)
    _add_predict(app, worker)
    _add_adapters(app, worker)
    _add_state(app, worker, metrics)
    return app


def _add_errors(app: FastAPI, limits: Limits) -> None:
    def answer(request: Request, status: int, code: str, message: str) -> JSONResponse:
        content = {"error": {"code": code, "message": message, "request_id": request.state.request_id}}
        headers = {"Retry-After": str(limits.retry_after)} if status in COME_AGAIN else None
        return JSONResponse(content, status, headers)

    @app.exception_handler(Refused)
    def refused(request: Request, error: Refused) -> JSONResponse:
        return answer(request, *STATUS[type(error)], str(error))

    @app.exception_handler(404)
    def unknown(request: Request, error: Exception) -> JSONResponse:
        return answer(request, 404, "no_such_route", f"there is no {request.url.path}; the routes are at /docs")

    @app.exception_handler(405)
    def another_method(request: Request, error: Exception) -> JSONResponse:
        message = f"{request.url.path} does not take {request.method}; the routes are at /docs"
        return answer(request, 405, "method_not_allowed", message)


def _add_predict(app: FastAPI, worker: Worker) -> None:
    refusals: dict[int | str, dict[str, Any]] = {status: {"description": code} for status, code in STATUS.values()}
    refusals[200] = {
        "description": "one outcome per row, in order",
        "content": {"application/json": {"schema": ANSWERS}},
    }
    body = {"requestBody": {"required": True, "content": {"application/json": {"schema": BODY}}}}

    @app.post("/v1/predict", responses=refusals, openapi_extra=body)
    async def predict(request: Request) -> JSONResponse:
        """Answer rows: 200 with one answer or one error per row, in their order."""
        _ = worker.engine  # refuse before the body is read
        rows = read_rows(await read_body(request, worker.limits), worker.limits)
        answers: list[Outcome] = await asyncio.wrap_future(worker.submit(rows))
        return JSONResponse({"answers": answers})


def _add_adapters(app: FastAPI, worker: Worker) -> None:
    @app.get("/v1/adapters")
    def adapters() -> JSONResponse:
        """Every version of every package in the registry, and which are loaded, the least recently used first."""
        engine = worker.engine
        loaded = engine.pool.loaded()
        listed = []
        for entry in engine.registry.list():
            line = {
                "name": entry.name,
                "version": entry.version,
                "aliases": list(entry.aliases),
                "role": entry.role,
                "digest": entry.digest,
                "bytes": entry.size,
                "loaded": f"{entry.name}@{entry.version}" in loaded,
            }
            listed.append(line | ({"problem": public(entry.problem, engine.registry.root)} if entry.problem else {}))
        return JSONResponse({"adapters": listed, "loaded": loaded, "capacity": engine.pool.capacity})


def _add_state(app: FastAPI, worker: Worker, metrics: Metrics) -> None:
    @app.get("/healthz")
    async def healthz() -> JSONResponse:
        """The process is alive."""
        return JSONResponse({"status": "alive"})

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        """Rows are answered; 503 before and after."""
        _ = worker.engine
        return JSONResponse({"status": "ready"})

    @app.get("/metrics")
    async def scrape() -> Response:
        """Counters for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def read_body(request: Request, limits: Limits) -> bytes:
    """The body of a request. Raises Gone, and TooLarge without keeping more than the limit."""
    problem = TooLarge(f"the body is larger than {limits.max_body_bytes} bytes; send fewer rows at a time")
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > limits.max_body_bytes:
        raise problem
    body = bytearray()
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise Gone("the client went away before its request was complete")
        body += message.get("body", b"")
        if len(body) > limits.max_body_bytes:
            raise problem
        more = message.get("more_body", False)
    return bytes(body)


def read_rows(body: bytes, limits: Limits) -> list[Any]:
    """The rows of a body. Raises NotJson, Malformed, TooLarge."""
    try:
        whole = json.loads(body.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise NotJson(f"the body is not JSON: {error}") from None
    form = 'expected {"rows": [{"text": ..., "adapters": ...}, ...]}'
    if not isinstance(whole, dict):
        raise Malformed(f"the body is of type {type(whole).__name__}; {form}")
    if unknown := sorted(whole.keys() - {"rows"}):
        raise Malformed(f"the body has unknown keys: {', '.join(repr(key) for key in unknown)[:200]}; {form}")
    if not isinstance(whole.get("rows"), list):
        raise Malformed(f'the body has no list "rows"; {form}')
    if len(whole["rows"]) > limits.max_rows:
        raise TooLarge(f"{len(whole['rows'])} rows in one request; at most {limits.max_rows} are taken")
    return list(whole["rows"])


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a number that JSON knows")
