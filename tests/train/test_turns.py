"""Work that takes turns: asks, is given, ends; random states and accelerate's marks are its own."""

import random
from collections.abc import Callable

import numpy
import pytest
import torch
from accelerate.state import GradientState

from graftwork.train.turns import Turn

Ask = Callable[[int], int]


def test_it_runs_until_it_asks_and_goes_on_with_what_it_is_given() -> None:
    seen = []

    def work(ask: Ask) -> str:
        for number in range(3):
            seen.append(ask(number))
        return "done"

    turn: Turn[int, int, str] = Turn(work, "one")
    assert turn.go(None) == 0
    assert turn.go(10) == 1
    assert seen == [10]
    assert not turn.done
    assert turn.go(11) == 2
    assert turn.go(12) is None
    assert (turn.done, turn.result, turn.error, seen) == (True, "done", None, [10, 11, 12])


def test_an_error_is_kept() -> None:
    def work(ask: Ask) -> None:
        ask(1)
        raise ValueError("no")

    turn: Turn[int, int, None] = Turn(work, "one")
    turn.go(None)
    assert turn.go(0) is None
    assert str(turn.error) == "no"


def test_what_waits_can_be_stopped() -> None:
    ends = []

    def work(ask: Ask) -> None:
        try:
            ask(1)
        except Exception:
            ends.append("taken for an error")
        finally:
            ends.append("left")

    turn: Turn[int, int, None] = Turn(work, "one")
    turn.go(None)
    turn.stop()
    turn.stop()
    assert (ends, turn.done, turn.error) == (["left"], True, None)
    Turn(work, "never begun").stop()


def drawn() -> tuple[float, float, float]:
    return random.random(), float(numpy.random.random()), float(torch.rand(()))


@pytest.mark.parametrize("others", [1, 3])
def test_random_numbers_are_those_of_running_alone(others: int) -> None:
    found: dict[str, list[tuple[float, float, float]]] = {}

    def work(seed: int, ask: Ask) -> None:
        random.seed(seed), numpy.random.seed(seed), torch.manual_seed(seed)
        GradientState()._set_sync_gradients(bool(seed % 2))
        for _ in range(3):
            found.setdefault(str(seed), []).append(drawn())
            ask(0)
            assert GradientState().sync_gradients == bool(seed % 2)

    random.seed(0)
    turns = [Turn[int, int, None](lambda ask, seed=seed: work(seed, ask), str(seed)) for seed in range(others + 1)]
    marks = GradientState().sync_gradients
    ours = random.getstate()
    while not all(turn.done for turn in turns):
        for turn in turns:
            turn.go(0)
            with turn.own_state():
                pass
    assert [turn.error for turn in turns] == [None] * len(turns)
    assert random.getstate() == ours
    assert GradientState().sync_gradients == marks
    for seed, numbers in found.items():
        random.seed(int(seed)), numpy.random.seed(int(seed)), torch.manual_seed(int(seed))
        assert numbers == [drawn() for _ in range(3)]


def test_what_is_drawn_for_it_outside_is_drawn_from_its_numbers() -> None:
    numbers = []

    def work(ask: Ask) -> None:
        torch.manual_seed(7)
        ask(0)
        numbers.append(drawn()[2])

    turn: Turn[int, int, None] = Turn(work, "one")
    turn.go(None)
    with turn.own_state():
        numbers.append(drawn()[2])
    turn.go(0)
    torch.manual_seed(7)
    assert numbers == [drawn()[2], drawn()[2]]
