"""The biaffine parser against a loop over words, its loss, and word starts in every form of padding."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from graftwork.core.heads import Beside, HeadConfig
from graftwork.core.heads_parsing import ParsingHead, words_of
from graftwork.errors import AdapterError
from tests.rig import randomise

B, T, D, L = 3, 7, 6, 4
STARTS = torch.tensor([[1, 2, 4, 5, 0, 0, 0], [1, 3, 6, -1, -1, -1, -1], [1, 2, 3, 4, 5, 6, 7]])


def hidden() -> Tensor:
    return torch.randn(B, T, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def head(**choices: int) -> ParsingHead:
    config = HeadConfig(kind="dependency_parsing", num_outputs=L, layers=1, pooling="none", **choices)  # type: ignore[arg-type]
    module = ParsingHead(D, config).double().eval()
    randomise(module.parameters())
    return module


def words(row: Tensor, starts: list[int]) -> Tensor:
    """Word by word; zeros where there is none."""
    made = [row[start:end].mean(0) for start, end in pairwise(starts) if end > start]
    return torch.stack([*made, *[torch.zeros(D, dtype=row.dtype)] * (T - len(made))])


def test_words_are_the_means_of_their_tokens() -> None:
    x = hidden()
    real = [[1, 2, 4, 5], [1, 3, 6], [1, 2, 3, 4, 5, 6, 7]]
    expected = torch.stack([words(x[row], starts) for row, starts in enumerate(real)])
    torch.testing.assert_close(words_of(x, STARTS), expected)
    padded = STARTS.masked_fill(STARTS <= 0, 1)  # RoBERTa's pad id: the list ends where it stops growing
    torch.testing.assert_close(words_of(x, padded), expected)
    torch.testing.assert_close(words_of(x, padded[:, :6], pad=1)[1], words(x[1], [3, 6]))  # its first word goes too
    assert words_of(x, torch.tensor([[1], [2], [3]])).abs().max() == 0


def test_every_pair_of_words_is_a_bilinear_form() -> None:
    module, x = head(), hidden()
    views = module.views(module(x, None, Beside(word_starts=STARTS)))
    assert views["rel_preds"].shape == (B, T, T + 1, L)
    assert views["arc_preds"].shape == (B, T, T + 1)
    row, dependents = 1, words(x[1], [1, 3, 6])
    heads = torch.cat([x[1, :1], dependents])
    one = torch.ones(1, dtype=x.dtype)
    for j, i in ((0, 0), (0, 2), (1, 1), (6, 7)):
        w, h = torch.cat([dependents[j], one]), heads[i]
        arc = w @ module.biaffine_arcs.weight[0] @ h
        torch.testing.assert_close(views["arc_preds"][row, j, i], arc)
        for relation in range(L):
            expected = w @ module.biaffine_rels.weight[relation] @ torch.cat([h, one])
            torch.testing.assert_close(views["rel_preds"][row, j, i, relation], expected)
    with pytest.raises(AdapterError, match="dependency_parsing needs word_starts"):
        module(x)


def test_the_loss_is_that_of_arcs_and_of_relations_at_the_true_heads() -> None:
    module = head()
    logits = module(hidden(), None, Beside(word_starts=STARTS)).detach()
    views = module.views(logits)
    labels = torch.full((B, 6, 2), -100)
    true = {(0, 0): (2, 1), (0, 1): (0, 3), (0, 2): (2, 0), (1, 0): (0, 2), (1, 1): (1, 1)}
    for (row, word), pair in true.items():
        labels[row, word] = torch.tensor(pair)

    def entropy(scores: Tensor, label: int) -> float:
        return math.log(sum(math.exp(float(one)) for one in scores)) - float(scores[label])

    arcs = [entropy(views["arc_preds"][row, word], i) for (row, word), (i, _) in true.items()]
    relations = [entropy(views["rel_preds"][row, word, i], label) for (row, word), (i, label) in true.items()]
    expected = sum(arcs) / 5 + sum(relations) / 5
    assert float(module.loss(logits, labels)) == pytest.approx(expected, rel=1e-6)
    assert float(module.loss(logits, torch.full((B, 6, 2), -100))) == 0
    with pytest.raises(AdapterError, match=r"dependency_parsing labels of shape \(3, 6\)"):
        module.loss(logits, labels[..., 0])
