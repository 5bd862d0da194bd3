"""Heads of every kind on a model: AdapterHub's methods, questions of several texts, mixed batches, tied decoders."""

from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import T5ForConditionalGeneration

from graftwork.compose.tree import Parallel
from graftwork.errors import AdapterError
from graftwork.model import AdapterModel
from tests import tiny
from tests.adapted import adapted, last, shaken

GIVEN = tiny.inputs("bert", rows=6)


@pytest.fixture
def model() -> AdapterModel:
    """Adapters a and b; heads of many kinds, named by their kind."""
    made = adapted()
    made.add_classification_head("classes", 3, 2, "relu", False, False, {0: "x", 1: "y", 2: "z"})
    made.add_classification_head("labels", num_labels=4, multilabel=True)
    made.add_classification_head("pooled", num_labels=2, layers=1, use_pooler=True)
    made.add_classification_head("number", num_labels=1)
    made.add_tagging_head("tags", 5)
    made.add_qa_head("span")
    made.add_multiple_choice_head("choice", num_choices=3)
    made.add_dependency_parsing_head("tree", 4)
    made.add_masked_lm_head("words")
    made.add_embedding_head("vector")
    shaken(made.parts, 3)
    return made.eval()


def test_what_each_method_adds(model: AdapterModel) -> None:
    kinds = {name: (config.kind, config.num_outputs) for name, config in model.parts.head_configs.items()}
    assert kinds == {
        "classes": ("classification", 3),
        "labels": ("multilabel_classification", 4),
        "pooled": ("classification", 2),
        "number": ("regression", 1),
        "tags": ("tagging", 5),
        "span": ("question_answering", 2),
        "choice": ("multiple_choice", 3),
        "tree": ("dependency_parsing", 4),
        "words": ("masked_lm", tiny.VOCABULARY),
        "vector": ("sentence_embedding", tiny.WIDTH),
    }
    assert model.parts.head_configs["classes"].labels == ("x", "y", "z")
    assert model.parts.head_configs["pooled"].pooling == "pooler"
    with pytest.raises(AdapterError, match="head 'tags' is already there"):
        model.add_tagging_head("tags")
    model.add_tagging_head("tags", 2, 1, "tanh", True)
    assert model(**GIVEN, adapters="a", head="tags").logits.shape == (6, 7, 2)


def test_a_pooler_is_the_bases_own(model: AdapterModel) -> None:
    base: Any = model.base
    linear: Any = model.parts.head("pooled").layers[1]  # type: ignore[index, union-attr]
    pooled = base.pooler(last(model(**GIVEN, adapters="a", head="none")))
    expected = pooled @ linear.weight.T + linear.bias
    torch.testing.assert_close(model(**GIVEN, adapters="a", head="pooled").logits, expected)
    bare = AdapterModel(type(base)(base.config, add_pooling_layer=False))
    bare.add_classification_head("pooled", use_pooler=True)
    with pytest.raises(AdapterError, match="needs a base with a pooler of its own"):
        bare(**GIVEN, adapters=None, head="pooled")


def test_one_batch_of_many_kinds(model: AdapterModel) -> None:
    heads = ["classes", "tags", "span", "classes", "words", "labels"]
    labels = {
        "classes": torch.tensor([2, 0]),
        "tags": torch.randint(0, 5, (1, 7)),
        "span": torch.tensor([[1, 3]]),
        "labels": torch.tensor([[1, 0, 0, 1]]),
    }
    rows = ["a", "b", None, "b", "a", "a"]
    output = model(**GIVEN, adapters=rows, head=heads, labels=labels)
    shapes = {group.head: (group.rows.tolist(), tuple(group.logits.shape)) for group in output.groups}
    assert shapes == {
        "classes": ([0, 3], (2, 3)),
        "tags": ([1], (1, 7, 5)),
        "span": ([2], (1, 7, 2)),
        "words": ([4], (1, 7, tiny.VOCABULARY)),
        "labels": ([5], (1, 4)),
    }
    assert (output.logits, output.start_logits, output.outputs) == (None, None, {})
    total = torch.zeros(())
    for group in output.groups:
        for place, row in enumerate(group.rows.tolist()):
            one = {key: value[row : row + 1] for key, value in GIVEN.items()}
            alone = model(**one, adapters=rows[row], head=group.head)
            torch.testing.assert_close(group.logits[place], alone.logits[0], rtol=1e-4, atol=1e-5)
        if group.head in labels:
            assert group.loss is not None
            torch.testing.assert_close(group.loss, model.parts.head(group.head).loss(group.logits, labels[group.head]))
            total = total + group.loss
    torch.testing.assert_close(output.loss, total)
    assert {"start_logits", "end_logits"} == set(output.groups[2].outputs)
    with pytest.raises(AdapterError, match="labels for choice: the heads that answer are classes, tags"):
        model(**GIVEN, adapters=rows, head=heads, labels={"choice": torch.zeros(1)})


def test_the_span_of_an_answer(model: AdapterModel) -> None:
    start, end = torch.tensor([1, 2, 0, 6, 3, 3]), torch.tensor([2, 2, 99, 6, 5, 4])
    output = model(**GIVEN, adapters="a", head="span", start_positions=start, end_positions=end)
    assert torch.equal(output.logits[..., 0], output.start_logits)
    known = end < 7
    expected = functional.cross_entropy(output.start_logits, start)
    expected = (expected + functional.cross_entropy(output.end_logits[known], end[known])) / 2
    torch.testing.assert_close(output.loss, expected)
    together = model(**GIVEN, adapters="a", head="span", labels=torch.stack([start, end], -1))
    torch.testing.assert_close(together.loss, expected)
    with pytest.raises(AdapterError, match="labels are start_positions and end_positions together, or labels alone"):
        model(**GIVEN, adapters="a", head="span", start_positions=start)


