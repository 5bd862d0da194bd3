"""Timing as every benchmark here does it: rivals take turns in one process, and what counts is the quotient of a turn.

Another program slows both rivals of a turn alike, so quotients are steadier than times. A spread is the median with the
quartiles around it. The clock `wall` is time that passes; `cpu` is the calling thread's own time, for a machine that
others use, and counts nothing of what other threads do. Knows the standard library only: peers run it in environments
of their own. `page.py` writes down what is found.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.thread_time}


@dataclass(frozen=True)
class Spread:
    """A median between its quartiles."""

    low: float
    middle: float
    high: float

    def __str__(self) -> str:
        return f"{self.middle:.3f} ({self.low:.3f}-{self.high:.3f})"


def spread(values: Sequence[float]) -> Spread:
    """The quartiles of some values; of a single one, that value three times. Raises ValueError for none."""
    if not values:
        raise ValueError("a spread needs at least one value")
    low, middle, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return Spread(low, middle, high)


def quotients(over: Sequence[float], under: Sequence[float]) -> Spread:
    """The spread of over[i] / under[i], where the two of a pair were measured one after the other."""
    return spread([a / b for a, b in zip(over, under, strict=True)])


def alternate(
    rivals: Mapping[str, Callable[[], object]], rounds: int, clock: str = "wall", warm: int = 1
) -> dict[str, list[float]]:
    """Milliseconds of every rival in every round; each round runs them in the opposite order of the one before.

    warm: rounds that run first and are not counted.
    """
    now, taken = CLOCKS[clock], {name: [0.0] * rounds for name in rivals}
    for number in range(-warm, rounds):
        for name in list(rivals) if number % 2 == 0 else reversed(list(rivals)):
            start = now()
            rivals[name]()
            if number >= 0:
                taken[name][number] = 1e3 * (now() - start)
    return taken


def milliseconds(times: Sequence[float]) -> float:
    """What a call took: the median."""
    return median(times)
