"""BitFit: against a linear whose bias is another one, and where there is a bias at all."""

import pytest
import torch
from torch.nn import functional

from graftwork.core.adapter import Ground
from graftwork.core.bitfit import BitFitConfig
from graftwork.core.site import NO_DELTA
from graftwork.errors import AdapterError
from tests.linears import frozen, site, written


def test_it_is_the_linear_with_another_bias() -> None:
    linear = frozen("ffn.down")
    module = linear.build(BitFitConfig())
    expected = functional.linear(linear.x, linear.weight, linear.bias + module.bias)
    found = linear.y + written(module(linear.reading, NO_DELTA))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weight, bias = module.merged(linear.weight, linear.bias)
    torch.testing.assert_close(functional.linear(linear.x, weight, bias), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_base_is_unchanged_at_birth_to_the_last_bit(dtype: torch.dtype) -> None:
    linear = frozen("attn.key", dtype=dtype)
    module = linear.build(BitFitConfig(), random=False)
    assert torch.equal(linear.y + written(module(linear.reading, NO_DELTA)), linear.y)


def test_in_a_stack_biases_add() -> None:
    linear = frozen("attn.key")
    first, second = linear.build(BitFitConfig()), linear.build(BitFitConfig())
    with torch.no_grad():
        second.bias.mul_(-3)
    delta = first(linear.reading, NO_DELTA)
    found = linear.y + written(delta) + written(second(linear.reading, delta))
    torch.testing.assert_close(found, linear.y + first.bias + second.bias, rtol=1e-12, atol=1e-12)


def test_where_it_goes() -> None:
    every = [f"{block}.{part}" for block in ("attn", "cross") for part in ("query", "key", "value", "out", "kv")]
    every += ["ffn", "ffn.up", "ffn.gate", "ffn.down", "ffn.up.input", "embed"]
    linears = {kind for kind in every if "." in kind and not kind.endswith((".kv", ".input"))}
    assert {kind for kind in every if BitFitConfig().build(site(kind)) is not None} == linears
    assert BitFitConfig(leave_out=(1,)).build(site("ffn.up")) is None
    assert BitFitConfig().build(site("ffn.up"), Ground(biased=False)) is None, "no bias, nothing to train"


def test_what_is_refused() -> None:
    with pytest.raises(AdapterError, match="bitfit adapter: use_gating has no meaning: a bias is one change"):
        BitFitConfig(use_gating=True)
