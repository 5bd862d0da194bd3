"""Scores as pure functions on labels. In every one but `mean_squared_error` higher is better.

Classes:  accuracy, F1 averaged over the classes that occur, Matthews' correlation     scikit-learn
Values:   Pearson r, Spearman rho (Pearson r of ranks, ties share their mean rank)     closed forms in numpy
Tags:     precision, recall, F1 of whole entities, micro-averaged as conlleval does    seqeval
          accuracy of words                                                            closed form
Labels:   F1 over all decisions and its mean over labels, exact rows                   closed forms
Answers:  exact match and F1 of words, best of several                                 SQuAD's closed form
Parses:   labelled and unlabelled attachment                                           closed form

Where a score is undefined (no entity anywhere, a constant side of a correlation) it is 0.0: never NaN, which would win
or lose every comparison at random. Knows no rows, answers or tensors.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy
from seqeval.metrics import f1_score as entity_f1_score
from seqeval.metrics import precision_score as entity_precision_score
from seqeval.metrics import recall_score as entity_recall_score
from seqeval.metrics.sequence_labeling import get_entities
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

Tags = Sequence[Sequence[str]]


def class_scores(predicted: Sequence[str], gold: Sequence[str]) -> dict[str, float]:
    """accuracy, f1_macro, mcc of one label per row. Raises ValueError for unequal or no rows."""
    _check_lengths(predicted, gold)
    return {
        "accuracy": float(accuracy_score(gold, predicted)),
        "f1_macro": float(f1_score(gold, predicted, average="macro", zero_division=0.0)),
        "mcc": float(matthews_corrcoef(gold, predicted)) if len({*gold, *predicted}) > 1 else 0.0,
    }


def value_scores(predicted: Sequence[float], gold: Sequence[float]) -> dict[str, float]:
    """pearson, spearman, mse of one value per row. Raises ValueError for unequal or no rows."""
    _check_lengths(predicted, gold)
    x, y = numpy.asarray(predicted, dtype=numpy.float64), numpy.asarray(gold, dtype=numpy.float64)
    return {"pearson": pearson(x, y), "spearman": pearson(_ranks(x), _ranks(y)), "mse": float(numpy.mean((x - y) ** 2))}


def pearson(x: Any, y: Any) -> float:
    """Pearson's r of two arrays (N,); 0.0 where a side is constant."""
    x, y = x - x.mean(), y - y.mean()
    length = float(numpy.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / length if length > 0 else 0.0


def _ranks(x: Any) -> Any:
    """Ranks (N,) from 1; equal values share the mean of their ranks."""
    _, place, count = numpy.unique(x, return_inverse=True, return_counts=True)
    last = numpy.cumsum(count)
    return (last - (count - 1) / 2)[place]


def tag_accuracy(predicted: Tags, gold: Tags) -> dict[str, float]:
    """accuracy over words. Raises ValueError for unequal or no rows, or a row with unequal numbers of words."""
    _check_tags(predicted, gold)
    pairs = [pair for row in zip(predicted, gold, strict=True) for pair in zip(*row, strict=True)]
    return {"accuracy": sum(a == b for a, b in pairs) / len(pairs) if pairs else 0.0}


def entity_scores(predicted: Tags, gold: Tags) -> dict[str, float]:
    """f1, precision, recall of entities with their type and both ends right, and accuracy over words.

    Tags are O and B-, I- (also E-, S-); an I- without its B- begins an entity, as in conlleval. Raises as tag_accuracy.
    """
    _check_tags(predicted, gold)
    lists = [list(row) for row in gold], [list(row) for row in predicted]
    return {
        "f1": float(entity_f1_score(*lists, zero_division=0)),
        "precision": float(entity_precision_score(*lists, zero_division=0)),
        "recall": float(entity_recall_score(*lists, zero_division=0)),
    } | tag_accuracy(predicted, gold)


def entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """The entities in one row of tags, read as entity_scores reads them: (type, first word, last word + 1)."""
    return [(str(kind), int(first), int(last) + 1) for kind, first, last in get_entities(list(tags))]


def label_scores(predicted: Tags, gold: Tags, labels: Sequence[str]) -> dict[str, float]:
    """f1_micro over all decisions, f1_macro its mean over labels, exact: rows with every label right.

    A label that is neither predicted nor there counts 0 in the mean. Raises ValueError for unequal or no rows.
    """
    _check_lengths(predicted, gold)
    mine, theirs = ([set(row) for row in rows] for rows in (predicted, gold))
    both = [[sum(label in a and label in b for a, b in zip(mine, theirs, strict=True)) for label in labels]]
    both += [[sum(label in row for row in rows) for label in labels] for rows in (mine, theirs)]
    hits, found, there = (numpy.array(counts, dtype=numpy.float64) for counts in both)
    each = 2 * hits / numpy.maximum(found + there, 1)
    return {
        "f1_micro": float(2 * hits.sum() / max(found.sum() + there.sum(), 1)),
        "f1_macro": float(each.mean()),
        "exact": sum(a == b for a, b in zip(mine, theirs, strict=True)) / len(mine),
    }


def answer_scores(predicted: Sequence[str], gold: Sequence[Sequence[str]]) -> dict[str, float]:
    """exact_match and f1 of words, each by the best of a row's right answers, as SQuAD's own script has them.

    No right answers: "" is right. Raises ValueError for unequal or no rows.
    """
    _check_lengths(predicted, gold)
    best = [[_overlap(_plain(text), _plain(right)) for right in (rights or [""])]
            for text, rights in zip(predicted, gold, strict=True)]  # fmt: skip
    exact = [max(equal for equal, _ in row) for row in best]
    return {"exact_match": sum(exact) / len(exact), "f1": sum(max(f1 for _, f1 in row) for row in best) / len(best)}


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
) -> dict[str, float]:
    """uas: words with the right head; las: and the right relation too. Raises ValueError as tag_accuracy."""
    _check_tags(predicted, gold)  # type: ignore[arg-type]
    pairs = [pair for row in zip(predicted, gold, strict=True) for pair in zip(*row, strict=True)]
    total = max(len(pairs), 1)
    return {"las": sum(a == b for a, b in pairs) / total, "uas": sum(a[0] == b[0] for a, b in pairs) / total}


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
