"""The queue and its thread: bounded, mixed, and every accepted request is answered or told why not."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import pytest

from graftwork.errors import BackboneError, UserError
from graftwork.serve.engine import Engine
from graftwork.serve.limits import Limits, NotReady, QueueFull
from graftwork.serve.worker import Worker
from tests.serve.world import World, close, error, text

ROW = {"text": text(3), "adapters": "mood"}


class Gate:
    """Holds up the forwards of an engine from a given moment on, as a very large batch would."""

    def __init__(self, engine: Engine) -> None:
        self.inside, self.open = threading.Event(), threading.Event()
        self.open.set()
        engine.model.base.register_forward_pre_hook(self._wait)

    def _wait(self, *_: Any) -> None:
        self.inside.set()
        assert self.open.wait(60)

    @contextmanager
    def closed(self) -> Iterator[None]:
        self.inside.clear()
        self.open.clear()
        try:
            yield
        finally:
            self.open.set()


@contextmanager
def running(engine: Engine, limits: Limits | None = None) -> Iterator[Worker]:
    worker = Worker(lambda: engine, limits or Limits())
    worker.start()
    wait_until(lambda: worker.state == "ready")
    try:
        yield worker
    finally:
        assert worker.stop(60)


def wait_until(true: Any) -> None:
    patience = threading.Event()
    for _ in range(6000):
        if true():
            return
        patience.wait(0.01)
    raise AssertionError("waited a minute in vain")


def test_requests_that_wait_are_answered_together_in_order(tiny_world: World) -> None:
    engine = tiny_world.engine()
    gate = Gate(engine)
    requests = [[{"text": text(words), "adapters": name}] * rows
                for words, name, rows in ((3, "mood", 1), (5, "intent", 2), (2, "gone", 1), (4, "ner", 3))]  # fmt: skip
    with running(engine) as worker:
        with gate.closed():
            first = worker.submit([ROW])
            assert gate.inside.wait(60)
            before = engine.counts.forwards
            futures = [worker.submit(rows) for rows in requests]
            assert worker.waiting == 4
        answers = [future.result(60) for future in futures]
        assert "label" in first.result(60)[0]
    assert engine.counts.forwards - before == 2  # the one that was held up, and one for all four
    for rows, found in zip(requests, answers, strict=True):
        assert all(map(close, found, tiny_world.engine().answer(rows)))
    assert error(answers[2][0])[0] == "not_found"


def test_as_many_as_may_wait_wait_and_the_next_is_refused(tiny_world: World) -> None:
    engine = tiny_world.engine()
    gate = Gate(engine)
    with running(engine, Limits(max_waiting=2)) as worker:
        with gate.closed():
            accepted = [worker.submit([ROW])]
            assert gate.inside.wait(60)
            accepted += [worker.submit([ROW]), worker.submit([ROW])]
            with pytest.raises(QueueFull, match="2 requests wait already, which is as many as may; try again later"):
                worker.submit([ROW])
        assert all("label" in future.result(60)[0] for future in accepted)
        assert "label" in worker.submit([ROW]).result(60)[0]


def test_requests_are_answered_together_only_up_to_the_rows_of_one(tiny_world: World) -> None:
    engine = tiny_world.engine()
    gate = Gate(engine)
    with running(engine, Limits(max_rows=4)) as worker:
        with gate.closed():
            worker.submit([ROW])
            assert gate.inside.wait(60)
            futures = [worker.submit([ROW] * 3) for _ in range(3)]
        assert [len(future.result(60)) for future in futures] == [3, 3, 3]
    assert engine.counts.forwards == 4


def test_a_request_that_nobody_waits_for_is_left_out(tiny_world: World) -> None:
    engine = tiny_world.engine()
    gate = Gate(engine)
    with running(engine) as worker:
        with gate.closed():
            worker.submit([ROW])
            assert gate.inside.wait(60)
            given_up, kept = worker.submit([ROW] * 5), worker.submit([ROW])
            assert given_up.cancel()
        assert len(kept.result(60)) == 1
    assert engine.counts.rows["ok"] == 2


def test_before_the_engine_is_built_requests_are_refused(tiny_world: World) -> None:
    go_on = threading.Event()

    def slowly() -> Engine:
        assert go_on.wait(60)
        return tiny_world.engine()

    worker = Worker(slowly, Limits())
    worker.start()
    with pytest.raises(NotReady, match="the model is being loaded; try again later"):
        worker.submit([ROW])
    go_on.set()
    wait_until(lambda: worker.state == "ready")
    assert "label" in worker.submit([ROW]).result(60)[0]
    assert worker.stop(60)
    with pytest.raises(NotReady, match="the server is stopping; try again later"):
        worker.submit([ROW])


def test_an_engine_that_cannot_be_built_is_told_to_whoever_started_it() -> None:
    told = threading.Event()

    def fails() -> Engine:
        raise BackboneError("no such model")

    worker = Worker(fails, Limits(), on_failure=told.set)
    worker.start()
    assert told.wait(60)
    assert isinstance(worker.failure, BackboneError)
    with pytest.raises(NotReady, match="the model could not be loaded; try again later"):
        worker.submit([ROW])
    assert worker.stop(60)
    assert worker.state == "failed"


def test_what_waits_is_answered_before_the_worker_ends(tiny_world: World) -> None:
    engine = tiny_world.engine()
    gate = Gate(engine)
    worker = Worker(lambda: engine, Limits())
    worker.start()
    wait_until(lambda: worker.state == "ready")
    futures: list[Future[Any]] = []
    with gate.closed():
        futures.append(worker.submit([ROW]))
        assert gate.inside.wait(60)
        futures += [worker.submit([ROW]) for _ in range(3)]
        stopping = threading.Thread(target=worker.stop)
        stopping.start()
        wait_until(lambda: worker.state == "stopping")
        assert not any(future.done() for future in futures)
    stopping.join(60)
    assert all("label" in future.result(1)[0] for future in futures)


def test_a_request_that_breaks_the_engine_fails_alone(tiny_world: World, caplog: pytest.LogCaptureFixture) -> None:
    engine = tiny_world.engine()
    gate = Gate(engine)

    class Unreadable(list[Any]):
        """Rows that break while they are read, which rows from JSON cannot."""

        def __iter__(self) -> Iterator[Any]:
            raise ZeroDivisionError("broken rows")

    with running(engine) as worker:
        with gate.closed():
            worker.submit([ROW])
            assert gate.inside.wait(60)
            bad, good = worker.submit(Unreadable([ROW])), worker.submit([ROW])
        assert "label" in good.result(60)[0]
        with pytest.raises(ZeroDivisionError, match="broken rows"):
            bad.result(60)
        assert "label" in worker.submit([ROW]).result(60)[0]
    assert "2 requests answered together failed; answering them one by one" in caplog.text


def test_limits_below_one_are_refused() -> None:
    with pytest.raises(UserError, match="max_rows is 0; it must be at least 1"):
        Limits(max_rows=0)
