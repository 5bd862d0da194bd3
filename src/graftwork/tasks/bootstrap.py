"""How sure a score, or a difference of scores, is: the bootstrap over rows (Efron 1979; paired, Koehn 2004).

A test set of N rows is one draw of what could have been asked. N rows are drawn from it with replacement, R times, and
the score is computed anew from each draw, whatever it is: an F1 or a correlation is no mean over rows. The interval is
the middle 95 % of the R scores (percentile interval). Two systems are compared on the same draws, so that rows that are
hard for both move both: the interval of the difference is then as narrow as it should be.

The rows drawn follow from the seed and N alone. Knows no tasks and no answers; asks a Scorer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy

from graftwork.errors import UserError
from graftwork.tasks.scorer import Numbers, Scorer

RESAMPLES = 1000
INSIDE = 0.95  # share of the resampled scores that an interval holds
AT_ONCE = 2_000_000  # weights held in memory at a time: 16 MB


@dataclass(frozen=True)
class Interval:
    """What was found on the rows themselves, and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def interval(scorer: Scorer, score: str, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """How sure one score of one system is. Raises UserError for less than 100 resamples, KeyError for no such score."""
    drawn = [scorer.weighted(weights)[score] for weights in _draws(scorer.rows, resamples, seed)]
    return _interval(scorer.once()[score], numpy.concatenate(drawn))


def difference(
    tests: Sequence[Sequence[tuple[Scorer, Scorer]]],
    score: str,
    *,
    runs_too: bool = False,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """How sure it is that the second system of each pair differs from the first: the interval of second - first.

    tests: for each test set, the pairs of the runs (seeds) that answered it; two systems once are [[(a, b)]]. Averaged
    over the runs of a test set, then over test sets. All runs of a test set answer the same draw of its rows, for it is
    the same rows that they share: drawn for each run apart, rows would count as so many times more of them.
    runs_too: draw the runs of each test set as well (two stages), which makes the interval one of training anew too;
    with a handful of runs that part is rough.
    Raises UserError for less than 100 resamples, no runs, or runs of a test set with unequal numbers of rows.
    """
    if not tests or not all(tests):
        raise UserError("there are no runs to compare; give a pair of systems for each test set")
    for number, runs in enumerate(tests, start=1):
        if len(counts := sorted({scorer.rows for pair in runs for scorer in pair})) > 1:
            raise UserError(
                f"test set {number}: its runs answered {counts} rows; a paired comparison needs the same rows in all"
            )
    value = numpy.mean([numpy.mean([b.once()[score] - a.once()[score] for a, b in runs]) for runs in tests])
    drawn = []
    for number, runs in enumerate(tests):
        chunks = [
            numpy.array([b.weighted(weights)[score] - a.weighted(weights)[score] for a, b in runs])
            for weights in _draws(runs[0][0].rows, resamples, seed, number)
        ]
        each = numpy.concatenate(chunks, axis=1)  # (runs, R)
        if runs_too:
            picked = numpy.random.default_rng([seed, number, 1]).integers(len(runs), size=each.shape)
            each = numpy.take_along_axis(each, picked, axis=0)
        drawn.append(each.mean(axis=0))
    return _interval(float(value), numpy.mean(drawn, axis=0))


def _draws(rows: int, resamples: int, seed: int, number: int = 0) -> Iterator[Numbers]:
    """How often each row is drawn: weights (r, N), resample after resample, in pieces that fit in memory."""
    if resamples < 100:
        raise UserError(f"resamples is {resamples}; an interval needs at least 100, and 1000 are usual")
    generator = numpy.random.default_rng([seed, number])
    step = max(1, AT_ONCE // rows)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        places = generator.integers(rows, size=(count, rows)) + numpy.arange(count)[:, None] * rows
        yield numpy.bincount(places.ravel(), minlength=count * rows).reshape(count, rows).astype(numpy.float64)


def _interval(value: float, drawn: Numbers) -> Interval:
    low, high = numpy.quantile(drawn, [(1 - INSIDE) / 2, (1 + INSIDE) / 2]).tolist()
    return Interval(value, low, high)
