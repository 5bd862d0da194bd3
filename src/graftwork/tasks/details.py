"""Behind the scores: each label's own, what is taken for what, and how far a probability is to be trusted.

Calibration as Guo et al. (2017) define it. With the rows sorted by the probability of what was answered into M bins
((m-1)/M, m/M] of equal width, each of n_m rows, the expected calibration error is

    ECE = sum_m n_m / N * | accuracy of bin m - mean probability in bin m |

Beside it two proper scores, lower is better: Brier's (1950), the squared distance of the probabilities from the truth,
summed over classes, and the negative log-likelihood of the truth. What has no meaning for a task is None or empty.
Knows labels and numbers, no rows or answers.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy

from graftwork.tasks.metrics import Tags, indicators
from graftwork.tasks.scorer import Numbers

Named: TypeAlias = tuple[str, int, int]
Counts: TypeAlias = Sequence[int] | Numbers

BINS = 15  # Guo et al.'s number
LEAST = float(numpy.finfo(numpy.float32).tiny)  # a probability that float32 rounds to 0 counts as this much
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class LabelScores:
    """One label's precision, recall and F1; support is how often it is right. Undefined is 0.0."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Confusion:
    """counts[g][p]: how often gold label g was answered with label p."""

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability diagram: rows of probabilities in (low, high], their mean, and how many are right."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """How far probabilities are to be trusted: ece, brier, nll (in nats), and the bins that hold any."""

    ece: float
    brier: float
    nll: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class Residuals:
    """Answer less label, in the unit of the labels: mean, mean size, and the values at QUANTILES."""

    bias: float
    mean_absolute: float
    quantiles: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Details:
    """What can be said of the answers of one task; what has no meaning for it is left out."""

    labels: tuple[LabelScores, ...] = ()
    confusion: Confusion | None = None
    calibration: Calibration | None = None
    residuals: Residuals | None = None


def classes(predicted: Sequence[str], gold: Sequence[str], labels: Sequence[str]) -> Details:
    """Scores and confusion of one label for each row, or for each word. Raises KeyError for a label not in `labels`."""
    number = {label: place for place, label in enumerate(labels)}
    counts = numpy.zeros((len(labels), len(labels)), dtype=int)
    numpy.add.at(counts, ([number[label] for label in gold], [number[label] for label in predicted]), 1)
    each = _by_label(labels, counts.diagonal(), counts.sum(axis=0), counts.sum(axis=1))
    return Details(each, Confusion(tuple(labels), tuple(map(tuple, counts.tolist()))))


def kinds_of(predicted: Sequence[Iterable[Named]], gold: Sequence[Iterable[Named]]) -> Details:
    """Scores of things that begin with the name of their kind and are right as a whole, row by row; kinds by name.

    Entities (type, first word, last word + 1), or arcs (relation, word, head).
    """
    mine, right = map(set, (_enumerated(predicted), _enumerated(gold)))
    found, there, hits = (Counter(one[1][0] for one in some) for some in (mine, right, mine & right))
    names = sorted({*found, *there})
    return Details(_by_label(names, *([some[name] for name in names] for some in (hits, found, there))))


def _enumerated(rows: Sequence[Iterable[Named]]) -> list[tuple[int, Named]]:
    """Each thing of each row, with the number of its row."""
    return [(number, one) for number, row in enumerate(rows) for one in row]


def memberships(predicted: Tags, gold: Tags, labels: Sequence[str]) -> tuple[LabelScores, ...]:
    """Scores of each of several labels that a row may have."""
    mine, right = (indicators(rows, labels) for rows in (predicted, gold))
    return _by_label(labels, *(side.sum(axis=0).astype(int) for side in (mine * right, mine, right)))


def calibration(chances: Sequence[Sequence[float]], gold: Sequence[int]) -> Calibration:
    """Of probabilities (N, L) for one of L labels, and the place of the right one (N,); the likeliest was answered."""
    p, place = numpy.asarray(chances, dtype=numpy.float64), numpy.asarray(gold)
    truth = numpy.eye(p.shape[1])[place]
    own = numpy.maximum(p[numpy.arange(len(p)), place], LEAST)
    brier = ((p - truth) ** 2).sum(axis=1).mean()
    return _calibration(p.max(axis=1), p.argmax(axis=1) == place, float(brier), float(-numpy.log(own).mean()))


def decision_calibration(chances: Sequence[Sequence[float]], holds: Numbers) -> Calibration:
    """Of probabilities (N, L) that each label holds, and 1.0 where it does: all N x L decisions, each a yes or a no."""
    p = numpy.asarray(chances, dtype=numpy.float64)
    own = numpy.maximum(numpy.where(holds > 0, p, 1 - p), LEAST)
    brier = ((p - holds) ** 2).mean()
    return _calibration(p.ravel(), holds.ravel() > 0, float(brier), float(-numpy.log(own).mean()))


def residuals(predicted: Sequence[float], gold: Sequence[float]) -> Residuals:
    """Of N numbers answered and N that would be right."""
    off = numpy.asarray(predicted, dtype=numpy.float64) - numpy.asarray(gold, dtype=numpy.float64)
    at = zip(QUANTILES, numpy.quantile(off, QUANTILES).tolist(), strict=True)
    return Residuals(float(off.mean()), float(numpy.abs(off).mean()), tuple(at))


def _by_label(names: Sequence[str], hits: Counts, found: Counts, there: Counts) -> tuple[LabelScores, ...]:
    """From how often each label is answered rightly, answered at all, and right."""
    return tuple(
        LabelScores(name, hit / max(said, 1), hit / max(right, 1), 2 * hit / max(said + right, 1), right)
        for name, hit, said, right in zip(names, *(map(int, side) for side in (hits, found, there)), strict=True)
    )


def _calibration(confidence: Numbers, right: Numbers, brier: float, nll: float) -> Calibration:
    """confidence (N,), right (N,) yes or no."""
    place = numpy.clip(numpy.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)  # 0 and 1 have a bin too
    bins = []
    for one in numpy.unique(place).tolist():
        inside = place == one
        mean, share = float(confidence[inside].mean()), float(right[inside].mean())
        bins.append(Bin(one / BINS, (one + 1) / BINS, int(inside.sum()), mean, share))
    ece = sum(one.count * abs(one.accuracy - one.confidence) for one in bins) / len(confidence)
    return Calibration(ece, brier, nll, tuple(bins))
