"""Which head answers which row, what comes back, and what the loss is."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from graftwork.compose.answer import AdapterOutput, HeadGroup
from graftwork.compose.tree import Average, BatchSplit, Fuse, Parallel, Stack
from graftwork.errors import AdapterError, CompositionError
from graftwork.model import AdapterModel
from tests import tiny
from tests.adapted import adapted, last, shaken

GIVEN = tiny.inputs("bert", rows=4)


@pytest.fixture
def model() -> AdapterModel:
    """Adapters l (no head), a and b (two labels), r (regression), t (tagging, three labels), a fusion ab."""
    model = adapted(adapters=["l", "a", "b", "r", "t"], heads=["a", "b"])
    model.add_regression_head("r")
    model.add_tagging_head("t", num_labels=3)
    model.add_adapter_fusion(Fuse("a", "b", name="ab"))
    shaken(model.parts.fusions, seed=8)
    return model


def answering(output: Any) -> list[str]:
    """The head of every row."""
    assert isinstance(output, AdapterOutput)
    heads = {int(row): group.head for group in output.groups for row in group.rows}
    return [heads[row] for row in range(len(heads))]


def test_the_head_named_in_the_call_answers(model: AdapterModel) -> None:
    output = model(**GIVEN, adapters=Stack("l", "a"), head="b")
    assert answering(output) == ["b"] * 4
    hidden = last(model(**GIVEN, adapters=Stack("l", "a"), head="none"))
    assert torch.equal(output.logits, model.parts.head("b")(hidden, None))


def test_else_the_top_of_a_stack_answers(model: AdapterModel) -> None:
    assert answering(model(**GIVEN, adapters=Stack("l", "a"))) == ["a"] * 4
    assert answering(model(**GIVEN, adapters=Stack("l", Stack("a", "b")))) == ["b"] * 4
    assert answering(model(**GIVEN, adapters="b")) == ["b"] * 4


def test_else_the_fusions_own_answers(model: AdapterModel) -> None:
    fuse = Fuse("a", "b", name="ab")
    with pytest.raises(AdapterError, match=r"which head answers Fuse\(a, b, name=ab\)\? None is named 'ab'"):
        model(**GIVEN, adapters=fuse)
    model.add_classification_head("ab", num_labels=5)
    assert answering(model(**GIVEN, adapters=fuse)) == ["ab"] * 4
    assert model(**GIVEN, adapters=Stack("l", fuse)).logits.shape == (4, 5)


def test_else_an_error_lists_the_heads(model: AdapterModel) -> None:
    message = (
        r"which head answers Average\(a, b\)\? None is named like it; say head=... with one of: a, b, r, t, or head"
    )
    with pytest.raises(AdapterError, match=message):
        model(**GIVEN, adapters=Average("a", "b"))
    with pytest.raises(AdapterError, match="no head 'z'; the heads are: a, b, r, t"):
        model(**GIVEN, adapters="a", head="z")


def test_the_active_head_is_a_default_of_the_active_setup_only(model: AdapterModel) -> None:
    model.set_active_adapters("a")
    assert model.active_head == "a"
    model.set_active_adapters("l")  # has no head of its own
    assert answering(model(**GIVEN)) == ["a"] * 4
    model.active_head = "r"
    assert answering(model(**GIVEN)) == ["r"] * 4
    model.set_active_adapters("b")
    model.active_head = "r"  # a setup with a head of its own is answered by that
    assert answering(model(**GIVEN)) == ["b"] * 4
    assert answering(model(**GIVEN, head="r")) == ["r"] * 4
    model.set_active_adapters("l")
    with pytest.raises(AdapterError, match="which head answers l"):
        model(**GIVEN, adapters="l")
    with pytest.raises(AdapterError, match="no head 'z'; the heads are: a, b, r, t"):
        model.active_head = "z"
    model.delete_head("r")
    assert model.active_head is None
    with pytest.raises(AdapterError, match="which head answers l"):
        model(**GIVEN)


def test_no_head_means_the_output_of_the_base(model: AdapterModel) -> None:
    model.set_active_adapters("a")
    output = model(**GIVEN, head="none")
    assert type(output).__name__ == "BaseModelOutputWithPoolingAndCrossAttentions"
    assert torch.equal(last(output), last(adapted(adapters=["l", "a"])(**GIVEN, head="none"))) is False
    bare = AdapterModel(tiny.model("bert"))
    assert torch.equal(last(bare(**GIVEN)), last(bare(**GIVEN, head="none")))


def test_a_head_on_the_frozen_base_alone(model: AdapterModel) -> None:
    plain = last(tiny.model("bert")(**GIVEN))
    output = model(**GIVEN, adapters=None, head="a")
    assert torch.equal(output.logits, model.parts.head("a")(plain, None))


def test_one_answer_a_row_a_number_a_row_one_answer_a_token(model: AdapterModel) -> None:
    assert model(**GIVEN, adapters="a").logits.shape == (4, 2)
    assert model(**GIVEN, adapters="r").logits.shape == (4, 1)
    assert model(**GIVEN, adapters="t").logits.shape == (4, 7, 3)


def test_losses_are_those_of_the_textbook(model: AdapterModel) -> None:
    labels = torch.tensor([0, 1, 1, 0])
    output = model(**GIVEN, adapters="a", labels=labels)
    torch.testing.assert_close(output.loss, functional.cross_entropy(output.logits, labels))
    scores = torch.tensor([0.5, -1.0, 2.0, 0.0])
    output = model(**GIVEN, adapters="r", labels=scores)
    torch.testing.assert_close(output.loss, (output.logits[:, 0] - scores).square().mean())
    tags = torch.randint(0, 3, (4, 7))
    tags[:, 0] = tags[2, 4:] = -100
    output = model(**GIVEN, adapters="t", labels=tags)
    kept = tags != -100
    torch.testing.assert_close(output.loss, functional.cross_entropy(output.logits[kept], tags[kept]))
    with pytest.raises(AdapterError, match=r"tagging labels of shape \(4, 6\) for logits \(4, 7, 3\)"):
        model(**GIVEN, adapters="t", labels=tags[:, 1:])


def test_rows_with_different_heads_come_back_as_groups_and_losses_are_summed(model: AdapterModel) -> None:
    labels = torch.tensor([0, 1, 1, 0])
    rows = ["a", "b", Stack("l", "a"), None]
    with pytest.raises(AdapterError, match="which head answers none"):
        model(**GIVEN, adapters=rows)
    output = model(**GIVEN, adapters=rows, head=[None, None, None, "r"], labels=labels)
    assert output.logits is None
    assert [(group.head, group.rows.tolist()) for group in output.groups] == [("a", [0, 2]), ("b", [1]), ("r", [3])]
    alone = []
    for group in output.groups:
        assert isinstance(group, HeadGroup)
        for row, logits in zip(group.rows.tolist(), group.logits, strict=True):
            one = {key: value[row : row + 1] for key, value in GIVEN.items()}
            single = model(**one, adapters=rows[row], head=group.head)
            torch.testing.assert_close(logits, single.logits[0], rtol=1e-5, atol=1e-5)
        chosen = labels[group.rows]
        expected = functional.cross_entropy(group.logits, chosen) if group.head != "r" else None
        alone.append(expected if expected is not None else (group.logits[:, 0] - chosen).square().mean())
    torch.testing.assert_close([group.loss for group in output.groups], alone)
    torch.testing.assert_close(output.loss, torch.stack(alone).sum())


def test_heads_of_rows_are_counted(model: AdapterModel) -> None:
    with pytest.raises(AdapterError, match="head= names 3 heads for a batch of 4 rows"):
        model(**GIVEN, adapters="a", head=["a", "b", "a"])
    with pytest.raises(CompositionError, match="adapters= names 3 compositions for a batch of 4 rows"):
        model(**GIVEN, adapters=["a", "b", "a"])
    with pytest.raises(AdapterError, match=r"rows \[1\] \(b\) have no head while others of the batch have one"):
        model(**GIVEN, adapters=["a", "b", "a", "a"], head=["a", "none", "a", "a"])


def test_batch_split_answers_with_the_head_of_each_row(model: AdapterModel) -> None:
    output = model(**GIVEN, adapters=BatchSplit("a", Stack("l", "b"), batch_sizes=[1, 3]))
    assert answering(output) == ["a", "b", "b", "b"]


def test_parallel_answers_with_one_head_a_branch(model: AdapterModel) -> None:
    labels = torch.tensor([0, 1, 1, 0])
    output = model(**GIVEN, adapters=Parallel("a", Stack("l", "b")), labels=labels)
    assert answering(output) == ["a"] * 4 + ["b"] * 4
    first, second = (model(**GIVEN, adapters=tree, labels=labels) for tree in ("a", Stack("l", "b")))
    for group, single in zip(output.groups, (first, second), strict=True):
        torch.testing.assert_close(group.logits, single.logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(group.loss, single.loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.loss, first.loss + second.loss, rtol=1e-5, atol=1e-5)


def test_parallel_with_one_head_gives_the_logits_of_all_branches(model: AdapterModel) -> None:
    labels = torch.tensor([0, 1, 1, 0])
    output = model(**GIVEN, adapters=Parallel("a", "b"), head="a", labels=labels)
    assert output.logits.shape == (8, 2)
    torch.testing.assert_close(output.loss, functional.cross_entropy(output.logits, labels.repeat(2)))
    per_row = model(**GIVEN, adapters=Parallel("a", "b"), head=["a", "b", "a", "b"])
    assert answering(per_row) == ["a", "b"] * 4  # a head named for a row answers each of its copies


def test_parallel_repeats_everything_that_has_rows_and_nothing_else(model: AdapterModel) -> None:
    mask = torch.ones(4, 7, dtype=torch.long)
    mask[1, 4:] = 0
    given = {**GIVEN, "attention_mask": mask, "position_ids": torch.arange(7).flip(0)[None]}
    output = model(**given, adapters=Parallel("a", "b"))
    for group, name in zip(output.groups, "ab", strict=True):
        torch.testing.assert_close(group.logits, model(**given, adapters=name).logits, rtol=1e-5, atol=1e-5)
    one = {key: value[:1] for key, value in GIVEN.items()}
    assert model(**one, adapters=Parallel("a", "b"), head="a").logits.shape == (2, 2)


def test_hidden_states_and_attentions_come_along(model: AdapterModel) -> None:
    model.base.set_attn_implementation("eager")
    output = model(**GIVEN, adapters="a", output_hidden_states=True, output_attentions=True)
    assert [tuple(state.shape) for state in output.hidden_states] == [(4, 7, 32)] * 4
    assert [tuple(weights.shape) for weights in output.attentions] == [(4, 4, 7, 7)] * 3
    hidden = last(model(**GIVEN, adapters="a", head="none"))
    assert torch.equal(output.hidden_states[-1], hidden)  # what the adapters changed is in it


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_decoder_answers_from_its_last_real_token(side: str) -> None:
    model = adapted("llama", adapters=["a"], heads=["a"])
    given = tiny.inputs("llama", rows=1, tokens=5)["input_ids"]
    padding = torch.zeros(1, 3, dtype=torch.long)
    parts: list[Tensor] = [padding, given] if side == "left" else [given, padding]
    padded = torch.cat(parts, dim=1)
    mask = (padded != 0).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    alone = model(given, torch.ones_like(given), adapters="a").logits
    torch.testing.assert_close(
        model(padded, mask, position_ids=positions, adapters="a").logits, alone, rtol=1e-4, atol=1e-5
    )


def test_the_penalty_of_a_fusion_is_part_of_the_training_loss_only() -> None:
    model = adapted(heads=["a,b"])
    model.add_adapter_fusion("a,b")
    shaken(model.parts.fusions, seed=8)
    labels = torch.tensor([0, 1, 1, 0])
    model.train_adapter_fusion("a,b")
    model.base.eval()  # no dropout, so that only the mode of the model tells the two losses apart
    model.parts.eval()
    assert model.training
    trained = model(**GIVEN, labels=labels)
    bare = functional.cross_entropy(trained.logits, labels)
    values = [p for name, p in model.parts.fusions.named_parameters() if name.endswith("value.weight")]
    assert len(values) == 3
    penalty = torch.stack([0.01 * (torch.eye(32) - v).square().sum() for v in values]).sum()
    torch.testing.assert_close(trained.loss, bare + penalty)
    assert penalty > 0.1
    model.eval()
    torch.testing.assert_close(model(**GIVEN, labels=labels).loss, bare)
    model.train_adapter("a")  # now the fusion is frozen: nothing pulls at it
    model.base.eval()
    model.parts.eval()
    torch.testing.assert_close(model(**GIVEN, adapters=Fuse("a", "b"), labels=labels).loss, bare)


def test_the_configuration_carries_the_labels_of_the_head_that_answers(model: AdapterModel) -> None:
    base = model.base.config
    before = base.to_dict()
    model.add_classification_head("c", id2label={0: "bad", 1: "fine", 2: "good"}, num_labels=3)
    model.add_adapter("c", set_active=True)
    config = model.config
    assert config.id2label == {0: "bad", 1: "fine", 2: "good"}
    assert config.label2id == {"bad": 0, "fine": 1, "good": 2}
    assert (config.num_labels, config.problem_type) == (3, None)
    model.set_active_adapters("r")
    assert (model.config.num_labels, model.config.problem_type) == (1, "regression")
    model.set_active_adapters("t")
    assert model.config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert base.to_dict() == before
    model.active_head = None
    model.set_active_adapters(None)
    assert model.config is base
