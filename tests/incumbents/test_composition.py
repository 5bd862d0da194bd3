"""What other libraries' arithmetic gets wrong: halved averages, lost members, flags of the wrong adapter."""

from typing import Any

import pytest
import torch

from graftwork.compose.grammar import parse
from graftwork.compose.tree import Average, BatchSplit, Fuse, Parallel, Stack
from graftwork.model import AdapterModel
from tests import tiny
from tests.adapted import adapted, last, same, shaken, snapshot
from tests.rig import relative

GIVEN = tiny.inputs("bert", rows=4)


def zoo(**configs: str) -> AdapterModel:
    model = AdapterModel(tiny.model("bert"))
    for name, config in configs.items():
        model.add_adapter(name, config)
    shaken(model.parts, seed=3)
    return model.eval()


METHODS = [
    "seq_bn",
    "par_bn",
    "lora",
    "ia3",
    "dora",
    "vera[r=4]",
    "loreft",
    "compacter[phm_dim=2,reduction_factor=8]",
    "lora|seq_bn",
]


@pytest.mark.parametrize("config", METHODS)
def test_the_average_of_equal_adapters_is_never_half_of_it(config: str) -> None:
    model = zoo(a=config)
    assert relative(last(model(**GIVEN, adapters=Average("a", "a"))), last(model(**GIVEN, adapters="a"))) < 1e-5
    model.average_adapter("m", ["a", "a"])
    assert relative(last(model(**GIVEN, adapters="m")), last(model(**GIVEN, adapters="a"))) < 1e-5


def test_a_stack_never_loses_its_sequential_member_to_a_parallel_one() -> None:
    model = zoo(seq="seq_bn", par="par_bn[reduction_factor=8]")
    both = last(model(**GIVEN, adapters=Stack("seq", "par")))
    for alone in ("seq", "par"):
        assert relative(both, last(model(**GIVEN, adapters=alone))) > 0.01


@pytest.mark.parametrize(
    "other",
    [
        "seq_bn[original_ln_after=False,residual_before_ln=False]",
        "par_bn[reduction_factor=8]",
        "double_seq_bn",
        "seq_bn[leave_out=[0,2]]",
        "lora",
        "ia3",
        "loreft",
        "prefix_tuning_flat",
        "unipelt[0.bottleneck_size=8]",
    ],
)
def test_adapters_with_different_flags_never_disturb_each_other_in_a_batch(other: str) -> None:
    model = zoo(a="seq_bn", b=other)
    alone = {name: last(model(**GIVEN, adapters=name)) for name in ("a", "b")}
    for setup in (BatchSplit("a", "b", batch_sizes=[2, 2]), ["a", "a", "b", "b"]):
        mixed = last(model(**GIVEN, adapters=setup))
        assert relative(mixed[:2], alone["a"][:2]) < 1e-5
        assert relative(mixed[2:], alone["b"][2:]) < 1e-5
    both = last(model(**GIVEN, adapters=Parallel("a", "b")))
    assert relative(both[:4], alone["a"]) < 1e-5
    assert relative(both[4:], alone["b"]) < 1e-5


def test_loras_in_a_stack_never_need_square_layers_and_never_chain() -> None:
    model = zoo(a="lora[attn_matrices=[],intermediate_lora=True]", b="lora[attn_matrices=[],intermediate_lora=True]")
    stacked = last(model(**GIVEN, adapters=Stack("a", "b")))
    assert relative(stacked, last(model(**GIVEN, adapters=Stack("b", "a")))) < 1e-5
    model.average_adapter("sum", ["a", "b"], [1, 1], combine_strategy="lora_cat", normalize_weights=False)
    assert relative(last(model(**GIVEN, adapters="sum")), stacked) < 1e-5


def test_a_fusion_never_changes_what_its_members_say_and_never_depends_on_how_often_it_ran() -> None:
    model = zoo(a="seq_bn", b="seq_bn")
    model.add_adapter_fusion(Fuse("a", "b", name="f"), config="dynamic")
    tree = Fuse("a", "b", name="f")
    before, first = snapshot(model), last(model(**GIVEN, adapters=tree))
    for _ in range(60):
        again = last(model(**GIVEN, adapters=tree))
    assert torch.equal(first, again)
    assert same(before, snapshot(model))


@pytest.mark.parametrize(
    "text",
    [
        "Parallel(a, Fuse(b, c, name=f))",
        "Parallel(a, b, Fuse(a, b, name=f))",
        "Stack(a, Parallel(b, Average(b, c)))",
        "Stack(a, Stack(b, c))",
        "BatchSplit(Stack(a, b):2, none:2)",
        "Average(a, Fuse(b, c, name=f))",
        "Split(a:3, Split(b:2, c:2):4)",
        "Stack(none, a)",
    ],
)
def test_what_has_a_meaning_is_never_refused_for_its_depth(text: str) -> None:
    model = zoo(a="seq_bn", b="par_bn", c="lora|seq_bn")
    tree = parse(text)
    for members in {name for name in ("Fuse(b, c, name=f)", "Fuse(a, b, name=f)") if name in text}:
        model.add_adapter_fusion(members)
    shaken(model.parts.fusions, seed=1)
    assert last(model(**GIVEN, adapters=tree)).isfinite().all()


def test_rows_without_an_adapter_are_never_impossible() -> None:
    model = adapted()
    mixed = last(model(**GIVEN, adapters=["a", None, "b", None]))
    assert relative(mixed[1::2], last(tiny.model("bert")(**GIVEN))[1::2]) < 1e-5


def test_training_a_nested_setup_is_never_an_error() -> None:
    model = adapted(adapters=["a", "b", "c"])
    model.add_adapter_fusion(Fuse("b", "c", name="f"))
    setups: list[Any] = [["a", ["b", "c"]], Stack("a", Average("b", "c")), "Stack(a, Fuse(b, c, name=f))", ["a"]]
    for setup in setups:
        model.train_adapter(setup)
        trained = {name.split(".")[2] for name, one in model.named_parameters() if one.requires_grad}
        assert trained == ({"=a"} if setup == ["a"] else {"=a", "=b", "=c"})


def test_names_with_weights_are_never_a_key_error() -> None:
    model = adapted()
    model.average_adapter("m", {"a": 0.7, "b": 0.3})
    model.average_adapter("n", ["a", "b"], weights=[0.7, 0.3])
    assert same(snapshot(model.parts.adapters["=m"]), snapshot(model.parts.adapters["=n"]))


def test_a_fusion_over_invertible_adapters_and_over_unions_is_never_refused() -> None:
    model = zoo(a="seq_bn_inv", b="seq_bn_inv", c="lora|seq_bn", d="lora|seq_bn")
    for members in ("a,b", "c,d"):
        model.add_adapter_fusion(members)
        assert last(model(**GIVEN, adapters=Fuse(*members.split(",")))).isfinite().all()
