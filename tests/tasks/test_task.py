"""Laws that every kind of task keeps; a new row in TASKS needs an example here and is then tested."""

from dataclasses import FrozenInstanceError, replace
from io import BytesIO
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from graftwork.errors import AdapterError, DataError, GraftworkError, InputTooLong
from graftwork.tasks.kinds import TASKS
from graftwork.tasks.task import SHOWN, Task
from graftwork.tasks.text import TextEncoder
from tests.tasks.vocabularies import NAMES, tokenizer


def png(colour: str) -> bytes:
    file = BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    return file.getvalue()


ROWS: dict[str, list[dict[str, Any]]] = {
    "classification": [
        {"text": "the parcel is late", "label": "complaint"},
        {"text": "मेरा पैकेज", "label": "question"},
        {"text": "thanks!", "label": "thanks"},
    ],
    "pair": [
        {"text": "a fox", "text_pair": "the fox ships", "label": "same"},
        {"text": "a fox", "text_pair": "", "label": "other"},
    ],
    "regression": [
        {"text": "a fox", "text_pair": "the fox", "label": 4.5},
        {"text": "a fox", "label": 1},
    ],
    "tagging": [
        {
            "tokens": ["Asha", "lives", "at", "12/4", "Pune", "411001"],
            "tags": ["B-PER", "O", "O", "B-NO", "B-LOC", "I-LOC"],
        },
        {"tokens": ["", "Pune", "\x00", "!"], "tags": ["O", "B-LOC", "O", "O"]},
    ],
    "multilabel": [
        {"text": "the parcel is late", "labels": ["late", "bad"]},
        {"text": "thanks!", "labels": []},
    ],
    "multiple_choice": [
        {"text": "the fox", "choices": ["ships", "a parcel", "to Pune"], "label": 1},
        {"text": "मेरा", "choices": ["पैकेज", "अभी", "तक"], "label": "0"},
    ],
    "question_answering": [
        {"text": "who", "text_pair": "Asha lives at Pune", "answers": ["Asha", "Asha lives"]},
        {"text": "where", "text_pair": "Asha lives at Pune", "answers": [{"text": "Pune", "start": 14}]},
    ],
    "dependency_parsing": [
        {"tokens": ["the", "quick", "fox"], "heads": [3, 3, 0], "tags": ["part", "part", "root"]},
    ],
    "masked_lm": [{"text": "the quick brown fox ships a parcel"}],
    "causal_lm": [{"text": "the quick brown fox ships a parcel"}],
    "seq2seq_lm": [
        {"text": "the quick brown fox", "target": "a parcel to Pune"},
        {"text": "a fox", "target": "thanks!"},
    ],
    "image_classification": [{"image": png("red"), "label": "red"}, {"image": png("blue"), "label": "blue"}],
    "similarity": [
        {"text": "a fox", "text_pair": "the fox"},
        {"text": "a parcel", "text_pair": "late deliveries"},
    ],
}
LABELS = {
    "classification": ("complaint", "question", "thanks"),
    "pair": ("other", "same"),
    "regression": (),
    "tagging": ("B-LOC", "B-NO", "B-PER", "I-LOC", "O"),
    "multilabel": ("bad", "good", "late"),
    "multiple_choice": ("0", "1", "2"),
    "question_answering": (),
    "dependency_parsing": ("part", "root"),
    "masked_lm": (),
    "causal_lm": (),
    "seq2seq_lm": (),
    "image_classification": ("blue", "red"),
    "similarity": (),
}
KINDS = sorted(TASKS)
TEXTUAL = [kind for kind in KINDS if not TASKS[kind].reads_images]
CLASSIC = ["classification", "pair", "regression", "tagging"]  # whose heads answer with one list of numbers a row


def task(kind: str) -> Task:
    return TASKS[kind](LABELS[kind], 64)


def encoder(name: str = "minilm", max_length: int = 64, too_long: str = "refuse") -> TextEncoder:
    return TextEncoder(tokenizer(name), max_length, too_long)  # type: ignore[arg-type]


