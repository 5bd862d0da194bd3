import torch

from graftwork.tasks.classify import Classification
from graftwork.tasks.pair import Pair
from graftwork.tasks.text import TextEncoder
from tests.tasks.vocabularies import tokenizer

SAME = Pair(("no", "yes"), 64)


def test_both_texts_go_in_as_one_sequence() -> None:
    row = {"text": "a fox", "text_pair": "the fox"}
    (encoded,) = SAME.encode([row], TextEncoder(tokenizer("minilm"), 64))
    assert list(encoded.input_ids) == tokenizer("minilm")("a fox", "the fox")["input_ids"]
    assert encoded.token_type_ids == (0, 0, 0, 0, 1, 1, 1)
    (swapped,) = SAME.encode([{"text": "the fox", "text_pair": "a fox"}], TextEncoder(tokenizer("minilm"), 64))
    assert swapped != encoded


def test_a_missing_second_text_is_named_with_the_form() -> None:
    assert SAME.problems({"text": "a", "label": "no"}, with_labels=True) == [
        'has no "text_pair" (its fields: "label", "text"); expected {"text", "text_pair", "label"}'
    ]


def test_classes_are_answered_as_in_classification() -> None:
    rows = [{"text": "a", "text_pair": "b", "label": label} for label in ("yes", "no")]
    one, single = SAME, Classification(SAME.labels, 64)
    encoded = one.encode(rows, TextEncoder(tokenizer("minilm"), 64), with_labels=True)
    assert [row.labels for row in encoded] == [1, 0]
    logits = torch.tensor([0.3, -0.2])
    assert one.decode(logits, encoded[0]) == single.decode(logits, encoded[0])
    answers = [{"label": "yes"}, {"label": "yes"}]
    assert one.score(answers, rows) == single.score(answers, rows)
    assert one.main_score == single.main_score == "accuracy"
