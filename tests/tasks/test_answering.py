"""Question answering: spans of the context as pieces and back, for every vocabulary, and SQuAD's scores."""

from typing import Any

import pytest
import torch

from graftwork.tasks.answering import LONGEST, Answering
from graftwork.tasks.encoded import IGNORED
from graftwork.tasks.metrics import answer_scores
from graftwork.tasks.text import TextEncoder
from tests.tasks.vocabularies import NAMES, tokenizer

TASK = Answering((), 64)
CONTEXT = "the quick brown fox ships a parcel to Hyderabad and Chennai, मेरा पैकेज"


def perfect(target: Any, pieces: int) -> torch.Tensor:
    logits = torch.zeros(pieces + 3, 2)  # three of padding
    logits[target[0], 0] = logits[target[1], 1] = 9
    return logits


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("answer", ["Hyderabad", "a parcel to Hyderabad", "Chennai", "पैकेज"])
def test_an_answer_goes_to_pieces_and_back(name: str, answer: str) -> None:
    row = {"text": "where to?", "text_pair": CONTEXT, "answers": [answer]}
    (encoded,) = TASK.encode([row], TextEncoder(tokenizer(name), 64), with_labels=True)
    found = TASK.decode(perfect(encoded.labels, len(encoded.input_ids)), encoded)
    assert found["answer"].strip() == answer
    assert CONTEXT[found["start"] : found["end"]] == found["answer"]
    assert TASK.score([found], [row]) == {"exact_match": 1.0, "f1": 1.0}


def test_the_best_span_is_forward_short_and_in_the_context() -> None:
    encoder = TextEncoder(tokenizer("minilm"), 128)
    (encoded,) = TASK.encode([{"text": "fox fox", "text_pair": "a " * 60}], encoder)
    real = [piece for piece, place in enumerate(encoded.offsets) if place]
    logits = torch.randn(len(encoded.input_ids), 2, generator=torch.Generator().manual_seed(0))
    logits[1] = 50  # of the question
    logits[real[0], 0] = logits[real[-1], 1] = 20  # too far apart, though each is best
    logits[real[40], 0] = logits[real[5], 1] = 25  # the wrong way round
    scores = {
        (first, last): float(logits[first, 0] + logits[last, 1])
        for first in real
        for last in real
        if first <= last < first + LONGEST
    }
    first, last = max(scores, key=lambda span: scores[span])
    found = TASK.decode(logits, encoded)
    assert (found["start"], found["end"]) == (encoded.offsets[first][0], encoded.offsets[last][1])  # type: ignore[index]


def test_no_answer() -> None:
    encoder = TextEncoder(tokenizer("minilm"), 64)
    (encoded,) = TASK.encode([{"text": "who", "text_pair": CONTEXT, "answers": []}], encoder, with_labels=True)
    assert encoded.labels == (0, 0)
    found = TASK.decode(perfect((0, 0), len(encoded.input_ids)), encoded)
    assert (found["answer"], found["start"], found["end"]) == ("", None, None)
    assert found["score"] > 0.99
    assert TASK.score([found], [{"answers": []}]) == {"exact_match": 1.0, "f1": 1.0}


def test_an_answer_that_was_cut_off_is_left_out() -> None:
    row = {"text": "where", "text_pair": CONTEXT, "answers": ["Chennai"]}
    (encoded,) = TASK.encode([row], TextEncoder(tokenizer("minilm"), 10, "truncate"), with_labels=True)
    assert encoded.labels == (IGNORED, IGNORED)


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        (None, 'has no "answers"'),
        ("Pune", "it must be a list of texts"),
        (["Pune"], "'Pune', which does not stand in the context"),
        ([{"text": "fox", "start": 3}], "which does not stand in the context"),
    ],
)
def test_what_is_refused(answers: Any, problem: str) -> None:
    row = {"text": "where", "text_pair": CONTEXT} | ({} if answers is None else {"answers": answers})
    assert any(problem in found for found in TASK.problems(row, with_labels=True))


def test_squads_scores() -> None:
    scores = answer_scores(
        ["The quick, Fox!", "in Pune city", "", "x"], [["a quick fox"], ["Pune", "city of Pune"], ["y"], []]
    ).once()
    # equal after lower case, articles and punctuation; 2 words of 3 and 3 common (4/6); nothing; something for nothing
    assert scores == {"exact_match": 0.25, "f1": pytest.approx((1 + 2 * 2 / 6 + 0 + 0) / 4)}
