"""Invertible adapters: the equations written out, and that what was done can be undone, in both precisions."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from graftwork.core.activations import activation
from graftwork.core.adapter import Adapter, Invertible
from graftwork.core.backbone import Backbone
from graftwork.core.bottleneck import BottleneckConfig
from graftwork.core.invertible import Glow, Nice
from graftwork.core.kinds import read_config
from graftwork.core.site import NO_DELTA, Delta, Reading, Site
from graftwork.errors import AdapterError
from tests import zoo
from tests.rig import randomise

KINDS = {"nice": Nice, "glow": Glow}


def made(kind: str, width: int = 12, factor: float = 2, function: str = "relu", seed: int = 1) -> Any:
    module = KINDS[kind](width, factor, function).double()
    randomise(module.parameters(), seed)
    return module


def mapped(module: Any, e: Tensor) -> Tensor:
    """f(e), by way of the change."""
    change = module(Reading(e, e, None), NO_DELTA)
    assert change.after is None
    return e + change.before  # type: ignore[no-any-return]


def subnet(net: nn.Sequential, function: str, x: Tensor) -> Tensor:
    first, second = net[0], net[2]
    inner = activation(function)(x @ first.weight.T + first.bias)  # type: ignore[operator,union-attr]
    return inner @ second.weight.T + second.bias  # type: ignore[operator,union-attr,no-any-return]


@pytest.mark.parametrize("width", [12, 7])
def test_nice_is_its_equation(width: int) -> None:
    module, e = made("nice", width, function="gelu"), torch.randn(2, 3, width, dtype=torch.float64)
    first, second = e[..., : width // 2], e[..., width // 2 :]
    y1 = first + subnet(module.F, "gelu", second)
    y2 = second + subnet(module.G, "gelu", y1)
    torch.testing.assert_close(mapped(module, e), torch.cat([y1, y2], -1), rtol=1e-12, atol=1e-12)
    assert {*dict(module.named_parameters())} == {
        f"{n}.{i}.{p}" for n in "FG" for i in (0, 2) for p in ("weight", "bias")
    }
    assert module.F[0].weight.shape == ((width - width // 2) // 2, width - width // 2)
    assert module.G[2].weight.shape == (width - width // 2, width // 2 // 2)


@pytest.mark.parametrize("width", [12, 7])
def test_glow_is_its_equation(width: int) -> None:
    module, e = made("glow", width, function="tanh"), torch.randn(2, 3, width, dtype=torch.float64)
    half = width // 2
    lower, upper = torch.eye(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64)
    for i in range(width):
        for j in range(width):
            if i > j:
                lower[i, j] = module.mixing[i, j]
            else:
                upper[i, j] = module.mixing[i, j].exp() if i == j else module.mixing[i, j]
    expected = torch.empty_like(e)
    for row in range(2):
        for token in range(3):
            w = lower @ (upper @ (torch.exp(module.scale) * e[row, token] + module.shift))
            said = subnet(module.F, "tanh", w[half:])
            y1 = w[:half] * torch.exp(torch.tanh(said[:half])) + said[half:]
            said = subnet(module.G, "tanh", y1)
            y2 = w[half:] * torch.exp(torch.tanh(said[: width - half])) + said[width - half :]
            expected[row, token] = torch.cat([y1, y2])
    torch.testing.assert_close(mapped(module, e), expected, rtol=1e-12, atol=1e-12)


@settings(deadline=None)
@given(
    kind=st.sampled_from(["nice", "glow"]),
    width=st.integers(2, 33),
    factor=st.floats(0.5, 40),
    function=st.sampled_from(["relu", "gelu", "tanh", "swish", "leakyrelu"]),
    seed=st.integers(0, 999),
    scale=st.floats(0.01, 10),
)
def test_what_was_done_is_undone(kind: str, width: int, factor: float, function: str, seed: int, scale: float) -> None:
    module = made(kind, width, factor, function, seed)
    generator = torch.Generator().manual_seed(seed)
    e = torch.randn(2, 3, width, generator=generator, dtype=torch.float64) * scale
    with torch.no_grad():
        size = float(mapped(module, e).abs().max() + e.abs().max())
        torch.testing.assert_close(module.inverse(mapped(module, e)), e, rtol=0, atol=1e-11 * size)
        torch.testing.assert_close(mapped(module, module.inverse(e)), e, rtol=0, atol=1e-10 * size * (1 + 1 / scale))
        module.float()
        restored = module.inverse(mapped(module, e.float()))
        assert restored.dtype == torch.float32
        torch.testing.assert_close(restored, e.float(), rtol=0, atol=2e-3 * size)


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_trip_at_the_width_of_a_model_keeps_float32(kind: str) -> None:
    torch.manual_seed(0)
    module = KINDS[kind](768, 2, "relu")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
        e = torch.randn(4, 16, 768)
        y = mapped(module, e)
        assert float((y - e).norm() / e.norm()) > 0.1
        assert float((module.inverse(y) - e).abs().max()) < 1e-4


def test_half_precision_keeps_its_dtype_and_comes_back() -> None:
    for kind in KINDS:
        module = KINDS[kind](16, 2, "relu").to(torch.bfloat16)
        e = torch.randn(1, 4, 16, dtype=torch.bfloat16)
        restored = module.inverse(mapped(module, e))
        assert restored.dtype == torch.bfloat16
        torch.testing.assert_close(restored, e, rtol=0.05, atol=0.05)


# -- at birth, and in compositions --


def test_at_birth_glow_is_the_identity_to_the_last_bit_and_nice_is_near_it() -> None:
    e = torch.randn(2, 5, 64)
    reading = Reading(e, e, None)
    assert not Glow(64, 2, "relu")(reading, NO_DELTA).before.any()
    change = Nice(64, 2, "relu")(reading, NO_DELTA).before.detach()
    assert 0 < float(change.norm() / e.norm()) < 0.05


def test_glow_learns_from_birth() -> None:
    module = Glow(8, 2, "relu")
    e = torch.randn(2, 5, 8)
    (mapped(module, e) - e.roll(1, -1)).square().sum().backward()
    for name in ("scale", "shift", "mixing", "F.2.weight", "G.2.bias"):
        assert module.get_parameter(name).grad.any(), name  # type: ignore[union-attr]


def test_it_is_an_adapter_and_invertible_and_maps_what_earlier_members_made() -> None:
    for kind in KINDS:
        module, e, earlier = made(kind), *torch.randn(2, 2, 3, 12, dtype=torch.float64)
        assert isinstance(module, Adapter)
        assert isinstance(module, Invertible)
        reading, delta = Reading(e, e, None), Delta(before=earlier)
        torch.testing.assert_close(e + earlier + module(reading, delta).before, mapped(module, e + earlier))
        assert torch.equal(module.read(reading, delta), module.carried(reading, delta))


@pytest.mark.parametrize("kind", KINDS)
def test_the_configuration_builds_it_at_the_embeddings_only(kind: str) -> None:
    config = BottleneckConfig(
        inv_adapter=kind, inv_adapter_reduction_factor=3, non_linearity="tanh", init_weights_seed=3
    )
    module = config.build(Site(4, "", -1, -1, "embed", 18))
    assert type(module) is KINDS[kind]
    assert module.F[0].weight.shape == (3, 9)
    assert isinstance(module.F[1], type(activation("tanh")))
    assert torch.equal(module.F[0].weight, config.build(Site(4, "", -1, -1, "embed", 18)).F[0].weight)
    assert config.build(Site(4, "", -1, -1, "prompt", 18)) is None
    assert BottleneckConfig().build(Site(4, "", -1, -1, "embed", 18)) is None
    assert BottleneckConfig(stacks=["encoder"]).build(Site(4, "encoder", -1, -1, "embed", 18)) is None
    assert read_config(f"seq_bn[inv_adapter={kind},inv_adapter_reduction_factor=2]").inv_adapter == kind


def test_choices_without_a_meaning_are_refused() -> None:
    for choices, message in (
        ({"inv_adapter": "flow"}, "inv_adapter 'flow' must be 'nice', 'glow' or none"),
        ({"inv_adapter": "nice"}, "inv_adapter 'nice' needs an inv_adapter_reduction_factor, such as 2"),
        ({"inv_adapter_reduction_factor": 0}, "inv_adapter_reduction_factor 0 must be a positive number"),
        ({"inv_adapter": "nice", "inv_adapter_reduction_factor": 2, "train_norms": True}, "both change the embeddings"),
    ):
        with pytest.raises(AdapterError, match=message):
            BottleneckConfig(**choices)  # type: ignore[arg-type]


def test_a_model_without_embeddings_refuses_an_invertible_adapter() -> None:
    backbone = Backbone(zoo.model("vit"))
    with pytest.raises(AdapterError, match="inv_adapter 'nice': the model has no embeddings that it could map"):
        read_config("seq_bn_inv").share(backbone.sites)
    with pytest.raises(AdapterError, match=r"or stacks \['decoder'\] leave them out"):
        read_config("seq_bn_glow[stacks=['decoder']]").share(Backbone(zoo.model("t5")).sites)
