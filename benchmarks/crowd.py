"""Many adapters on one side (`side.py`): what the next one costs, and batches whose rows run different ones.

A batch draws an adapter for each row, all alike or by Zipf's law (the k-th of a crowd as often as 1/k), and every call
draws anew: nothing that was made for one routing serves the next.
"""

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from graftwork.timing import alternate

SEED = 3
Inputs = dict[str, Tensor]


class Crowded(Protocol):
    """What a side knows of many adapters."""

    def add(self, name: str) -> None:
        """Add a fresh adapter."""

    def load(self, name: str) -> None:
        """Load the first adapter's files again, under another name."""

    def rows(self, names: Sequence[str], inputs: Inputs) -> Tensor:
        """One forward with an adapter for each row; the last hidden state, (B, T, D)."""


class Crowd:
    """The adapters of one side, in the order in which they came."""

    def __init__(self, side: Crowded, base: Callable[[Inputs], Tensor]) -> None:
        self._side = side
        self._base = base
        self._names: list[str] = []
        self._loaded = 0
        self._ran = 0

    def grow(self, to: int, seconds: float) -> dict[str, Any]:
        """Add adapters until there are `to`, or until time is up: milliseconds of each, and bytes that came to stay."""
        times, before, begun = [], resident(), time.perf_counter()
        while len(self._names) < to and time.perf_counter() - begun < seconds:
            name = f"crowd_{len(self._names)}"
            start = time.perf_counter()
            self._side.add(name)
            times.append(1e3 * (time.perf_counter() - start))
            self._names.append(name)
        return {"times": times, "count": len(self._names), "bytes": resident() - before}

    def load(self, count: int) -> dict[str, Any]:
        """Milliseconds of loading an adapter from its files, `count` times."""
        times = []
        for _ in range(count):
            start = time.perf_counter()
            self._side.load(f"loaded_{self._loaded}")
            times.append(1e3 * (time.perf_counter() - start))
            self._loaded += 1
        return {"times": times}

    def switch(self, inputs: Inputs, count: int) -> dict[str, Any]:
        """Milliseconds of the first call with an adapter that has never run, and of the call after it."""
        first, again = [], []
        fresh = self._names[self._ran : self._ran + count]
        self._ran += len(fresh)
        with torch.inference_mode():
            self._base(inputs)
            for name in fresh:
                rows = [name] * len(inputs["input_ids"])
                for times in (first, again):
                    start = time.perf_counter()
                    self._side.rows(rows, inputs)
                    times.append(1e3 * (time.perf_counter() - start))
        return {"first": first, "again": again}

    def mixed(self, inputs: Inputs, distinct: int, law: str, rounds: int, clock: str) -> dict[str, Any]:
        """Milliseconds of the base, of one adapter for all rows, and of rows that draw from the first `distinct`."""
        count = len(inputs["input_ids"])
        drawing = draws(self._names[:distinct], law, count)
        rivals = {
            "base": lambda: self._base(inputs),
            "one": lambda: self._side.rows(self._names[:1] * count, inputs),
            "mixed": lambda: self._side.rows(next(drawing), inputs),
        }
        with torch.inference_mode():
            return alternate(rivals, rounds, clock, warm=1)


def draws(names: Sequence[str], law: str, rows: int) -> Any:
    """Batch after batch the adapter of every row. Raises ValueError for a law that is none."""
    if law not in ("uniform", "zipf"):
        raise ValueError(f"no law {law!r}; there are uniform and zipf")
    weights = [1.0 if law == "uniform" else 1 / rank for rank in range(1, len(names) + 1)]
    numbers = random.Random(SEED)
    while True:
        yield numbers.choices(names, weights, k=rows)


def resident() -> int:
    """Bytes of this process in memory; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text("utf8").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS")), 0)
