"""The direct way through a site against the folded node, the reference, and models whose hooks take it."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from graftwork.compose import bank_product
from graftwork.compose.direct import direct_of
from graftwork.compose.fold import TOLERANCES, fold
from graftwork.compose.grammar import parse
from graftwork.compose.reference import bind
from graftwork.compose.tree import Composition
from graftwork.core.activations import ACTIVATIONS, activation, operator_of
from graftwork.core.site import NO_DELTA, Delta, Direct, Reading
from graftwork.model import AdapterModel
from tests import tiny
from tests.compose.test_fold import FOUR, TREES, Zoo, off, reading, zoo, zoos
from tests.rig import randomise, relative

EXACT = TOLERANCES[torch.float64]


def way(tree: Composition, modules: Zoo, own: bool = False) -> tuple[Direct | None, Any]:
    folded = fold(tree, 0, modules, normed=True, own=own)
    return (None, None) if folded is None else (direct_of(folded.node), folded.node)


def taken(direct: Direct, here: Reading) -> Tensor | None:
    """s + Δ the direct way."""
    assert here.norm is not None
    return direct(here.output + here.residual, here.norm, here.output, here.residual)


def close(found: Tensor | None, here: Reading, change: Delta) -> bool:
    """Whether a sum is s + Δ."""
    assert found is not None
    assert change.after is None
    return off(Delta(found - (here.output + here.residual)), Delta(change.before)) < EXACT


@given(TREES, zoos(), st.sampled_from(((2, 5), (1, 1))))
def test_whatever_has_a_direct_way_is_the_reference(tree: Composition, modules: Zoo, shape: tuple[int, int]) -> None:
    direct, _ = way(tree, modules)
    node, here = bind(tree, 0, modules), reading(True, shape)
    if direct is not None and node is not None:
        assert close(taken(direct, here), here, node(here, NO_DELTA))


DIRECT = (
    "a", "b", "p", "Average(a, c)", "Stack(a, b)", "Stack(a, c, b)", "Fuse(a, c)", "Stack(a, Fuse(a, c, d))",
    "Stack(Fuse(a, c), b, Fuse(a, d))",
)  # fmt: skip
# what more than a sum of products stands in the way of: gates, the place behind the norm, several activations
ASKED = ("h", "plus", "Average(a, b)", "Fuse(a, b)", "Stack(a, p)", "Stack(a, Average(a, b))", "Fuse(Stack(a, c), d)")
MEMBERS = {**FOUR, "c": "seq_bn[reduction_factor=2]", "d": "seq_bn[reduction_factor=8]"}


@pytest.mark.parametrize("text", DIRECT)
def test_what_goes_the_direct_way(text: str) -> None:
    modules = zoo(**MEMBERS)
    direct, folded = way(parse(text), modules)
    assert direct is not None
    node, here = bind(parse(text), 0, modules), reading(True)
    assert node is not None
    for one in (node, folded):
        assert close(taken(direct, here), here, one(here, NO_DELTA))


@pytest.mark.parametrize("text", ASKED)
def test_what_does_not(text: str) -> None:
    assert way(parse(text), zoo(**MEMBERS))[0] is None


def test_only_where_a_norm_follows() -> None:
    for text in ("a", "Stack(a, b)", "Fuse(a, c)"):
        folded = fold(parse(text), 0, zoo(**MEMBERS), normed=False)
        assert folded is not None
        assert direct_of(folded.node) is None


def test_a_single_adapter_is_the_reference_to_the_last_bit() -> None:
    for config in ("seq_bn[reduction_factor=4]", "double_seq_bn[reduction_factor=4]", "seq_bn[non_linearity=gelu]"):
        modules = zoo(a=config).to(torch.float32)
        direct, _ = way("a", modules, own=True)
        node, here = bind("a", 0, modules), reading(True, dtype=torch.float32)
        assert direct is not None
        assert node is not None
        change = node(here, NO_DELTA).before
        assert change is not None
        found = taken(direct, here)
        assert found is not None
        assert torch.equal(found, here.output + here.residual + change)


def test_what_it_is_not_given_and_other_dtypes_are_left_to_the_long_way() -> None:
    modules = zoo(**MEMBERS, double="double_seq_bn")
    here = reading(True)
    assert here.norm is not None
    double, _ = way("double", modules)
    assert double is not None
    assert double(here.output + here.residual, here.norm, None, None) is None
    for text in ("a", "b", "Stack(a, b)", "Fuse(a, c)"):
        direct, _ = way(parse(text), modules)
        assert direct is not None
        assert taken(direct, reading(True, dtype=torch.float32)) is None  # the adapters are in float64


def test_the_sum_that_is_read_is_not_written_to() -> None:
    for text in DIRECT:
        direct, _ = way(parse(text), zoo(**MEMBERS))
        here = reading(True)
        summed = here.output + here.residual
        kept = [one.clone() for one in (summed, here.output, here.residual)]
        assert direct is not None
        assert here.norm is not None
        direct(summed, here.norm, here.output, here.residual)
        assert all(map(torch.equal, kept, (summed, here.output, here.residual)))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_operator_is_what_its_module_computes(name: str) -> None:
    module, x = activation(name), torch.linspace(-4, 4, 33)
    with torch.no_grad():
        assert torch.equal(operator_of(module.forward)(x), module(x))
    assert operator_of(torch.sin) is torch.sin
    if name in ("relu", "swish", "gelu"):
        assert operator_of(module.forward) != module.forward


# -- in a model --------------------------------------------------------------------------------------------------------


def made(**configs: str) -> AdapterModel:
    model = AdapterModel(tiny.model("bert"))
    for name, config in configs.items():
        model.add_adapter(name, config)
    randomise(model.parts.parameters())
    return model.eval().requires_grad_(False)


SEQ = dict.fromkeys("abc", "seq_bn[reduction_factor=4]")
ROWS = tiny.inputs("bert", rows=3)


def answers(model: AdapterModel, setup: Any, execution: str, given: dict[str, Tensor] = ROWS) -> Tensor:
    model.execution = execution
    with torch.no_grad():
        last: Tensor = model(**given, adapters=setup, head="none")[0]
    return last


@pytest.fixture
def views(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is quickest for a bank is measured, and a busy machine may find anything; here it is a view."""
    monkeypatch.setattr(bank_product, "quickest", lambda kind, ways, device: next(iter(ways)))