def test_a_question_with_several_texts(model: AdapterModel) -> None:
    ids = GIVEN["input_ids"].view(2, 3, 7)
    mask = torch.ones_like(ids)
    mask[:, 1, 4:] = 0
    labels = torch.tensor([2, 0])
    output = model(ids, mask, adapters=["a", None], head="choice", labels=labels)
    assert output.logits.shape == (2, 3)
    torch.testing.assert_close(output.loss, functional.cross_entropy(output.logits, labels))
    flat = model(ids.view(6, 7), mask.view(6, 7), adapters=["a"] * 3 + [None] * 3, head="choice")
    torch.testing.assert_close(output.logits, flat.logits)
    alone = model(ids[1:], mask[1:], adapters=None, head="choice")
    torch.testing.assert_close(output.logits[1:], alone.logits, rtol=1e-4, atol=1e-5)
    mixed = model(ids.view(6, 7), mask.view(6, 7), adapters="a", head=["classes"] * 3 + ["choice"] * 3)
    assert [(group.rows.tolist(), tuple(group.logits.shape)) for group in mixed.groups] == [
        ([0, 1, 2], (3, 3)),
        ([3], (1, 3)),
    ]
    doubled = model(ids, mask, adapters=Parallel("a", "b"), head="choice", labels=labels)
    assert doubled.logits.shape == (4, 3)
    torch.testing.assert_close(doubled.loss, functional.cross_entropy(doubled.logits, labels.repeat(2)))
    assert model(ids, mask, adapters="a", head="vector").logits.shape == (2, 3, tiny.WIDTH)
    with pytest.raises(AdapterError, match="6 rows, 2 a question, for a head of 3 choices"):
        model(ids.view(3, 2, 7), adapters="a", head="choice")


def test_words_of_a_parse_come_along_by_row(model: AdapterModel) -> None:
    starts = torch.tensor([[1, 3, 5, 6]]).repeat(6, 1)
    starts[2] = torch.tensor([1, 2, 4, -1])
    labels = torch.full((6, 3, 2), -100)
    labels[:, 0] = torch.tensor([2, 1])
    output = model(**GIVEN, word_starts=starts, adapters="a", head="tree", labels=labels)
    assert output.arc_preds.shape == (6, 7, 8)
    assert output.rel_preds.shape == (6, 7, 8, 4)
    assert output.loss > 0
    alone = model(GIVEN["input_ids"][2:3], word_starts=starts[2:3], adapters="a", head="tree")
    torch.testing.assert_close(output.arc_preds[2], alone.arc_preds[0], rtol=1e-4, atol=1e-5)
    mixed = model(**GIVEN, word_starts=starts, adapters="a", head=["tags", "tags", "tree", "tags", "tags", "tags"])
    torch.testing.assert_close(mixed.groups[1].outputs["rel_preds"][0], output.rel_preds[2], rtol=1e-4, atol=1e-5)
    with pytest.raises(AdapterError, match="dependency_parsing needs word_starts"):
        model(**GIVEN, adapters="a", head="tree")


def test_a_sequence_to_sequence_head_says_what_t5_says() -> None:
    torch.manual_seed(0)
    whole = T5ForConditionalGeneration(tiny.model("t5").config).eval()
    given = tiny.inputs("t5", rows=3)["input_ids"]
    labels = torch.randint(3, tiny.VOCABULARY, (3, 4))
    labels[1, 2:] = -100
    expected = whole(input_ids=given, labels=labels)
    trunk = type(tiny.model("t5"))(whole.config).eval()
    trunk.load_state_dict(whole.state_dict(), strict=False)
    model = AdapterModel(trunk)
    model.add_seq2seq_lm_head("said")
    assert list(model.parts.tensors("heads", "said")) == []
    output = model(given, labels=labels, adapters=None, head="said")
    torch.testing.assert_close(output.logits, expected.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.loss, expected.loss, rtol=1e-4, atol=1e-5)


def test_the_last_end_of_a_text_stands_for_it_in_an_encoder_decoder() -> None:
    model = adapted("bart")
    model.add_classification_head("end", pooling="eos", layers=1)
    shaken(model.parts, 3)
    ids = torch.tensor([[5, 6, 2, 7, 2, 1], [8, 2, 9, 9, 2, 2]])
    hidden = last(model(ids, adapters="a", head="none"))
    linear: Any = model.parts.head("end").layers[1]  # type: ignore[index, union-attr]
    expected = torch.stack([hidden[0, 4], hidden[1, 5]]) @ linear.weight.T + linear.bias
    torch.testing.assert_close(model(ids, adapters="a", head="end").logits, expected)


def test_an_image() -> None:
    model = adapted("vit")
    model.add_image_classification_head("a", 3)
    labels = torch.tensor([2, 0])
    output = model(**tiny.inputs("vit"), adapters="a", labels=labels)
    torch.testing.assert_close(output.loss, functional.cross_entropy(output.logits, labels))
