"""Which of several ways to the same tensor is quickest here: by doing it, once for each kind of call and process.

Knows nothing of what the ways do.
"""

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from graftwork.core.accelerator import finish

_ROUNDS = 5  # of a measurement; the quickest counts
_CLEARLY = 0.9  # of the time of the first way
_CHOSEN: dict[tuple[object, ...], str] = {}  # kind of call -> the quickest, in this process


def quickest(kind: tuple[object, ...], ways: Mapping[str, Callable[[], Tensor]], device: torch.device) -> str:
    """The way that was quickest when a call of this kind was first made; it may be none of these."""
    if kind not in _CHOSEN:
        _CHOSEN[kind] = _measured(ways, device)
    return _CHOSEN[kind]


def _measured(ways: Mapping[str, Callable[[], Tensor]], device: torch.device) -> str:
    """The quickest way; the first one, which copies nothing, unless another is clearly quicker."""
    first, *others = ways
    if not others:
        return first
    # in turns, so that what else the machine does meets all alike
    taken = [{name: _seconds(way, device) for name, way in ways.items()} for _ in range(_ROUNDS)]
    best = {name: min(one[name] for one in taken) for name in ways}
    least = min(ways, key=best.__getitem__)
    return least if best[least] < _CLEARLY * best[first] else first


def _seconds(way: Callable[[], Tensor], device: torch.device) -> float:
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.thread_time if alone else time.perf_counter  # other processes do not count where that can be told
    finish(device)  # what was asked for before is not the way's
    started = clock()
    way()
    finish(device)
    return clock() - started