@pytest.mark.usefixtures("views")
@pytest.mark.parametrize("setup", ["a", "Stack(a, b)", "Fuse(a, b, c, name=f)", ["a", "b", "c"]])
def test_a_model_takes_it_and_says_what_the_reference_says(setup: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(**SEQ)
    model.add_adapter_fusion(["a", "b", "c"], name="f")
    randomise(model.parts.fusions.parameters(), 3)
    model.eval().requires_grad_(False)
    expected = answers(model, setup, "reference")
    found = answers(model, setup, "auto")
    assert relative(found, expected) < 1e-5
    route = model.plan(setup, "none", 3).route
    assert route is not None
    ffn = [site.index for site in model.backbone.sites if site.kind == "ffn"]
    assert sorted(route.direct) == ffn
    asked: list[int] = []
    monkeypatch.setattr(type(route), "delta", lambda self, site, reading: asked.append(site))
    assert torch.equal(answers(model, setup, "auto"), found)
    assert not asked


@pytest.mark.usefixtures("views")
def test_rows_that_a_bank_moves_or_repeats_go_the_long_way() -> None:
    model = made(**SEQ)
    setup = ["a", "b", "c"]
    before = answers(model, setup, "banked")
    route = model.plan(setup, "none", 3).route
    assert route is not None
    held = dict(route.direct)
    model.reserve(100)  # the slabs of this very plan lie elsewhere now
    assert torch.equal(answers(model, setup, "banked"), before)
    site, direct = next(iter(held.items()))
    norm: Any = nn.LayerNorm(tiny.WIDTH)
    assert direct(torch.randn(3, 2, tiny.WIDTH), norm, None, None) is None
    fresh = made(**SEQ)
    route = fresh.plan(setup, "none", 3).route
    assert route is not None
    assert route.direct[site](torch.randn(6, 2, tiny.WIDTH), norm, None, None) is None  # two beams a row
    assert route.direct[site](torch.randn(3, 2, tiny.WIDTH, requires_grad=True), norm, None, None) is None
    assert route.direct[site](torch.randn(3, 2, tiny.WIDTH), norm, None, None) is not None
    assert answers(model, ["a", "a", "c"], "banked").shape == before.shape


def test_gradients_pass_through_it() -> None:
    model = made(**SEQ)
    model.add_adapter_fusion(["a", "b", "c"], name="f")
    model.eval().requires_grad_(False)
    for setup in ("a", "Stack(a, b)", "Fuse(a, b, c, name=f)", ["a", "b", "c"]):
        found = []
        for execution in ("auto", "reference"):
            model.execution = execution
            embedded = model.base.get_input_embeddings()(ROWS["input_ids"]).requires_grad_()
            model(inputs_embeds=embedded, adapters=setup, head="none")[0].square().sum().backward()
            found.append(embedded.grad)
        torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


def test_in_mixed_precision_the_stream_keeps_its_own() -> None:
    model = made(**SEQ)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = (answers(model, "Stack(a, b)", execution) for execution in ("auto", "reference"))
    assert found.dtype == expected.dtype
    assert relative(found.float(), expected.float()) < 0.05
