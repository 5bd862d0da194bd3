"""Folding of hypercomplex bottlenecks: their dense weights, exactly; of bottlenecks that train a norm: not at all."""

from typing import Any, cast

import pytest
import torch
from torch import nn

from graftwork.compose.fold import TOLERANCES, Kept, fold
from graftwork.compose.grammar import parse
from graftwork.compose.reference import bind
from graftwork.core.adapter import Ground
from graftwork.core.bottleneck import BottleneckConfig
from graftwork.core.kinds import read_config
from graftwork.core.phm import SharedPHM
from graftwork.core.site import NO_DELTA
from tests.compose.test_fold import SITE, WIDTH, Zoo, check, off, reading, zoo
from tests.rig import randomise

COMPACTERS = (
    "compacter++[reduction_factor=4]",
    "compacter++[reduction_factor=4,phm_rank=3,use_gating=True]",
    "compacter++[reduction_factor=4,factorized_phm_W=False,phm_bias=False,scaling=channel]",
    "compacter++[reduction_factor=4,shared_W_phm=True,factorized_phm_rule=True]",
    "compacter[reduction_factor=8,shared_phm_rule=False]",
)


def with_compacter(config: str) -> tuple[Zoo, SharedPHM | None]:
    """Two ordinary adapters and a hypercomplex one, `c`, in float64."""
    modules = zoo(a="seq_bn[reduction_factor=8]", b="double_seq_bn[reduction_factor=4,use_gating=True]")
    made = cast(BottleneckConfig, read_config(config))
    shared = cast("SharedPHM | None", made.share([SITE]))
    modules.adapters["c"] = cast(Any, made.build(SITE, Ground(shared=shared)))
    for seed, module in enumerate((modules.adapters["c"], shared)):
        if module is not None:
            modules.settle(module, 40 + seed)
    return modules, shared


@pytest.mark.parametrize("config", COMPACTERS)
@pytest.mark.parametrize("text", ["c", "Stack(a, c, b)", "Average(a:0.3, c:0.7)", "Fuse(a, c)", "Stack(c, Fuse(b, c))"])
@pytest.mark.parametrize("normed", [True, False])
def test_compositions_with_hypercomplex_members_fold_exactly(text: str, config: str, normed: bool) -> None:
    modules, _ = with_compacter(config)
    plan = check(parse(text), modules, normed, reading(normed))
    assert plan is not None
    assert plan.kept == ()


def test_the_plan_counts_what_a_hypercomplex_layer_multiplies() -> None:
    modules, _ = with_compacter(COMPACTERS[0])
    plan = fold(parse("c"), 0, modules, normed=True).plan  # type: ignore[union-attr]
    assert plan.reference_multiplications == 2 * (4 * WIDTH + 16 * 8)
    assert plan.multiplications == 2 * WIDTH * 8


def test_a_fold_is_stale_when_what_sites_share_has_changed() -> None:
    modules, shared = with_compacter(COMPACTERS[0])
    assert shared is not None
    folded, here = fold(parse("Stack(a, c)"), 0, modules, normed=True), reading(True)
    assert folded is not None
    assert not folded.watch.stale
    with torch.no_grad():
        shared.rule.mul_(2)
    assert folded.watch.stale
    node: Any = bind(parse("Stack(a, c)"), 0, modules)
    again: Any = fold(parse("Stack(a, c)"), 0, modules, normed=True)
    assert off(folded.node(here, NO_DELTA), node(here, NO_DELTA)) > 1e-6
    assert off(again.node(here, NO_DELTA), node(here, NO_DELTA)) < TOLERANCES[torch.float64]


def test_a_member_that_trains_a_norm_is_left_to_the_reference() -> None:
    modules, here = zoo(a="seq_bn[reduction_factor=8]"), reading(True)
    norm = cast(nn.LayerNorm, here.norm)
    trained: Any = read_config("adapter_bert").build(SITE, Ground(norm=norm))
    randomise(trained.parameters())
    modules.adapters["t"] = trained.double().requires_grad_(False)
    plan = check(parse("Stack(a, t)"), modules, True, here)
    assert plan is not None
    reason = "t has a norm of its own (train_norms), which is not linear"
    assert plan.kept == (Kept("Stack(a, t)", reason), Kept("t", reason))
    assert plan.folded == ("a",)
