"""Mixed batches in banks: equal to the reference, whatever the rows are; what has no slot runs beside them."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from graftwork.compose.banks import Banks
from graftwork.compose.grammar import parse
from graftwork.compose.tree import Composition, Parallel, Split
from graftwork.model import AdapterModel
from tests import tiny
from tests.rig import METHODS, ZOO, Rig, randomise, relative
from tests.trees import compositions, rows

ADAPTERS = ZOO | {
    "seq2": "seq_bn[reduction_factor=5]",  # another width of the same class
    "wide": "seq_bn[reduction_factor=1]",
    "gate": "seq_bn[reduction_factor=8,use_gating=True]",
    "odd": "seq_bn[reduction_factor=5,non_linearity=sigmoid,scaling=0.3]",  # f(0) is not 0
    "lora": METHODS["lora"],  # has no slot
}
NAMES = tuple(name for name in ADAPTERS if name != "lora")
TOKENS = 6
BESIDE = st.sampled_from(["lora", "Stack(lora, seq)", "Average(seq, lora)"]).map(parse)
RIGS = {family: Rig(family, ADAPTERS) for family in ("bert", "llama")}


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def both(rig: Rig, setup: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The same batch in banks and by the reference."""
    found = []
    for execution in ("banked", "reference"):
        rig.planner.executors.execution = execution
        with torch.no_grad():
            found.append(rig.run(setup, inputs))
    return found[0], found[1]


def banks(rig: Rig | AdapterModel) -> Banks:
    return (rig.planner if isinstance(rig, Rig) else rig._planner).executors.banks


@pytest.mark.parametrize("family", RIGS)
@given(trees=st.lists(rows(NAMES, tokens=TOKENS, depth=2) | BESIDE, min_size=1, max_size=5))
def test_random_rows_are_what_the_reference_says(family: str, trees: list[Composition]) -> None:
    rig = RIGS[family]
    rig.learn_fusions(trees)
    found, expected = both(rig, trees, tiny.inputs(family, rows=len(trees), tokens=TOKENS))
    assert relative(found, expected) < 1e-5


@pytest.mark.parametrize("family", RIGS)
@given(tree=compositions(NAMES, batch=3, tokens=TOKENS, depth=2))
def test_a_composition_of_the_batch(family: str, tree: Composition) -> None:
    rig = RIGS[family]
    rig.learn_fusions([tree])
    found, expected = both(rig, tree, tiny.inputs(family, rows=3, tokens=TOKENS))
    assert relative(found, expected) < 1e-5


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 3e-2), (torch.float64, 1e-12)])
def test_other_dtypes(dtype: torch.dtype, bound: float) -> None:
    model = AdapterModel(tiny.model("bert").to(dtype)).eval()
    for name in ("seq", "double", "plus", "seq2"):
        model.add_adapter(name, ADAPTERS[name])
    randomise(model.parts.parameters())
    setup = ["seq", "double", "Stack(seq, seq2)", "plus", None]
    with torch.no_grad():
        outputs = []
        for model.execution in ("banked", "reference"):
            outputs.append(model(**tiny.inputs("bert", rows=5), adapters=setup, head="none")[0])
    assert outputs[0].dtype is dtype
    assert relative(outputs[0], outputs[1]) < bound


def test_what_goes_where() -> None:
    rig = RIGS["bert"]
    rig.planner.forget()
    trees = [parse(text) for text in ("seq", "seq2", "Stack(par, seq)", "lora", "none", "gate", "Stack(lora, seq)")]
    rig.planner.executors.execution = "banked"
    with torch.no_grad():
        route = rig.planner.plan(trees, "none", None, len(trees)).route
    assert route is not None
    assert route.banked is not None
    assert [group.rows.tolist() for group in route.groups if group.rows is not None] == [[3], [6]]
    passes = [(one.rows.tolist() if one.rows is not None else None, one.leases) for one in route.banked.passes]
    assert [rows for rows, _ in passes] == [[0, 1], [2], [5], [2]]  # level 0: by bank; level 1
    assert [lease.unit for _, leases in passes for lease in leases] == ["seq", "seq2", "par", "gate", "seq"]
    assert passes[0][1][0].bank is passes[3][1][0].bank  # one slot for an adapter, at whatever level
    assert list(banks(rig).refused.values()) == ["only what folds to one wide bottleneck at each site has a slot"]


