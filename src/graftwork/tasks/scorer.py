"""What can be scored again with other weights: a row that counts w times is that row drawn w times.

A metric is evidence (sums, or values, a row each) and a formula over it; `Scorer` holds both, so that one definition
gives the score of a file and those of thousands of resamples of it (bootstrap.py) with no loop over rows or resamples.
N rows, R sets of weights. Knows no task, no label, no answer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy

Numbers = numpy.ndarray[Any, Any]


@dataclass(frozen=True)
class Scorer:
    """The scores of N answered rows, as a function of how often each row counts.

    weighted: from weights (R, N), whole numbers in float64, not all 0 in any set, to (R,) of each score.
    """

    rows: int
    weighted: Callable[[Numbers], Mapping[str, Numbers]]

    def once(self) -> dict[str, float]:
        """The scores of the rows as they are: each counts once."""
        return {name: float(values[0]) for name, values in self.weighted(numpy.ones((1, self.rows))).items()}


def summed(table: Sequence[Sequence[float]] | Numbers, formula: Callable[..., Mapping[str, Numbers]]) -> Scorer:
    """Scores that follow from sums over rows. table (N, S); the formula gets the S sums, (R,) each."""
    evidence = numpy.asarray(table, dtype=numpy.float64)
    return Scorer(len(evidence), lambda weights: formula(*(weights @ evidence).T))


def by_group(weights: Numbers, group: Numbers) -> Numbers:
    """Weights (R, N) summed by the group of each row: (R, G), for groups (N,) numbered from 0, none of them empty."""
    order = numpy.argsort(group, kind="stable")
    starts = numpy.searchsorted(group[order], numpy.arange(int(group.max()) + 1))
    sums: Numbers = numpy.add.reduceat(weights[:, order], starts, axis=1)
    return sums


def share(part: Numbers, whole: Numbers) -> Numbers:
    """part / whole, and 0.0 where the whole is 0."""
    divided: Numbers = numpy.divide(part, whole, out=numpy.zeros_like(part, dtype=numpy.float64), where=whole > 0)
    return divided


def joined(first: Scorer, second: Scorer) -> Scorer:
    """The scores of two scorers of the same rows."""
    return Scorer(first.rows, lambda weights: {**first.weighted(weights), **second.weighted(weights)})


def renamed(scorer: Scorer, names: Mapping[str, str]) -> Scorer:
    """The scores `names` keeps, new name -> old name, in its order."""

    def weighted(weights: Numbers) -> dict[str, Numbers]:
        found = scorer.weighted(weights)
        return {new: found[old] for new, old in names.items()}

    return Scorer(scorer.rows, weighted)
