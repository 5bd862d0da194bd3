"""What a server tells Prometheus. Needs the `[serve]` extra.

Requests are counted as they end; everything else is read from the engine's own counts when somebody asks, so there is
one place that counts and no series that outlives what it describes. Each server has a registry of its own.
"""

from __future__ import annotations  # the library that the signatures name may be missing

from collections.abc import Iterator
from contextlib import suppress

from graftwork.serve.engine import Engine
from graftwork.serve.limits import NotReady
from graftwork.serve.worker import Worker

with suppress(ImportError):  # `need_extra` says so as soon as an app is asked for
    from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """The numbers of one server."""

    def __init__(self, worker: Worker) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_FromEngine(worker))
        self._requests = Counter(
            "graftwork_requests", "Requests by route and status", ["route", "code"], registry=self._registry
        )
        self._seconds = Histogram(
            "graftwork_request_duration_seconds",
            "From the first byte of a request to the last of its answer",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )

    def request(self, route: str, code: int, seconds: float) -> None:
        """Count a request that has ended."""
        self._requests.labels(route, str(code)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self._registry)


class _FromEngine:
    """Reads queue, engine and pool at the time of asking; before the engine is there, the queue only."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def collect(self) -> Iterator[Metric]:
        """One metric after the other."""
        yield GaugeMetricFamily("graftwork_queue_waiting", "Requests that wait", self._worker.waiting)
        try:
            engine = self._worker.engine
        except NotReady:
            yield GaugeMetricFamily("graftwork_ready", "Whether rows are answered", 0)
            return
        yield GaugeMetricFamily("graftwork_ready", "Whether rows are answered", 1)
        yield from _of_engine(engine)


def _of_engine(engine: Engine) -> Iterator[Metric]:
    counts, pool = engine.counts, engine.pool
    rows = CounterMetricFamily("graftwork_rows", "Rows by outcome: ok, or the code of their error", labels=["outcome"])
    for outcome, number in sorted(counts.rows.copy().items()):
        rows.add_metric([outcome], number)
    yield rows
    sums: dict[str, tuple[str, float]] = {
        "graftwork_forwards": ("Forwards of the model", counts.forwards),
        "graftwork_forward_seconds": ("Time spent in forwards", counts.forward_seconds),
        "graftwork_pieces": ("Word pieces of the texts", counts.pieces),
        "graftwork_pieces_padded": ("Word pieces with padding", counts.padded),
        "graftwork_compositions": ("Distinct compositions, summed over forwards", counts.compositions),
        "graftwork_pool_hits": ("Packages that were loaded when they were needed", pool.counts.hits),
        "graftwork_pool_loads": ("Packages that had to be loaded", pool.counts.loads),
        "graftwork_pool_load_failures": ("Packages that could not be loaded", pool.counts.failures),
        "graftwork_pool_load_seconds": ("Time spent loading packages", pool.counts.load_seconds),
        "graftwork_pool_evictions": ("Packages dropped to make room", pool.counts.evictions),
    }
    for name, (meaning, total) in sums.items():
        yield CounterMetricFamily(name, meaning, total)
    yield GaugeMetricFamily("graftwork_pool_capacity", "Packages kept at most", pool.capacity)
    resident = GaugeMetricFamily("graftwork_pool_resident", "1 for each package that is loaded", labels=["package"])
    for package in pool.loaded():
        resident.add_metric([package], 1)
    yield resident
