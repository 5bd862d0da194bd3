"""Multilabel rows: what is refused, what is learned, what is answered."""

import pytest
import torch

from graftwork.tasks.multilabel import Multilabel
from graftwork.tasks.text import TextEncoder
from tests.tasks.vocabularies import tokenizer

TASK = Multilabel(("bad", "good", "late"), 32)


def test_targets_and_answers() -> None:
    (row,) = TASK.encode(
        [{"text": "a fox", "labels": ["late", "bad"]}], TextEncoder(tokenizer("minilm"), 32), with_labels=True
    )
    assert row.labels == (1.0, 0.0, 1.0)
    answer = TASK.decode(torch.tensor([0.0, -1.0, 2.0]), row)
    assert answer["labels"] == ["bad", "late"]
    assert answer["scores"]["good"] == pytest.approx(1 / (1 + 2.718281828), rel=1e-6)
    assert TASK.decode(torch.full((3,), -1.0), row)["labels"] == []


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"text": "x"}, 'has no "labels"'),
        ({"text": "x", "labels": "late"}, "it must be a list of labels"),
        ({"text": "x", "labels": ["late", "lost"]}, '"labels" holds "lost", not among: "bad", "good", "late"'),
    ],
)
def test_what_is_refused(row: dict[str, object], problem: str) -> None:
    assert any(problem in found for found in TASK.problems(row, with_labels=True))


def test_scores() -> None:
    answers = [{"labels": ["bad"]}, {"labels": []}, {"labels": ["late", "good"]}]
    rows = [{"labels": ["bad"]}, {"labels": ["good"]}, {"labels": ["late"]}]
    scores = TASK.score(answers, rows)
    assert scores["f1_micro"] == pytest.approx(2 * 2 / (3 + 3))
    assert scores["f1_macro"] == pytest.approx((1 + 0 + 1) / 3)
    assert scores["exact"] == pytest.approx(1 / 3)
