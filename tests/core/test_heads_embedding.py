"""Sentence embeddings: what an embedding is, and both losses against sums written out."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from graftwork.core.heads import Beside, Head, HeadConfig
from graftwork.core.heads_table import build_head
from graftwork.errors import AdapterError
from tests.rig import randomise

B, T, D = 6, 4, 8


def hidden() -> Tensor:
    return torch.randn(B, T, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def head(**choices: Any) -> Head:
    plain = {"num_outputs": D, "layers": 0, "pooling": "mean"}
    module = build_head(HeadConfig(kind="sentence_embedding", **{**plain, **choices}), D).double().eval()
    randomise(module.parameters())
    return module


def test_the_mean_of_the_tokens_to_length_one_where_asked() -> None:
    x = hidden()
    assert list(head().state_dict()) == []
    torch.testing.assert_close(head()(x), x.mean(1))
    unit = x.mean(1) / x.mean(1).square().sum(-1, keepdim=True).sqrt()
    torch.testing.assert_close(head(normalise=True)(x), unit, rtol=1e-6, atol=1e-7)
    assert head(layers=1, num_outputs=3)(x).shape == (B, 3)
    assert head()(x, None, Beside(choices=2)).shape == (3, 2, D)
    with pytest.raises(AdapterError, match="the embedding is as wide as the base, 8, not 3; say layers=1"):
        head(num_outputs=3)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


@pytest.mark.parametrize("labels", [[0, 1, 2], [4, 4, 7]])
def test_the_other_pairs_of_a_batch_are_negatives_unless_they_are_the_same(labels: list[int]) -> None:
    module = head(temperature=0.2)
    pairs = module(hidden(), None, Beside(choices=2))
    negatives = {i: [j for j in range(3) if i == j or labels[i] != labels[j]] for i in range(3)}
    total = 0.0
    for i in range(3):
        for side in (0, 1):
            near = {j: math.exp(cosine(pairs[i, side], pairs[j, 1 - side]) / 0.2) for j in negatives[i]}
            total -= math.log(near[i] / sum(near.values())) / 6
    assert float(module.loss(pairs, torch.tensor(labels))) == pytest.approx(total, rel=1e-5)
    assert float(module.loss(pairs, torch.tensor(labels).repeat_interleave(2))) == pytest.approx(total, rel=1e-5)


def test_scores_are_met_by_the_cosine() -> None:
    module = head()
    pairs = module(hidden(), None, Beside(choices=2))
    scores = [0.1, 0.9, -0.5]
    expected = sum((cosine(*pairs[i]) - score) ** 2 for i, score in enumerate(scores)) / 3
    assert float(module.loss(pairs, torch.tensor(scores))) == pytest.approx(expected, rel=1e-5)


def test_single_texts_teach_nothing() -> None:
    module = head()
    with pytest.raises(AdapterError, match=r"learns from pairs: input_ids of shape \(pairs, 2, tokens\)"):
        module.loss(module(hidden()), torch.arange(B))
    with pytest.raises(AdapterError, match="4 labels for 3 pairs"):
        module.loss(module(hidden(), None, Beside(choices=2)), torch.arange(4))
