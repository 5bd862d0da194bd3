"""The pool: capacity, order of dropping, pins, failures that leave nothing behind; against a plain model of an LRU."""

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graftwork.errors import Conflict, PackageError
from graftwork.model import AdapterModel
from graftwork.serve.catalog import Catalog, Found
from graftwork.serve.pool import Pool
from graftwork.tasks.text import vocabulary_digest
from tests.serve.world import World

NAMES = ("intent@1", "intent@2", "mood@1", "hi@1", "both@1", "headless@1", "probe@1")


def find(world: World, name: str) -> Found:
    return Catalog(world.registry, vocabulary_digest(world.tokenizer)).find(name)


def pool_of(model: AdapterModel, capacity: int) -> Pool:
    return Pool(model, capacity, threading.Lock())


def in_model(model: AdapterModel) -> set[str]:
    """What the model holds, whatever the pool says."""
    return {name for table in ("adapters", "fusions", "heads") for name in model.parts.records(table)}


def emptied(model: AdapterModel) -> AdapterModel:
    for name in list(model.parts.fusion_records):
        model.delete_adapter_fusion(name)
    for name in list(model.parts.adapter_configs):
        model.delete_adapter(name)
    for name in list(model.parts.head_configs):
        model.delete_head(name)
    return model


def holds_exactly(model: AdapterModel, loaded: tuple[str, ...], world: World) -> bool:
    """Whether each loaded package's tensors are in the model, bit by bit."""
    for name in loaded:
        package = world.registry.get(name)
        mine = {
            f"{prefix}/{key}": tensor
            for table, prefix in (("adapters", "adapter"), ("fusions", "fusion"), ("heads", "head"))
            if name in model.parts.records(table)
            for key, tensor in model.parts.tensors(table, name).items()
        }
        if mine.keys() != package.tensors.keys():
            return False
        if not all(torch.equal(mine[key], package.tensors[key]) for key in mine):
            return False
    return True


