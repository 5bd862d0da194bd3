"""Scores as pure functions on labels. In every one but those of LOWER_IS_BETTER higher is better.

Classes:  accuracy, F1 averaged over the classes that occur, Matthews' correlation     from the confusion counts
Values:   Pearson r, Spearman rho (Pearson r of ranks, ties share their mean rank), mean squared error
Tags:     precision, recall, F1 of whole entities, micro-averaged as conlleval does; accuracy of words
Labels:   F1 over all decisions and its mean over labels, exact rows
Answers:  exact match and F1 of words, best of several                                 as SQuAD's own script
Parses:   labelled and unlabelled attachment

Each gives a Scorer, which says the scores for any weights of the rows. They equal scikit-learn's, seqeval's and
scipy's (the tests hold that). Where a score is undefined (no entity anywhere, a constant side of a correlation) it is
0.0: never NaN, which would win or lose every comparison at random. Knows no rows, answers or tensors.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy
from seqeval.metrics.sequence_labeling import get_entities

from graftwork.tasks.scorer import Numbers, Scorer, by_group, share, summed

LOWER_IS_BETTER = ("mse", "perplexity", "loss")  # of all that a run may be judged by: scores of tasks, and the loss
Tags = Sequence[Sequence[str]]


def class_scores(predicted: Sequence[str], gold: Sequence[str]) -> Scorer:
    """accuracy, f1_macro, mcc of one label per row. Raises ValueError for unequal or no rows.

    mcc is R_K of Gorodkin (2004), from counts alone: with s rows, c of them right, p_k predicted as class k and t_k of
    class k, (c s - sum p_k t_k) / sqrt((s^2 - sum p_k^2) (s^2 - sum t_k^2)).
    """
    _check_lengths(predicted, gold)
    number = {name: place for place, name in enumerate(dict.fromkeys([*gold, *predicted]))}
    pairs = [number[right] * len(number) + number[mine] for right, mine in zip(gold, predicted, strict=True)]
    cells, cell = numpy.unique(pairs, return_inverse=True)
    true, said = (numpy.eye(len(number))[side] for side in numpy.divmod(cells, len(number)))  # (cells, classes)

    def weighted(weights: Numbers) -> dict[str, Numbers]:
        counts = by_group(weights, cell)
        hits, t, p = counts @ (true * said), counts @ true, counts @ said  # (R, classes)
        c, s = hits.sum(axis=1), counts.sum(axis=1)
        spread = numpy.sqrt((s**2 - (p**2).sum(axis=1)) * (s**2 - (t**2).sum(axis=1)))
        return {
            "accuracy": c / s,
            "f1_macro": share(2 * hits, t + p).sum(axis=1) / (t + p > 0).sum(axis=1),
            "mcc": share(c * s - (p * t).sum(axis=1), spread),
        }

    return Scorer(len(gold), weighted)


def value_scores(predicted: Sequence[float], gold: Sequence[float]) -> Scorer:
    """pearson, spearman, mse of one value per row. Raises ValueError for unequal or no rows."""
    _check_lengths(predicted, gold)
    x, y = numpy.asarray(predicted, dtype=numpy.float64), numpy.asarray(gold, dtype=numpy.float64)
    of_x, of_y = (numpy.unique(side, return_inverse=True)[1] for side in (x, y))
    squares = (x - y) ** 2

    def weighted(weights: Numbers) -> dict[str, Numbers]:
        return {
            "pearson": pearson(x[None], y[None], weights),
            "spearman": pearson(_ranks(weights, of_x), _ranks(weights, of_y), weights),
            "mse": weights @ squares / weights.sum(axis=1),
        }

    return Scorer(len(x), weighted)


def pearson(x: Numbers, y: Numbers, weights: Numbers) -> Numbers:
    """Pearson's r (R,) of x and y, (R or 1, N) each, under weights (R, N); 0.0 where a side is constant."""
    total, drawn = weights.sum(axis=1, keepdims=True), weights > 0
    x, y = (side - (weights * side).sum(axis=1, keepdims=True) / total for side in (x, y))
    varies = numpy.ones(len(weights), dtype=bool)
    for side in (x, y):  # asked of the values: what rounding leaves of a constant has a length too
        low, high = numpy.where(drawn, side, numpy.inf), numpy.where(drawn, side, -numpy.inf)
        varies &= high.max(axis=1) > low.min(axis=1)
    length = numpy.sqrt((weights * x * x).sum(axis=1) * (weights * y * y).sum(axis=1))
    return numpy.where(varies, share((weights * x * y).sum(axis=1), length), 0.0)


def _ranks(weights: Numbers, group: Numbers) -> Numbers:
    """Ranks (R, N) from 1 among the rows drawn; equal values, rows of one group, share the mean of their ranks."""
    counts = by_group(weights, group)
    ranks: Numbers = (numpy.cumsum(counts, axis=1) - (counts - 1) / 2)[:, group]
    return ranks


