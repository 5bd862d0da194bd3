"""Prefix tuning: what is put in front, flat and made, the same after flattening; the gate; where it goes."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graftwork.core.adapter import Ground
from graftwork.core.prefix import FlatPrefix, MadePrefix, PrefixTuningConfig, location
from graftwork.core.site import Reading, Site
from graftwork.errors import AdapterError
from tests.rig import randomise

B, T, D, H, W, P = 3, 5, 8, 2, 4, 6


def kv(kind: str = "attn.kv", stack: str = "", layer: int = 1) -> Site:
    return Site(7 + layer, stack, layer, layer, kind, 2 * H * W, D, H, W)


def entering() -> Reading:
    x = torch.randn(B, T, D, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    return Reading(x, x, None)


def built(config: PrefixTuningConfig) -> tuple[Any, nn.ModuleDict | None]:
    shared = config.share([kv(layer=0), kv()])
    module = config.build(kv(), Ground(shared=shared))
    assert module is not None
    for part in filter(None, (module, shared)):
        randomise(part.double().eval().parameters())
    return module, shared


def rows(tensor: Tensor) -> Tensor:
    """(P, H, W) as every row of the batch has it, (B, H, P, W)."""
    return torch.stack([torch.stack([tensor[:, head] for head in range(H)])] * B)


def test_flat_prefixes_are_their_parameters() -> None:
    module, shared = built(PrefixTuningConfig(flat=True, prefix_length=P))
    assert shared is None
    assert {name: tuple(p.shape) for name, p in module.named_parameters()} == {"keys": (P, H, W), "values": (P, H, W)}
    found = module.positions(entering())
    assert found.real is None
    assert torch.equal(found.keys, rows(module.keys))
    assert torch.equal(found.values, rows(module.values))


def test_made_prefixes_are_the_papers_small_network() -> None:
    module, shared = built(PrefixTuningConfig(prefix_length=P, bottleneck_size=3))
    assert shared is not None
    assert {name: tuple(p.shape) for name, p in shared.named_parameters()} == {
        "attn.embedding": (P, D), "attn.down.weight": (3, D), "attn.down.bias": (3,)
    }  # fmt: skip
    assert {name: tuple(p.shape) for name, p in module.named_parameters()} == {
        "project.weight": (2 * H * W, 3), "project.bias": (2 * H * W,)
    }  # fmt: skip
    source: Any = shared["attn"]
    inner = torch.tanh(source.embedding @ source.down.weight.T + source.down.bias)
    made = inner @ module.project.weight.T + module.project.bias
    found = module.positions(entering())
    torch.testing.assert_close(found.keys, rows(made[:, : H * W].reshape(P, H, W)), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.values, rows(made[:, H * W :].reshape(P, H, W)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gating", [{}, {"use_gating": True}, {"use_gating": True, "shared_gating": False}])
def test_flattening_keeps_the_numbers(gating: dict[str, bool]) -> None:
    module, _ = built(PrefixTuningConfig(prefix_length=P, bottleneck_size=3, **gating))  # type: ignore[arg-type]
    flat = module.flattened()
    assert isinstance(module, MadePrefix)
    assert isinstance(flat, FlatPrefix)
    one, other = module.positions(entering()), flat.positions(entering())
    assert torch.equal(one.keys, other.keys)
    assert torch.equal(one.values, other.values)
    fresh = replace(module.config, flat=True).build(kv())
    assert fresh is not None
    assert [name for name, _ in flat.named_parameters()] == [name for name, _ in fresh.named_parameters()]
    assert not flat.training


@pytest.mark.parametrize("shared_gating", [True, False])
def test_a_gate_on_what_enters_the_attention_multiplies_keys_and_values(shared_gating: bool) -> None:
    module, _ = built(PrefixTuningConfig(flat=True, prefix_length=P, use_gating=True, shared_gating=shared_gating))
    reading = entering()
    gates = torch.sigmoid(reading.output @ module.gate.weight.T + module.gate.bias).mean(1)
    assert gates.shape == (B, 1 if shared_gating else 2)
    found = module.positions(reading)
    torch.testing.assert_close(found.keys, rows(module.keys) * gates[:, 0].view(B, 1, 1, 1))
    torch.testing.assert_close(found.values, rows(module.values) * gates[:, -1].view(B, 1, 1, 1))


def test_dropout_is_on_the_prefix_of_each_row_and_only_in_training() -> None:
    module, _ = built(PrefixTuningConfig(flat=True, prefix_length=P, dropout=0.5))
    still = module.positions(entering())
    assert torch.equal(still.keys[0], still.keys[1])
    dropped = module.train().positions(entering())
    assert not torch.equal(dropped.keys[0], dropped.keys[1])
    kept = dropped.keys != 0
    torch.testing.assert_close(dropped.keys[kept], 2 * still.keys[kept])


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (PrefixTuningConfig(), {"encoder_attn", "decoder_attn", "decoder_cross", "attn"}),
        (PrefixTuningConfig(encoder_prefix=False), {"decoder_attn", "decoder_cross", "attn"}),
        (PrefixTuningConfig(cross_prefix=False), {"encoder_attn", "decoder_attn", "attn"}),
        (PrefixTuningConfig(stacks=["decoder"]), {"decoder_attn", "decoder_cross"}),
        (PrefixTuningConfig(leave_out=[1]), set()),
    ],
)
def test_where_it_goes(config: PrefixTuningConfig, names: set[str]) -> None:
    sites = [kv(stack="encoder"), kv(stack="decoder"), kv("cross.kv", stack="decoder"), kv()]
    flat = replace(config, flat=True)
    assert {location(site) for site in sites if flat.build(site) is not None} == names
    shared = config.share([*sites, Site(0, "", 1, 1, "ffn", 8, 8), Site(1, "", 1, 1, "attn.key", 8, 8)])
    assert set(shared or {}) == names
    assert flat.build(Site(0, "", 0, 0, "attn", 8, 8)) is None


def test_gradients_reach_what_is_shared() -> None:
    module, shared = built(PrefixTuningConfig(prefix_length=P, bottleneck_size=3, use_gating=True))
    assert shared is not None
    found = module.positions(entering())
    (found.keys.square().sum() + found.values.square().sum()).backward()
    for part in (module, shared):
        assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in part.parameters())


def test_a_seed_gives_every_site_and_every_sort_numbers_of_its_own() -> None:
    config = PrefixTuningConfig(flat=True, prefix_length=P, init_weights_seed=0)
    one, again, other = (config.build(kv(layer=layer)) for layer in (0, 0, 1))
    assert one is not None
    assert again is not None
    assert other is not None
    assert torch.equal(one.pair(), again.pair())
    assert not torch.equal(one.pair(), other.pair())
    sorts: Any = replace(config, flat=False).share([kv(stack="encoder"), kv(stack="decoder")])
    assert not torch.equal(sorts["encoder_attn"].embedding, sorts["decoder_attn"].embedding)


def test_what_is_refused() -> None:
    with pytest.raises(AdapterError, match=r"layer.1/attn.kv has no embedding; it is made once by share"):
        PrefixTuningConfig().build(kv())
    with pytest.raises(AdapterError, match="prefix_length 0 must be a whole number from 1; non_linearity 'x' is"):
        PrefixTuningConfig(prefix_length=0, non_linearity="x")
    with pytest.raises(AdapterError, match="flat 1 must be true or false"):
        PrefixTuningConfig(flat=1)  # type: ignore[arg-type]
