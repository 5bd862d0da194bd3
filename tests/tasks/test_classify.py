import math

import pytest
import torch

from graftwork.tasks.classify import Classification
from graftwork.tasks.text import TextEncoder
from tests.tasks.vocabularies import tokenizer

SENTIMENT = Classification(("negative", "positive"), 64)


def test_a_whole_number_counts_as_its_digits() -> None:
    one = Classification(("9", "10"), 64)
    (encoded,) = one.encode([{"text": "a", "label": 10}], TextEncoder(tokenizer("minilm"), 64), with_labels=True)
    assert encoded.labels == 1
    assert one.score([{"label": "10"}], [{"text": "a", "label": 10}])["accuracy"] == 1.0


def test_an_answer_holds_the_probabilities() -> None:
    (encoded,) = SENTIMENT.encode([{"text": "a fox"}], TextEncoder(tokenizer("minilm"), 64))
    answer = SENTIMENT.decode(torch.tensor([0.0, math.log(3)]), encoded)
    assert answer["label"] == "positive"
    assert answer["score"] == pytest.approx(0.75)
    assert answer["scores"] == pytest.approx({"negative": 0.25, "positive": 0.75})


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("neutral", '"label" is "neutral", which is not one of the labels: "negative", "positive"'),
        (1, '"label" is "1", which is not one of the labels: "negative", "positive"'),
        (None, '"label" is None (NoneType); a class is a string or a whole number'),
        (True, '"label" is True (bool); a class is a string or a whole number'),
        ("", "\"label\" is '' (str); a class is a string or a whole number"),
        (
            0.5,
            '"label" is 0.5 (float); a class is a string or a whole number; '
            'numbers to be predicted are task kind "regression"',
        ),
    ],
)
def test_a_label_that_does_not_fit_is_named(label: object, message: str) -> None:
    assert SENTIMENT.problems({"text": "a", "label": label}, with_labels=True) == [message]
    assert SENTIMENT.problems({"text": "a", "label": label}, with_labels=False) == []


def test_many_labels_are_cut_short_in_a_message() -> None:
    one = Classification(tuple(f"intent-{number}" for number in range(77)))
    (problem,) = one.problems({"text": "a", "label": "x"}, with_labels=True)
    assert problem.endswith('"intent-19" and 57 more')
