"""Folded compositions against the reference, their plans against independent counts, and what does not fold."""

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import FrozenInstanceError, dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from graftwork.compose.fold import TOLERANCES, FoldPlan, Kept, fold
from graftwork.compose.grammar import parse
from graftwork.compose.plain import Plain
from graftwork.compose.reference import bind
from graftwork.compose.route import BatchRoute, Group
from graftwork.compose.tree import Composition, Fuse, Stack, fusions
from graftwork.compose.wide import Wide
from graftwork.core.bottleneck import Bottleneck, BottleneckConfig
from graftwork.core.fusion import FUSIONS, Fusion, FusionConfig
from graftwork.core.kinds import read_config
from graftwork.core.site import NO_DELTA, Delta, Reading, Site
from graftwork.errors import RoutingError
from tests import tiny
from tests.rig import Rig, randomise
from tests.trees import rows

WIDTH = 32
SITE = Site(0, "", 0, 0, "ffn", WIDTH)
ROWS_AND_TOKENS = ((2, 5), (1, 1), (3, 1), (1, 7))


class Zoo:
    """Adapters by name, and fusions made when first asked for; a name without a configuration has no module here."""

    def __init__(self, configs: dict[str, BottleneckConfig | None], fusion: FusionConfig = FUSIONS["dynamic"]) -> None:
        self.adapters = {name: c.build(SITE) for name, c in configs.items() if c is not None}
        self.fusions: dict[str, Fusion] = {}
        self.config, self.dtype = fusion, torch.float64
        for seed, module in enumerate(self.adapters.values()):
            self.settle(module, seed)

    def settle(self, module: nn.Module | None, seed: int) -> None:
        assert module is not None
        randomise(module.parameters(), seed)
        module.to(self.dtype).eval().requires_grad_(False)

    def adapter(self, name: str, site: int) -> Bottleneck | None:
        return self.adapters.get(name)

    def fusion(self, name: str, site: int) -> Fusion | None:
        if name not in self.fusions:
            self.fusions[name] = Fusion(WIDTH, self.config)
            self.settle(self.fusions[name], 100 + len(self.fusions))
        return self.fusions[name]

    def to(self, dtype: torch.dtype) -> "Zoo":
        self.dtype = dtype
        for module in [*self.adapters.values(), *self.fusions.values()]:
            assert module is not None
            module.to(dtype)
        return self


def zoo(**configs: str) -> Zoo:
    return Zoo({name: read_config(config) for name, config in configs.items()})


