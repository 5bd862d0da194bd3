"""Training runs each in a process of its own, so that its memory is its own and one that dies dies alone.

    with Apart() as apart:
        answer = apart.run(recipe, registry, How(resume=True), priced=True)    {"result": …, "price": …}, {"error": …}

`Apart` keeps one process that has read the libraries and nothing else, and forks a child of it for every run: that
takes no time, and every child begins with the same memory. Where there is an accelerator a child is a program of its
own, which reads the libraries itself: what opened the device in the parent, a library's import say, a fork cannot use.
Jobs and answers are lines of JSON on standard input and output; what a child prints goes to standard error. Runs are
those of `run.train`, resumed where they stopped.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import torch

from graftwork.errors import GraftworkError, in_a_line
from graftwork.recipe import Recipe, dump, loads
from graftwork.registry.store import Registry
from graftwork.train.callbacks import bars
from graftwork.train.folder import RunFolder
from graftwork.train.plots import can_draw
from graftwork.train.price import price
from graftwork.train.report import written
from graftwork.train.run import How, carry_out, ready

ONE = "one"  # of the words that begin this module: answer one job and end
PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


class Apart:
    """The process that forks; a context manager. Raises nothing of what becomes of a run: that is in its answer."""

    def __enter__(self) -> Self:
        package = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "graftwork.train.apart", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._process.terminate()
        self._process.communicate()  # closes its input, which ends it, and its output

    def run(self, recipe: Recipe, registry: Registry | None, how: How, *, priced: bool) -> dict[str, Any]:
        """Train a recipe: {"result": as in result.json, "size": bytes, "price": as in price.py, or null}, or {"error"}.

        priced: whether to measure what answering costs, too.
        """
        job = {
            "recipe": dump(recipe),
            "registry": None if registry is None else str(registry.root.absolute()),
            "how": asdict(how),
            "priced": priced,
            "threads": torch.get_num_threads(),
        }
        asked, answers = self._process.stdin, self._process.stdout
        assert asked is not None
        assert answers is not None
        try:
            print(json.dumps(job), file=asked, flush=True)
            line = answers.readline()
        except BrokenPipeError:
            line = ""
        answer: dict[str, Any] = json.loads(line) if line else {"error": "the process that starts runs has ended"}
        return answer


def serve() -> None:
    """Answer every job on standard input by a child, until it is closed."""
    if can_draw():
        import matplotlib.figure  # noqa: F401  # every child draws its curve
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    for line in sys.stdin:
        job = json.loads(line)
        answer = _begun(job) if torch.accelerator.is_available() else _forked(job, answers)
        print(json.dumps(answer), file=answers, flush=True)


def die_with(parent: int) -> None:
    """Let this process be killed when its parent ends, however that does: nobody would hear what it did (on Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it had ended before
        os._exit(1)


def _forked(job: Mapping[str, Any], answers: IO[str]) -> dict[str, Any]:
    """What a child of this process makes of a job, or how it died."""
    ours, theirs = os.pipe()
    server, child = os.getpid(), os.fork()
    if child == 0:
        die_with(server)
        answers.close()
        os.close(ours)
        code = 1
        try:
            with os.fdopen(theirs, "w") as answer:
                json.dump(_answer(job), answer)
            code = 0
        finally:
            os._exit(code)  # nothing of the process that forked is to be tidied up twice
    os.close(theirs)
    with os.fdopen(ours) as answer:
        text = answer.read()
    _, status = os.waitpid(child, 0)
    return _read(text, os.waitstatus_to_exitcode(status))


def _begun(job: Mapping[str, Any]) -> dict[str, Any]:
    """What another program, this module again, makes of a job, or how it died."""
    words = [sys.executable, "-m", "graftwork.train.apart", str(os.getpid()), ONE]
    done = subprocess.run(words, input=json.dumps(job), stdout=subprocess.PIPE, text=True)
    return _read(done.stdout, done.returncode)


def _read(text: str, code: int) -> dict[str, Any]:
    """The answer of a child, its last line, or how it died, by its exit code: less than 0 where a signal killed it."""
    try:
        found: dict[str, Any] = json.loads(text.rpartition("\n")[2])
    except json.JSONDecodeError:  # it said nothing, or was cut off
        if code < 0:
            return {"error": f"the run was killed by signal {-code}, as a machine out of memory does"}
        return {"error": f"the run ended with code {code}"}
    return found


def one() -> None:
    """Answer the one job on standard input."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    json.dump(_answer(json.load(sys.stdin)), answer)
    answer.close()
    os._exit(0)  # what libraries do as they end is no part of the run


def _answer(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What became of one run, in this process."""
    torch.set_num_threads(asked["threads"])
    try:
        recipe = loads(asked["recipe"], check_files=False)
        registry = None if asked["registry"] is None else Registry(asked["registry"])
        how = How(**asked["how"])
        RunFolder(recipe.output).check(resume=how.resume, overwrite=how.overwrite)
        with bars(sys.stderr.isatty()) as shown:
            job = ready(recipe, registry, how, shown)
            result = carry_out(job, how, shown)
        answer: dict[str, Any] = {"result": written(result), "size": result.size, "price": None}
        try:
            return answer | {"price": price(job) if asked["priced"] else None}
        except Exception as error:  # what was trained has its score all the same
            return answer | {"error": f"its price was not measured: {in_a_line(error)}"}
    except GraftworkError as error:
        return {"error": str(error)}
    except Exception as error:  # a library's: told in a row, as the others go on
        return {"error": in_a_line(error)}


if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    one() if sys.argv[2:] == [ONE] else serve()
