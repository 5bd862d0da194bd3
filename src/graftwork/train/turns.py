"""Work that takes turns: a function that asks in the middle of what it does, and waits for what it is given.

    turn = Turn(work)                   work(ask) runs in a thread of its own, and only while it has its turn
    asked = turn.go(None)               until it asks, or ends (`done`)
    asked = turn.go(answer)             and on

A generator does the same where one may write `yield`; transformers' Trainer calls its training step deep inside its own
loop, so that it needs a stack of its own. Never do two of these run at once, and whoever gives a turn waits for its
end. What is global to a process but belongs to one training run is kept for each: the random states of Python, numpy
and torch, and accelerate's mark of whether gradients are complete.
"""

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import numpy
import torch
from accelerate.state import GradientState

Asked = TypeVar("Asked")
Given = TypeVar("Given")
Result = TypeVar("Result")


class Stopped(BaseException):
    """Raised where work waits that nobody goes on with; no Exception, so that nothing on the way takes it for one."""


class Turn(Generic[Asked, Given, Result]):
    """One function that takes turns. `result` and `error` say how it ended once it is `done`."""

    def __init__(self, work: Callable[[Callable[[Asked], Given]], Result], name: str) -> None:
        self.name = name
        self.done = False
        self.result: Result | None = None
        self.error: Exception | None = None
        self._asked: Asked | None = None
        self._given: Given | None = None
        self._stopping = False
        self._state = _State()
        self._its, self._ours = threading.Semaphore(0), threading.Semaphore(0)
        # a daemon, so that a process that is stopped in the middle does not wait for it
        self._thread = threading.Thread(target=self._run, args=(work,), name=name, daemon=True)

    def go(self, given: Given | None) -> Asked | None:
        """Let it run until it asks, and return what; None when it has ended instead."""
        with self.own_state():
            self._given = given
            if self._thread.ident is None:
                self._thread.start()
            self._its.release()
            self._ours.acquire()
        asked, self._asked = self._asked, None
        return asked

    def stop(self) -> None:
        """End it where it waits, and wait for that; nothing happens where it has ended or never begun."""
        if self._thread.is_alive():
            self._stopping = True
            self._its.release()
            self._thread.join()

    @contextmanager
    def own_state(self) -> Iterator[None]:
        """Its random states and marks in the place of the process's, and back."""
        outside = _State()
        self._state.put()
        try:
            yield
        finally:
            self._state = _State()
            outside.put()

    def _run(self, work: Callable[[Callable[[Asked], Given]], Result]) -> None:
        self._its.acquire()
        try:
            self.result = work(self._ask)
        except Stopped:
            pass
        except Exception as error:
            self.error = error
        finally:
            self.done = True
            self._ours.release()

    def _ask(self, asked: Asked) -> Given:
        self._asked = asked
        self._ours.release()
        self._its.acquire()
        if self._stopping:
            raise Stopped
        given, self._given = self._given, None
        return given  # type: ignore[return-value]  # whoever gives the turn gives what was asked for


class _State:
    """What one process has one of: random states, and whether accelerate counts the gradients as complete, and of
    which loader the batch is."""

    def __init__(self) -> None:
        self._python, self._numpy, self._torch = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
        self._devices = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        self._gradients = dict(vars(GradientState()))

    def put(self) -> None:
        random.setstate(self._python)
        numpy.random.set_state(self._numpy)
        torch.set_rng_state(self._torch)
        if self._devices is not None:
            torch.cuda.set_rng_state(self._devices)
        vars(GradientState()).update(self._gradients)
