"""Dependency parsing: words and heads as pieces and back, words that are not read, attachment."""

import pytest
import torch

from graftwork.tasks.encoded import IGNORED
from graftwork.tasks.parse import Parsing
from graftwork.tasks.text import TextEncoder
from tests.tasks.vocabularies import NAMES, tokenizer

TASK = Parsing(("part", "root", "subject"), 64)
ROW = {
    "tokens": ["Asha", "lives", "", "at", "Hyderabad", "!"],
    "heads": [2, 0, 2, 5, 2, 2],
    "tags": ["subject", "root", "part", "part", "part", "part"],
}


@pytest.mark.parametrize("name", NAMES)
def test_heads_go_to_words_that_are_read_and_back(name: str) -> None:
    encoder = TextEncoder(tokenizer(name), 64)
    (encoded,) = TASK.encode([ROW], encoder, with_labels=True)
    first = encoded.first_pieces()
    assert encoded.word_starts[:-1] == tuple(first[word] for word in encoded.read)
    assert list(encoded.word_starts) == sorted(set(encoded.word_starts))
    pieces = len(encoded.input_ids)
    logits = torch.randn(pieces + 2, pieces + 3, 4, generator=torch.Generator().manual_seed(0))
    for place, (head, relation) in enumerate(encoded.labels):  # type: ignore[arg-type, misc]
        logits[place, head, -1] = logits[place, head, relation] = 9
    answer = TASK.decode(logits, encoded)
    read = [word for word in range(6) if word not in answer["unread"]]
    assert [answer["heads"][word] for word in read] == [ROW["heads"][word] for word in read]  # type: ignore[index]
    assert [answer["tags"][word] for word in read] == [ROW["tags"][word] for word in read]  # type: ignore[index]
    assert encoder.pad([encoded])["word_starts"].tolist() == [list(encoded.word_starts)]
    assert encoder.pad([encoded])["labels"].shape == (1, len(read), 2)


def test_a_head_that_is_not_read_is_left_out() -> None:
    row = {"tokens": ["fox", "", "ships"], "heads": [2, 0, 1], "tags": ["part", "root", "part"]}
    (encoded,) = TASK.encode([row], TextEncoder(tokenizer("minilm"), 64), with_labels=True)
    assert encoded.read == (0, 2)
    assert encoded.labels == ((IGNORED, 0), (1, 0))


def test_no_word_is_its_own_head() -> None:
    (encoded,) = TASK.encode([{"text": "fox ships"}], TextEncoder(tokenizer("minilm"), 64))
    logits = torch.zeros(5, 6, 4)
    logits[0, 1, -1] = logits[1, 2, -1] = 9
    logits[0, 2, -1] = logits[1, 1, -1] = 1
    assert TASK.decode(logits, encoded)["heads"] == [2, 1]


def test_attachment() -> None:
    answers = [{"heads": [2, 0, 2], "tags": ["a", "b", "c"]}, {"heads": [0], "tags": ["b"]}]
    rows = [{"heads": [2, 0, 1], "tags": ["x", "b", "c"]}, {"heads": [0], "tags": ["b"]}]
    assert TASK.score(answers, rows) == {"las": 0.5, "uas": 0.75}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"heads": [1]}, "it must be a list of 6 numbers"),
        ({"heads": [2, 0, 2, 5, 2, 7]}, '"heads" holds 7; a head is a word from 1 to 6, or 0'),
        ({"tags": ["part"] * 5}, "every token needs one tag"),
    ],
)
def test_what_is_refused(change: dict[str, object], problem: str) -> None:
    assert any(problem in found for found in TASK.problems({**ROW, **change}, with_labels=True))
