"""Weights are repetitions: a row that counts w times scores as that row written w times, in every metric."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from graftwork.tasks import metrics
from graftwork.tasks.scorer import Scorer, by_group, joined, renamed, share, summed

words = st.sampled_from("abc")
tags = st.lists(st.sampled_from(["O", "B-A", "I-A", "B-B"]), min_size=3, max_size=3)
numbers = st.floats(-100, 100).map(lambda x: round(x, 1))
arcs = st.lists(st.tuples(st.integers(0, 2), words), min_size=3, max_size=3)
some = st.lists(words, unique=True)

METRICS: dict[str, tuple[Callable[[Any, Any], Scorer], st.SearchStrategy[Any], st.SearchStrategy[Any]]] = {
    "classes": (metrics.class_scores, words, words),
    "values": (metrics.value_scores, numbers, numbers),
    "words": (metrics.tag_accuracy, tags, tags),
    "entities": (metrics.entity_scores, tags, tags),
    "labels": (lambda predicted, gold: metrics.label_scores(predicted, gold, "abc"), some, some),
    "answers": (metrics.answer_scores, st.text("ab ", max_size=5), st.lists(st.text("ab ", max_size=5), max_size=2)),
    "parses": (metrics.attachment_scores, arcs, arcs),
}


def repeated(values: Sequence[Any], weights: Sequence[int]) -> list[Any]:
    return [value for value, weight in zip(values, weights, strict=True) for _ in range(weight)]


@pytest.mark.parametrize("name", METRICS)
@given(data=st.data())
def test_a_weight_is_a_number_of_repetitions(name: str, data: st.DataObject) -> None:
    score, mine, right = METRICS[name]
    count = data.draw(st.integers(1, 12))
    predicted, gold = (data.draw(st.lists(one, min_size=count, max_size=count)) for one in (mine, right))
    sets = [data.draw(st.lists(st.integers(0, 3), min_size=count, max_size=count)) for _ in range(3)]
    assume(all(any(weights) for weights in sets))
    found = score(predicted, gold).weighted(numpy.array(sets, dtype=float))
    for place, weights in enumerate(sets):
        written_out = score(repeated(predicted, weights), repeated(gold, weights)).once()
        # rounding in a correlation of few rows grows by the ratio of their size to their spread
        assert {key: values[place] for key, values in found.items()} == pytest.approx(written_out, abs=1e-6)


def test_the_parts() -> None:
    weights = numpy.array([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]])
    assert by_group(weights, numpy.array([1, 0, 1])).tolist() == [[2.0, 4.0], [1.0, 0.0]]
    assert share(numpy.array([1.0, 1.0]), numpy.array([4.0, 0.0])).tolist() == [0.25, 0.0]
    one = summed([(1, 1), (0, 1), (1, 1)], lambda right, count: {"right": right / count, "count": count})
    assert one.once() == {"right": pytest.approx(2 / 3), "count": 3.0}
    assert one.weighted(weights)["right"].tolist() == [4 / 6, 0.0]
    assert list(renamed(one, {"b": "right"}).once()) == ["b"]
    assert list(joined(renamed(one, {"b": "right"}), one).once()) == ["b", "right", "count"]