def tag_accuracy(predicted: Tags, gold: Tags) -> Scorer:
    """accuracy over words. Raises ValueError for unequal or no rows, or a row with unequal numbers of words."""
    _check_tags(predicted, gold)
    return summed(_words(predicted, gold), lambda right, words: {"accuracy": share(right, words)})


def entity_scores(predicted: Tags, gold: Tags) -> Scorer:
    """f1, precision, recall of entities with their type and both ends right, and accuracy over words.

    Tags are O and B-, I- (also E-, S-); an I- without its B- begins an entity, as in conlleval. Raises as tag_accuracy.
    """
    _check_tags(predicted, gold)
    sets = [(set(entities(mine)), set(entities(right))) for mine, right in zip(predicted, gold, strict=True)]
    counts = [(len(mine & right), len(mine), len(right)) for mine, right in sets]
    return summed(
        numpy.hstack([numpy.array(counts), _words(predicted, gold)]),
        lambda hits, found, there, right, words: {
            "f1": share(2 * hits, found + there),
            "precision": share(hits, found),
            "recall": share(hits, there),
            "accuracy": share(right, words),
        },
    )


def _words(predicted: Tags, gold: Tags) -> Numbers:
    """(N, 2) words that are right, and words, of each row."""
    right = [sum(a == b for a, b in zip(*row, strict=True)) for row in zip(predicted, gold, strict=True)]
    return numpy.array(list(zip(right, map(len, gold), strict=True)))


def entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """The entities in one row of tags, read as entity_scores reads them: (type, first word, last word + 1)."""
    return [(str(kind), int(first), int(last) + 1) for kind, first, last in get_entities(list(tags))]


def label_scores(predicted: Tags, gold: Tags, labels: Sequence[str]) -> Scorer:
    """f1_micro over all decisions, f1_macro its mean over labels, exact: rows with every label right.

    A label that is neither predicted nor there counts 0 in the mean. Raises ValueError for unequal or no rows.
    """
    _check_lengths(predicted, gold)
    mine, right = (indicators(rows, labels) for rows in (predicted, gold))
    exact = [set(a) == set(b) for a, b in zip(predicted, gold, strict=True)]

    def weighted(weights: Numbers) -> dict[str, Numbers]:
        hits, either = weights @ (mine * right), weights @ (mine + right)  # (R, L)
        return {
            "f1_micro": share(2 * hits.sum(axis=1), either.sum(axis=1)),
            "f1_macro": share(2 * hits, either).mean(axis=1),
            "exact": weights @ numpy.array(exact, dtype=numpy.float64) / weights.sum(axis=1),
        }

    return Scorer(len(mine), weighted)


def indicators(rows: Tags, labels: Sequence[str]) -> Numbers:
    """(N, L) 1.0 where a row has a label."""
    return numpy.array([[float(label in held) for label in labels] for held in map(set, rows)])


def answer_scores(predicted: Sequence[str], gold: Sequence[Sequence[str]]) -> Scorer:
    """exact_match and f1 of words, each by the best of a row's right answers, as SQuAD's own script has them.

    No right answers: "" is right. Raises ValueError for unequal or no rows.
    """
    _check_lengths(predicted, gold)
    each = [[_overlap(_plain(text), _plain(right)) for right in (rights or [""])]
            for text, rights in zip(predicted, gold, strict=True)]  # fmt: skip
    best = [(max(equal for equal, _ in row), max(f1 for _, f1 in row), 1) for row in each]
    return summed(best, lambda exact, f1, rows: {"exact_match": exact / rows, "f1": f1 / rows})


def _plain(text: str) -> list[str]:
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def _overlap(mine: list[str], right: list[str]) -> tuple[float, float]:
    common = sum((Counter(mine) & Counter(right)).values())
    if not mine or not right:
        return float(mine == right), float(mine == right)
    return float(mine == right), 2 * common / (len(mine) + len(right))


def attachment_scores(
    predicted: Sequence[Sequence[tuple[int, str]]], gold: Sequence[Sequence[tuple[int, str]]]
) -> Scorer:
    """uas: words with the right head; las: and the right relation too. Raises ValueError as tag_accuracy."""
    _check_tags(predicted, gold)  # type: ignore[arg-type]
    counts = [
        (sum(a == b for a, b in pairs), sum(a[0] == b[0] for a, b in pairs), len(pairs))
        for pairs in (list(zip(*row, strict=True)) for row in zip(predicted, gold, strict=True))
    ]
    return summed(counts, lambda las, uas, words: {"las": share(las, words), "uas": share(uas, words)})


def _check_lengths(predicted: Sequence[Any], gold: Sequence[Any]) -> None:
    if len(predicted) != len(gold) or not len(gold):
        raise ValueError(
            f"{len(predicted)} predictions for {len(gold)} rows: a score needs one each, and at least one row"
        )


def _check_tags(predicted: Tags, gold: Tags) -> None:
    _check_lengths(predicted, gold)
    for row, (mine, theirs) in enumerate(zip(predicted, gold, strict=True), start=1):
        if len(mine) != len(theirs):
            raise ValueError(f"row {row} has {len(mine)} predicted tags for {len(theirs)} words")
