"""One side of a comparison, as a process that lives as long as the run: it holds a base and adapters and times calls.

A side is a script `side_<name>.py` that ends in `serve(...)`, run in an environment of its own. It reads requests from
stdin and answers on stdout, one JSON object a line:

    open       load the base twice with one set of weights: frozen and bare, and under adapters
    write      write the adapters of a setup as files that other sides load   (graftwork's side)
    prepare    make a setup ready, run it once, save what it returned
    time       milliseconds of the bare base and of the setup, taken in turns
    grow, load, switch, mixed     many adapters (`crowd.py`)
    compile    seconds until the two have run compiled, and milliseconds of each, compiled and not
    explain    by a profile, how often the two call each operator and how long that takes

Whoever asks lets one side work at a time. Knows torch, transformers, its neighbours and graftwork's clock.
"""

import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import torch
from crowd import Crowd, Crowded
from safetensors.torch import save_file
from setups import Setup, parse
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import BertModel
from transformers.utils import logging as transformers_logging

from graftwork.timing import alternate

SEED = 1
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.05}  # that two answers of one function may be `apart`
SHORT = 200  # milliseconds
WORDS = 1000  # of the vocabulary: looking words up costs the same for every one

Call = Callable[[], Tensor]  # runs a setup and returns the last hidden state, (B, T, D)
Inputs = dict[str, Tensor]


class Side(Crowded, Protocol):
    """What a side knows: its library's way to make, compose and run adapters."""

    def open(self, model: nn.Module, folder: Path, options: dict[str, Any]) -> str:
        """Take a base to put adapters on, and the folder with their files; says the versions it runs."""

    def write(self, setup: Setup) -> None:
        """Write the adapters and the fusion of a setup into the folder."""

    def compile(self) -> None:
        """torch.compile the model that prepared setups run, in place."""

    def prepare(self, setup: Setup, inputs: Inputs) -> tuple[Call, str]:
        """What runs a setup, and a remark. Raises NotImplementedError where the library has no such thing."""


def inputs_of(rows: int, tokens: int) -> Inputs:
    """One batch of text, the same on every side, (B, T)."""
    numbers = torch.Generator().manual_seed(SEED)
    ids = torch.randint(0, WORDS, (rows, tokens), generator=numbers)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def apart(found: Tensor, expected: Tensor) -> float:
    """The root mean square of a difference between hidden states, whose own is about 1; NaN where something is."""
    return float((found.float() - expected.float()).square().mean().sqrt())


def agreed(found: Tensor, expected: Tensor, what: str) -> float:
    """How far two answers of one function are `apart`. Raises RuntimeError, with `what` they are, beyond TOLERANCE."""
    off = apart(found, expected)
    if not off <= TOLERANCE[str(found.dtype).removeprefix("torch.")]:
        raise RuntimeError(f"{what} differs by {off:.1e}")
    return off


def twins(base: Path | str, dtype: str, device: str | torch.device = "cpu") -> tuple[BertModel, BertModel]:
    """A frozen base, and a second one that shares its weights, so that neither finds the caches colder."""
    made = (BertModel.from_pretrained(base, dtype=getattr(torch, dtype)).eval().to(device) for _ in range(2))
    bare, under = made
    under.load_state_dict(bare.state_dict(), assign=True)
    for parameter in bare.parameters():
        parameter.requires_grad_(False)
    return bare, under


