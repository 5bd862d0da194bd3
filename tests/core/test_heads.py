"""Heads: layout, pooling and losses against plain formulas, and what they refuse."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig

from graftwork.core.heads import Head, HeadConfig, labelled, labels_of, pool
from graftwork.core.heads_table import build_head
from graftwork.errors import AdapterError
from tests.rig import randomise

B, T, D = 3, 5, 8
RIGHT = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
LEFT = RIGHT.flip(1)


def hidden(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(B, T, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def head(**choices: Any) -> Head:
    options = {"kind": "classification", "num_outputs": 4, **choices}
    module = build_head(HeadConfig(**options), D).double().eval()
    randomise(module.parameters())
    return module


# -- pooling --


@pytest.mark.parametrize("mask", [RIGHT, LEFT, RIGHT.bool(), LEFT.float()])
def test_pooling_sees_real_tokens_only_wherever_padding_is(mask: Tensor) -> None:
    x = hidden()
    for row in range(B):
        real = [x[row, token] for token in range(T) if mask[row, token]]
        torch.testing.assert_close(pool(x, mask, "first")[row], real[0])
        torch.testing.assert_close(pool(x, mask, "last")[row], real[-1])
        torch.testing.assert_close(pool(x, mask, "mean")[row], torch.stack(real).mean(0))
    assert pool(x, mask, "none") is x


def test_pooling_without_a_mask() -> None:
    x = hidden()
    assert torch.equal(pool(x, None, "first"), x[:, 0])
    assert torch.equal(pool(x, None, "last"), x[:, -1])
    torch.testing.assert_close(pool(x, None, "mean"), x.mean(1))


def test_means_over_many_tokens_are_exact_in_half_precision() -> None:
    x, mask = torch.full((1, 1001, D), 200.0, dtype=torch.float16), torch.ones(1, 1001)  # sums to more than 65504
    assert torch.equal(pool(x, mask, "mean"), x[:, 0])
    assert pool(hidden(torch.float16), RIGHT, "mean").dtype == torch.float16


def test_a_row_without_real_tokens_does_not_divide_by_zero() -> None:
    assert torch.equal(pool(hidden(), torch.zeros(B, T), "mean"), torch.zeros(B, D, dtype=torch.float64))


# -- logits --


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_layout_is_linear_and_activation_in_turn(layers: int) -> None:
    module = head(layers=layers)
    x = hidden()[:, 0]
    linears = [child for child in module.layers if isinstance(child, nn.Linear)]
    assert len(linears) == layers
    for linear in linears[:-1]:
        x = torch.tanh(x @ linear.weight.T + linear.bias)
    expected = x @ linears[-1].weight.T + linears[-1].bias
    torch.testing.assert_close(module(hidden(), None), expected)
    assert expected.shape == (B, 4)
    positions = [key.split(".")[1] for key in module.state_dict() if key.endswith("weight")]
    assert positions == [str(1 + 3 * layer) for layer in range(layers)]  # dropout, linear, activation: AdapterHub's


def test_shapes_of_each_kind() -> None:
    assert head(pooling="last")(hidden(), LEFT).shape == (B, 4)
    assert head(kind="regression", num_outputs=1)(hidden(), None).shape == (B, 1)
    assert head(kind="tagging", pooling="none", layers=1)(hidden(), RIGHT).shape == (B, T, 4)


def test_a_head_follows_its_own_type() -> None:
    module = build_head(HeadConfig(kind="classification", num_outputs=2), D).to(torch.bfloat16)
    assert module(hidden(torch.float32), None).dtype == torch.bfloat16


def test_initial_weights_and_dropout() -> None:
    torch.manual_seed(0)
    module = build_head(HeadConfig(kind="classification", num_outputs=2, dropout=0.5), 400)
    assert float(module.layers[1].weight.detach().std()) == pytest.approx(0.02, rel=0.02)
    assert not module.layers[1].bias.any()
    x = torch.randn(2, 3, 400)
    assert not torch.equal(module(x, None), module(x, None))
    module.eval()
    assert torch.equal(module(x, None), module(x, None))


# -- losses --


def cross_entropy(logits: Tensor, label: int) -> float:
    return math.log(sum(math.exp(float(one)) for one in logits)) - float(logits[label])


def test_classification_is_the_mean_cross_entropy() -> None:
    logits = head()(hidden(), None).detach()
    expected = sum(cross_entropy(logits[row], row) for row in range(B)) / B
    module = head()
    for labels in (torch.arange(B), torch.arange(B)[:, None]):
        assert float(module.loss(logits, labels)) == pytest.approx(expected, rel=1e-6)
    some = (cross_entropy(logits[0], 0) + cross_entropy(logits[2], 2)) / 2
    assert float(module.loss(logits, torch.tensor([0, -100, 2]))) == pytest.approx(some, rel=1e-6)


def test_tagging_leaves_ignored_tokens_out() -> None:
    module = head(kind="tagging", pooling="none", layers=1)
    logits = module(hidden(), None).detach()
    labels = torch.tensor([[0, -100, 2, 3, -100], [-100] * 5, [1, 1, -100, -100, 0]])
    each = [cross_entropy(logits[b, t], int(labels[b, t])) for b in range(B) for t in range(T) if labels[b, t] >= 0]
    assert len(each) == 6
    assert float(module.loss(logits, labels)) == pytest.approx(sum(each) / 6, rel=1e-6)


def test_nothing_to_learn_from_is_a_loss_of_zero_not_nan() -> None:
    module = head(kind="tagging", pooling="none", layers=1)
    loss = module.loss(module(hidden(), None), torch.full((B, T), -100))
    assert float(loss.detach()) == 0
    loss.backward()
    assert all(not p.grad.any() for p in module.parameters() if p.grad is not None)


def test_regression_is_the_mean_squared_error() -> None:
    module = head(kind="regression", num_outputs=1)
    logits = module(hidden(), None).detach()
    labels = torch.tensor([0.5, -1.0, 3.0])
    expected = sum((float(logits[row, 0]) - float(labels[row])) ** 2 for row in range(B)) / B
    for given in (labels, labels[:, None], labels.double()):
        assert float(module.loss(logits, given)) == pytest.approx(expected, rel=1e-6)
    assert float(module.loss(logits, torch.tensor([1, 2, 3]))) > 0  # whole numbers are numbers


@pytest.mark.parametrize(
    ("kind", "labels", "message"),
    [
        (
            "classification",
            torch.zeros(2).long(),
            r"classification labels of shape \(2,\) for logits \(3, 4\); expected",
        ),
        ("classification", torch.zeros(B), "classification labels are label numbers, not torch.float32"),
        ("regression", torch.zeros(1), r"regression labels of shape \(1,\) for logits \(3, 1\); expected \(3,\)"),
        ("regression", torch.zeros(B, B), r"regression labels of shape \(3, 3\)"),
        (
            "tagging",
            torch.zeros(B, 4).long(),
            r"tagging labels of shape \(3, 4\) for logits \(3, 5, 4\); expected \(3, 5",
        ),
    ],
)
def test_labels_that_do_not_fit_are_refused(kind: str, labels: Tensor, message: str) -> None:
    module = head(
        kind=kind, num_outputs=1 if kind == "regression" else 4, pooling="none" if kind == "tagging" else "mean"
    )
    with pytest.raises(AdapterError, match=message):
        module.loss(module(hidden(), None), labels)


# -- configurations --


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"kind": "span"}, "kind 'span' is not one of classification, multilabel_classification, regression"),
        ({"num_outputs": 0}, "num_outputs 0 is impossible for kind 'classification'"),
        ({"kind": "regression", "num_outputs": 2}, "num_outputs 2 is impossible for kind 'regression'"),
        ({"layers": 0}, "layers 0 must be at least 1"),
        ({"activation": "tahn"}, "activation 'tahn' is unknown; there are .*tanh"),
        ({"dropout": 1.0}, r"dropout 1.0 must be in \[0, 1\)"),
        (
            {"pooling": "max"},
            "pooling 'max' does not fit kind 'classification'; poolings: first, last, mean, pooler, eos, none",
        ),
        ({"pooling": "none"}, "pooling 'none' does not fit kind 'classification'"),
        ({"kind": "tagging", "pooling": "first"}, "pooling 'first' does not fit kind 'tagging'"),
        ({"labels": ("a", "b")}, r"2 labels \['a', 'b'\] for 4 outputs"),
        ({"labels": ("a", "b", "c", "a")}, r"4 labels .* for 4 outputs"),
    ],
)
def test_choices_without_a_meaning_are_refused(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError, match=message) as raised:
        HeadConfig(**{"kind": "classification", "num_outputs": 4, **choices})
    assert str(raised.value).startswith("head: ")


def test_labels_in_the_order_of_their_numbers() -> None:
    assert labels_of({1: "b", 0: "a"}) == ("a", "b")
    assert labels_of(None) == ()
    with pytest.raises(AdapterError, match=r"id2label \{1: 'b'\} must number its labels 0 to 0"):
        labels_of({1: "b"})


def test_a_configuration_can_carry_the_labels_of_a_head() -> None:
    base = BertConfig()
    own = labelled(base, HeadConfig(kind="classification", num_outputs=2, labels=("no", "yes")))
    assert own.id2label == {0: "no", 1: "yes"}
    assert own.label2id == {"no": 0, "yes": 1}
    assert own.problem_type is None
    number = labelled(base, HeadConfig(kind="regression", num_outputs=1))
    assert (number.id2label, number.problem_type) == ({0: "LABEL_0"}, "regression")
    assert base.id2label == BertConfig().id2label
