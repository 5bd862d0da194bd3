"""A bounded queue of requests and the one thread that answers them.

The thread builds the engine, then takes what waits: requests that arrive while a forward runs are answered together in
the next call, so that rows of several clients share it. A request that would make the queue longer than its bound is
refused at once. Knows no HTTP.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

from graftwork.serve.engine import Engine
from graftwork.serve.limits import Limits, NotReady, QueueFull
from graftwork.serve.outcomes import Outcome

State = Literal["warming", "ready", "stopping", "failed"]
_WHY_NOT: dict[State, str] = {
    "warming": "the model is being loaded",
    "stopping": "the server is stopping",
    "failed": "the model could not be loaded",
}

log = logging.getLogger("graftwork.serve")


@dataclass
class Job:
    """One request: its rows, and where its answers go."""

    rows: Sequence[Mapping[str, Any]]
    future: "Future[list[Outcome]]" = field(default_factory=Future)


class Worker:
    """Answers requests one call of the engine at a time. `on_failure` is called when the engine cannot be built."""

    def __init__(
        self, make_engine: Callable[[], Engine], limits: Limits, on_failure: Callable[[], None] | None = None
    ) -> None:
        self.limits = limits
        self.state: State = "warming"
        self.failure: BaseException | None = None
        self._make_engine = make_engine
        self._on_failure = on_failure
        self._engine: Engine | None = None
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="graftwork-engine", daemon=True)

    def start(self) -> None:
        """Begin to build the engine, in the thread that will answer."""
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests that nobody has begun to answer."""
        return len(self._jobs)

    @property
    def engine(self) -> Engine:
        """The engine. Raises NotReady before it is built and once the worker stops."""
        if self._engine is None or self.state != "ready":
            raise NotReady(f"{_WHY_NOT.get(self.state, self.state)}; try again later")
        return self._engine

    def submit(self, rows: Sequence[Mapping[str, Any]]) -> "Future[list[Outcome]]":
        """Ask for the answers to the rows of one request. Raises NotReady, QueueFull."""
        with self._changed:
            _ = self.engine
            if len(self._jobs) >= self.limits.max_waiting:
                raise QueueFull(f"{len(self._jobs)} requests wait already, which is as many as may; try again later")
            job = Job(rows)
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def stop(self, timeout: float | None = None) -> bool:
        """Refuse new requests, answer those that wait, end the thread. Returns whether it ended within the timeout."""
        with self._changed:
            if self.state != "failed":
                self.state = "stopping"
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            engine = self._make_engine()
        except BaseException as error:  # kept for whoever started the server, who raises it
            self.failure, self.state = error, "failed"
            if self._on_failure is not None:
                self._on_failure()
            return
        with self._changed:
            self._engine = engine
            if self.state == "warming":
                self.state = "ready"
        while jobs := self._next():
            self._answer(engine, jobs)

    def _next(self) -> list[Job]:
        """The requests to answer together: what waits, up to the most rows of one; none when the worker stops."""
        with self._changed:
            while not self._jobs and self.state == "ready":
                self._changed.wait()
            taken: list[Job] = []
            rows = 0
            while self._jobs and (not taken or rows + len(self._jobs[0].rows) <= self.limits.max_rows):
                taken.append(self._jobs.popleft())
                rows += len(taken[-1].rows)
            return taken

    def _answer(self, engine: Engine, jobs: Sequence[Job]) -> None:
        jobs = [job for job in jobs if job.future.running() or job.future.set_running_or_notify_cancel()]
        try:
            answers = engine.answer([row for job in jobs for row in job.rows])
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
                return
            log.exception("%d requests answered together failed; answering them one by one", len(jobs))
            for job in jobs:
                self._answer(engine, [job])
            return
        for job in jobs:
            job.future.set_result(answers[: len(job.rows)])
            answers = answers[len(job.rows) :]
