"""Compositions as AdapterHub's library computes them, each against its closed form written out here.

The same numbers on whole models stand in `tests/conformance`; here every quirk is looked at alone.
"""

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from graftwork.compose.legacy import marked, program
from graftwork.compose.parts import Parts
from graftwork.compose.tree import Average, BatchSplit, Composition, Fuse, Parallel, Stack
from graftwork.core.backbone import Backbone
from graftwork.core.fusion import FUSIONS
from graftwork.core.kinds import read_config
from graftwork.core.site import NO_DELTA, Delta, Reading
from tests import tiny
from tests.rig import randomise

SITE = "layer.0/ffn"
CONFIGS = {
    "a": "seq_bn[reduction_factor=4]",
    "b": "seq_bn[reduction_factor=8,non_linearity=gelu]",
    "p": "par_bn[reduction_factor=4]",
    "q": "par_bn[reduction_factor=8,scaling=1.5]",
    "gated": "seq_bn[reduction_factor=4,use_gating=True]",
    "plus": "adapter_plus[reduction_factor=4]",
    "gone": "seq_bn[reduction_factor=4,leave_out=[0]]",
    "inv": "seq_bn_inv[reduction_factor=4]",
    "l": "lora[r=2]",
    "m": "lora[r=3,alpha=12]",
}


class World:
    """A tiny BERT whose adapters came from AdapterHub's library, and one site of it."""

    def __init__(self, fuse: Fuse | None = None, semantics: str = "adapters-1") -> None:
        self.backbone = Backbone(tiny.model("bert"))
        self.parts = Parts()
        for name, config in CONFIGS.items():
            self.parts.add_adapter(name, read_config(config), self.backbone, semantics)
        if fuse is not None:
            self.parts.add_fusion(fuse, FUSIONS["dynamic"], self.backbone, semantics)
        self.parts.eval()
        randomise(self.parts.parameters())
        self.site = next(site for site in self.backbone.sites if site.name == SITE)
        self.norm: Callable[[Tensor], Tensor] = torch.nn.LayerNorm(tiny.WIDTH)
        h, r = torch.randn(2, 2, 5, tiny.WIDTH, generator=torch.Generator().manual_seed(1))
        self.h, self.r, self.reading = h, r, Reading(h, r, self.norm)

    def up(self, name: str, x: Tensor) -> Tensor:
        """scale · up(f(down(x))) of one adapter, written out."""
        module: Any = self.parts.adapter(name, self.site.index)
        inner = functional.linear(x, module.down.weight, module.down.bias)
        activated = functional.gelu(inner) if name == "b" else functional.relu(inner)
        scale = {"p": 4.0, "q": 1.5}.get(name, 1.0)
        return scale * functional.linear(activated, module.up.weight, module.up.bias)

    def run(self, tree: Composition) -> Delta:
        node = program(tree, len(self.backbone.sites), self.parts)[self.site.index]
        assert node is not None
        return node(self.reading, NO_DELTA)

    def attended(self, fuse: Fuse, query: Tensor, said: list[Tensor]) -> Tensor:
        layer: Any = self.parts.fusion(fuse.name, self.site.index)
        stacked = torch.stack(said, dim=2)
        key, value = layer.key(stacked), layer.value(stacked)
        weights = (layer.query(query).unsqueeze(2) * key).sum(-1).softmax(-1)
        return (weights.unsqueeze(-1) * value).sum(2)


def close(found: Tensor | None, expected: Tensor) -> None:
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_fusion_over_a_stack_fuses_what_its_last_member_says() -> None:
    fuse = Fuse(Stack("a", "b"), "b", name="f")
    world = World(fuse)
    z = world.norm(world.h + world.r)  # what the fusion steps to; the stack's own steps read it again
    first = world.norm(z + world.r)
    after_a = z + world.up("a", first)
    said = [world.up("b", world.norm(after_a + world.r)), world.up("b", z)]
    close(world.run(fuse).before, world.attended(fuse, z, said))


def test_a_fusion_of_parallel_adapters_adds_the_residual_once_more() -> None:
    fuse = Fuse("p", "q", name="f")
    world = World(fuse)
    said = [world.up("p", world.r), world.up("q", world.r)]
    close(world.run(fuse).before, world.attended(fuse, world.r, said) + world.r)


def test_a_fusion_attends_to_what_gated_members_say_without_their_gates() -> None:
    fuse = Fuse("gated", "a", name="f")
    world = World(fuse)
    z = world.norm(world.h + world.r)
    close(world.run(fuse).before, world.attended(fuse, z, [world.up("gated", z), world.up("a", z)]))


def test_a_stack_under_a_router_is_stepped_into_twice() -> None:
    world = World()
    z = world.norm(world.h + world.r)
    inner = marked(BatchSplit(Stack("a", "b"), "a", batch_sizes=[1, 1])).children[0]  # type: ignore[union-attr]
    assert inner == Stack(Stack("a", "b"))
    # the router's step took h to z; that of the stack reads it again, and carries it
    after_a = z + world.up("a", world.norm(z + world.r))
    close(world.run(inner).before, after_a + world.up("b", world.norm(after_a + world.r)) - world.h)


