import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graftwork.errors import AdapterError
from graftwork.tasks.encoded import IGNORED
from graftwork.tasks.tag import Tagging
from graftwork.tasks.text import TextEncoder
from tests.tasks.vocabularies import NAMES, tokenizer

LABELS = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
NER = Tagging(LABELS, 512)
POS = Tagging(("ADJ", "NOUN", "X"), 512)

rows = st.lists(st.tuples(st.text(max_size=8), st.sampled_from(LABELS)), min_size=1, max_size=8)


def encoder(name: str = "minilm", max_length: int = 512, too_long: str = "refuse") -> TextEncoder:
    return TextEncoder(tokenizer(name), max_length, too_long)  # type: ignore[arg-type]


def logits(one: Tagging, target: tuple[int, ...]) -> torch.Tensor:
    """The head's answer that is right at every labelled piece and says the last label everywhere else."""
    last = len(one.labels) - 1
    return torch.eye(len(one.labels))[[last if label == IGNORED else label for label in target]] * 5


@given(st.sampled_from(NAMES), rows)
def test_the_first_piece_of_each_word_carries_its_tag(name: str, words: list[tuple[str, str]]) -> None:
    row = {"tokens": ["a", *(word for word, _ in words)], "tags": ["O", *(tag for _, tag in words)]}
    (encoded,) = NER.encode([row], encoder(name), with_labels=True)
    assert isinstance(encoded.labels, tuple)
    first = encoded.first_pieces()
    assert {piece for piece, label in enumerate(encoded.labels) if label != IGNORED} == set(first.values())
    assert all(LABELS[encoded.labels[piece]] == row["tags"][word] for word, piece in first.items())


@given(st.sampled_from(NAMES), rows)
def test_perfect_logits_give_the_tags_back(name: str, words: list[tuple[str, str]]) -> None:
    row = {"tokens": ["a", *(word for word, _ in words)], "tags": ["O", *(tag for _, tag in words)]}
    (encoded,) = NER.encode([row], encoder(name), with_labels=True)
    answer = NER.decode(logits(NER, encoded.labels), encoded)  # type: ignore[arg-type]
    assert answer["tokens"] == row["tokens"]
    read = [tag if word not in answer["unread"] else "O" for word, tag in enumerate(row["tags"])]
    assert answer["tags"] == read
    assert sorted({*answer["unread"], *encoded.first_pieces()}) == list(range(len(row["tokens"])))


@pytest.mark.parametrize("name", NAMES)
def test_words_without_pieces_shift_nothing(name: str) -> None:
    row = {"tokens": ["", "Pune", "", "", "Asha"], "tags": ["O", "B-LOC", "O", "O", "B-PER"]}
    (encoded,) = NER.encode([row], encoder(name), with_labels=True)
    answer = NER.decode(logits(NER, encoded.labels), encoded)  # type: ignore[arg-type]
    assert answer["tags"] == row["tags"]
    assert answer["unread"] == [0, 2, 3]
    assert [entity["text"] for entity in answer["entities"]] == ["Pune", "Asha"]


def test_control_characters_have_no_piece_in_bert() -> None:
    (encoded,) = NER.encode([{"tokens": ["\x00", "Pune", "\u200b"]}], encoder())
    assert list(encoded.first_pieces()) == [1]


def test_an_unread_word_without_an_o_gets_the_first_label() -> None:
    (encoded,) = POS.encode([{"tokens": ["", "fox"]}], encoder())
    answer = POS.decode(logits(POS, (IGNORED, 1, IGNORED)), encoded)
    assert answer == {"tokens": ["", "fox"], "tags": ["ADJ", "NOUN"], "unread": [0]}
    unsorted = Tagging(("B-LOC", "O"))
    answer = unsorted.decode(logits(unsorted, (IGNORED, 0, IGNORED)), encoded)
    assert answer["tags"] == ["O", "B-LOC"]


def test_words_cut_off_are_marked_and_count_in_the_score() -> None:
    row = {"tokens": ["Pune"] * 10, "tags": ["B-LOC"] * 10}
    (encoded,) = NER.encode([row], encoder(max_length=8, too_long="truncate"), with_labels=True)
    answer = NER.decode(logits(NER, encoded.labels), encoded)  # type: ignore[arg-type]
    kept = len(encoded.first_pieces())
    assert 0 < kept < 10
    assert encoded.cut > 0
    assert answer["tags"] == ["B-LOC"] * kept + ["O"] * (10 - kept)
    assert answer["unread"] == list(range(kept, 10))
    scores = NER.score([answer], [row])
    assert scores["recall"] == pytest.approx(kept / 10)
    assert scores["precision"] == 1.0


