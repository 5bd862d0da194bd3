"""Intervals against the normal approximation, against a loop over index sets, and where nothing can differ."""

import math

import numpy
import pytest

from graftwork.errors import UserError
from graftwork.tasks.bootstrap import difference, interval
from graftwork.tasks.metrics import class_scores, value_scores
from graftwork.tasks.scorer import Scorer, summed

N, WIDE = 2000, 1.96


def right_in(answers: numpy.ndarray) -> Scorer:  # type: ignore[type-arg]
    """Accuracy of rows that are right (1) or wrong (0)."""
    return summed([(float(one), 1.0) for one in answers], lambda hits, count: {"accuracy": hits / count})


def drawn(chance: float, seed: int, count: int = N) -> numpy.ndarray:  # type: ignore[type-arg]
    return numpy.random.default_rng(seed).random(count) < chance


def test_the_interval_of_an_accuracy_is_the_binomial_one() -> None:
    answers = drawn(0.8, 0)
    found, p = interval(right_in(answers), "accuracy", resamples=4000), float(answers.mean())
    half = WIDE * math.sqrt(p * (1 - p) / N)
    assert found.value == p
    assert [p - found.low, found.high - p] == pytest.approx([half, half], rel=0.06)


def test_the_interval_of_a_paired_difference_knows_what_the_two_share() -> None:
    shared = drawn(0.7, 1)
    a, b = (numpy.where(drawn(0.9, seed), shared, drawn(0.5, seed + 10)) for seed in (2, 3))
    found = difference([[(right_in(a), right_in(b))]], "accuracy", resamples=4000)
    each = b.astype(float) - a  # its mean is the difference, its spread that of the discordant rows alone
    half = WIDE * float(each.std()) / math.sqrt(N)
    assert found.value == pytest.approx(float(each.mean()))
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.06)
    apart = WIDE * math.sqrt(sum(float(side.std()) ** 2 for side in (a, b)) / N)
    assert half < 0.6 * apart  # unpaired would be told from this


def test_equal_systems_differ_by_nothing() -> None:
    answers = ["a" if one else "b" for one in drawn(0.6, 4, 300)]
    one = class_scores(answers, ["a"] * 150 + ["b"] * 150)
    for score in ("accuracy", "f1_macro", "mcc"):
        found = difference([[(one, one)] * 3], score)
        assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)
    sure = interval(right_in(numpy.ones(50)), "accuracy")
    assert (sure.value, sure.low, sure.high) == (1.0, 1.0, 1.0)


def test_any_score_is_computed_anew_from_each_draw() -> None:
    generator = numpy.random.default_rng(0)
    gold = generator.normal(size=60)
    mine = gold + generator.normal(size=60)
    found = interval(value_scores(list(mine), list(gold)), "spearman", resamples=2000, seed=5)
    scores = []
    for _ in range(2000):  # as the papers write it: rows drawn, and scored
        at = generator.integers(60, size=60)
        scores.append(value_scores(list(mine[at]), list(gold[at])).once()["spearman"])
    low, high = numpy.quantile(scores, [0.025, 0.975])
    assert [found.low, found.high] == pytest.approx([low, high], abs=0.03)
    assert found.high - found.value < found.value - found.low  # as skew as a correlation is


def test_the_draws_follow_from_the_seed_and_no_chunk_changes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = right_in(drawn(0.7, 0, 200)), right_in(drawn(0.6, 1, 200))
    found = difference([[(one, other)]], "accuracy", seed=3)
    assert difference([[(one, other)]], "accuracy", seed=3) == found
    assert difference([[(one, other)]], "accuracy", seed=4) != found
    monkeypatch.setattr("graftwork.tasks.bootstrap.AT_ONCE", 7 * 200)
    assert difference([[(one, other)]], "accuracy", seed=3) == found


def test_runs_answer_the_same_rows_so_that_repeating_one_tells_nothing_new() -> None:
    pair = right_in(drawn(0.7, 0)), right_in(drawn(0.8, 1))
    once, five = difference([[pair]], "accuracy"), difference([[pair] * 5], "accuracy")
    assert [five.value, five.low, five.high] == pytest.approx([once.value, once.low, once.high])


def test_test_sets_are_drawn_apart_and_averaged() -> None:
    pair = right_in(drawn(0.7, 0)), right_in(drawn(0.8, 1))
    one = difference([[pair]], "accuracy")
    found = difference([[pair]] * 4, "accuracy")  # as if four sets of so many rows had come out alike
    assert found.value == pytest.approx(one.value)
    assert found.high - found.low == pytest.approx((one.high - one.low) / 2, rel=0.1)  # by the root of their number
    other = right_in(drawn(0.7, 2, 500)), right_in(drawn(0.7, 3, 500))
    mean = (one.value + difference([[other]], "accuracy").value) / 2
    assert difference([[pair], [other]], "accuracy").value == pytest.approx(
        mean
    )  # a set counts once, whatever its size


def test_runs_can_be_drawn_too() -> None:
    wrong, right = right_in(numpy.zeros(100)), right_in(numpy.ones(100))
    runs = [(wrong, right)] * 3 + [(wrong, wrong)]  # rows decide nothing here, runs all
    fixed = difference([runs], "accuracy")
    assert (fixed.value, fixed.low, fixed.high) == (0.75, 0.75, 0.75)
    found = difference([runs], "accuracy", runs_too=True, resamples=4000)
    assert found.value == 0.75
    assert (found.low, found.high) == (0.25, 1.0)  # binomial of 4 at 3/4: 5.1 % at most 1, 32 % all 4


def test_what_is_refused() -> None:
    one, longer = right_in(numpy.ones(3)), right_in(numpy.ones(4))
    with pytest.raises(UserError, match="resamples is 99; an interval needs at least 100"):
        interval(one, "accuracy", resamples=99)
    with pytest.raises(UserError, match="needs the same rows in all"):
        difference([[(one, longer)]], "accuracy")
    with pytest.raises(UserError, match="needs the same rows in all"):
        difference([[(one, one)], [(one, one), (longer, longer)]], "accuracy")
    with pytest.raises(UserError, match="no runs to compare"):
        difference([], "accuracy")
