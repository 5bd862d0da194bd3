"""The HTTP face, by a real server and real clients: routes, statuses, what is refused and how, and many at once."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from graftwork.serve.app import STATUS, app_of, create_app
from graftwork.serve.engine import Engine
from graftwork.serve.limits import Limits, Refused
from graftwork.serve.worker import Worker
from tests.serve.loopback import served
from tests.serve.test_engine import COMPOSITIONS
from tests.serve.test_worker import Gate, wait_until
from tests.serve.world import World, close, text

ROW = {"text": text(3), "adapters": "mood"}


@pytest.fixture(scope="module")
def engine(tiny_world: World) -> Engine:
    return tiny_world.engine()


@pytest.fixture(scope="module")
def client(engine: Engine) -> Iterator[httpx.Client]:
    with served(create_app(engine, Limits(max_rows=40, max_body_bytes=20_000))) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        yield client


def refusal(response: httpx.Response) -> tuple[int, str, str]:
    """Status, code and message of a request that must have been refused."""
    error = response.json()["error"]
    assert set(error) == {"code", "message", "request_id"}
    assert error["request_id"] == response.headers["x-request-id"]
    return response.status_code, error["code"], error["message"]


def test_answers_are_those_of_the_engine(client: httpx.Client, tiny_world: World) -> None:
    rows = [{"text": text(6), **how} for how in COMPOSITIONS]
    rows += [
        {"text": text(3), "adapters": "gone"},
        {"tokens": ["w1", "w2"], "adapters": "ner"},
        7,
        {"text": text(90), "adapters": "mood"},
    ]
    response = client.post("/v1/predict", json={"rows": rows})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    answers = response.json()["answers"]
    assert all(map(close, answers, tiny_world.engine().answer(rows)))
    assert [answer["error"]["code"] for answer in answers if "error" in answer] == ["not_found", "invalid", "too_long"]


def test_no_rows_no_answers(client: httpx.Client) -> None:
    assert client.post("/v1/predict", json={"rows": []}).json() == {"answers": []}


WRONG = [
    (b"", 400, "not_json", "the body is not JSON: Expecting value: line 1 column 1 (char 0)"),
    (b"{", 400, "not_json", "the body is not JSON: Expecting property name"),
    (b'{"rows": [NaN]}', 400, "not_json", "the body is not JSON: NaN is not a number that JSON knows"),
    (b'"\xff"', 400, "not_json", "the body is not JSON: 'utf-8' codec can't decode byte 0xff"),
    (b"[" * 9_999, 400, "not_json", "the body is not JSON: "),
    (b"[1]", 422, "malformed", 'the body is of type list; expected {"rows": [{"text": ..., "adapters": ...}, ...]}'),
    (b"{}", 422, "malformed", 'the body has no list "rows"; expected {"rows": '),
    (b'{"rows": {}}', 422, "malformed", 'the body has no list "rows"; expected {"rows": '),
    (b'{"rows": [], "row": 1}', 422, "malformed", "the body has unknown keys: 'row'; expected {\"rows\": "),
    (json.dumps({"rows": [ROW] * 41}).encode(), 413, "too_large", "41 rows in one request; at most 40 are taken"),
    (b" " * 20_001, 413, "too_large", "the body is larger than 20000 bytes; send fewer rows at a time"),
]


@pytest.mark.parametrize(("body", "status", "code", "message"), WRONG, ids=lambda value: str(value)[:20])
def test_a_request_that_is_wrong_as_a_whole(
    client: httpx.Client, body: bytes, status: int, code: str, message: str
) -> None:
    found = refusal(client.post("/v1/predict", content=body))
    assert found[:2] == (status, code)
    assert found[2].startswith(message)


def test_a_body_of_unknown_length_is_counted_as_it_comes(client: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(30):
            yield b" " * 1000

    assert refusal(client.post("/v1/predict", content=chunks()))[:2] == (413, "too_large")
    pieces = iter([b'{"rows"', b": []}"])
    assert client.post("/v1/predict", content=pieces).json() == {"answers": []}


def test_routes_and_methods_that_are_not_there(client: httpx.Client) -> None:
    assert refusal(client.get("/v2/predict")) == (
        404,
        "no_such_route",
        "there is no /v2/predict; the routes are at /docs",
    )
    assert refusal(client.get("/v1/predict")) == (
        405,
        "method_not_allowed",
        "/v1/predict does not take GET; the routes are at /docs",
    )


def test_every_reason_to_refuse_has_a_status() -> None:
    assert set(STATUS) == set(Refused.__subclasses__())


def test_the_listing_says_what_is_registered_and_what_is_loaded(client: httpx.Client, tiny_world: World) -> None:
    client.post("/v1/predict", json={"rows": [ROW, {**ROW, "adapters": "intent@stable"}]})
    listing = client.get("/v1/adapters").json()
    lines = {f"{line['name']}@{line['version']}": line for line in listing["adapters"]}
    assert set(lines) == {str(tiny_world.registry.resolve(f"{e.name}@{e.version}")) for e in tiny_world.registry.list()}
    intent = lines["intent@1"]
    assert (intent["aliases"], intent["role"], intent["loaded"]) == (["stable"], "task", True)
    assert intent["digest"] == tiny_world.registry.resolve("intent@1").digest
    assert {name for name, line in lines.items() if line["loaded"]} == set(listing["loaded"])
    assert listing["capacity"] == 32
    assert str(tiny_world.registry.root) not in json.dumps(listing)


def test_a_damaged_version_is_a_line_of_the_listing(world: World) -> None:
    world.adapter("torn")
    (world.registry.resolve("torn").path / "graft.json").write_text("{")
    with served(create_app(world.engine())) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        (line,) = client.get("/v1/adapters").json()["adapters"]
    assert line["problem"].startswith("torn/1/graft.json: not valid JSON")
    assert (line["name"], line["version"], line["loaded"]) == ("torn", 1, False)


def test_metrics_count_rows_forwards_and_packages(world: World) -> None:
    world.adapter("mood")
    world.adapter("intent")
    with served(create_app(world.engine(adapter_cache_size=1))) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        rows = [ROW, {**ROW, "adapters": "intent"}, {**ROW, "adapters": "gone"}]
        client.post("/v1/predict", json={"rows": rows})
        client.get("/nowhere/" + "x" * 50)
        lines = client.get("/metrics").text.splitlines()
    found = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    expected = {
        'graftwork_rows_total{outcome="ok"}': 2,
        'graftwork_rows_total{outcome="not_found"}': 1,
        "graftwork_forwards_total": 2,
        "graftwork_compositions_total": 2,
        "graftwork_pieces_total": 10,
        "graftwork_pieces_padded_total": 10,
        "graftwork_pool_loads_total": 2,
        "graftwork_pool_evictions_total": 1,
        "graftwork_pool_hits_total": 0,
        "graftwork_pool_load_failures_total": 0,
        "graftwork_pool_capacity": 1,
        'graftwork_pool_resident{package="intent@1"}': 1,
        "graftwork_queue_waiting": 0,
        "graftwork_ready": 1,
        'graftwork_requests_total{code="200",route="/v1/predict"}': 1,
        'graftwork_requests_total{code="404",route="other"}': 1,
        'graftwork_request_duration_seconds_count{route="/v1/predict"}': 1,
    }
    assert {key: float(found[key]) for key in expected} == expected
    assert float(found["graftwork_pool_load_seconds_total"]) > 0
    assert 'graftwork_pool_resident{package="mood@1"}' not in found
    assert not any("xxxx" in line for line in lines)


def test_the_docs_describe_the_routes(client: httpx.Client) -> None:
    assert "swagger" in client.get("/docs").text.lower()
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {"/v1/predict", "/v1/adapters", "/healthz", "/readyz", "/metrics"}
    predict = schema["paths"]["/v1/predict"]["post"]
    assert {"200", "400", "413", "422", "429", "503"} <= set(predict["responses"])
    body = predict["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["properties"]["rows"]["items"]["properties"]) == {
        "text",
        "text_pair",
        "tokens",
        "choices",
        "target",
        "max_new_tokens",
        "image_base64",
        "adapters",
        "head",
    }
    assert "error" not in client.post("/v1/predict", json={"rows": []}).json()


def test_before_the_engine_is_built_rows_are_refused_and_the_process_is_alive(tiny_world: World) -> None:
    go_on = threading.Event()

    def slowly() -> Engine:
        assert go_on.wait(60)
        return tiny_world.engine()

    with served(app_of(Worker(slowly, Limits(retry_after=7)))) as client:
        assert client.get("/healthz").json() == {"status": "alive"}
        for response in (
            client.get("/readyz"),
            client.post("/v1/predict", json={"rows": [ROW]}),
            client.get("/v1/adapters"),
        ):
            assert refusal(response) == (503, "not_ready", "the model is being loaded; try again later")
            assert response.headers["retry-after"] == "7"
        assert "graftwork_ready 0.0" in client.get("/metrics").text
        go_on.set()
        wait_until(lambda: client.get("/readyz").status_code == 200)
        assert client.get("/readyz").json() == {"status": "ready"}
        assert "label" in client.post("/v1/predict", json={"rows": [ROW]}).json()["answers"][0]


def test_when_the_queue_is_full_clients_are_told_to_come_again(tiny_world: World) -> None:
    engine = tiny_world.engine()
    gate = Gate(engine)
    worker = Worker(lambda: engine, Limits(max_waiting=2, retry_after=3))
    with served(app_of(worker)) as client, ThreadPoolExecutor(3) as threads:
        wait_until(lambda: worker.state == "ready")
        with gate.closed():
            accepted = [threads.submit(client.post, "/v1/predict", json={"rows": [ROW]})]
            assert gate.inside.wait(60)
            accepted += [threads.submit(client.post, "/v1/predict", json={"rows": [ROW]}) for _ in range(2)]
            wait_until(lambda: worker.waiting == 2)
            response = client.post("/v1/predict", json={"rows": [ROW]})
            assert refusal(response)[:2] == (429, "queue_full")
            assert response.headers["retry-after"] == "3"
            assert client.get("/healthz").status_code == 200
        assert [future.result().status_code for future in accepted] == [200, 200, 200]
        assert client.post("/v1/predict", json={"rows": [ROW]}).status_code == 200


def test_many_clients_with_mixed_compositions_each_get_their_own_answers(tiny_world: World) -> None:
    engine = tiny_world.engine(adapter_cache_size=4)
    requests = [
        [{"text": text(words), **how} for how in COMPOSITIONS[at : at + 3]] for words in (2, 7) for at in range(14)
    ]
    wanted = [tiny_world.engine().answer(rows) for rows in requests]
    with served(create_app(engine)) as client, ThreadPoolExecutor(8) as threads:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        found = list(
            threads.map(lambda rows: client.post("/v1/predict", json={"rows": rows}).json()["answers"], requests)
        )
    for got, single in zip(found, wanted, strict=True):
        assert all(map(close, got, single))
    assert engine.counts.forwards < len(requests) * 3


def test_what_breaks_inside_is_a_500_with_a_number_and_never_a_traceback(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.adapter("mood")
    with served(create_app(world.engine())) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        world.registry.root = 3  # type: ignore[assignment]  # nothing can be listed any more
        response = client.get("/v1/adapters")
        status, code, message = refusal(response)
        assert client.get("/healthz").status_code == 200
    assert (status, code) == (500, "internal")
    assert (
        message == f"this request could not be answered; the server's log has it as {response.headers['x-request-id']}"
    )
    assert "Traceback" not in response.text
    assert response.headers["x-request-id"] in caplog.text
    assert "Traceback" in caplog.text


def test_a_client_that_goes_away_is_only_counted(client: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> Iterator[bytes]:
        yield b'{"rows"'
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.post("/v1/predict", content=broken())
    wait_until(lambda: 'code="499",route="/v1/predict"' in client.get("/metrics").text)
    assert not caplog.records


def test_rows_of_any_json_never_break_a_request(client: httpx.Client) -> None:
    strange: list[Any] = [
        None,
        [],
        {},
        "x",
        1e308,
        {"text": None},
        {"adapters": {}},
        {"\ud800": 1, "adapters": "\ud800"},
    ]
    body = json.dumps({"rows": strange}).encode()
    response = client.post("/v1/predict", content=body)
    assert response.status_code == 200
    assert {answer["error"]["code"] for answer in response.json()["answers"]} == {"invalid"}