def test_raw_text_is_split_and_entities_have_their_place_in_it() -> None:
    text = "Ship to Asha  Rao, नई दिल्ली!"
    (encoded,) = NER.encode([{"text": text}], encoder())
    assert encoded.words is not None
    assert encoded.words.tokens == ["Ship", "to", "Asha", "Rao", ",", "नई", "दिल्ली", "!"]
    tags = dict(enumerate([0, 0, 3, 4, 0, 1, 2, 0]))
    target = [IGNORED] * len(encoded.input_ids)
    for word, piece in encoded.first_pieces().items():
        target[piece] = tags[word]
    answer = NER.decode(logits(NER, tuple(target)), encoded)
    assert answer["entities"] == [
        {"type": "PER", "text": "Asha  Rao", "start": 8, "end": 17},
        {"type": "LOC", "text": "नई दिल्ली", "start": 19, "end": 28},
    ]
    assert all(text[e["start"] : e["end"]] == e["text"] for e in answer["entities"])


def test_given_tokens_have_their_place_in_the_joined_text() -> None:
    (encoded,) = NER.encode([{"tokens": ["to", "New Delhi", "now"], "text": "ignored"}], encoder())
    target = [IGNORED] * len(encoded.input_ids)
    target[encoded.first_pieces()[1]] = 1
    for word in (0, 2):
        target[encoded.first_pieces()[word]] = 0
    (entity,) = NER.decode(logits(NER, tuple(target)), encoded)["entities"]
    assert entity == {"type": "LOC", "text": "New Delhi", "start": 3, "end": 12}


def test_labels_decide_what_is_scored() -> None:
    assert NER.main_score == "f1"
    assert POS.main_score == "accuracy"
    assert Tagging(("O", "B-A", "X")).main_score == "accuracy"
    row = {"tokens": ["red", "fox"], "tags": ["ADJ", "NOUN"]}
    assert POS.score([{"tags": ["ADJ", "X"]}], [row]) == {"accuracy": 0.5}
    ner = {"tokens": ["in", "Pune"], "tags": ["O", "B-LOC"]}
    assert NER.score([{"tags": ["O", "O"]}], [ner]) == {"f1": 0.0, "precision": 0.0, "recall": 0.0, "accuracy": 0.5}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, 'has 2 "tokens" and 1 "tags"; every token needs one tag'),
        (
            {"tokens": ["a"], "tags": ["B-ORG"]},
            '"tags" holds "B-ORG", not among the labels: "O", "B-LOC", "I-LOC", "B-PER", "I-PER"',
        ),
        ({"tokens": "a b", "tags": ["O"]}, "\"tokens\" is 'a b' (str); it must be a list of at least one string"),
        ({"tokens": [], "tags": []}, '"tokens" is [] (list); it must be a list of at least one string'),
        ({"tokens": ["a"], "tags": [1]}, '"tags"[0] is 1 (int); it must be a string'),
        (
            {"tokens": ["a"]},
            'has no "tags" (its fields: "tokens"); expected {"tokens", "tags"}, two lists of equal length',
        ),
    ],
)
def test_a_row_that_does_not_fit_is_named(row: dict[str, object], message: str) -> None:
    assert message in NER.problems(row, with_labels=True)


def test_a_row_with_nothing_to_ask_is_named() -> None:
    assert NER.problems({}, with_labels=False) == ['has no "text" (its fields: none); expected {"text"} or {"tokens"}']


def test_a_row_with_nothing_to_read_teaches_nothing_and_is_answered() -> None:
    row = {"tokens": ["\u0300", ""], "tags": ["O", "B-LOC"]}  # a lone accent, as MasakhaNER has one
    (encoded,) = NER.encode([row], encoder(), with_labels=True)
    assert encoded.labels == (IGNORED, IGNORED)
    answer = NER.decode(torch.zeros(2, 5), encoded)
    assert answer == {"tokens": ["\u0300", ""], "tags": ["O", "O"], "unread": [0, 1], "entities": []}


def test_an_answer_must_cover_the_row() -> None:
    (encoded,) = NER.encode([{"text": "Asha in Pune"}], encoder())
    with pytest.raises(AdapterError, match=r"the head answers for 2 pieces of a row that has \d"):
        NER.decode(torch.zeros(2, 5), encoded)
    with pytest.raises(ValueError, match="needs a row encoded as words"):
        NER.decode(torch.zeros(9, 5), encoder().text("Asha"))


@pytest.mark.shared
@pytest.mark.parametrize("name", ["minilm", "roberta"])
@pytest.mark.parametrize("data", ["wnut17", "il_ner/hi", "masakhaner2/yo", "ud_pos/ta"])
def test_real_rows_come_back_word_for_word(shared: Path, data: str, name: str) -> None:
    lines = (shared / "data" / data / "train.jsonl").read_text("utf8").splitlines()[:300]
    found = [json.loads(line) for line in lines]
    one = Tagging(tuple(sorted({tag for row in found for tag in row["tags"]})), 256)
    for row, encoded in zip(found, one.encode(found, encoder(name, 256, "truncate"), with_labels=True), strict=True):
        answer = one.decode(logits(one, encoded.labels), encoded)  # type: ignore[arg-type]
        assert answer["tokens"] == row["tokens"]
        read = [word for word in range(len(row["tokens"])) if word not in answer["unread"]]
        assert [answer["tags"][word] for word in read] == [row["tags"][word] for word in read]