def unlabelled(row: dict[str, Any]) -> dict[str, Any]:
    return {
        field: value for field, value in row.items() if field not in ("label", "tags", "labels", "answers", "heads")
    }


def logits_for(one: Task, row: dict[str, Any], encoded: Any) -> torch.Tensor:
    """What a perfect head would answer to a row, with noise wherever nothing should look."""
    target = one.target(row, encoded)
    if isinstance(target, float):
        return torch.tensor([target])
    if isinstance(target, int):
        return torch.nn.functional.one_hot(torch.tensor(target), len(one.labels)).float() * 9
    logits = torch.randn(len(target) + 3, len(one.labels), generator=torch.Generator().manual_seed(0))  # 3 of padding
    for piece, label in enumerate(target):
        if label >= 0:
            logits[piece] = torch.eye(len(one.labels))[label] * 9
    return logits


def test_every_kind_has_an_example() -> None:
    assert sorted(ROWS) == sorted(LABELS) == KINDS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_serving_sees_the_features_of_training(kind: str, name: str) -> None:
    one = task(kind)
    if kind == "masked_lm" and tokenizer(name).mask_token is None:
        with pytest.raises(DataError, match="masked_lm: the tokenizer has no mask"):
            one.encode(ROWS[kind], encoder(name))
        return
    trained = one.encode(ROWS[kind], encoder(name), with_labels=True)
    served = [one.encode([unlabelled(row)], encoder(name))[0] for row in ROWS[kind]]
    assert [replace(row, labels=None) for row in trained] == served
    assert all(row.labels is not None for row in trained)


