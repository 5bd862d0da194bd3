"""A GPU as `gpu.py` measures on it: its own clock, calls captured as graphs, and the bandwidth of a large copy."""

from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch
from side import agreed

from graftwork.core.accelerator import finish
from graftwork.timing import alternate, milliseconds, quotients

Row = dict[str, Any]
Run = Callable[[], Any]
REPLAYS = 10  # of a graph between two events


class Card:
    """The device: its clock, its graphs, its bandwidth."""

    def __init__(self, name: str) -> None:
        self.device = torch.device(name)
        self.real = self.device.type == "cuda"
        self.copied = self._bandwidth()

    def wait(self) -> None:
        """Until everything that was asked for is done."""
        finish(self.device)

    def finished(self, run: Run) -> Run:
        """The same, until it is done on the device."""

        def whole() -> None:
            run()
            self.wait()

        return whole

    def captured(self, run: Run) -> Run | None:
        """What replays the kernels of a call, without Python; None without a GPU."""
        if not self.real:
            return None
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                kept = run()
        except RuntimeError as error:
            print(f"SKIPPED: no graph: {error}", flush=True)
            return None
        graph.replay()
        agreed(kept, run(), "a replayed graph")
        graph.kept = kept  # type: ignore[attr-defined]  # its memory is the graph's
        return graph.replay

    def replayed(self, rivals: Mapping[str, Run], rounds: int) -> dict[str, list[float]]:
        """Milliseconds of the device for one replay of each, in turns."""
        found: dict[str, list[float]] = {name: [] for name in rivals}
        for number in range(-1, rounds):
            for name in list(rivals)[:: 1 if number % 2 else -1]:
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                for _ in range(REPLAYS):
                    rivals[name]()
                end.record()
                end.synchronize()
                if number >= 0:
                    found[name].append(start.elapsed_time(end) / REPLAYS)
        return found

    def _bandwidth(self) -> float:
        """Bytes a second that a large copy moves, read and written."""
        size = 2**30 if self.real else 2**22
        there, here = (torch.empty(size, dtype=torch.uint8, device=self.device) for _ in range(2))
        times = alternate({"copy": self.finished(lambda: there.copy_(here))}, 9)["copy"]
        return 2 * size / (median(times) / 1e3)


def sided(name: str, times: Mapping[str, list[float]]) -> Row:
    """Milliseconds of both, and the spread of their quotients."""
    found = quotients(times["setup"], times["base"])
    own = {"ratio": found.middle, "low": found.low, "high": found.high}
    return {name: own | {"base": milliseconds(times["base"]), "setup": milliseconds(times["setup"])}}