def test_blocks_under_routers_are_marked_and_nothing_else() -> None:
    assert marked(Parallel(Stack("a", "b"), "c")) == Parallel(Stack(Stack("a", "b")), "c")
    assert marked(Stack("a", Fuse("b", "c"))) == Stack("a", Fuse("b", "c"))
    assert marked(Average("a", Stack("a", "b"), weights=[1, 2])) == Average("a", Stack("a", "b"), weights=[1, 2])
    assert marked("a") == "a"
    assert marked(None) is None


def test_a_plain_stack_is_ours() -> None:
    ours = World(semantics="graftwork-1")
    close(World().run(Stack("a", "b")).before, ours.run(Stack("a", "b")).before)  # type: ignore[arg-type]


def test_an_average_is_a_mean() -> None:
    world = World()
    z = world.norm(world.h + world.r)
    close(world.run(Average("a", "b", weights=[0.3, 0.7])).before, 0.3 * world.up("a", z) + 0.7 * world.up("b", z))


def test_a_parallel_adapter_in_a_stack_loses_nothing_of_what_was_before() -> None:
    world = World()
    z = world.norm(world.h + world.r)
    close(world.run(Stack("a", "p")).before, world.up("a", z) + world.up("p", world.r))


def test_an_adapter_that_writes_after_the_norm_replaces_the_stream() -> None:
    world = World()
    ours = World(semantics="graftwork-1")
    found, expected = world.run(Stack("plus")), ours.run("plus")
    assert found.before is None
    close(found.after, expected.after)  # type: ignore[arg-type]


def test_loras_of_a_stack_are_chained() -> None:
    world = World()
    site = next(site for site in world.backbone.sites if site.name == "layer.0/attn.query")
    a: Any = world.parts.adapter("l", site.index)
    b: Any = world.parts.adapter("m", site.index)
    node = program(Stack("l", "m"), len(world.backbone.sites), world.parts)[site.index]
    assert node is not None
    said = (8 / 2) * world.r @ a.a.T @ a.b.T
    close(node(Reading(world.h, world.r, None), NO_DELTA).before, (12 / 3) * said @ b.a.T @ b.b.T)


@pytest.mark.parametrize("kind", ["seq_bn_inv", "loreft", "prompt_tuning"])
def test_only_the_first_adapter_of_a_tree_reaches_embeddings_prompts_and_edits(kind: str) -> None:
    backbone, parts = Backbone(tiny.model("bert")), Parts()
    for name in ("first", "second"):
        parts.add_adapter(name, read_config(kind), backbone, "adapters-1")
    for site in backbone.sites:
        place = {"seq_bn_inv": "embed", "loreft": "sublayer", "prompt_tuning": "prompt"}[kind]
        module = parts.adapter("first", site.index)
        if module is not None and site.place == place:
            nodes = program(Stack("first", "second"), len(backbone.sites), parts)
            assert (kind == "seq_bn_inv" and place != "embed") or nodes[site.index] is module


def test_a_tree_with_one_foreign_adapter_is_read_as_a_whole() -> None:
    world = World(semantics="graftwork-1")
    assert not world.parts.as_adapters(Stack("a", "b"))
    world.parts.semantics["adapters", "b"] = "adapters-1"
    assert world.parts.as_adapters(Stack("a", "b"))
    assert not world.parts.as_adapters(Stack("a", "l"))


def test_an_adapter_alone_is_ours_where_the_sites_are_read_as_they_are() -> None:
    assert not World().parts.as_adapters("a")
    backbone, parts = Backbone(tiny.model("t5")), Parts()
    parts.add_adapter("a", read_config("prefix_tuning_flat"), backbone, "adapters-1")
    assert parts.as_adapters("a")  # that library counts the positions of prefixes


def test_a_fusion_fuses_the_members_that_a_layer_has() -> None:
    fuse = Fuse("gone", "a")
    world = World(fuse)
    z = world.norm(world.h + world.r)
    close(world.run(fuse).before, world.attended(fuse, z, [world.up("a", z)]))


def test_an_invertible_adapter_in_a_fusion_is_that_of_the_first_member() -> None:
    for tree, wanted in ((Fuse("inv", "a"), "inv"), (Fuse("a", "inv"), None)):
        world = World(tree)
        site = next(site for site in world.backbone.sites if site.name == "embed")
        node = program(tree, len(world.backbone.sites), world.parts)[site.index]
        assert node is (None if wanted is None else world.parts.adapter(wanted, site.index))


def test_the_last_prefix_of_a_stack_stands_in_front() -> None:
    backbone, parts = Backbone(tiny.model("t5")), Parts()
    for name in ("first", "second"):
        parts.add_adapter(name, read_config("prefix_tuning_flat[prefix_length=2]"), backbone, "adapters-1")
    site = next(site for site in backbone.sites if site.place == "kv")
    node: Any = program(Stack("first", "second"), len(backbone.sites), parts)[site.index]
    first, second = (parts.adapter(name, site.index) for name in ("first", "second"))
    given = torch.randn(1, 3, tiny.WIDTH)
    found = node.positions(Reading(given, given, None))
    assert found.counted
    expected = torch.cat([cast(Any, second).keys, cast(Any, first).keys])
    torch.testing.assert_close(found.keys[0], expected.transpose(0, 1))
