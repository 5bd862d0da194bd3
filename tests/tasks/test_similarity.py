"""Sentence embeddings: one text or two, what pairs learn from, and the scores of nearness."""

import pytest
import torch

from graftwork.errors import AdapterError
from graftwork.tasks.similarity import Similarity
from graftwork.tasks.text import TextEncoder
from tests.tasks.vocabularies import tokenizer

TASK, ENCODER = Similarity((), 32), TextEncoder(tokenizer("minilm"), 32)


def test_what_pairs_learn_from() -> None:
    rows = [{"text": "a", "text_pair": "b"}, {"text": "c", "text_pair": "b"}, {"text": "a", "text_pair": "d"}]
    one, same, other = TASK.encode(rows, ENCODER, with_labels=True)
    assert one.labels == same.labels != other.labels
    assert ENCODER.pad([one, other])["labels"].dtype == torch.long
    (scored,) = TASK.encode([{"text": "a", "text_pair": "b", "label": 1}], ENCODER, with_labels=True)
    assert scored.labels == 1.0
    assert [part.input_ids for part in one.parts] == [ENCODER.text("a").input_ids, ENCODER.text("b").input_ids]


def test_one_text_is_a_vector_and_two_have_a_similarity() -> None:
    (alone,), (pair,) = TASK.encode([{"text": "a"}], ENCODER), TASK.encode([{"text": "a", "text_pair": "b"}], ENCODER)
    assert TASK.decode(torch.tensor([0.6, 0.8]), alone) == {"embedding": pytest.approx([0.6, 0.8])}
    found = TASK.decode(torch.tensor([[3.0, 4.0], [4.0, 3.0]]), pair)
    assert found["similarity"] == pytest.approx(24 / 25)
    with pytest.raises(AdapterError, match="the head answers with shape"):
        TASK.decode(torch.zeros(2), pair)


def test_scores() -> None:
    rows = [{"text_pair": "x", "label": 0.1}, {"text_pair": "y", "label": 0.5}, {"text_pair": "z", "label": 0.9}]
    scores = TASK.score([{"similarity": s} for s in (0.0, 0.2, 0.9)], rows)
    assert scores["nearness"] == scores["spearman"] == pytest.approx(1.0)
    unit = torch.eye(3)
    pairs = [(unit[0], unit[0]), (unit[1], unit[2]), (unit[2], unit[2])]
    answers = [{"embeddings": [a.tolist(), b.tolist()]} for a, b in pairs]
    bare = [{"text_pair": "x"}, {"text_pair": "y"}, {"text_pair": "z"}]
    assert TASK.score(answers, bare) == {"nearness": pytest.approx(1 / 3), "retrieval": pytest.approx(1 / 3)}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"text": "a"}, 'has no "text_pair"'),
        ({"text": "a", "text_pair": "b", "label": 2}, "it must be a number from -1 to 1"),
        ({"text": "a", "text_pair": "b", "label": True}, "it must be a number from -1 to 1"),
        ({"text": "a", "text_pair": 3}, '"text_pair" is 3 (int)'),
    ],
)
def test_what_is_refused(row: dict[str, object], problem: str) -> None:
    assert any(problem in found for found in TASK.problems(row, with_labels=True))