def test_tokens_have_slots_where_a_split_is() -> None:
    rig = RIGS["bert"]
    gated = Split("gate", "seq", splits=[3, 3])
    trees: list[Composition] = [Split("seq", "seq2", splits=[2, 4]), Split("par", None, splits=[5, 1]), "seq", gated]
    found, expected = both(rig, trees, tiny.inputs("bert", rows=4, tokens=TOKENS))
    assert relative(found, expected) < 1e-5
    rig.planner.executors.execution = "banked"
    with torch.no_grad():
        route = rig.planner.plan(trees, "none", None, 4).route
    assert route is not None
    assert route.banked is not None
    assert sorted({one.tokens for one in route.banked.passes} - {None}) == [TOKENS]
    assert {group.rows.tolist()[0] for group in route.groups if group.rows is not None} == {3}  # a gate spans tokens


def test_what_moves_the_stream_leaves_the_others_where_they_are() -> None:
    moving = "seq_bn[reduction_factor=4,residual_before_ln=False]"  # changes the stream with weights of zero, too
    rig = Rig("bert", {"all": moving, "some": moving.replace("]", ",leave_out=[1]]"), "seq": ZOO["seq"]})
    trees: list[Composition] = [
        Split("all", None, splits=[2, 4]),
        "some",
        "all",
        None,
        Split("seq", "all", splits=[3, 3]),
    ]
    found, expected = both(rig, trees, tiny.inputs("bert", rows=5, tokens=TOKENS))
    assert relative(found, expected) < 1e-5


def test_fusions_of_the_same_widths_in_another_order() -> None:
    rig = Rig("bert", {"narrow": ZOO["seq"], "wide": "seq_bn[reduction_factor=1]"})
    trees = [
        parse("Fuse(narrow, wide, name=f)"),
        parse("Fuse(wide, narrow, name=g)"),
        parse("Fuse(narrow, wide, name=h)"),
    ]
    rig.learn_fusions(trees)
    found, expected = both(rig, trees, tiny.inputs("bert", rows=3))
    assert relative(found, expected) < 1e-5
    assert [bank.used for bank in banks(rig).banks] == [2, 1]


@pytest.mark.parametrize("last", [None, Split("seq", "par", splits=[3, 4])])
def test_rows_repeated_in_place_follow_their_source(last: Composition) -> None:
    model = AdapterModel(tiny.model("llama")).eval()
    for name in ("seq", "par", "seq2"):
        model.add_adapter(name, ADAPTERS[name])
    randomise(model.parts.parameters())
    ids = tiny.inputs("llama", rows=3, tokens=7)["input_ids"]
    with torch.no_grad():
        route = {}
        for model.execution in ("banked", "reference"):
            plan = model._planner.plan(["seq", "Stack(par, seq2)", last], "none", None, 3)
            with model.backbone.runtime.running(plan.route):
                route[model.execution] = model.backbone.trunk(ids.repeat_interleave(2, dim=0))[0]
    assert relative(route["banked"], route["reference"]) < 1e-5


def test_auto_is_banked_where_there_are_several() -> None:
    model = AdapterModel(tiny.model("bert")).eval()
    for name in ("a", "b"):
        model.add_adapter(name)
    model.execution = "auto"
    inputs = tiny.inputs("bert", rows=2)
    with torch.no_grad():
        for setup, banked in [("a", False), (["a", "a"], False), (["a", "b"], True), (Parallel("a", "b"), True)]:
            route = model._planner.plan(setup, "none", None, 2).route
            assert route is not None
            assert (route.banked is not None) is banked, setup
        model(**inputs, adapters=["a", "b"], head="none")
    fresh = model._planner.plan(["a", "b"], "none", None, 2).route  # its adapters may receive gradients
    assert fresh is not None
    assert fresh.banked is None


def test_layers_can_be_skipped() -> None:
    rig = Rig("bert", {"a": ADAPTERS["double"], "b": ADAPTERS["seq"]})
    rig.planner.executors.depths = tuple(site.depth for site in rig.backbone.sites)
    outputs = []
    for execution in ("banked", "reference"):
        rig.planner.executors.execution = execution
        with torch.no_grad():
            plan = rig.planner.plan(["a", "b"], "none", None, 2, skip=[0, 2])
            with rig.backbone.runtime.running(plan.route):
                outputs.append(rig.backbone.trunk(**tiny.inputs("bert", rows=2))[0])
    assert relative(*outputs) < 1e-5


