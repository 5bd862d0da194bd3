"""Timing: spreads, quotients and turns."""

import pytest

from graftwork import timing


def test_a_spread_is_the_median_between_its_quartiles() -> None:
    assert timing.spread([5.0, 1.0, 3.0, 2.0, 4.0]) == timing.Spread(2.0, 3.0, 4.0)
    assert timing.spread([7.0]) == timing.Spread(7.0, 7.0, 7.0)
    with pytest.raises(ValueError, match="at least one value"):
        timing.spread([])


def test_quotients_are_taken_within_a_turn() -> None:
    # a machine that became ten times slower in the last turn: the quotient of the medians would be 2, not 1.5
    found = timing.quotients([3.0, 3.0, 30.0], [2.0, 2.0, 20.0])
    assert found == timing.Spread(1.5, 1.5, 1.5)
    with pytest.raises(ValueError, match="shorter"):
        timing.quotients([1.0, 2.0], [1.0])


def test_rivals_take_turns_in_both_orders() -> None:
    order: list[str] = []
    taken = timing.alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3, warm=1)
    assert order == ["b", "a", "a", "b", "b", "a", "a", "b"]
    assert {name: len(times) for name, times in taken.items()} == {"a": 3, "b": 3}
    assert all(time >= 0 for times in taken.values() for time in times)


def test_a_time_is_in_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 0.25, 1.0, 1.5])
    monkeypatch.setitem(timing.CLOCKS, "wall", lambda: next(ticks))
    assert timing.alternate({"a": lambda: None, "b": lambda: None}, rounds=1, warm=0) == {"a": [250.0], "b": [500.0]}