@pytest.mark.parametrize("kind", CLASSIC)
@pytest.mark.parametrize("name", NAMES)
def test_perfect_logits_decode_to_the_labels_and_score_one(kind: str, name: str) -> None:
    one = task(kind)
    encoded = one.encode(ROWS[kind], encoder(name))
    pairs = zip(ROWS[kind], encoded, strict=True)
    answers = [one.decode(logits_for(one, row, features), features) for row, features in pairs]
    scores = one.score(answers, ROWS[kind])
    assert scores[one.main_score] == pytest.approx(1.0)
    assert all(isinstance(value, float) for value in scores.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_comes_back_from_its_spec(kind: str) -> None:
    one = task(kind)
    assert one.spec.kind == kind
    assert TASKS[kind](labels=one.spec.labels, max_length=one.spec.max_length) == one
    head = one.head(dropout=0.1, pooling="last")
    assert (head.labels, head.dropout, head.activation) == (one.labels, 0.1, "tanh")
    assert head.num_outputs == (len(one.labels) or (2 if kind == "question_answering" else 1))
    assert (head.kind, head.layers, head.pooling) == {
        "classification": ("classification", 2, "last"),
        "pair": ("classification", 2, "last"),
        "regression": ("regression", 2, "last"),
        "tagging": ("tagging", 1, "none"),
        "multilabel": ("multilabel_classification", 2, "last"),
        "multiple_choice": ("multiple_choice", 2, "last"),
        "question_answering": ("question_answering", 1, "none"),
        "dependency_parsing": ("dependency_parsing", 1, "none"),
        "masked_lm": ("masked_lm", 2, "none"),
        "causal_lm": ("causal_lm", 2, "none"),
        "seq2seq_lm": ("seq2seq_lm", 1, "none"),
        "image_classification": ("image_classification", 1, "last"),
        "similarity": ("sentence_embedding", 0, "last"),
    }[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_is_plain_frozen_data(kind: str) -> None:
    one = task(kind)
    with pytest.raises(FrozenInstanceError):
        one.max_length = 3  # type: ignore[misc]
    assert hash(one) == hash(task(kind))


@pytest.mark.parametrize("kind", CLASSIC)
def test_all_problems_of_all_rows_come_at_once(kind: str) -> None:
    rows = [ROWS[kind][0], {"sentence": 1}, unlabelled(ROWS[kind][0])]
    with pytest.raises(DataError) as caught:
        task(kind).encode(rows, encoder(), with_labels=True)
    problems = caught.value.problems
    field = "tokens" if kind == "tagging" else "text"
    label = "tags" if kind == "tagging" else "label"
    assert problems[0].startswith(f'row 2: has no "{field}" (its fields: "sentence"); expected {{"')
    assert any(problem.startswith(f'row 2: has no "{label}"') for problem in problems)
    assert problems[-1].startswith(f'row 3: has no "{label}"')


@pytest.mark.parametrize("kind", KINDS)
def test_a_lone_row_is_not_numbered(kind: str) -> None:
    with pytest.raises(DataError, match=r"^has no "):
        task(kind).encode([{}], encoder())


@pytest.mark.parametrize("kind", TEXTUAL)
def test_text_that_no_tokenizer_can_read_is_refused(kind: str) -> None:
    bad = unlabelled(ROWS[kind][0]) | ({"tokens": ["a", "\ud800"]} if "tokens" in ROWS[kind][0] else {"text": "\ud800"})
    with pytest.raises(
        DataError, match=r"holds half a surrogate pair, '\\ud800', which is not a character; take it out"
    ):
        task(kind).encode([bad], encoder())
    bad = unlabelled(ROWS[kind][0]) | ({"tokens": ["a", 3]} if "tokens" in ROWS[kind][0] else {"text": 3})
    with pytest.raises(DataError, match=r'"(text|tokens)"(\[1\])? is 3 \(int\); it must be a string'):
        task(kind).encode([bad], encoder())


def test_long_lists_of_problems_are_counted() -> None:
    with pytest.raises(DataError) as caught:
        task("classification").encode([{"text": 1}] * 50, encoder())
    assert len(caught.value.problems) == SHOWN + 1
    assert caught.value.problems[-1] == "and 30 more problems like these"


def test_too_long_names_the_row() -> None:
    rows = [{"text": "fox"}, {"text": "fox " * 30}]
    with pytest.raises(InputTooLong, match=r"^row 2: the text has 32 pieces and the limit is 16"):
        task("classification").encode(rows, encoder(max_length=16))
    with pytest.raises(InputTooLong, match=r"^the text has 32 pieces"):
        task("classification").encode(rows[1:], encoder(max_length=16))


def test_a_row_without_pieces_is_named() -> None:
    with pytest.raises(DataError, match=r"^row 2: the text is empty for this tokenizer"):
        task("classification").encode([{"text": "a"}, {"text": ""}], encoder("gpt2"))


@pytest.mark.parametrize("kind", ["classification", "pair", "tagging"])
def test_labels_must_be_told_apart(kind: str) -> None:
    with pytest.raises(DataError, match=rf'^{kind}: listed more than once among the labels: "a"$'):
        TASKS[kind](labels=("a", "b", "a"))
    with pytest.raises(DataError, match=rf'^{kind}: needs at least two different labels and has 1: "a"$'):
        TASKS[kind](labels=("a",))


def test_regression_takes_no_labels() -> None:
    with pytest.raises(
        DataError, match='regression: answers with a number, so it takes no labels; it was given "a", "b"'
    ):
        TASKS["regression"](labels=("a", "b"))


@pytest.mark.parametrize("kind", CLASSIC)
def test_logits_of_another_head_are_refused(kind: str) -> None:
    one = task(kind)
    (encoded,) = one.encode([unlabelled(ROWS[kind][0])], encoder())
    outputs = len(one.labels) or 1
    shape = (len(encoded.input_ids), outputs) if kind == "tagging" else (outputs,)
    with pytest.raises(
        AdapterError, match=rf"the head answers with shape .*; the task needs {outputs} outputs at the end"
    ):
        one.decode(torch.zeros(*shape[:-1], outputs + 1), encoded)
    with pytest.raises(AdapterError, match="the head answers with shape"):
        one.decode(torch.zeros(2, *shape), encoded)
    with pytest.raises(GraftworkError, match="not finite"):
        one.decode(torch.full(shape, float("nan")), encoded)
    whole = one.decode(torch.zeros(shape), encoded)
    assert one.decode(numpy.zeros(shape), encoded) == whole
    assert one.decode(torch.zeros(shape, dtype=torch.bfloat16), encoded) == whole
