"""The order of training rows: every row once, by (seed, epoch) alone, in batches of similar length."""

import random

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graftwork.train.sampler import POOL, LengthGroupedSampler

LENGTHS = st.lists(st.integers(1, 40), max_size=300)


def order(lengths: list[int], batch: int, seed: int, epoch: int) -> list[int]:
    return list(LengthGroupedSampler(lengths, batch, seed, epoch))


@given(LENGTHS, st.integers(1, 17), st.integers(0, 2**32), st.integers(0, 50))
def test_every_row_comes_exactly_once(lengths: list[int], batch: int, seed: int, epoch: int) -> None:
    sampler = LengthGroupedSampler(lengths, batch, seed, epoch)
    assert sorted(sampler) == list(range(len(lengths)))
    assert len(sampler) == len(lengths)


@given(LENGTHS, st.integers(1, 17), st.integers(0, 2**32), st.integers(0, 50))
def test_the_order_follows_from_seed_and_epoch_alone(lengths: list[int], batch: int, seed: int, epoch: int) -> None:
    first = order(lengths, batch, seed, epoch)
    before = torch.random.get_rng_state(), numpy.random.get_state()[1].tolist(), random.getstate()
    sampler = LengthGroupedSampler(lengths, batch, seed)
    list(sampler)
    sampler.set_epoch(epoch)
    assert list(sampler) == first
    after = torch.random.get_rng_state(), numpy.random.get_state()[1].tolist(), random.getstate()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_global_random_state_does_not_matter() -> None:
    lengths = [draw % 23 + 1 for draw in range(100)]
    first = order(lengths, 8, 3, 1)
    torch.manual_seed(99)
    numpy.random.seed(99)
    random.seed(99)
    assert order(lengths, 8, 3, 1) == first


def test_epochs_and_seeds_differ() -> None:
    lengths = list(range(1, 101))
    orders = {tuple(order(lengths, 8, seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_batches_hold_rows_of_similar_length() -> None:
    draw = random.Random(0)
    lengths = [draw.randint(1, 200) for _ in range(16 * POOL * 3 + 5)]
    rows = order(lengths, 16, 0, 0)
    batches = [[lengths[row] for row in rows[start : start + 16]] for start in range(0, len(rows), 16)]
    assert len(batches[-1]) == 5
    padded = sum(max(batch) * len(batch) for batch in batches[:-1]) / sum(sum(batch) for batch in batches[:-1])
    shuffled = [lengths[row] for row in draw.sample(range(len(lengths)), len(lengths))]
    plain = [shuffled[start : start + 16] for start in range(0, len(shuffled), 16)]
    assert padded < 1.05
    assert sum(max(batch) * len(batch) for batch in plain) / sum(lengths) > 1.5
    longest = [max(batch) for batch in batches[:-1]]
    assert longest != sorted(longest)  # the batches themselves are mixed


@pytest.mark.parametrize(("batch", "seed", "epoch"), [(0, 0, 0), (1, -1, 0), (1, 0, -1)])
def test_impossible_settings_are_refused(batch: int, seed: int, epoch: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size {batch} must be at least 1, seed {seed} and epoch {epoch}"):
        LengthGroupedSampler([1, 2], batch, seed, epoch)
