"""Averages of weights against their papers' formulas, number by number."""

import math

import pytest
import torch
from torch import Tensor

from graftwork.core.blend import (
    concatenate,
    dare,
    dare_ties,
    disjoint_mean,
    drop,
    linear,
    magnitude_prune,
    ties,
    trim,
    truncate,
)


def vectors(count: int = 3, size: int = 40) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(count)]


def by_hand(members: list[Tensor], weights: list[float], density: float) -> Tensor:
    """TIES, one number at a time (Yadav et al. 2023, algorithm 1)."""
    size = members[0].numel()
    kept = []
    for member in members:
        order = sorted(range(size), key=lambda i: -abs(float(member[i])))[: round(density * size)]
        kept.append([float(member[i]) if i in order else 0.0 for i in range(size)])
    result = []
    for i in range(size):
        mass = sum(w * k[i] for w, k in zip(weights, kept, strict=True))
        agreeing = [(w, k[i]) for w, k in zip(weights, kept, strict=True) if k[i] and w * k[i] * mass > 0]
        shares = sum(abs(w) for w, _ in agreeing)
        result.append(sum(w * v for w, v in agreeing) / shares if agreeing else 0.0)
    return torch.tensor(result, dtype=torch.float64) * sum(map(abs, weights))


@pytest.mark.parametrize("weights", [[1 / 3, 1 / 3, 1 / 3], [0.5, 0.3, 0.2], [1.5, -0.2, -0.3]])
@pytest.mark.parametrize("density", [0.2, 0.75, 1.0])
def test_ties_is_its_algorithm(weights: list[float], density: float) -> None:
    found = ties(vectors(), weights, density, 0)
    torch.testing.assert_close(found, by_hand(vectors(), weights, density), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(found, linear(vectors(), weights))


def test_a_sign_is_elected_by_mass_and_the_losers_do_not_dilute_the_mean() -> None:
    three = [torch.tensor([numbers], dtype=torch.float64) for numbers in (4.0, 2.0, -3.0)]
    assert disjoint_mean(three, [1 / 3] * 3).tolist() == pytest.approx([3.0])
    assert disjoint_mean([three[2], three[2], three[0]], [1 / 3] * 3).tolist() == pytest.approx([-3.0])
    assert disjoint_mean([torch.zeros(1).double()] * 2, [0.5, 0.5]).tolist() == [0.0]


def test_trimming_keeps_the_largest() -> None:
    assert trim(torch.tensor([1.0, -5.0, 3.0, 0.5]), 0.5).tolist() == [0.0, -5.0, 3.0, 0.0]
    found = magnitude_prune(vectors(2), [0.5, 0.5], 0.25, 0)
    torch.testing.assert_close(found, 0.5 * trim(vectors(2)[0], 0.25) + 0.5 * trim(vectors(2)[1], 0.25))


def test_dropping_rescales_and_is_the_same_in_the_mean() -> None:
    ones = torch.ones(200_000, dtype=torch.float64)
    kept = drop(ones, 0.1, torch.Generator().manual_seed(0))
    assert {*kept.tolist()} == {0.0, 10.0}
    assert math.isclose(float(kept.mean()), 1.0, abs_tol=0.03)


@pytest.mark.parametrize("strategy", [dare, dare_ties])
def test_a_seed_decides_what_is_dropped_and_each_member_drops_its_own(strategy: object) -> None:
    assert callable(strategy)
    one, again, other = (strategy(vectors(2), [0.5, 0.5], 0.5, seed) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    same = vectors(1) * 2
    kept = [value != 0 for value in (dare(same, [1.0, 0.0], 0.5, 3), dare(same, [0.0, 1.0], 0.5, 3))]
    assert not torch.equal(kept[0], kept[1])


def factors(inputs: int, width: int, *ranks: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(4)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return [(drawn(rank, inputs), drawn(width, rank)) for rank in ranks]


def test_concatenation_is_the_sum_of_products() -> None:
    pairs = factors(5, 7, 1, 3)
    a, b = concatenate(pairs, [2.0, -0.5])
    torch.testing.assert_close(b @ a, 2 * pairs[0][1] @ pairs[0][0] - 0.5 * pairs[1][1] @ pairs[1][0])
    assert a.shape == (4, 5)


@pytest.mark.parametrize(("inputs", "width", "rank"), [(5, 7, 2), (9, 4, 1), (6, 6, 8), (3, 8, 5)])
def test_truncation_is_the_best_of_its_rank(inputs: int, width: int, rank: int) -> None:
    a, b = concatenate(factors(inputs, width, 2, 3), [0.5, 0.5])
    small_a, small_b = truncate(a, b, rank)
    assert (small_a.shape, small_b.shape) == ((rank, inputs), (width, rank))
    u, values, vh = torch.linalg.svd(b @ a)
    values[rank:] = 0
    best = u[:, : len(values)] * values @ vh[: len(values)]
    torch.testing.assert_close(small_b @ small_a, best, rtol=1e-9, atol=1e-9)
