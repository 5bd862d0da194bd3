"""Plans: what a call asks for, made explicit, kept, and forgotten when parts change."""

import copy
import pickle
import threading
from typing import Any

import pytest
import torch

from graftwork.compose.lower import Lanes
from graftwork.compose.plan import _KEPT, Plan
from graftwork.compose.tree import Average, BatchSplit, Fuse, Parallel, Stack
from graftwork.core.fusion import FUSIONS
from graftwork.core.heads import HeadConfig
from graftwork.core.kinds import read_config
from graftwork.errors import AdapterError, CompositionError
from tests import tiny
from tests.rig import Rig, relative


@pytest.fixture
def rig() -> Rig:
    rig = Rig("bert", {"a": "seq_bn", "b": "par_bn", "hi": "seq_bn"})
    rig.parts.add_fusion(Fuse("a", "b", name="f"), FUSIONS["dynamic"], rig.backbone)
    return rig


def with_heads(rig: Rig, *names: str) -> Rig:
    for name in names:
        rig.parts.add_head(name, HeadConfig(kind="classification", num_outputs=2), rig.backbone)
    return rig


def plan(rig: Rig, setup: Any, head: Any = None, default: str | None = None, batch: int = 2) -> Plan:
    return rig.planner.plan(setup, head, default, batch)


# -- routes and rows --


def test_no_adapter_needs_no_route(rig: Rig) -> None:
    for setup in (None, "none", [None, None], BatchSplit(None, None, batch_sizes=[1, 1])):
        assert plan(rig, setup).route is None
        assert plan(rig, setup).rows == 2


def test_rows_are_repeated_as_parallel_asks(rig: Rig) -> None:
    made = plan(rig, Parallel("a", None))
    assert made.rows == 4
    assert made.sources is not None
    assert made.sources.tolist() == [0, 1, 0, 1]
    given = {"x": torch.tensor([[1], [2]]), "one for all": torch.tensor([[9]])}
    repeated = made.repeat(given)
    assert repeated["x"].flatten().tolist() == [1, 2, 1, 2]
    assert repeated["one for all"].tolist() == [[9]]
    given = {"x": torch.tensor([[1], [2]])}
    assert plan(rig, "a").repeat(given) is given


def test_lanes_say_what_runs_on_which_row(rig: Rig) -> None:
    with_heads(rig, "a", "b")
    made = plan(rig, Lanes([1, 0, 1], ["a", Stack("hi", "b"), "none"]), ["b", None, "a"])
    assert made.sources is not None
    assert made.sources.tolist() == [1, 0, 1]
    assert (made.rows, made.heads) == (3, ("b", "b", "a"))
    assert plan(rig, Lanes([0, 1], ["a", "b"])) is plan(rig, ["a", "b"])
    assert plan(rig, Lanes([0, 0, 1], ["a", "a", "a"])).rows == 3
    given = tiny.inputs("bert")
    twice = {key: value[[1, 0, 1]] for key, value in given.items()}
    trees = ["a", Stack("hi", "b"), BatchSplit("a", batch_sizes=[1])]
    assert relative(rig.run(Lanes([1, 0, 1], trees), given), rig.run(trees, twice)) < 1e-6


@pytest.mark.parametrize(
    ("lanes", "message"),
    [
        (Lanes([0, 1], ["a"]), "Lanes names 2 rows and 1 compositions"),
        (Lanes([0, 0], ["a", "b"]), r"Lanes names the rows \[0\] of a batch with rows 0 to 1; .* see \[1\]"),
        (Lanes([0, 1, 2], ["a", "b", "a"]), r"each of them and no other: see \[2\]"),
        (Lanes([0, 1, 1], ["a", "b", Stack("hi", Parallel("a", "b"))]), "give each branch a lane of its own"),
        (Lanes([1, 0], [BatchSplit("a", "b", batch_sizes=[1, 1]), "b"]), "covers 2 rows, but the batch has 1"),
    ],
)
def test_lanes_that_do_not_fit_are_refused(rig: Rig, lanes: Lanes, message: str) -> None:
    with pytest.raises(CompositionError, match=message):
        plan(rig, lanes)


def test_lanes_have_as_many_heads(rig: Rig) -> None:
    with_heads(rig, "a", "b")
    with pytest.raises(AdapterError, match="head= names 2 heads for a batch of 3 rows"):
        plan(rig, Lanes([0, 0, 1], ["a", "b", "a"]), ["a", "b"])


