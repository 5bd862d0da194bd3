"""The reference executor against a literal reading of its formulas, in float64, at single sites."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from graftwork.compose.reference import bind, program
from graftwork.compose.tree import Average, BatchSplit, Composition, Fuse, Parallel, Split, Stack, leaves
from graftwork.core.bottleneck import Bottleneck
from graftwork.core.fusion import FUSIONS, FusionConfig
from graftwork.core.site import NO_DELTA, Delta, Reading
from graftwork.errors import RoutingError
from tests.rig import ZOO, Rig
from tests.tiny import WIDTH
from tests.trees import rows

GATED = {**ZOO, "gated": "seq_bn[use_gating=True,ln_after=True,residual_before_ln=post_add]"}
NAMES = tuple(GATED)
RIG = Rig("bert", GATED)
RIG.parts.double()


class Literal:
    """The formulas of the design, term by term. State: what was written before the add (b) and after the norm (a)."""

    def __init__(self, h: Tensor, r: Tensor, norm: nn.LayerNorm | None, site: int) -> None:
        self.h, self.r, self.norm, self.site = h, r, norm, site

    def stream(self, b: Tensor, a: Tensor) -> Tensor:
        total = self.h + b + self.r
        if self.norm is None:
            return total
        mean, variance = total.mean(-1, keepdim=True), total.var(-1, unbiased=False, keepdim=True)
        return (total - mean) / (variance + self.norm.eps).sqrt() * self.norm.weight + self.norm.bias + a

    def module(self, name: str) -> Bottleneck | None:
        return RIG.parts.adapter(name, self.site)

    def reads(self, module: Bottleneck, b: Tensor, a: Tensor) -> Tensor:
        if module.config.is_parallel:
            return self.r
        return self.stream(b, a) if module.config.original_ln_before else self.h + b

    def says(self, module: Bottleneck, b: Tensor, a: Tensor) -> Tensor:
        config = module.config
        x = self.reads(module, b, a)
        inner = x if module.norm_before is None else module.norm_before(x)
        z = inner @ module.down.weight.T + module.down.bias
        z = {"relu": torch.relu, "swish": lambda v: v * torch.sigmoid(v), "gelu": nn.functional.gelu}[
            config.non_linearity
        ](z)
        scale = module.scale if module.scale is not None else config.scaling
        u: Tensor = scale * (z @ module.up.weight.T + module.up.bias)
        if module.gate is not None:
            u = u * torch.sigmoid(x @ module.gate.weight.T + module.gate.bias).mean(1, keepdim=True)
        return u if module.norm_after is None else module.norm_after(u)

    def carries(self, module: Bottleneck, b: Tensor, a: Tensor) -> Tensor:
        config = module.config
        if config.is_parallel or not config.original_ln_before or config.residual_before_ln is True:
            return self.h + b
        return self.stream(b, a) if config.residual_before_ln is False else self.h + b + self.r

    def writes(self, module: Bottleneck, u: Tensor, b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """The change that makes what follows equal `carried + u`."""
        target = self.carries(module, b, a) + u
        zero = torch.zeros_like(u)
        if module.config.original_ln_after:
            return target - (self.h + b), zero
        return (target - self.stream(b, a), zero) if self.norm is None else (zero, target - self.stream(b, a))

    def change(self, tree: Composition, b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        none = torch.zeros_like(self.h), torch.zeros_like(self.h)
        if tree is None:
            return none
        if isinstance(tree, str):
            module = self.module(tree)
            return none if module is None else self.writes(module, self.says(module, b, a), b, a)
        if isinstance(tree, Stack):
            total_b, total_a = none
            for child in tree.children:
                own = self.change(child, b + total_b, a + total_a)
                total_b, total_a = total_b + own[0], total_a + own[1]
            return total_b, total_a
        if isinstance(tree, Average):
            changes = [self.change(child, b, a) for child in tree.children]
            weights = tree.weights or [1.0] * len(changes)
            parts = [sum(w * c[i] for w, c in zip(weights, changes, strict=True)) / sum(weights) for i in (0, 1)]
            return parts[0], parts[1]
        assert isinstance(tree, Fuse)
        return self.writes(self.last(tree), self.attended(tree, b, a), b, a) if self.present(tree) else none

    def present(self, tree: Composition) -> bool:
        if isinstance(tree, str):
            return self.module(tree) is not None
        if isinstance(tree, Fuse):
            return RIG.parts.fusion(tree.name, self.site) is not None and all(map(self.present, tree.children))
        return tree is not None and any(map(self.present, tree.children))

    def said(self, tree: Composition, b: Tensor, a: Tensor) -> Tensor:
        """What a member of a fusion says: an adapter its u, a Stack what its last says on top of earlier changes."""
        if tree is None or not self.present(tree):
            return torch.zeros_like(self.h)
        if isinstance(tree, str):
            module = self.module(tree)
            assert module is not None
            return self.says(module, b, a)
        if isinstance(tree, Stack):
            *earlier, last = [child for child in tree.children if self.present(child)]
            if not earlier:
                return self.said(last, b, a)
            own_b, own_a = self.change(Stack(*earlier), b, a)
            return own_b + own_a + self.said(last, b + own_b, a + own_a)
        if isinstance(tree, Average):
            weights = tree.weights or [1.0] * len(tree.children)
            total = sum(w * self.said(child, b, a) for w, child in zip(weights, tree.children, strict=True))
            return total / sum(weights)
        assert isinstance(tree, Fuse)
        return self.attended(tree, b, a)

    def last(self, tree: Fuse) -> Bottleneck:
        return [module for name in leaves(tree) if (module := self.module(name)) is not None][-1]

    def attended(self, tree: Fuse, b: Tensor, a: Tensor) -> Tensor:
        fusion, last = RIG.parts.fusion(tree.name, self.site), self.last(tree)
        assert fusion is not None
        ups = [self.said(child, b, a) for child in tree.children]
        hidden = fusion.config.query_before_ln and not last.config.is_parallel
        x = self.h + b if hidden else self.reads(last, b, a)
        carried = self.carries(last, b, a) if fusion.config.residual_before else torch.zeros_like(x)
        weight = fusion.state_dict()
        q = x @ weight["query.weight"].T + weight["query.bias"]
        scores = torch.stack([(q * (u @ weight["key.weight"].T + weight["key.bias"])).sum(-1) for u in ups], -1)
        alpha = scores.exp() / scores.exp().sum(-1, keepdim=True)
        mixed = sum(alpha[..., k : k + 1] * (u + carried) for k, u in enumerate(ups))
        if "value.weight" in weight:
            mixed = mixed @ weight["value.weight"].T
        return mixed - carried


def at_site(tree: Composition, site: int, norm: bool, config: FusionConfig = FUSIONS["dynamic"]) -> None:
    RIG.learn_fusions([tree], config)
    RIG.parts.fusions.double()
    generator = torch.Generator().manual_seed(site)
    h, r = (torch.randn(2, 3, WIDTH, generator=generator, dtype=torch.float64) for _ in range(2))
    layer_norm = nn.LayerNorm(WIDTH, dtype=torch.float64) if norm else None
    node = bind(tree, site, RIG.parts)
    with torch.no_grad():
        found = NO_DELTA if node is None else node(Reading(h, r, layer_norm), NO_DELTA)
        zero = torch.zeros_like(h)
        expected = Literal(h, r, layer_norm, site).change(tree, zero, zero)
    for one, other in zip((found.before, found.after), expected, strict=True):
        torch.testing.assert_close(zero if one is None else one, other, rtol=1e-8, atol=1e-8)


@given(rows(NAMES, depth=4), st.integers(0, 5), st.booleans())
def test_random_compositions_are_their_formulas(tree: Composition, site: int, norm: bool) -> None:
    at_site(tree, site, norm)


@given(rows(NAMES, depth=2), st.booleans(), st.booleans(), st.booleans())
def test_fusions_of_every_configuration_are_their_formulas(
    tree: Composition, norm: bool, before_norm: bool, inside: bool
) -> None:
    config = replace(FUSIONS["dynamic"], query_before_ln=before_norm, residual_before=inside)
    mixed = Fuse("double", Stack("par", "seq"), Average("plus", "carry"), name="mixed")
    parallel = Fuse("seq", "par", name="parallel")
    at_site(Stack("seq", mixed, parallel, tree), 1, norm, config)


def deltas(tree: Composition, site: int = 1) -> Delta:
    h, r = (torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(seed)).double() for seed in (1, 2))
    node = bind(tree, site, RIG.parts)
    with torch.no_grad():
        return NO_DELTA if node is None else node(Reading(h, r, nn.LayerNorm(WIDTH).double()), NO_DELTA)


def same(left: Delta, right: Delta) -> bool:
    return all(
        (one is None and other is None) or (one is not None and other is not None and torch.equal(one, other))
        for one, other in ((left.before, right.before), (left.after, right.after))
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_average_of_two_equal_adapters_is_that_adapter(name: str) -> None:
    assert same(deltas(Average(name, name)), deltas(name))
    assert same(deltas(Average(name, name, weights=[3, 1])), deltas(name))
    assert same(deltas(Stack(name)), deltas(name))
    assert same(deltas(Stack(None, name, None)), deltas(name))


def test_no_adapter_counts_in_an_average() -> None:
    half, whole = deltas(Average("seq", None)).before, deltas("seq").before
    assert half is not None
    assert whole is not None
    torch.testing.assert_close(half, whole / 2)


def test_members_without_a_module_at_a_site_are_left_out() -> None:
    assert bind("double", 0, RIG.parts) is not None
    assert bind("seq", 0, RIG.parts) is None  # an attention site
    assert bind(Stack("seq", "par"), 0, RIG.parts) is None
    assert same(deltas(Stack("seq", "double"), site=0), deltas("double", site=0))
    assert bind(None, 0, RIG.parts) is None
    assert bind(Average(None, Stack(None)), 1, RIG.parts) is None


def test_a_fusion_runs_only_where_all_of_its_members_are() -> None:
    tree = Fuse("seq", "partly", name="some")
    RIG.learn_fusions([tree])
    runs = [index for index, node in enumerate(program(tree, 6, RIG.parts)) if node is not None]
    assert runs == [3]  # partly leaves out layers 0 and 2
    assert [node is not None for node in program("double", 6, RIG.parts)] == [True] * 6
    RIG.parts.add_adapter("partly", RIG.parts.adapter_configs["partly"].__class__(leave_out=(1,)), RIG.backbone)
    try:
        assert program(tree, 6, RIG.parts) == (None,) * 6  # its fusion layer is at a site that a member has left
    finally:
        RIG.parts.add_adapter("partly", Rig("bert", ZOO).parts.adapter_configs["partly"], RIG.backbone)
        RIG.parts.eval()
        RIG.parts.double()


@pytest.mark.parametrize(
    "tree", [Parallel("seq", "par"), Split("seq", splits=[3]), Stack("par", BatchSplit("seq", batch_sizes=[2]))]
)
def test_routing_is_never_executed_at_a_site(tree: Any) -> None:
    with pytest.raises(RoutingError, match=r"is routing and cannot be executed at a site; it must be lowered first"):
        bind(tree, 1, RIG.parts)