def model_of(*names: str) -> AdapterModel:
    model = AdapterModel(tiny.model("bert")).eval()
    for seed, name in enumerate(names):
        model.add_adapter(name, ADAPTERS["seq"])
        randomise(model.parts.modules_of("adapters", name)["layer.0/ffn"].parameters(), seed)
    model.parts.requires_grad_(False)
    model.execution = "banked"
    return model


def test_changed_weights_are_followed_and_a_name_that_is_gone_frees_its_slot() -> None:
    model, inputs = model_of("a", "b"), tiny.inputs("bert", rows=2)
    call: dict[str, Any] = {**inputs, "adapters": ["a", "b"], "head": "none"}
    first = model(**call)[0]
    (bank,) = banks(model).banks
    assert bank.used == 2
    with torch.no_grad():
        for weight in model.parts.tensors("adapters", "a").values():
            weight.mul_(1.5)
    second = model(**call)[0]
    assert not torch.allclose(first[0], second[0], atol=1e-3)
    torch.testing.assert_close(first[1], second[1])
    assert bank.used == 2
    model.execution = "reference"
    torch.testing.assert_close(model(**call)[0], second, rtol=1e-4, atol=1e-5)
    model.delete_adapter("a")
    assert bank.used == 1
    model.add_adapter("a", ADAPTERS["seq"])
    model.parts.requires_grad_(False)
    model.execution = "banked"
    third = model(**call)[0]
    assert not torch.allclose(third[0], second[0], atol=1e-3)
    assert bank.used == 2


def test_a_copy_has_banks_of_its_own() -> None:
    model, inputs = model_of("a", "b"), tiny.inputs("bert", rows=2)
    call: dict[str, Any] = {**inputs, "adapters": ["a", "b"], "head": "none"}
    first = model(**call)[0]
    other = copy.deepcopy(model)
    assert other.execution == "banked"
    assert banks(other).banks == []
    with torch.no_grad():
        randomise(other.parts.parameters(), seed=9)
    assert not torch.allclose(other(**call)[0], first, atol=1e-3)
    torch.testing.assert_close(model(**call)[0], first, rtol=0, atol=0)


@pytest.mark.usefixtures("deterministic")
@given(others=st.lists(st.sampled_from(["a", "b", "c", None, "Stack(a, b)", "Average(a, c)"]), min_size=3, max_size=3))
def test_other_rows_never_change_my_bits(others: list[str | None]) -> None:
    call = {**tiny.inputs("bert", rows=4), "head": "none"}
    mine = ISOLATED(**call, adapters=["b", "a", "c", "b"])[0][0]
    assert torch.equal(ISOLATED(**call, adapters=["b", *others])[0][0], mine)


ISOLATED = model_of("a", "b", "c")


def test_forgetting_one_unit_leaves_the_others() -> None:
    model = model_of("a", "b", "c")
    call: dict[str, Any] = {**tiny.inputs("bert", rows=3), "head": "none"}
    model(**call, adapters=["a", "Average(a, b)", "c"])
    model(**call, adapters=["Stack(a, b)", "c", None])
    (first, second) = banks(model).banks  # an average is of another width
    assert (first.used, second.used) == (3, 1)
    model.delete_adapter("b")
    assert (first.used, second.used) == (2, 0)
    model.delete_adapter("a")
    assert (first.used, second.used) == (1, 0)
    assert set(banks(model)._named) == {"c"}


def test_room_can_be_made_ahead() -> None:
    model = model_of("a", "b")
    model.reserve(20)
    model(**tiny.inputs("bert", rows=2), adapters=["a", "b"], head="none")
    (bank,) = banks(model).banks
    assert bank.slots == 21
    model.reserve(40)
    assert bank.slots == 41
    call: dict[str, Any] = {**tiny.inputs("bert", rows=2), "adapters": ["a", "b"], "head": "none"}
    found = model(**call)[0]
    model.execution = "reference"
    torch.testing.assert_close(found, model(**call)[0], rtol=1e-4, atol=1e-5)
