"""Masks of training: others in every epoch, the same for the same (seed, epoch, row), in the shares of the paper."""

import numpy
import torch

from graftwork.tasks.encoded import IGNORED
from graftwork.tasks.masking import Masking

MASK, WORDS, SPECIAL = 4, 1000, (0, 1, 2, 3, 4)


def batch(rows: int, length: int, seed: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, WORDS, (rows, length), generator=torch.Generator().manual_seed(seed))
    ids[:, 0], ids[:, -1] = 1, 2
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def masking(seed: int = 0, share: float = 0.15) -> Masking:
    return Masking(MASK, WORDS, SPECIAL, share, seed)


def test_the_shares_are_those_of_the_paper() -> None:
    given = batch(400, 102)
    found = masking()(given, numpy.arange(400), 0)
    ids, hidden = given["input_ids"], found["labels"] != IGNORED
    assert bool((hidden.sum(1) == 15).all())
    assert torch.equal(found["labels"][hidden], ids[hidden])
    assert torch.equal(found["input_ids"][~hidden], ids[~hidden])
    assert not bool(hidden[:, [0, -1]].any())
    masked = float((found["input_ids"][hidden] == MASK).double().mean())
    kept = float((found["input_ids"][hidden] == ids[hidden]).double().mean())
    assert abs(masked - 0.8) < 0.02  # of 6000, a standard deviation is 0.005
    assert abs(kept - 0.1) < 0.02
    counts = hidden.double().mean(0)[1:-1]
    assert float(counts.min()) > 0.07  # every place is chosen: 400 rows at 0.15, a standard deviation is 0.018
    assert float(counts.max()) < 0.23


def test_masks_follow_from_seed_epoch_and_row_alone() -> None:
    given = batch(6, 60)
    first = masking()(given, numpy.arange(6), 3)
    padded = {key: torch.nn.functional.pad(value[[4, 1]], (0, 9)) for key, value in given.items()}
    again = masking()(padded, numpy.array([4, 1]), 3)
    for key in ("input_ids", "labels"):
        assert torch.equal(again[key][:, :60], first[key][[4, 1]])
    assert bool((again["labels"][:, 60:] == IGNORED).all())
    assert bool((again["input_ids"][:, 60:] == 0).all())
    for other in (masking()(given, numpy.arange(6), 4), masking(1)(given, numpy.arange(6), 3)):
        assert not torch.equal(other["labels"], first["labels"])
    same = {key: value[:1].repeat(6, 1) for key, value in given.items()}
    labels = masking()(same, numpy.arange(6), 0)["labels"]
    assert len({tuple(row) for row in labels.tolist()}) == 6


def test_short_rows_and_rows_that_came_with_masks() -> None:
    ids = torch.tensor([[1, 9, 2, 0], [1, 9, MASK, 2], [1, 3, 2, 0]])
    given = {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 0]])}
    found = masking()(given, numpy.arange(3), 0)
    assert found["labels"].tolist() == [[-100, 9, -100, -100], [-100] * 4, [-100] * 4]
    assert torch.equal(found["input_ids"][1:], ids[1:])
