"""By hand, and beside scikit-learn: each label's scores, confusion, calibration; and what each task tells."""

import math
from dataclasses import fields
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, log_loss, precision_recall_fscore_support

from graftwork.tasks.details import (
    LEAST,
    Details,
    calibration,
    classes,
    decision_calibration,
    kinds_of,
    memberships,
    residuals,
)
from graftwork.tasks.kinds import TASKS

ABC = ("a", "b", "c")


@given(st.lists(st.tuples(st.sampled_from(ABC), st.sampled_from(ABC)), min_size=1, max_size=40))
def test_labels_and_confusion_are_scikit_learns(pairs: list[tuple[str, str]]) -> None:
    predicted, gold = [p for p, _ in pairs], [g for _, g in pairs]
    found = classes(predicted, gold, ABC)
    expected = precision_recall_fscore_support(gold, predicted, labels=list(ABC), zero_division=0.0)
    for place, one in enumerate(found.labels):
        assert (one.label, one.support) == (ABC[place], expected[3][place])
        assert [one.precision, one.recall, one.f1] == pytest.approx([float(expected[side][place]) for side in range(3)])
    assert found.confusion is not None
    assert found.confusion.labels == ABC
    assert [list(row) for row in found.confusion.counts] == confusion_matrix(gold, predicted, labels=ABC).tolist()


def test_a_row_of_the_confusion_is_a_label_and_a_column_an_answer() -> None:
    confusion = classes(["b", "b", "a"], ["a", "a", "a"], ("a", "b")).confusion
    assert confusion is not None
    assert confusion.counts == ((1, 2), (0, 0))


def test_entities_are_counted_whole_by_their_type_and_row() -> None:
    predicted = [[("PER", 0, 2), ("LOC", 3, 4)], [("LOC", 0, 1)]]
    gold = [[("PER", 0, 2), ("ORG", 3, 4)], [("PER", 0, 2)]]  # the last PER is another row's
    found = {one.label: one for one in kinds_of(predicted, gold).labels}
    assert list(found) == ["LOC", "ORG", "PER"]
    assert (found["PER"].precision, found["PER"].recall, found["PER"].support) == (1.0, 0.5, 2)
    assert found["PER"].f1 == pytest.approx(2 / 3)
    assert (found["LOC"].precision, found["LOC"].recall, found["LOC"].f1, found["LOC"].support) == (0.0, 0.0, 0.0, 0)
    assert found["ORG"].support == 1


def test_several_labels_of_a_row() -> None:
    a, b = memberships([["a"], ["a", "b"], []], [["a"], ["b"], ["a"]], ("a", "b"))
    assert (a.precision, a.recall, a.f1, a.support) == (0.5, 0.5, 0.5, 2)
    assert (b.precision, b.recall, b.f1, b.support) == (1.0, 1.0, 1.0, 1)


def test_calibration_by_hand() -> None:
    chances = [[0.9, 0.1], [0.92, 0.08], [0.4, 0.6], [0.5, 0.5]]
    found = calibration(chances, [0, 1, 1, 0])
    # bins of 1/15: (0.8667, 0.9333] holds 0.9 (right) and 0.92 (wrong); (0.5333, 0.6] holds 0.6, (0.4667, 0.5333] 0.5
    assert [(round(one.low, 4), one.count, one.accuracy) for one in found.bins] == [
        (0.4667, 1, 1.0),
        (0.5333, 1, 1.0),
        (0.8667, 2, 0.5),
    ]
    assert found.ece == pytest.approx((0.5 + 0.4 + 2 * abs(0.5 - 0.91)) / 4)
    assert found.brier == pytest.approx((2 * 0.01 + 2 * 0.92**2 + 2 * 0.16 + 2 * 0.25) / 4)
    assert found.nll == pytest.approx(-(math.log(0.9) + math.log(0.08) + math.log(0.6) + math.log(0.5)) / 4)


def test_a_bin_holds_its_upper_end_and_the_first_holds_zero_too() -> None:
    found = decision_calibration([[0.0], [1 / 15], [1.0]], numpy.array([[0.0], [0.0], [1.0]]))
    assert [(round(one.low, 4), one.count) for one in found.bins] == [(0.0, 2), (0.9333, 1)]
    assert found.nll == pytest.approx(-math.log(14 / 15) / 3)
    sure_and_wrong = calibration([[0.0, 1.0]], [0])
    assert sure_and_wrong.nll == pytest.approx(-math.log(LEAST))  # and not infinite
    assert (sure_and_wrong.ece, sure_and_wrong.brier) == (1.0, 2.0)