def reading(normed: bool, rows_and_tokens: tuple[int, int] = (2, 5), dtype: torch.dtype = torch.float64) -> Reading:
    generator = torch.Generator().manual_seed(3)
    h, r = (torch.randn(*rows_and_tokens, WIDTH, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    norm = nn.LayerNorm(WIDTH, dtype=torch.float64).requires_grad_(False)
    randomise(norm.parameters())
    return Reading(h, r, norm.to(dtype) if normed else None)


def incoming(like: Tensor, normed: bool) -> Delta:
    before, after = torch.randn(2, *like.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return Delta(before.to(like), after.to(like) if normed else None)


def off(found: Delta, expected: Delta) -> float:
    """The largest difference relative to the largest expected number; a part that is None is zero."""
    pairs = [(found.before, expected.before), (found.after, expected.after)]
    zero = torch.zeros((), dtype=torch.float64)
    doubles = [tuple(zero if part is None else part.double() for part in pair) for pair in pairs]
    largest = max(float(want.abs().max()) for _, want in doubles)
    return max(float((got - want).abs().max()) for got, want in doubles) / max(largest, 1e-9)


def check(tree: Composition, modules: Zoo, normed: bool, here: Reading, before: Delta = NO_DELTA) -> FoldPlan | None:
    """Fold, compare with the reference at 1e-10, and return the plan."""
    node, folded = bind(tree, 0, modules), fold(tree, 0, modules, normed=normed)
    assert (node is None) is (folded is None)
    if node is None or folded is None:
        return None
    assert off(folded.node(here, before), node(here, before)) < TOLERANCES[torch.float64]
    return folded.plan


# -- any composition of any members ------------------------------------------------------------------------------------

FLAGS: dict[str, st.SearchStrategy[Any]] = {
    "reduction_factor": st.sampled_from([2, 4, 8, 10, 32]),
    "non_linearity": st.sampled_from(["relu", "gelu", "swish", "tanh", "sigmoid", "leakyrelu", "prelu"]),
    "original_ln_before": st.sampled_from([True, True, False]),
    "original_ln_after": st.booleans(),
    "residual_before_ln": st.sampled_from([True, True, False]),
    "is_parallel": st.sampled_from([False, False, True]),
    "scaling": st.sampled_from([1.0, 4.0, -0.5, "learned", "channel"]),
    "use_gating": st.sampled_from([False, False, True]),
    "ln_before": st.sampled_from([False] * 9 + [True]),
    "ln_after": st.sampled_from([False] * 9 + [True]),
}
CONFIGS = st.builds(BottleneckConfig, **FLAGS)
PLAIN_CONFIGS = st.builds(BottleneckConfig, **{**FLAGS, "ln_before": st.just(False), "ln_after": st.just(False)})
FUSION_CONFIGS = st.builds(
    FusionConfig,
    key=st.booleans(),
    query=st.booleans(),
    value=st.booleans(),
    query_before_ln=st.booleans(),
    residual_before=st.sampled_from([False] * 9 + [True]),
    value_before_softmax=st.booleans(),
)
ANY_OR_NONE = st.one_of(*[CONFIGS] * 6, st.none())
NAMES = ("a", "b", "c", "d")
TREES = st.one_of(
    rows(NAMES), st.builds(Stack, rows(NAMES), rows(NAMES)), st.builds(Stack, *[rows(NAMES, depth=1)] * 4)
)


@st.composite
def zoos(draw: Any, configs: st.SearchStrategy[Any] = ANY_OR_NONE) -> Zoo:
    return Zoo({name: draw(configs) for name in NAMES}, draw(FUSION_CONFIGS))


@given(TREES, zoos(), st.booleans(), st.sampled_from(ROWS_AND_TOKENS), st.booleans())
def test_every_composition_equals_the_reference(
    tree: Composition, modules: Zoo, normed: bool, shape: tuple[int, int], changed: bool
) -> None:
    here = reading(normed, shape)
    check(tree, modules, normed, here, incoming(here.output, normed) if changed else NO_DELTA)


@given(TREES, zoos(PLAIN_CONFIGS), st.booleans())
def test_everything_without_norms_of_its_own_is_one_bottleneck(tree: Composition, modules: Zoo, normed: bool) -> None:
    modules.config = replace(modules.config, residual_before=False)
    for module in modules.adapters.values():
        assert module is not None
        module.config = replace(module.config, residual_before_ln=True, original_ln_after=True)
        module.writes_after = False
    folded = fold(tree, 0, modules, normed=normed)
    if folded is not None:
        assert folded.plan.kept == ()
        assert isinstance(folded.node, Wide | Plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(TREES, zoos(PLAIN_CONFIGS), st.booleans(), st.sampled_from(ROWS_AND_TOKENS))
def test_lower_precision_is_as_close_to_the_truth_as_the_reference_is(
    dtype: torch.dtype, tree: Composition, modules: Zoo, normed: bool, shape: tuple[int, int]
) -> None:
    node = bind(tree, 0, modules)  # makes the fusions
    if node is None:
        return
    modules.to(dtype)
    here = reading(normed, shape, dtype)
    folded = fold(tree, 0, modules, normed=normed)
    assert folded is not None
    found, reference = folded.node(here, NO_DELTA), node(here, NO_DELTA)
    assert {part.dtype for part in (found.before, found.after) if part is not None} == {dtype}
    modules.to(torch.float64)  # weights and inputs as they were rounded, the arithmetic exact
    norm = None if here.norm is None else reading(normed, shape, dtype).norm.double()  # type: ignore[union-attr]
    truth = node(Reading(here.output.double(), here.residual.double(), norm), NO_DELTA)
    assert off(found, truth) < max(TOLERANCES[dtype], 3 * off(reference, truth))


# -- one composition at a time -----------------------------------------------------------------------------------------

FOUR = {
    "a": "seq_bn[reduction_factor=4]",
    "b": "seq_bn[reduction_factor=8,non_linearity=gelu,scaling=channel]",
    "h": "double_seq_bn[reduction_factor=4,use_gating=True]",
    "p": "par_bn[reduction_factor=8]",
    "plus": "seq_bn[original_ln_after=False,residual_before_ln=False,scaling=learned]",
    "mover": "seq_bn[residual_before_ln=False]",
}
# composition -> where a norm follows, what has to be written out at full width for it
WRITTEN_OUT = {
    "a": (),
    "plus": (),
    "Average(a:0.2, b:0.8)": (),
    "Fuse(a, b, h, p)": (),
    "Stack(h, p, h)": (),
    "Stack(p, plus, plus)": ("p",),
    "Stack(a, b, h)": ("a",),
    "Stack(a, b, a)": ("a", "a, b"),
    "Stack(a, Fuse(h, b), Fuse(a, p))": ("a", "a, h, b"),
    "Fuse(Stack(a, b), Average(p, h), Fuse(a, p))": ("a",),
}


@pytest.mark.parametrize("text", WRITTEN_OUT)
def test_only_a_norm_in_between_writes_out(text: str) -> None:
    modules = zoo(**FOUR)
    plan = check(parse(text), modules, True, reading(True))
    assert plan is not None
    assert plan.written_out == tuple(f"the norm of the site reads the stream after {w}" for w in WRITTEN_OUT[text])
    without = check(parse(text), modules, False, reading(False))
    assert without is not None
    assert (without.written_out, without.kept, without.folded) == ((), (), (text,))


def test_what_was_written_out_is_added_to_and_not_computed_again() -> None:
    plan = check(parse("Stack(a, b, a)"), zoo(**FOUR), True, reading(True))
    assert plan is not None
    assert plan.multiplications == plan.reference_multiplications + 2 * WIDTH  # two up-biases as rows of their products


@pytest.mark.parametrize("text", ["a", "p", "plus", "h", "Stack(a, b)", "Fuse(a, p)"])
def test_some_rows_and_some_tokens(text: str) -> None:
    whole = reading(True, (4, 6))
    part = whole.narrow(torch.tensor([0, 3]), slice(1, 4))
    check(parse(text), zoo(**FOUR), True, part)
    check(parse(text), zoo(**FOUR), True, whole.narrow(None, slice(2, 3)))


def test_an_adapter_in_half_precision_under_a_stream_in_full() -> None:
    for text in ("a", "Stack(a, b)", "Fuse(a, b)"):
        modules = zoo(**FOUR)
        tree = parse(text)
        node = bind(tree, 0, modules)
        modules.to(torch.bfloat16)
        here, folded = reading(True, dtype=torch.float32), fold(tree, 0, modules, normed=True)
        assert folded is not None
        assert node is not None
        found = folded.node(here, NO_DELTA)
        assert found.before is not None
        assert found.before.dtype == torch.float32
        assert off(found, node(here, NO_DELTA)) < TOLERANCES[torch.bfloat16]


def test_missing_members_and_shares_of_nothing() -> None:
    modules = Zoo({"a": read_config(FOUR["a"]), "b": None, "h": read_config(FOUR["h"])})
    for text in ("Average(a, b:2, none, h)", "Stack(b, a)", "Average(a:0, none:1)", "Stack(a, Average(h:0, none:1))"):
        check(parse(text.replace("a, b:2, none, h", "a:1, b:2, none:1, h:1")), modules, True, reading(True))
    for text in ("b", "none", "Stack(b, none)", "Fuse(a, b)"):
        assert fold(parse(text), 0, modules, normed=True) is None


def test_the_shortest_form_is_for_one_read_and_one_activation() -> None:
    modules = zoo(**FOUR, a2="seq_bn[reduction_factor=2]")
    for normed in (True, False):
        for text in ("a", "b", "p", "plus", "Average(a, a2)", "Stack(a)"):
            folded = fold(parse(text), 0, modules, normed=normed)
            assert folded is not None
            assert isinstance(folded.node, Plain), text
        for text in ("h", "Average(a, b)", "Average(a, p)", "Stack(a, a2)", "Fuse(a, a2)"):
            folded = fold(parse(text), 0, modules, normed=normed)
            assert folded is not None
            assert isinstance(folded.node, Wide), text


class Dispatches(TorchDispatchMode):
    """Counts what reaches a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def test_launches_depend_neither_on_members_nor_on_tokens() -> None:
    modules = zoo(**{f"m{n}": f"seq_bn[reduction_factor={2 + n}]" for n in range(8)})
    counts = set()
    for members in (2, 3, 8):
        folded = fold(Fuse(*[f"m{n}" for n in range(members)]), 0, modules, normed=True)
        assert folded is not None
        for shape in ((1, 2), (8, 64)):
            with Dispatches() as seen:
                folded.node(reading(True, shape), NO_DELTA)
            counts.add(tuple(name for name in seen.names if "view" not in name))
    assert len({len(names) for names in counts}) == 1
    products = [name for name in counts.pop() if name.endswith(("addmm", "::mm", "bmm"))]
    assert len(products) == 4  # down; scores and weights over members; up


# -- the plan ----------------------------------------------------------------------------------------------------------


def counted(node: Any, here: Reading) -> float:
    """Multiplications of matrix products for each token, as torch counts them."""
    with FlopCounterMode(display=False) as flops:
        node(here, NO_DELTA)
    return flops.get_total_flops() / 2 / here.output.shape[0] / here.output.shape[1]


@given(TREES, zoos(), st.booleans())
def test_multiplications_are_those_that_are_done(tree: Composition, modules: Zoo, normed: bool) -> None:
    assume(all(len(fuse.children) > 1 for fuse in fusions(tree)))  # torch sums over one member without a product
    node, folded = bind(tree, 0, modules), fold(tree, 0, modules, normed=normed)
    if folded is not None:
        assert counted(folded.node, reading(normed)) == folded.plan.multiplications
        assert counted(node, reading(normed)) == folded.plan.reference_multiplications


def test_a_plan_needs_no_weights() -> None:
    """On the meta device, at BERT-base width, against the arithmetic of the docstring."""
    width, members, bottleneck = 768, 3, 48
    modules, config, site = zoo(), read_config("seq_bn"), replace(SITE, width=width)
    modules.adapters = {name: Bottleneck((width, config.width(site), 0), config).to("meta") for name in ("a", "b", "c")}
    modules.fusions = {"a,b,c": Fusion(width, FUSIONS["dynamic"]).to("meta")}
    plan = fold(parse("Fuse(a, b, c)"), 0, modules, normed=True).plan  # type: ignore[union-attr]
    features = members * bottleneck
    mixing = features * members + members * (features + members)
    wide = 3 * features * width + 2 * members * width + mixing  # the up-biases are weighted by the attention too
    assert plan.multiplications == wide
    assert plan.reference_multiplications == 2 * features * width + 3 * width**2 + 2 * members * width
    assert plan.bytes == 4 * (wide + 2 * features + members + width)  # with the biases of down and up
    assert (plan.site, plan.composition, plan.folded) == (0, "Fuse(a, b, c)", ("Fuse(a, b, c)",))
    with pytest.raises(FrozenInstanceError):
        plan.bytes = 0  # type: ignore[misc]


OWN_NORM = "has a norm of its own ({}), which is not linear"
# composition -> what the reference runs, and why; and what is folded all the same
KEPT: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "early": ({"early": "early " + OWN_NORM.format("ln_before")}, ()),
    "late": ({"late": "late " + OWN_NORM.format("ln_after")}, ()),
    "Stack(a, early, b, h)": (
        {
            "Stack(a, early, b, h)": "early " + OWN_NORM.format("ln_before"),
            "early": "early " + OWN_NORM.format("ln_before"),
        },
        ("a", "Stack(b, h)"),
    ),
    "Average(a:0.3, Stack(a, late):0.7)": (
        {
            "Average(a:0.3, Stack(a, late):0.7)": "late " + OWN_NORM.format("ln_after"),
            "Stack(a, late)": "late " + OWN_NORM.format("ln_after"),
            "late": "late " + OWN_NORM.format("ln_after"),
        },
        ("a", "a"),
    ),
    "Fuse(a, early)": ({"Fuse(a, early)": "early " + OWN_NORM.format("ln_before")}, ()),
    "Fuse(a, Stack(mover, b), name=f)": (
        {
            "Fuse(a, Stack(mover, b), name=f)": "fusion f has a member (mover, b) that moves the stream to where it "
            "writes (residual_before_ln, original_ln_after), so its keys and values are of full width"
        },
        (),
    ),
}


@pytest.mark.parametrize("text", KEPT)
def test_what_does_not_fold_says_why(text: str) -> None:
    modules = zoo(**FOUR, early="seq_bn[ln_before=True]", late="seq_bn[ln_after=True]")
    reasons, folded = KEPT[text]
    for normed in (True, False):
        plan = check(parse(text), modules, normed, reading(normed))
        assert plan is not None
        if normed or "mover" not in text:
            assert plan.kept == tuple(Kept(composition, reason) for composition, reason in reasons.items())
            assert plan.folded == folded


def test_a_fusion_that_adds_the_residual_does_not_fold() -> None:
    modules = Zoo({name: read_config(FOUR[name]) for name in "ab"}, FusionConfig(residual_before=True))
    plan = check(parse("Stack(a, Fuse(a, b, name=f), b)"), modules, True, reading(True))
    assert plan is not None
    reason = "fusion f adds the full-width residual to its values (residual_before)"
    assert plan.kept == (Kept("Stack(a, Fuse(a, b, name=f), b)", reason), Kept("Fuse(a, b, name=f)", reason))
    assert plan.folded == ("a", "b")


def test_members_in_different_dtypes_fold_apart() -> None:
    modules = zoo(**FOUR)
    modules.adapters["b"].float()  # type: ignore[union-attr]
    plan = fold(parse("Stack(a, b)"), 0, modules, normed=True).plan  # type: ignore[union-attr]
    assert plan.kept == (Kept("Stack(a, b)", "its members have different dtypes: float32, float64"),)
    assert plan.folded == ("a", "b")


def test_other_methods_are_left_to_the_reference() -> None:
    class Shift(nn.Module):
        def forward(self, reading: Reading, delta: Delta) -> Delta:
            return Delta(before=torch.ones_like(reading.output))

    modules: Any = zoo(**FOUR)
    modules.adapters["shift"] = Shift()
    plan = check(parse("Stack(a, shift)"), modules, True, reading(True))
    assert plan is not None
    reason = "shift is a Shift, and only bottleneck adapters fold"
    assert plan.kept == (Kept("Stack(a, shift)", reason), Kept("shift", reason))


def test_blocks_that_route_are_refused() -> None:
    with pytest.raises(RoutingError, match=r"Parallel\(a, b\) is routing and cannot be executed at a site"):
        fold(parse("Parallel(a, b)"), 0, zoo(**FOUR), normed=True)


@pytest.mark.parametrize("text", ["a", "Stack(a, b)"])
def test_a_site_of_the_other_kind_is_refused(text: str) -> None:
    for normed, found in ((True, "no norm follows"), (False, "a norm follows")):
        folded = fold(parse(text), 0, zoo(**FOUR), normed=normed)
        assert folded is not None
        with pytest.raises(RoutingError, match=f"folded with normed={normed}, but {found} the residual add"):
            folded.node(reading(not normed), NO_DELTA)


# -- a snapshot --------------------------------------------------------------------------------------------------------


@dataclass
class Watch:
    """A fold of Stack(a, Fuse(b, p)) and its members."""

    modules: Zoo
    text: str = "Stack(a, Fuse(b, p))"

    def fold(self) -> Any:
        return fold(parse(self.text), 0, self.modules, normed=True)


def changes(modules: Zoo) -> Iterator[str]:
    """Ways in which a member's weights change, each done when its name is given out."""
    b, fusion = modules.adapters["b"], modules.fusions["b,p"]
    assert b is not None
    with torch.no_grad():
        b.up.weight.mul_(2)
        yield "written in place"
        fusion.load_state_dict({key: 1.1 * value for key, value in fusion.state_dict().items()})
        yield "loaded"
        b.load_state_dict({key: 1.1 * value for key, value in b.state_dict().items()}, assign=True)
        yield "loaded by assignment"
        b.scale = nn.Parameter(0.3 * torch.ones(WIDTH, dtype=torch.float64))
        yield "replaced"
        fusion.double().float().double()
        yield "moved"
        fusion.float()
        fusion.double()
        yield "moved and back"
        b.down = deepcopy(b.down)
        yield "a module replaced"
        optimizer = torch.optim.SGD([b.down.weight], lr=0.1)
        b.down.weight.grad = torch.ones_like(b.down.weight)
        optimizer.step()
        yield "trained"


def test_a_fold_is_a_snapshot_and_says_when_it_is_stale() -> None:
    watch = Watch(zoo(**FOUR))
    here, seen = reading(True), []
    folded = watch.fold()
    for change in changes(watch.modules):
        assert folded.watch.stale, change
        old, folded = folded, watch.fold()
        assert not folded.watch.stale, change
        node: Any = bind(parse(watch.text), 0, watch.modules)
        assert off(folded.node(here, NO_DELTA), node(here, NO_DELTA)) < TOLERANCES[torch.float64], change
        if "moved" in change or "module" in change:  # the same weights, or hardly others
            assert off(old.node(here, NO_DELTA), node(here, NO_DELTA)) < 1e-6, change
        else:
            assert off(old.node(here, NO_DELTA), node(here, NO_DELTA)) > 1e-6, change
        seen.append(change)
    assert len(seen) == 8


def test_weights_made_in_inference_mode_fold_too() -> None:
    with torch.inference_mode():
        modules = zoo(**FOUR)
        folded = fold(parse("a"), 0, modules, normed=True)
    assert folded is not None
    assert not folded.watch.stale


def test_learned_activations_belong_to_the_snapshot() -> None:
    modules = zoo(a="seq_bn[non_linearity=prelu]", b="seq_bn[non_linearity=prelu]")
    tree, here = parse("Average(a, b)"), reading(True)
    check(tree, modules, True, here)
    folded = fold(tree, 0, modules, normed=True)
    assert folded is not None
    before = folded.node(here, NO_DELTA)
    with torch.no_grad():
        modules.adapters["a"].activation.weight.fill_(3.0)  # type: ignore[union-attr, operator]
    assert folded.watch.stale
    assert off(folded.node(here, NO_DELTA), before) == 0
    check(tree, modules, True, here)


# -- whole models ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_whole_model_runs_folded(family: str) -> None:
    rig = Rig(family)
    trees = [parse(text) for text in ("Fuse(seq, double, name=f)", "Stack(seq, partly, double)", "Average(par, plus)")]
    rig.learn_fusions(trees)
    inputs = tiny.inputs(family)
    for tree in trees:
        assert all(fuse.name in rig.parts.fusion_records for fuse in fusions(tree))
        normed = family == "bert"
        with torch.no_grad():
            expected = rig.run(tree, inputs)
            folded = [fold(tree, site.index, rig.parts, normed=normed) for site in rig.backbone.sites]
            program = tuple(None if one is None else one.node for one in folded)
            with rig.backbone.runtime.running(BatchRoute((Group(None, None, program),), 2, None, None)):
                found = rig.backbone.trunk(**inputs)[0]
            idle = rig.run(None, inputs)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert not math.isclose(float((idle - expected).abs().max()), 0, abs_tol=1e-3)


def test_a_fusion_that_would_cost_more_folded_is_left_to_the_reference() -> None:
    """D = 32, eight members of M = 16: K·M = 128 > 3D = 96."""
    names = "abcdefgh"
    modules = zoo(**dict.fromkeys(names, "seq_bn[reduction_factor=2]"))
    wide, narrow = parse(f"Fuse({', '.join(names)}, name=wide)"), parse("Fuse(a, b, name=narrow)")
    here = reading(True)
    kept = fold(wide, 0, modules, normed=True, thrifty=True)
    always = fold(wide, 0, modules, normed=True)
    assert kept is not None
    assert always is not None
    assert always.plan.kept == ()
    most, least = always.plan.multiplications, always.plan.reference_multiplications
    assert (most, least) == ((3 * 128 + 2 * 8) * 32 + 8 * (2 * 128 + 8), 2 * 128 * 32 + 3 * 32**2 + 2 * 8 * 32)
    reason = f"folding would cost more: {most} multiplications a token, and the reference {least}"
    assert kept.plan.kept == (Kept("Fuse(a, b, c, d, e, f, g, h, name=wide)", reason),)
    assert (kept.plan.folded, kept.plan.multiplications, kept.plan.bytes) == ((), least, 0)
    assert off(kept.node(here, NO_DELTA), bind(wide, 0, modules)(here, NO_DELTA)) == 0  # type: ignore[misc]
    cheap = fold(narrow, 0, modules, normed=True, thrifty=True)
    assert cheap is not None
    assert cheap.plan.kept == ()
    beside = fold(Stack(wide, "a", "b"), 0, modules, normed=True, thrifty=True)
    assert beside is not None
    assert beside.plan.folded == ("Stack(a, b)",)
    assert off(beside.node(here, NO_DELTA), bind(Stack(wide, "a", "b"), 0, modules)(here, NO_DELTA)) < 1e-10  # type: ignore[misc]
