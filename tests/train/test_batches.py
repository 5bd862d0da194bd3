"""Batches of tokenised rows: what `TextEncoder.pad` makes of the same rows, for every task and vocabulary."""

from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from graftwork.tasks.kinds import task_class
from graftwork.tasks.text import TextEncoder
from graftwork.train.batches import EncodedRows, _Lists, as_it_is
from graftwork.train.sampler import LengthGroupedSampler
from tests.tasks import vocabularies
from tests.train import small

WORDS = st.lists(st.sampled_from([*small.GOOD, *small.FILLERS]), min_size=1, max_size=12)
LABELS = {
    "classification": ("a", "b"),
    "pair": ("a", "b"),
    "regression": (),
    "tagging": ("O", "B-x"),
    "multilabel": ("a", "b", "c"),
    "multiple_choice": ("0", "1"),
    "question_answering": (),
    "dependency_parsing": ("O", "B-x"),
    "causal_lm": (),
    "seq2seq_lm": (),
    "similarity": (),
}


def row_of(kind: str, words: list[str]) -> dict[str, Any]:
    text = " ".join(words)
    return {
        "classification": {"text": text, "label": "ab"[len(words) % 2]},
        "pair": {"text": text, "text_pair": text[: len(text) // 2] + "x", "label": "b"},
        "regression": {"text": text, "label": len(words) / 3},
        "tagging": {"tokens": words, "tags": ["O" if len(word) % 2 else "B-x" for word in words]},
        "multilabel": {"text": text, "labels": list("abc"[: len(words) % 4])},
        "multiple_choice": {"text": words[0], "choices": [text, words[-1]], "label": len(words) % 2},
        "question_answering": {"text": words[0], "text_pair": text, "answers": words[-1:]},
        "dependency_parsing": {
            "tokens": words,
            "heads": [0, *[1] * (len(words) - 1)],
            "tags": ["O" if len(word) % 2 else "B-x" for word in words],
        },
        "causal_lm": {"text": text},
        "seq2seq_lm": {"text": text, "target": words[-1]},
        "similarity": {"text": text, "text_pair": words[-1]},
    }[kind]


@pytest.mark.parametrize("kind", sorted(LABELS))
@pytest.mark.parametrize("vocabulary", ["minilm", "gpt2", "xlmr"])
@given(texts=st.lists(WORDS, min_size=1, max_size=6), data=st.data())
def test_a_batch_is_what_the_encoder_pads(
    kind: str, vocabulary: str, texts: list[list[str]], data: st.DataObject
) -> None:
    encoder = TextEncoder(vocabularies.tokenizer(vocabulary), 16, "truncate")
    task = task_class(kind)(labels=LABELS[kind], max_length=16)
    rows = task.encode([row_of(kind, words) for words in texts], encoder, with_labels=True)
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=8))
    batch, expected = EncodedRows(rows, encoder).__getitems__(chosen), encoder.pad([rows[row] for row in chosen])
    assert batch.keys() == expected.keys()
    for field, tensor in expected.items():
        assert batch[field].dtype == tensor.dtype
        assert torch.equal(batch[field], tensor), field


def test_lists_of_which_the_last_is_empty_are_gathered() -> None:
    lists = _Lists([((1, 2), (0, 1)), ()], -100)
    assert lists.gather(numpy.array([0, 1])).tolist() == [[[1, 2], [0, 1]], [[-100, -100], [-100, -100]]]
    assert _Lists([(), (7,), ()], 0).gather(numpy.array([2, 1, 0])).tolist() == [[0], [7], [0]]


def test_a_loader_hands_out_batches_whole() -> None:
    encoder = TextEncoder(small.tokenizer(), 32)
    task = task_class("classification")(labels=("bad", "good"), max_length=32)
    encoded = task.encode(small.texts(5), encoder, with_labels=True)
    rows = EncodedRows(encoded, encoder)
    batches = list(DataLoader(rows, batch_size=2, collate_fn=as_it_is))
    assert [len(batch["labels"]) for batch in batches] == [2, 2, 1]
    assert len(rows) == 5
    assert rows.lengths.tolist() == [row.length for row in encoded]
    assert torch.equal(rows[4]["input_ids"], batches[2]["input_ids"])


def test_masked_rows_are_others_in_every_epoch_and_whole_between() -> None:
    tokenizer = small.tokenizer()
    tokenizer.mask_token = "[UNK]"
    encoder, task = TextEncoder(tokenizer, 32), task_class("masked_lm")((), 32)
    texts = [{"text": " ".join([*small.GOOD, *small.FILLERS] * 2)[:60]}, {"text": "the film"}]
    rows = EncodedRows(task.encode(texts, encoder, with_labels=True), encoder, task.redraw(encoder, 7))
    plain = encoder.pad([encoder.text(row["text"]) for row in texts])["input_ids"]
    seen = []
    for epoch in (0, 1, 0):
        rows.set_epoch(epoch)
        batch = rows.__getitems__([0, 1])
        told = batch["labels"] != -100
        assert torch.equal(torch.where(told, batch["labels"], batch["input_ids"]), plain)
        seen.append(batch["labels"])
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[1])
    sampler = LengthGroupedSampler([1, 1], 1, 0, told=rows.set_epoch)
    sampler.set_epoch(1)
    assert torch.equal(rows.__getitems__([0, 1])["labels"], seen[1])
