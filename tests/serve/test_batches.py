"""Waves and batches: nothing lost, nothing twice, every bound kept."""

from dataclasses import dataclass
from itertools import groupby
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from graftwork.serve.batches import batches, texts_of, waves
from graftwork.serve.catalog import Found
from graftwork.serve.planner import Planner, Unit
from tests.serve.world import World, text


@dataclass(frozen=True)
class Asked:
    """What a unit is made from."""

    adapters: str
    words: int


COMPOSITIONS = ["intent", "intent@1", "mood", "ner", "value", "both", "Stack(hi, mood)", "Stack(hi, both)"]
ASKED = st.lists(st.builds(Asked, st.sampled_from(COMPOSITIONS), st.integers(1, 20)), max_size=20)
SPLITS = st.lists(st.integers(1, 4), max_size=6)


def units_of(world: World, rows: list[dict[str, Any]]) -> list[Unit]:
    planned = Planner(world.registry, world.tokenizer, None).plan(rows)
    units = [unit for row in planned for unit in row.branches]
    assert all(isinstance(unit, Unit) for unit in units), units
    return units  # type: ignore[return-value]


def plain(asked: list[Asked]) -> list[dict[str, Any]]:
    return [{"text": text(one.words), "adapters": one.adapters} for one in asked]


def needed(units: list[Unit]) -> set[Found]:
    return {package for unit in units for package in unit.packages}


@given(
    asked=ASKED, capacity=st.integers(1, 9), loaded=st.sets(st.sampled_from(["intent@1", "mood@1", "ner@1", "hi@1"]))
)
def test_waves_divide_units_by_what_fits(
    tiny_world: World, asked: list[Asked], capacity: int, loaded: set[str]
) -> None:
    units = units_of(tiny_world, plain(asked))
    made = waves(units, capacity, loaded)
    assert sorted(map(id, units)) == sorted(id(unit) for wave in made for unit in wave)
    for wave in made:
        assert len(needed(wave)) <= capacity or len({unit.packages for unit in wave}) == 1
    if units and len(needed(units)) <= capacity:
        assert len(made) == 1
    there = [unit for unit in units if {package.name for package in unit.packages} <= loaded]
    assert not there or there[0] in made[0] + (made[1] if len(made) > 1 else [])


@given(asked=ASKED, splits=SPLITS, rows=st.integers(1, 8), tokens=st.integers(1, 80))
def test_batches_keep_their_bounds(
    tiny_world: World, asked: list[Asked], splits: list[int], rows: int, tokens: int
) -> None:
    split = [
        {"text": text(words), "adapters": f"Split(intent:1, mood:{words + 1})", "head": "mood"} for words in splits
    ]
    units = units_of(tiny_world, plain(asked) + split)
    made = batches(units, rows, tokens)
    assert sorted(map(id, units)) == sorted(id(unit) for batch in made for unit in batch)
    for batch in made:
        longest = max(unit.length for unit in batch)
        assert 1 <= len(batch) <= rows
        assert len(batch) == 1 or longest * len(batch) <= tokens
        assert {unit.tokens for unit in batch} in ({None}, {longest})


def test_similar_lengths_share_a_batch(tiny_world: World) -> None:
    units = units_of(tiny_world, plain([Asked("mood", words) for words in (20, 1, 19, 2)]))
    assert [[unit.length for unit in batch] for batch in batches(units, 2, 1000)] == [[22, 21], [4, 3]]


def test_what_is_loaded_goes_first(tiny_world: World) -> None:
    units = units_of(tiny_world, plain([Asked("ner", 3), Asked("mood", 3)]))
    assert [[unit.head for unit in wave] for wave in waves(units, 1, {"mood@1"})] == [["mood@1"], ["ner@1"]]
    assert [[unit.head for unit in wave] for wave in waves(units, 1, ())] == [["ner@1"], ["mood@1"]]


def test_a_text_is_given_once_whatever_is_asked_of_it(tiny_world: World) -> None:
    rows = [
        {"text": text(4, seed), "adapters": how} for seed, how in ((1, "intent"), (2, "mood"), (1, "ner"), (1, "mood"))
    ]
    rows += [{"text": text(2), "text_pair": text(2, 1), "adapters": "nli"}, {"text": text(4), "adapters": "mood"}]
    units = units_of(tiny_world, rows)
    texts, numbers = texts_of(unit.encoded for unit in units)
    assert numbers == [0, 1, 0, 0, 2, 3]
    assert [one.input_ids for one in texts] == [units[at].encoded.input_ids for at in (0, 1, 4, 5)]
    side_by_side = [unit.encoded.input_ids for batch in batches(units, 3, 1000) for unit in batch]
    assert len(side_by_side) == 6
    assert len([one for one, _ in groupby(side_by_side)]) == 4
