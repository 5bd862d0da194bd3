"""Unions: the sum of what the members change, their names, what they share, and what cannot be joined."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from graftwork.core.adapter import NO_GROUND, Ground, Invertible
from graftwork.core.kinds import ConfigUnion, read_config
from graftwork.core.lora import LoRAConfig
from graftwork.core.site import NO_DELTA, Delta, Reading, Site
from graftwork.core.union import UnionConfig
from graftwork.errors import AdapterError
from tests.linears import frozen, site, written
from tests.rig import ADAPTER_PLUS, randomise


def at_ffn(config: str) -> tuple[Any, Reading]:
    h, r = torch.randn(2, 2, 3, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    module = read_config(config).build(site("ffn", 32, 32))
    assert module is not None
    randomise(module.double().parameters())
    return module.eval(), Reading(h, r, nn.LayerNorm(32, dtype=torch.float64))


def test_changes_of_several_members_at_one_site_add() -> None:
    union, reading = at_ffn(f"seq_bn|{ADAPTER_PLUS}|par_bn")
    first, second, third = union.children()
    delta = Delta(before=torch.ones_like(reading.output))
    parts = [member(reading, delta) for member in (first, second, third)]
    found = union(reading, delta)
    torch.testing.assert_close(found.before, parts[0].before + parts[2].before)
    torch.testing.assert_close(found.after, parts[1].after)
    said = sum(member.change(reading, delta) for member in (first, second, third))
    torch.testing.assert_close(union.change(reading, delta), said)
    assert torch.equal(union.read(reading, delta), third.read(reading, delta))
    assert torch.equal(union.carried(reading, delta), third.carried(reading, delta))


def test_parameters_are_named_by_the_member_even_where_it_is_alone() -> None:
    config = read_config("lora[r=2]|lora[attn_matrices=['q','k'],r=1]|seq_bn")
    names = {
        kind: sorted(name for name, _ in module.named_parameters()) if (module := config.build(site(kind))) else []
        for kind in ("attn.query", "attn.key", "attn.value", "attn.out")
    }
    assert names == {
        "attn.query": ["0.a", "0.b", "1.a", "1.b"],
        "attn.key": ["1.a", "1.b"],
        "attn.value": ["0.a", "0.b"],
        "attn.out": [],
    }
    module = config.build(site("ffn", 32))
    assert module is not None
    assert sorted(name for name, _ in module.named_parameters())[0] == "2.down.bias"
    nested = read_config(ConfigUnion("par_bn", config)).build(site("attn.key"))
    assert nested is not None
    assert sorted(name for name, _ in nested.named_parameters()) == ["1.1.a", "1.1.b"]


def test_two_loras_are_the_sum_of_two_weight_changes() -> None:
    linear = frozen()
    union = linear.build(read_config("lora[r=2]|lora[r=1]"))
    first, second = union.children()
    expected = linear.x @ (first.weight_change() + second.weight_change()).T
    torch.testing.assert_close(written(union(linear.reading, NO_DELTA)), expected, rtol=1e-12, atol=1e-12)


@dataclass(frozen=True)
class Lonely:
    """A method that goes alone to one kind of site, and shares a number."""

    place: str
    leave_out: tuple[int, ...] = ()
    kind = "lonely"
    where = "one kind of site"

    def adapts(self, site: Site) -> bool:
        return site.place == self.place

    def share(self, sites: Sequence[Site]) -> nn.Module | None:
        return nn.Linear(len(sites), 1)

    def build(self, site: Site, ground: Ground = NO_GROUND) -> nn.Module | None:
        return nn.Linear(ground.shared.in_features, 2) if site.place == self.place else None  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize(
    ("kind", "place", "reason"),
    [
        ("attn.kv", "kv", "prefixes do not add; put them in adapters of their own and Stack those"),
        ("prompt", "prompt", "prompts do not add; put them in adapters of their own and Stack those"),
    ],
)
def test_what_goes_alone_is_refused_twice(kind: str, place: str, reason: str) -> None:
    twice = UnionConfig(members=(Lonely(place), Lonely(place)))
    shared = twice.share([site(kind)])
    with pytest.raises(AdapterError, match=f"members 0 and 1 both go to .*{kind}: {reason}"):
        twice.build(site(kind), Ground(shared=shared))
    once = UnionConfig(members=(LoRAConfig(), Lonely(place))).build(
        site(kind), Ground(shared=nn.ModuleDict({"1": nn.Linear(1, 1)}))
    )
    assert once is not None
    assert [name for name, _ in once.named_parameters()] == ["1.weight", "1.bias"]


def test_two_invertible_maps_are_refused_and_one_keeps_its_inverse() -> None:
    embed = site("embed", 8, 8)
    with pytest.raises(AdapterError, match=r"members 0 and 2 both go to .*embed: a sum of maps"):
        read_config("seq_bn_inv|lora|double_seq_bn_glow").build(embed)
    once: Any = read_config("lora|seq_bn_inv").build(embed)
    assert isinstance(once, Invertible)
    randomise(once.double().parameters())
    e = torch.randn(2, 3, 8, dtype=torch.float64)
    torch.testing.assert_close(once.inverse(e + written(once(Reading(e, e, None), NO_DELTA))), e)
    assert not isinstance(read_config("lora|seq_bn").build(site()), Invertible)


def test_what_members_share_is_by_their_index() -> None:
    shared = UnionConfig(members=(LoRAConfig(), Lonely("kv"), Lonely("prompt"))).share(
        [site(), site("attn.kv"), site("prompt")]
    )
    assert shared is not None
    assert [name for name, _ in shared.named_parameters()] == ["1.weight", "1.bias", "2.weight", "2.bias"]
    assert ConfigUnion("lora", "seq_bn").share([site(), site("ffn")]) is None


def test_a_member_without_a_place_is_refused() -> None:
    with pytest.raises(AdapterError) as raised:
        ConfigUnion("seq_bn", "prefix_tuning").share([site("attn"), site("ffn")])
    assert str(raised.value) == (
        "union adapter: member 1 (prefix_tuning) has no place on this model: it goes to keys and values of an "
        "attention (attn.kv, cross.kv), and the model has attn, ffn; leave it out of the union"
    )


def test_a_layer_is_left_out_where_every_member_leaves_it_out() -> None:
    assert ConfigUnion("lora[leave_out=[0,1,4]]", "seq_bn[leave_out=[4,0]]").leave_out == (0, 4)


def test_members_get_the_norm_of_the_site_and_what_they_share() -> None:
    norm = nn.LayerNorm(32)
    config = read_config("adapter_bert|compacter++[reduction_factor=4]")
    shared = config.share([site("ffn", 32, 32)])
    module: Any = config.build(site("ffn", 32, 32), Ground(shared=shared, norm=norm))
    trained, compacter = module.children()
    assert torch.equal(trained.norm.weight, norm.weight)
    assert compacter.down.shared is shared["1"]  # type: ignore[index]
    assert {*dict(shared.named_parameters())} == {"1.rule"}  # type: ignore[union-attr]


def test_at_the_embeddings_only_what_can_be_undone_is_invertible() -> None:
    embed = Site(0, "", -1, -1, "embed", 32)
    assert isinstance(read_config("seq_bn_inv|par_bn").build(embed), Invertible)
    trained = read_config("adapter_bert|par_bn").build(embed, Ground(norm=nn.LayerNorm(32)))
    assert trained is not None
    assert not isinstance(trained, Invertible)
    assert read_config("seq_bn|par_bn").build(embed) is None
