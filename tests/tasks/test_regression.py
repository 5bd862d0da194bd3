import pytest
import torch

from graftwork.tasks.regression import Regression
from graftwork.tasks.text import TextEncoder
from tests.tasks.vocabularies import tokenizer

SIMILARITY = Regression(max_length=64)


def test_one_text_or_two() -> None:
    encoder = TextEncoder(tokenizer("minilm"), 64)
    rows = [
        {"text": "a fox", "label": 1},
        {"text": "a fox", "text_pair": None, "label": 1},
        {"text": "a fox", "text_pair": "fox"},
    ]
    single, null, pair = (SIMILARITY.encode([row], encoder)[0] for row in rows)
    assert single == null
    assert list(pair.input_ids) == tokenizer("minilm")("a fox", "fox")["input_ids"]


def test_values_are_not_scaled() -> None:
    encoder = TextEncoder(tokenizer("minilm"), 64)
    encoded = SIMILARITY.encode([{"text": "a", "label": 4.75}, {"text": "b", "label": 3}], encoder, with_labels=True)
    labels = encoder.pad(encoded)["labels"]
    assert labels.dtype == torch.float32
    assert labels.tolist() == [4.75, 3.0]
    assert SIMILARITY.decode(torch.tensor([4.75]), encoded[0]) == {"value": 4.75}


def test_scores_and_the_main_one() -> None:
    rows = [{"text": "a", "label": label} for label in (1, 2.0, 3.0)]
    scores = SIMILARITY.score([{"value": 2.0}, {"value": 4.0}, {"value": 6.0}], rows)
    assert scores == pytest.approx({"pearson": 1.0, "spearman": 1.0, "mse": (1 + 4 + 9) / 3})
    assert SIMILARITY.main_score == "pearson"


@pytest.mark.parametrize("label", ["3.5", None, True, float("nan"), float("inf")])
def test_a_label_must_be_a_finite_number(label: object) -> None:
    (problem,) = SIMILARITY.problems({"text": "a", "label": label}, with_labels=True)
    assert problem == f'"label" is {label!r} ({type(label).__name__}); it must be a finite number'


def test_a_second_text_must_be_a_text() -> None:
    assert SIMILARITY.problems({"text": "a", "text_pair": 3}, with_labels=False) == [
        '"text_pair" is 3 (int); it must be a string'
    ]