def test_rows_without_adapters_are_repeated_too(rig: Rig) -> None:
    made = plan(rig, Parallel(None, None, None), batch=2)
    assert made.rows == 6
    assert made.repeat({"x": torch.tensor([1, 2])})["x"].tolist() == [1, 2] * 3
    one = plan(rig, Parallel(None, "a"), batch=1)
    assert one.repeat({"x": torch.tensor([[5]])})["x"].tolist() == [[5], [5]]


def test_a_list_is_one_composition_per_row(rig: Rig) -> None:
    inputs = tiny.inputs("bert")
    with torch.no_grad():
        mixed = rig.run(["a", "Stack(hi, b)"], inputs)
        assert relative(mixed[:1], rig.run("a", inputs)[:1]) < 1e-6
        assert relative(mixed[1:], rig.run(Stack("hi", "b"), inputs)[1:]) < 1e-6
        same = rig.run(["a", "a"], inputs)
        assert torch.equal(same, rig.run("a", inputs))
    assert plan(rig, ["a", "b"]).trees == ("a", "b")
    assert plan(rig, [Parallel("a", "b"), "a"]).rows == 3


@pytest.mark.parametrize(
    ("setup", "batch", "message"),
    [
        (["a"], 2, "adapters= names 1 compositions for a batch of 2 rows"),
        (["a", "b", "a"], 2, "adapters= names 3 compositions for a batch of 2 rows"),
        ([], 2, "adapters= names 0 compositions for a batch of 2 rows"),
        (BatchSplit("a", batch_sizes=[3]), 2, r"BatchSplit\(a:3\) covers 3 rows, but the batch has 2"),
        (["BatchSplit(a:2)", "a"], 2, r"BatchSplit\(a:2\) covers 2 rows, but the batch has 1"),
        ("a", 0, "a batch needs at least one row"),
        ([], 0, "a batch needs at least one row"),
        (3, 2, "3 is not a composition"),
    ],
)
def test_what_does_not_fit_the_batch_is_refused(rig: Rig, setup: Any, batch: int, message: str) -> None:
    with pytest.raises(CompositionError, match=message):
        plan(rig, setup, batch=batch)


def test_what_is_not_there_is_refused(rig: Rig) -> None:
    with pytest.raises(AdapterError, match="no adapter 'x'"):
        plan(rig, ["a", Stack("a", "x")])
    with pytest.raises(AdapterError, match="no fusion 'b,a'"):
        plan(rig, Fuse("b", "a"))


# -- kept and forgotten --


def test_equal_calls_share_a_plan(rig: Rig) -> None:
    first = plan(rig, "Stack(hi, a)")
    assert plan(rig, Stack("hi", "a")) is first
    assert plan(rig, "Stack(hi, a)", batch=3) is not first
    assert plan(rig, ["Stack(hi, a)", "Stack(hi, a)"]) is not first
    assert plan(rig, Average("hi", "a", weights=[1, 1])) is not plan(rig, Average("hi", "a", weights=[1, 3]))


def test_a_plan_is_made_again_when_parts_change(rig: Rig) -> None:
    inputs = tiny.inputs("bert")
    with torch.no_grad():
        before = rig.run("a", inputs)
        rig.parts.add_adapter("a", read_config("par_bn"), rig.backbone)
        rig.planner.forget()
        assert torch.equal(rig.run("a", inputs), rig.run(None, inputs))  # a parallel adapter is born neutral
    assert not torch.equal(before, rig.run(None, inputs))


def test_by_name_only_what_uses_it_is_forgotten(rig: Rig) -> None:
    with_heads(rig, "a", "b")
    rig.parts.requires_grad_(False)
    rig.planner.executors.execution = "folded"
    asked: list[tuple[Any, Any]] = [("hi", "b"), (Stack("hi", "b"), "a"), (Fuse("a", "b", name="f"), "b"), ("a", "a")]
    made = [plan(rig, setup, head) for setup, head in asked]
    kept = dict(rig.planner.executors._made)
    assert len(kept) == 4

    def survivors(name: str | None) -> list[bool]:
        rig.planner.forget(name)
        return [plan(rig, setup, head) is before for (setup, head), before in zip(asked, made, strict=True)]

    assert survivors("something else") == [True] * 4
    assert survivors("f") == [True, True, False, True]
    assert rig.planner.executors._made["a", "folded"] is kept["a", "folded"]
    assert survivors("hi") == [False, False, False, True]
    assert rig.planner.executors._made["hi", "folded"] is not kept["hi", "folded"]
    assert survivors("a") == [False] * 4  # an adapter here, a member there, a head of another one
    assert survivors(None) == [False] * 4


