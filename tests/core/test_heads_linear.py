"""Linear heads against plain formulas: labels, choices, spans, the options of the layers, and what they refuse."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graftwork.core.heads import Beside, Head, HeadConfig
from graftwork.core.heads_table import build_head
from graftwork.errors import AdapterError
from tests.rig import randomise

B, T, D = 6, 5, 8


def hidden() -> Tensor:
    return torch.randn(B, T, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def head(kind: str, outputs: int, **choices: Any) -> Head:
    module = build_head(HeadConfig(kind=kind, num_outputs=outputs, **choices), D).double().eval()
    randomise(module.parameters())
    return module


def cross_entropy(logits: Tensor, label: int) -> float:
    return math.log(sum(math.exp(float(one)) for one in logits)) - float(logits[label])


def test_any_number_of_labels_a_row() -> None:
    module = head("multilabel_classification", 3)
    logits = module(hidden()).detach()
    labels = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [1, 0, 0], [0, 0, 1]])
    each = [
        -math.log(p if labels[row, label] else 1 - p)
        for row in range(B)
        for label in range(3)
        if (p := 1 / (1 + math.exp(-float(logits[row, label]))))
    ]
    assert float(module.loss(logits, labels)) == pytest.approx(sum(each) / 18, rel=1e-6)
    with pytest.raises(AdapterError, match=r"labels of shape \(6,\) for logits \(6, 3\); expected \(6, 3\)"):
        module.loss(logits, torch.zeros(B))


def test_an_image_has_one_class_or_any_labels() -> None:
    one, several = head("image_classification", 3), head("image_classification", 3, multilabel=True)
    assert torch.equal(one(hidden()), several(hidden()))
    assert one.loss(one(hidden()), torch.arange(B) % 3) > 0
    assert several.loss(one(hidden()), torch.ones(B, 3)) > 0
    with pytest.raises(AdapterError, match="multilabel: no meaning for kind 'tagging'"):
        HeadConfig(kind="tagging", num_outputs=3, pooling="none", multilabel=True)


def test_a_choice_is_one_number_a_text_side_by_side() -> None:
    module = head("multiple_choice", 3)
    linears = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in linears] == [(D, D), (1, D)]
    x = hidden()
    flat = torch.tanh(x[:, 0] @ linears[0].weight.T + linears[0].bias) @ linears[1].weight.T + linears[1].bias
    logits = module(x).detach()
    torch.testing.assert_close(logits, torch.stack([flat[:3, 0], flat[3:, 0]]))
    torch.testing.assert_close(module(x, None, Beside(choices=3)), logits)
    labels = torch.tensor([2, 0])
    expected = (cross_entropy(logits[0], 2) + cross_entropy(logits[1], 0)) / 2
    assert float(module.loss(logits, labels)) == pytest.approx(expected, rel=1e-6)
    assert float(module.loss(logits, labels.repeat_interleave(3))) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(AdapterError, match=r"6 rows, 2 a question, for a head of 3 choices; give input_ids of shape"):
        module(x, None, Beside(choices=2))
    with pytest.raises(AdapterError, match="5 rows, 3 a question"):
        module(x[:5])
    assert head("multiple_choice", 1)(x, None, Beside(choices=2)).shape == (3, 2)


def test_where_an_answer_starts_and_ends() -> None:
    module = head("question_answering", 2, layers=1, pooling="none")
    logits = module(hidden()).detach()
    views = module.views(logits)
    assert torch.equal(torch.stack([views["start_logits"], views["end_logits"]], -1), logits)
    labels = torch.tensor([[0, 4], [1, 1], [2, 99], [-100, 3], [5, 5], [4, 4]])
    starts = [cross_entropy(logits[row, :, 0], int(place)) for row, (place, _) in enumerate(labels) if 0 <= place < T]
    ends = [cross_entropy(logits[row, :, 1], int(place)) for row, (_, place) in enumerate(labels) if 0 <= place < T]
    assert (len(starts), len(ends)) == (4, 4)
    expected = (sum(starts) / 4 + sum(ends) / 4) / 2
    assert float(module.loss(logits, labels)) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(AdapterError, match=r"question_answering labels of shape \(6,\)"):
        module.loss(logits, labels[:, 0])
    with pytest.raises(AdapterError, match="num_outputs 3 is impossible for kind 'question_answering'"):
        HeadConfig(kind="question_answering", num_outputs=3, pooling="none")


def test_options_of_the_layers() -> None:
    module = head("classification", 4, bias=False, scale=0.5, layer_norm=True, norm_eps=1e-6, activation="gelu")
    x = hidden()
    first, norm, last = (layer for layer in module.layers if isinstance(layer, nn.Linear | nn.LayerNorm))
    assert last.bias is None
    middle = nn.functional.gelu(0.5 * x[:, 0] @ first.weight.T + first.bias)
    middle = (middle - middle.mean(-1, keepdim=True)) / (middle.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    expected = (middle * norm.weight + norm.bias) @ last.weight.T
    torch.testing.assert_close(module(x), expected, rtol=1e-6, atol=1e-8)
    bare = head("classification", 4, activation="none")
    assert [key for key in bare.state_dict() if key.endswith("weight")] == ["layers.1.weight", "layers.3.weight"]


def test_poolings_that_need_something_beside_the_hidden_states() -> None:
    pooled, ends = torch.randn(B, D, dtype=torch.float64), torch.zeros(B, T, dtype=torch.bool)
    ends[:, 1] = ends[:3, 3] = True
    module = head("classification", 2, layers=1, pooling="pooler")
    linear = module.layers[1]
    torch.testing.assert_close(module(hidden(), None, Beside(pooled=pooled)), pooled @ linear.weight.T + linear.bias)
    with pytest.raises(AdapterError, match="pooling 'pooler' needs a base with a pooler of its own"):
        module(hidden())
    module = head("classification", 2, layers=1, pooling="eos")
    linear = module.layers[1]
    chosen = torch.cat([hidden()[:3, 3], hidden()[3:, 1]])
    torch.testing.assert_close(module(hidden(), None, Beside(ends=ends)), chosen @ linear.weight.T + linear.bias)
    with pytest.raises(AdapterError, match="pooling 'eos' needs input_ids"):
        module(hidden())
    with pytest.raises(AdapterError, match=r"hidden states \(n, T\) = \(6, 5\) where the input \(6, 4\) ends"):
        module(hidden(), None, Beside(ends=ends[:, 1:]))