class Expected:
    """An LRU with pins, as plain lists: the packages, the oldest first, and the names that are held."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.order: list[Found] = []
        self.held: list[str] = []

    def in_use(self, one: Found) -> bool:
        return one.name in self.held or any(one in other.members for other in self.order)

    def drop(self, most: int) -> None:
        while len(self.order) > most and (idle := [one for one in self.order if not self.in_use(one)]):
            self.order.remove(idle[0])

    def acquire(self, one: Found) -> None:
        if one in self.order:
            self.order.remove(one)
            self.order.append(one)
            self.held.append(one.name)
            return
        for member in one.members:
            self.acquire(member)
        self.drop(self.capacity - 1)
        self.order.append(one)
        self.held.append(one.name)
        for member in one.members:
            self.release(member)

    def release(self, one: Found) -> None:
        self.held.remove(one.name)
        self.drop(self.capacity)


@pytest.fixture(scope="module")
def tiny_model(tiny_world: World) -> AdapterModel:
    """One model for all examples; each leaves it empty."""
    return tiny_world.model()


@pytest.fixture
def model(tiny_model: AdapterModel) -> Iterator[AdapterModel]:
    yield emptied(tiny_model)
    emptied(tiny_model)


@given(
    capacity=st.integers(1, 5),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, len(NAMES) - 1)), min_size=1, max_size=12),
)
@settings(max_examples=settings.default.max_examples // 2)
def test_any_sequence_of_acquire_and_release(
    tiny_world: World, tiny_model: AdapterModel, capacity: int, steps: list[tuple[bool, int]]
) -> None:
    model = emptied(tiny_model)
    known = {name: find(tiny_world, name) for name in NAMES}
    pool, expected, held = pool_of(model, capacity), Expected(capacity), list[Found]()
    for takes, number in steps:
        if takes or not held:
            held.append(known[NAMES[number]])
            pool.acquire(held[-1])
            expected.acquire(held[-1])
        else:
            one = held.pop(number % len(held))
            pool.release(one)
            expected.release(one)
        loaded = pool.loaded()
        assert list(loaded) == [one.name for one in expected.order]
        assert in_model(model) == set(loaded)
        assert {package.name for one in held for package in one.closure} <= set(loaded)
        assert len(loaded) <= capacity or all(expected.in_use(one) for one in expected.order)
    assert holds_exactly(model, pool.loaded(), tiny_world)
    for one in held:
        pool.release(one)
    assert len(pool.loaded()) <= capacity


def test_the_least_recently_used_goes_first(tiny_world: World, model: AdapterModel) -> None:
    pool = pool_of(model, 2)
    for name in ("intent@1", "mood@1", "intent@1", "hi@1"):
        pool.acquire(find(tiny_world, name))
        pool.release(find(tiny_world, name))
    assert pool.loaded() == ("intent@1", "hi@1")
    assert (pool.counts.hits, pool.counts.loads, pool.counts.evictions) == (1, 3, 1)
    assert pool.counts.load_seconds > 0


def test_what_is_in_use_stays_and_the_pool_shrinks_when_it_is_released(tiny_world: World, model: AdapterModel) -> None:
    pool = pool_of(model, 1)
    both, mood = find(tiny_world, "both@1"), find(tiny_world, "mood@1")
    pool.acquire(both)
    assert pool.loaded() == ("intent@1", "mood@1", "both@1")
    pool.acquire(mood)
    pool.release(both)
    assert pool.loaded() == ("mood@1",)
    pool.release(mood)
    assert pool.loaded() == ("mood@1",)


def test_members_stay_while_their_fusion_is_loaded(tiny_world: World, model: AdapterModel) -> None:
    pool = pool_of(model, 4)
    for name in ("both@1", "hi@1", "probe@1"):
        pool.acquire(find(tiny_world, name))
        pool.release(find(tiny_world, name))
    # the oldest that nothing uses is the fusion: its members are older, but it needs them
    assert pool.loaded() == ("intent@1", "mood@1", "hi@1", "probe@1")
    assert not model.parts.fusion_records


def test_a_damaged_package_leaves_nothing_and_members_of_a_fusion_are_not_held(world: World) -> None:
    world.adapter("a")
    world.adapter("b")
    world.fusion("ab", ["a", "b"])
    weights = world.registry.resolve("ab").path / "graft.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    model = world.model()
    pool = pool_of(model, 1)
    with pytest.raises(PackageError, match=r"graft\.safetensors: has \d+ bytes, expected \d+: it was cut short"):
        pool.acquire(find(world, "ab"))
    assert pool.loaded() == ("b@1",)
    assert in_model(model) == {"b@1"}
    assert pool.counts.failures == 1
    pool.acquire(find(world, "a"))
    assert pool.loaded() == ("a@1",)


def test_a_package_that_does_not_fit_leaves_nothing(world: World) -> None:
    world.adapter("a")
    world.adapter("b")
    found = find(world, "a")
    other = world.model()
    other.add_adapter("a@1")
    with pytest.raises(Exception, match="'a@1' is already there"):
        pool_of(other, 2).acquire(found)
    assert in_model(other) == {"a@1"}


def test_another_package_under_the_same_version_is_a_conflict_while_the_old_one_is_in_use(world: World) -> None:
    world.adapter("a")
    pool, old = pool_of(world.model(), 2), find(world, "a")
    pool.acquire(old)
    shutil.rmtree(old.reference.path)
    world.registry.push(world.made("a"), "a", 1)
    new = find(world, "a")
    with pytest.raises(Conflict, match=r"a@1 changed in the registry \(digest .* became .*\) while it is in use"):
        pool.acquire(new)
    pool.release(old)
    pool.acquire(new)
    assert pool.loaded() == ("a@1",)
    with pytest.raises(Conflict, match="a@1 changed in the registry while it was read; ask again"):
        pool_of(world.model(), 2).acquire(old)


def test_many_threads_load_a_package_once(tiny_world: World, model: AdapterModel) -> None:
    pool = pool_of(model, 2)
    names = ["both@1", "mood@1", "headless@1"] * 8

    def use(name: str) -> bool:
        one = find(tiny_world, name)
        pool.acquire(one)
        there = name in pool.loaded() and {member.name for member in one.members} <= set(pool.loaded())
        pool.release(one)
        return there

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(use, names))
    assert len(pool.loaded()) <= 2
    assert in_model(model) == set(pool.loaded())
    roomy = pool_of(emptied(model), 9)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(roomy.acquire, [find(tiny_world, "both@1")] * 8))
    assert (roomy.counts.loads, roomy.counts.hits) == (3, 7)