def test_a_head_that_is_left_open_is_asked_for_again(rig: Rig) -> None:
    before = plan(rig, "hi"), plan(rig, ["hi", "hi"], head=["none", None]), plan(rig, "hi", head="none")
    rig.planner.forget("a new head")
    after = plan(rig, "hi"), plan(rig, ["hi", "hi"], head=["none", None]), plan(rig, "hi", head="none")
    assert [new is old for new, old in zip(after, before, strict=True)] == [False, False, True]
    with_heads(rig, "a")
    rig.planner.forget("a")
    with pytest.raises(AdapterError, match="which head answers hi"):
        plan(rig, "hi")


def test_plans_do_not_pile_up(rig: Rig) -> None:
    kept = plan(rig, "a", batch=1)
    for batch in range(1, _KEPT + 50):
        plan(rig, "b", batch=batch)
        assert plan(rig, "a", batch=1) is kept  # used all the time, so it stays
    assert len(rig.planner._plans) == _KEPT


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_copy_plans_for_its_own_modules(rig: Rig, copier: Any) -> None:
    inputs = tiny.inputs("bert")
    with torch.no_grad():
        expected = rig.run("a", inputs)
        twin: Rig = copier(rig)
        for parameter in rig.parts.parameters():
            parameter.zero_()
        assert torch.equal(twin.run("a", inputs), expected)
    assert twin.planner._parts is twin.parts


def test_threads_share_the_plans(rig: Rig) -> None:
    failures: list[BaseException] = []

    def worker(number: int) -> None:
        try:
            for batch in range(1, 200):
                rig.planner.plan(["a", "b", "hi"][(number + batch) % 3], None, None, batch)
                if batch % 20 == number:
                    rig.planner.forget()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=worker, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert failures == []
    assert not any(thread.is_alive() for thread in threads)


# -- heads --


def test_without_heads_the_base_answers(rig: Rig) -> None:
    assert plan(rig, "a").heads is None
    assert plan(rig, "a", default="whatever", batch=1).heads == ("whatever",)


def test_the_head_of_each_row(rig: Rig) -> None:
    with_heads(rig, "a", "f", "other")
    assert plan(rig, "a").heads == ("a", "a")
    assert plan(rig, "Stack(hi, a)").heads == ("a", "a")
    assert plan(rig, Fuse("a", "b", name="f")).heads == ("f", "f")
    assert plan(rig, ["a", Fuse("a", "b", name="f")]).heads == ("a", "f")
    assert plan(rig, ["a", "b"], head="other").heads == ("other", "other")
    assert plan(rig, ["b", "b"], head=["other", "a"]).heads == ("other", "a")
    assert plan(rig, ["a", "b"], head=[None, "other"]).heads == ("a", "other")
    assert plan(rig, ["a", "b"], default="other").heads == ("a", "other")
    assert plan(rig, "b", head="none").heads is None
    assert plan(rig, Parallel("a", Stack("hi", "a")), batch=1).heads == ("a", "a")
    assert plan(rig, Parallel("b", "a"), head=["a", "other"]).heads == ("a", "other", "a", "other")


@pytest.mark.parametrize(
    ("setup", "head", "message"),
    [
        (
            "b",
            None,
            r"which head answers b\? None is named 'b'; say head=... with one of: a, or head='none' for the base",
        ),
        ("b", "x", "no head 'x'; the heads are: a"),
        (["a", "b"], ["a"], "head= names 1 heads for a batch of 2 rows"),
        (
            ["a", "b"],
            ["a", "none"],
            r"rows \[1\] \(b\) have no head while others of the batch have one; ask for them apart",
        ),
    ],
)
def test_rows_whose_head_is_not_clear_are_refused(rig: Rig, setup: Any, head: Any, message: str) -> None:
    with_heads(rig, "a")
    with pytest.raises(AdapterError, match=message):
        plan(rig, setup, head)
