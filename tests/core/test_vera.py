"""VeRA: the paper's formula, its frozen pair, and how few parameters it has."""

import math

import pytest
import torch

from graftwork.core.site import NO_DELTA
from graftwork.core.vera import Projections, VeraConfig
from graftwork.errors import AdapterError
from tests.linears import frozen, site, written


def test_it_is_the_papers_formula_on_a_cut_of_the_shared_pair() -> None:
    linear = frozen()
    config = VeraConfig(r=5)
    shared = config.share([linear.site, site("attn.value", width=9, inputs=7), site("ffn.up", width=100, inputs=100)])
    assert shared is not None
    assert {name: tuple(b.shape) for name, b in shared.named_buffers()} == {"a": (5, 7), "b": (9, 5)}
    module = linear.build(config, shared)
    a, b = shared.a[:, :4].double(), shared.b[:6].double()
    weight = torch.diag(module.b) @ b @ torch.diag(module.d) @ a
    torch.testing.assert_close(written(module(linear.reading, NO_DELTA)), linear.x @ weight.T, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(module.weight_change(), weight, rtol=1e-12, atol=1e-12)


def test_the_base_is_unchanged_at_birth_to_the_last_bit() -> None:
    linear = frozen(dtype=torch.float32)
    config = VeraConfig(r=3)
    module = linear.build(config, config.share([linear.site]), random=False)
    assert torch.equal(linear.y + written(module(linear.reading, NO_DELTA)), linear.y)
    assert module.d.tolist() == pytest.approx([0.1] * 3)


def test_only_vectors_are_trained_and_only_vectors_are_saved() -> None:
    linear = frozen()
    config = VeraConfig(r=5, use_gating=True)
    shared = config.share([linear.site])
    assert shared is not None
    module = linear.build(config, shared)
    assert {name: tuple(p.shape) for name, p in module.named_parameters()} == {
        "d": (5,), "b": (6,), "gate.weight": (1, 4), "gate.bias": (1,)
    }  # fmt: skip
    assert not list(shared.parameters())
    assert not shared.state_dict()
    written(module(linear.reading, NO_DELTA)).sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in module.parameters())
    assert shared.a.grad is None
    with pytest.raises(AdapterError, match="a gated VeRA"):
        module.weight_change()


def test_the_count_is_the_papers() -> None:
    """r + D a site: BERT-base's q and v at r = 1024 are 43 thousand (Table 1 of the paper: RoBERTa-base, 0.043 M)."""
    config = VeraConfig(r=1024)
    sites = [site(kind, 768, 768, layer=n) for n in range(12) for kind in ("attn.query", "attn.value")]
    shared = config.share(sites)
    linear = frozen(width=768, inputs=768)
    one = sum(p.numel() for p in linear.build(config, shared).parameters())
    assert one * len(sites) == 24 * (1024 + 768) == 43_008


def test_the_pair_comes_back_from_its_seed() -> None:
    state = torch.get_rng_state()
    one, again, other = (Projections(4, 6, 5, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.a, again.a)
    assert torch.equal(one.b, again.b)
    assert not torch.equal(one.a, other.a)
    big = Projections(64, 400, 300, 0)
    assert float(big.a.std()) == pytest.approx(math.sqrt(2 / 400), rel=0.02)  # He et al. 2015
    assert float(big.b.std()) == pytest.approx(math.sqrt(2 / 64), rel=0.02)
    first = torch.tensor([0.49625659, 0.76822180, 0.08847743])  # of torch's uniform numbers under seed 0
    torch.testing.assert_close(big.a[0, :3], (2 * first - 1) * math.sqrt(6 / 400))


def test_what_is_refused() -> None:
    with pytest.raises(AdapterError, match=r"layer.1/attn.query has no projections; they are made once by share"):
        VeraConfig().build(site())
    with pytest.raises(AdapterError, match="r 0 must be a whole number from 1; vera_d 'x' must be a finite number"):
        VeraConfig(r=0, vera_d="x")  # type: ignore[arg-type]
    assert VeraConfig().share([site("attn.key")]) is None
    assert VeraConfig().build(site("attn.key")) is None
