"""DoRA: the paper's formula in float64, where gradients go, its birth; AdapterHub's variant against its own formula."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from graftwork.core.dora import DoRA, DoRAConfig
from graftwork.core.site import NO_DELTA, Delta
from graftwork.errors import AdapterError
from tests.linears import Frozen, frozen, site, written


def rows(weight: Tensor) -> Tensor:
    return (weight * weight).sum(dim=1).sqrt()


def paper(linear: Frozen, module: DoRA, scale: float) -> Tensor:
    """m ⊙ (W + s·B·A)/‖W + s·B·A‖ applied to x, and the bias."""
    direction = linear.weight + scale * module.b @ module.a
    norm = rows(direction).detach()
    return functional.linear(linear.x, module.magnitude[:, None] * direction / norm[:, None], linear.bias)


def test_it_is_the_linear_with_the_papers_weight() -> None:
    linear = frozen()
    module = linear.build(DoRAConfig(r=3, alpha=7))
    found = linear.y + written(module(linear.reading, NO_DELTA))
    torch.testing.assert_close(found, paper(linear, module, 7 / 3), rtol=1e-12, atol=1e-12)


def test_no_gradient_flows_through_the_norm() -> None:
    linear = frozen()
    module = linear.build(DoRAConfig(r=2))
    (linear.y + written(module(linear.reading, NO_DELTA))).square().sum().backward()
    found = {name: p.grad.clone() for name, p in module.named_parameters()}
    module.zero_grad()
    paper(linear, module, 4.0).square().sum().backward()
    assert set(found) == {"a", "b", "magnitude"}
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("variant", ["paper", "adapters"])
def test_the_base_is_unchanged_at_birth_to_the_last_bit(dtype: torch.dtype, variant: Any) -> None:
    linear = frozen(dtype=dtype)
    module = linear.build(DoRAConfig(variant=variant), random=False)
    assert torch.equal(linear.y + written(module(linear.reading, NO_DELTA)), linear.y)
    assert module.magnitude.dtype == dtype
    torch.testing.assert_close(module.magnitude.detach(), rows(linear.weight), rtol=1e-2, atol=1e-2)


def test_adapterhubs_variant() -> None:
    linear = frozen()
    module = linear.build(DoRAConfig(r=2, alpha=6, variant="adapters"))
    ratio = module.magnitude / rows(linear.weight + module.b @ module.a)
    expected = ratio * (linear.y + 3 * linear.x @ module.a.T @ module.b.T)
    torch.testing.assert_close(linear.y + written(module(linear.reading, NO_DELTA)), expected, rtol=1e-12, atol=1e-12)
    gated = linear.build(DoRAConfig(r=2, alpha=6, variant="adapters", use_gating=True))
    gate = torch.sigmoid(linear.x @ gated.gate.weight.T + gated.gate.bias).mean(1, keepdim=True)
    ratio = gated.magnitude / rows(linear.weight + gated.b @ gated.a)
    expected = ratio * (linear.y + gate * (linear.x @ gated.a.T @ gated.b.T))
    torch.testing.assert_close(linear.y + written(gated(linear.reading, NO_DELTA)), expected, rtol=1e-12, atol=1e-12)


def test_dropout_is_on_the_low_rank_path_alone() -> None:
    linear = frozen()
    module = linear.build(DoRAConfig(r=2, alpha=2, dropout=0.5)).train()
    torch.manual_seed(0)
    found = linear.y + written(module(linear.reading, NO_DELTA))
    torch.manual_seed(0)
    x = functional.dropout(linear.x, 0.5)
    ratio = module.magnitude / rows(linear.weight + module.b @ module.a)
    expected = ratio * (linear.x @ linear.weight.T + x @ module.a.T @ module.b.T) + linear.bias
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_what_others_wrote_is_left_alone() -> None:
    linear = frozen()
    module = linear.build(DoRAConfig(r=2))
    before = Delta(before=torch.ones_like(linear.y))
    assert torch.equal(written(module(linear.reading, before)), written(module(linear.reading, NO_DELTA)))


def test_what_is_refused() -> None:
    with pytest.raises(AdapterError, match=r"dora adapter: layer.1/attn.query offers no weight to take the magnitude"):
        DoRAConfig().build(site())
    with pytest.raises(AdapterError, match="variant 'hub' is not one of paper, adapters"):
        DoRAConfig(variant="hub")  # type: ignore[arg-type]
    with pytest.raises(AdapterError, match="use_gating would give every row a norm of its own"):
        DoRAConfig(use_gating=True)
    assert DoRAConfig().build(site("attn.key")) is None