class Worker:
    """Answers requests for one side."""

    def __init__(self, side: Side) -> None:
        self._side = side
        self._bare: nn.Module | None = None
        self._rivals: dict[str, Callable[[], object]] = {}
        self._crowd: Crowd | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request."""
        match request.pop("do"):
            case "open":
                return self.open(**request)
            case "write":
                return self._side.write(parse(request["setup"])) or {}
            case "prepare":
                return self.prepare(**request)
            case "time":
                with torch.inference_mode():
                    return alternate(self._rivals, request["rounds"], request["clock"], request["warm"])
            case "explain":
                return profiled(self._rivals, request["calls"])
            case "compile":
                return self.compile(**request)
            case "grow" | "load" as what:
                return getattr(self.crowd, what)(**request)
            case "switch" | "mixed" as what:
                return getattr(self.crowd, what)(inputs_of(request.pop("rows"), request.pop("tokens")), **request)
            case other:
                raise ValueError(f"no request {other!r}")

    def open(self, base: str, folder: str, dtype: str, threads: int, options: dict[str, Any]) -> dict[str, Any]:
        """Load the base twice: to measure against, and to put adapters on."""
        torch.set_num_threads(threads)
        self._bare, under = twins(base, dtype)
        return {"versions": self._side.open(under, Path(folder), options)}

    @property
    def crowd(self) -> Crowd:
        """Many adapters on this side."""
        if self._crowd is None:
            bare = self._bare
            assert bare is not None
            self._crowd = Crowd(self._side, lambda inputs: bare(**inputs).last_hidden_state)
        return self._crowd

    def compile(self, rounds: int, clock: str) -> dict[str, Any]:
        """Compile the base and the model of the prepared setup, for good; the times before and after, in turns.

        Raises RuntimeError where what is compiled answers otherwise than before.
        """
        bare, first = self._bare, {}
        assert bare is not None
        with torch.inference_mode():
            eager = alternate(self._rivals, rounds, clock, warm=2)
            expected = {name: call() for name, call in self._rivals.items()}
            torch.compile(lambda one: one + 1)(torch.ones(1))  # the compiler itself has to start
            bare.compile(fullgraph=True)
            self._side.compile()
            for name, call in self._rivals.items():
                start = time.perf_counter()
                found = call()
                first[name] = time.perf_counter() - start
                agreed(found, expected[name], f"the {name}, compiled and not,")
            return {"first": first, "eager": eager, "compiled": alternate(self._rivals, rounds, clock, warm=2)}

    def prepare(self, setup: str, rows: int, tokens: int, output: str) -> dict[str, Any]:
        """Make a setup ready and run it; `output` is where its result goes. Answers how long a call took, in ms."""
        bare, made, inputs = self._bare, parse(setup), inputs_of(rows, tokens)
        assert bare is not None

        def base() -> Tensor:
            return bare(**inputs).last_hidden_state

        try:
            call, remark = (base, "") if made.kind == "base" else self._side.prepare(made, inputs)
        except NotImplementedError as reason:
            return {"refused": str(reason)}
        self._rivals = {"base": base, "setup": call}
        with torch.inference_mode():
            start = time.perf_counter()
            result = call().float().contiguous()
            took = 1e3 * (time.perf_counter() - start)
            if took < SHORT:  # the first call of a short one says little
                (took,) = alternate({"setup": call}, 1, warm=0)["setup"]
        save_file({"output": result}, output)
        return {"remark": remark, "finite": bool(torch.isfinite(result).all()), "call": took}


def profiled(rivals: Mapping[str, Callable[[], object]], calls: int) -> dict[str, dict[str, list[float]]]:
    """For each rival: operator -> how often a call runs it, and its own milliseconds, the medians of calls in turns.

    "between operators" is what is left of a call: the interpreter, hooks, and the profiler's own work.
    """
    seen: dict[str, list[dict[str, tuple[int, float]]]] = {name: [] for name in rivals}
    with torch.inference_mode():
        for number in range(-1, calls):
            for name, call in list(rivals.items())[:: 1 if number % 2 else -1]:
                with profile(activities=[ProfilerActivity.CPU]) as one:
                    start = time.perf_counter()
                    call()
                    took = 1e3 * (time.perf_counter() - start)
                own = {event.key: (event.count, event.self_cpu_time_total / 1e3) for event in one.key_averages()}
                own["between operators"] = 1, max(0.0, took - sum(time for _, time in own.values()))
                if number >= 0:
                    seen[name].append(own)
    return {
        name: {key: [found[0][key][0], median(one.get(key, (0, 0.0))[1] for one in found)] for key in found[0]}
        for name, found in seen.items()
    }


def serve(side: Side) -> None:
    """Answer requests until stdin ends; an error is an answer too, and the process goes on."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print goes elsewhere
    warnings.filterwarnings("ignore")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    worker = Worker(side)
    for line in sys.stdin:
        try:
            found = worker.answer(json.loads(line))
        except Exception as error:  # whatever a library raises is what is to be reported
            found = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}
        answers.write(json.dumps(found) + "\n")
        answers.flush()