@given(st.lists(st.tuples(st.integers(0, 2), st.tuples(*[st.floats(0.01, 1)] * 3)), min_size=2, max_size=30))
def test_proper_scores_are_scikit_learns_and_a_sound_forecast_is_calibrated(rows: list[Any]) -> None:
    gold = [place for place, _ in rows]
    chances = numpy.array([weights for _, weights in rows])
    chances /= chances.sum(axis=1, keepdims=True)
    found = calibration(chances.tolist(), gold)
    assert found.nll == pytest.approx(log_loss(gold, chances, labels=[0, 1, 2]))
    assert sum(one.count for one in found.bins) == len(rows)
    assert 0 <= found.ece <= 1


def test_answers_that_are_as_often_right_as_they_say_are_calibrated() -> None:
    generator = numpy.random.default_rng(0)
    p = generator.random(40_000)
    truth = (generator.random(40_000) < p).astype(float)
    assert decision_calibration(p[:, None].tolist(), truth[:, None]).ece < 0.01
    assert decision_calibration((p**2)[:, None].tolist(), truth[:, None]).ece > 0.1


def test_residuals() -> None:
    found = residuals([1.0, 2.0, 3.0, 4.0, 10.0], [1.0, 1.0, 1.0, 5.0, 5.0])  # off by 0, 1, 2, -1, 5
    assert (found.bias, found.mean_absolute) == (pytest.approx(1.4), pytest.approx(1.8))
    assert dict(found.quantiles)[0.5] == 1.0
    assert dict(found.quantiles)[0.25] == 0.0


def test_what_each_task_tells_and_leaves_out() -> None:
    sure = {"label": "a", "score": 0.9, "scores": {"a": 0.9, "b": 0.1}}
    told: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]], set[str]]] = {
        "classification": ([sure], [{"label": "a"}], {"labels", "confusion", "calibration"}),
        "pair": ([sure], [{"label": "b"}], {"labels", "confusion", "calibration"}),
        "image_classification": ([sure], [{"label": "b"}], {"labels", "confusion", "calibration"}),
        "multiple_choice": ([{"label": "0", "scores": [0.9, 0.1]}], [{"label": 1}], {"calibration"}),
        "tagging": ([{"tags": ["a"]}], [{"tags": ["b"]}], {"labels", "confusion"}),
        "multilabel": ([{"labels": ["a"], "scores": sure["scores"]}], [{"labels": []}], {"labels", "calibration"}),
        "regression": ([{"value": 1.0}], [{"label": 2}], {"residuals"}),
        "similarity": ([{"similarity": 1.0}], [{"label": 0.5}], {"residuals"}),
        "question_answering": ([{"answer": "x", "score": 0.5}], [{"answers": ["x"]}], set()),
        "dependency_parsing": ([{"tags": ["a"], "heads": [0]}], [{"tags": ["a"], "heads": [0]}], {"labels"}),
        "masked_lm": ([{}], [{}], set()),
        "causal_lm": ([{}], [{}], set()),
        "seq2seq_lm": ([{}], [{}], set()),
    }
    assert set(told) == set(TASKS)
    for kind, (answers, rows, expected) in told.items():
        labels = ("0", "1") if kind == "multiple_choice" else ("a", "b")
        task = TASKS[kind](labels=labels if TASKS[kind].has_labels else ())
        found = task.details(answers, rows)
        assert {field.name for field in fields(found) if getattr(found, field.name)} == expected
    entities = TASKS["tagging"](labels=("O", "B-x")).details([{"tags": ["B-x"]}], [{"tags": ["B-x"]}])
    assert [one.label for one in entities.labels] == ["x"]
    assert entities.confusion is None
    assert TASKS["similarity"]().details([{}], [{}]) == Details()
    (wrong_head,) = (
        TASKS["dependency_parsing"](labels=("a", "b"))
        .details([{"tags": ["a"], "heads": [2]}], [{"tags": ["a"], "heads": [0]}])
        .labels
    )
    assert (wrong_head.precision, wrong_head.support) == (0.0, 1)
