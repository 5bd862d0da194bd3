"""Norms trained with an adapter: the exact forms, the base to the last bit at birth, and how changes add."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graftwork.core.adapter import Ground
from graftwork.core.bottleneck import Bottleneck
from graftwork.core.kinds import read_config
from graftwork.core.norms import TrainedEmbeddingNorm, TrainedNorm
from graftwork.core.site import NO_DELTA, Delta, Reading, Site
from graftwork.errors import AdapterError
from tests.rig import randomise

SITE = Site(0, "", 0, 0, "ffn", 16)
EMBED = Site(9, "", -1, -1, "embed", 16)


def norm_of(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + eps) * weight + bias


def frozen(dtype: torch.dtype = torch.float64) -> nn.LayerNorm:
    norm = nn.LayerNorm(16, eps=1e-3).to(dtype).requires_grad_(False)
    randomise(norm.parameters(), 8)
    return norm


def built(norm: nn.Module, config: str = "adapter_bert", *, random: bool = True) -> Any:
    module: Any = read_config(config).build(SITE, Ground(norm=norm))
    if random:
        randomise(module.parameters())
    return module


def said(module: Bottleneck, x: Tensor) -> Tensor:
    """up(f(down(x))) with the tanh form of GELU, written out."""
    inner = x @ module.down.weight.T + module.down.bias
    inner = 0.5 * inner * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (inner + 0.044715 * inner**3)))
    return inner @ module.up.weight.T + module.up.bias  # type: ignore[no-any-return]


def settled(reading: Reading, change: Delta) -> Tensor:
    """The stream after the site: what the hooks make of a change."""
    stream = reading.norm(reading.output + change.before + reading.residual)  # type: ignore[misc,operator]
    return stream if change.after is None else stream + change.after


def test_a_site_with_its_norm_trained_is_the_closed_form() -> None:
    norm = frozen()
    module = built(norm).double()
    h, r = torch.randn(2, 2, 3, 16, dtype=torch.float64)
    expected = norm_of(h + said(module, h) + r, module.norm.weight, module.norm.bias, norm.eps)
    found = settled(Reading(h, r, norm), module(Reading(h, r, norm), NO_DELTA))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert {"norm.weight", "norm.bias"} < {*dict(module.named_parameters())}
    assert module.down.weight.shape == (64, 16)


def test_embeddings_with_their_norm_trained_are_the_closed_form() -> None:
    norm = frozen()
    module = read_config("adapter_bert").build(EMBED, Ground(norm=norm))
    assert isinstance(module, TrainedEmbeddingNorm)
    module.double()
    randomise(module.parameters())
    x = torch.randn(2, 3, 16, dtype=torch.float64)
    y = norm(x)
    found = y + module(Reading(y, y, None), NO_DELTA).before  # type: ignore[operator]
    torch.testing.assert_close(found, norm_of(x, module.weight, module.bias, norm.eps), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_at_birth_the_copies_change_no_bit(dtype: torch.dtype) -> None:
    norm = frozen(dtype)
    module = built(norm, random=False).to(dtype)
    nn.init.zeros_(module.up.weight)
    h, r = torch.randn(2, 2, 3, 16).to(dtype)
    change = module(Reading(h, r, norm), NO_DELTA)
    assert not change.before.any()
    assert not change.after.any()
    embedded = read_config("adapter_bert").build(EMBED, Ground(norm=norm)).to(dtype)  # type: ignore[union-attr]
    assert not embedded(Reading(h, h, None), NO_DELTA).before.any()


def test_a_stack_takes_the_earlier_difference_where_it_was_seen_and_reads_through_it() -> None:
    norm = frozen()
    first = built(norm).double()
    h, r = torch.randn(2, 2, 3, 16, dtype=torch.float64)
    reading = Reading(h, r, norm)
    delta = first(reading, NO_DELTA)
    through = norm_of(h + said(first, h) + r, first.norm.weight, first.norm.bias, norm.eps)
    torch.testing.assert_close(reading.stream(delta), through, rtol=1e-12, atol=1e-12)
    second = built(norm).double()
    randomise(second.parameters(), 77)
    total = delta.plus(second(reading, delta))
    u = said(first, h)
    v = said(second, h + u)
    s = h + u + v + r
    own = norm_of(s, second.norm.weight, second.norm.bias, norm.eps)
    earlier = through - norm(h + u + r)
    torch.testing.assert_close(settled(reading, total), own + earlier, rtol=1e-12, atol=1e-12)


def test_a_frozen_norm_is_neither_a_part_of_the_adapter_nor_changed() -> None:
    norm = frozen(torch.float32)
    module = built(norm, random=False)
    assert module.norm.weight is not norm.weight
    assert len([name for name, _ in module.named_parameters() if "norm" in name]) == 2
    assert all(child is not norm for child in module.modules())
    h = torch.randn(1, 2, 16)
    module(Reading(h, h, norm), NO_DELTA).after.sum().backward()
    assert norm.weight.grad is None
    assert module.norm.weight.grad is not None


def test_where_there_is_no_such_norm_it_is_refused() -> None:
    class RMSNorm(nn.Module):
        weight = torch.ones(16)

    with pytest.raises(AdapterError, match=r"train_norms at layer.0/ffn: the model has no norm after the residual add"):
        read_config("adapter_bert").build(SITE)
    with pytest.raises(AdapterError, match="has a RMSNorm there; only a LayerNorm with weight and bias"):
        TrainedNorm(RMSNorm(), "layer.0/ffn")
    with pytest.raises(AdapterError, match="has a LayerNorm there"):
        TrainedNorm(nn.LayerNorm(16, bias=False), "layer.0/ffn")
    assert read_config("adapter_bert").build(EMBED) is None
    norm = frozen()
    with torch.no_grad():
        norm.weight[:2] = 0
    with pytest.raises(AdapterError, match="train_norms at embed: the frozen norm has 2 channels of weight zero"):
        TrainedEmbeddingNorm(norm, "embed")
