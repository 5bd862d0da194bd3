"""(IA)³: against a linear whose weight and bias are scaled, and the paper's own place in the feed-forward block."""

import pytest
import torch
from torch.nn import functional

from graftwork.core.ia3 import IA3Config
from graftwork.core.site import NO_DELTA, Reading
from graftwork.errors import AdapterError
from tests.linears import frozen, site, written


@pytest.mark.parametrize("alpha", [1, 2.5])
def test_it_is_the_linear_with_scaled_rows(alpha: float) -> None:
    linear = frozen("attn.key")
    module = linear.build(IA3Config(alpha=alpha))
    scale = module.scale * alpha
    expected = functional.linear(linear.x, scale[:, None] * linear.weight, scale * linear.bias)
    found = linear.y + written(module(linear.reading, NO_DELTA))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_base_is_unchanged_at_birth_to_the_last_bit(dtype: torch.dtype) -> None:
    linear = frozen("attn.key", dtype=dtype)
    module = linear.build(IA3Config(), random=False)
    assert torch.equal(linear.y + written(module(linear.reading, NO_DELTA)), linear.y)


def test_in_a_stack_the_scales_multiply() -> None:
    linear = frozen("attn.key")
    first, second = linear.build(IA3Config()), linear.build(IA3Config(alpha=2))
    delta = first(linear.reading, NO_DELTA)
    found = linear.y + written(delta) + written(second(linear.reading, delta))
    torch.testing.assert_close(found, linear.y * first.scale * second.scale * 2, rtol=1e-12, atol=1e-12)


def test_the_gate_stands_in_the_place_of_alpha() -> None:
    linear = frozen("attn.key")
    module = linear.build(IA3Config(alpha=9, use_gating=True))
    gate = torch.sigmoid(linear.x @ module.gate.weight.T + module.gate.bias).mean(1, keepdim=True)
    found = linear.y + written(module(linear.reading, NO_DELTA))
    torch.testing.assert_close(found, linear.y * module.scale * gate, rtol=1e-12, atol=1e-12)


def test_the_papers_place_scales_what_the_last_linear_reads() -> None:
    config = IA3Config(intermediate_lora=False, inner_ffn=True)
    module = config.build(site("ffn.down.input", 6, 6))
    assert module is not None
    x = torch.randn(2, 3, 6)
    with torch.no_grad():
        module.scale.copy_(torch.arange(6.0))
    torch.testing.assert_close(x + written(module(Reading(x, x, None), NO_DELTA)), x * torch.arange(6.0))


@pytest.mark.parametrize(
    ("config", "kinds"),
    [
        (IA3Config(), {"attn.key", "attn.value", "cross.key", "cross.value", "ffn.up"}),
        (
            IA3Config(intermediate_lora=False, inner_ffn=True, crossattn_lora=False),
            {"attn.key", "attn.value", "ffn.down.input"},
        ),
        (IA3Config(inner_ffn=True, leave_out=[1]), set()),
    ],
)
def test_where_it_goes(config: IA3Config, kinds: set[str]) -> None:
    every = [f"{block}.{part}" for block in ("attn", "cross") for part in ("query", "key", "value", "out", "kv")]
    every += ["ffn", "ffn.up", "ffn.gate", "ffn.down", "ffn.up.input", "ffn.down.input", "embed"]
    assert {kind for kind in every if config.build(site(kind)) is not None} == kinds


def test_what_is_refused() -> None:
    with pytest.raises(AdapterError, match="inner_ffn 1 must be true or false; init_weights 'lora' is not one of ia3"):
        IA3Config(inner_ffn=1, init_weights="lora")  # type: ignore[arg-type]
