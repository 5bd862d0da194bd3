"""LoRA: its change against a linear whose weight is W + s·B·A, its birth, its gate, its places."""

import math
from typing import Any

import pytest
import torch
from torch.nn import functional

from graftwork.core.lora import LoRA, LoRAConfig
from graftwork.core.site import NO_DELTA, Delta
from graftwork.errors import AdapterError
from tests.linears import frozen, site, written


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        (LoRAConfig(r=3), 8 / 3),
        (LoRAConfig(r=2, alpha=5), 2.5),
        (LoRAConfig(r=3, alpha=2, use_rslora=True), 2 / math.sqrt(3)),
        (LoRAConfig(r={"1": 2, "default": 7}, alpha=3), 1.5),
    ],
)
def test_it_is_the_linear_with_another_weight(config: LoRAConfig, scale: float) -> None:
    linear = frozen()
    module: LoRA = linear.build(config)
    expected = functional.linear(linear.x, linear.weight + scale * module.b @ module.a, linear.bias)
    found = linear.y + written(module(linear.reading, NO_DELTA))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(module.weight_change(), scale * module.b @ module.a)
    assert float((found - linear.y).detach().norm()) > 0.01


def test_the_base_is_unchanged_at_birth_to_the_last_bit() -> None:
    linear = frozen(dtype=torch.float32)
    module = linear.build(LoRAConfig(), random=False)
    assert torch.equal(linear.y + written(module(linear.reading, NO_DELTA)), linear.y)
    assert float(module.a.detach().std()) > 0.1


def test_the_gate_stands_in_the_place_of_the_scale() -> None:
    linear = frozen()
    module = linear.build(LoRAConfig(r=2, alpha=100, use_gating=True))
    gate = torch.sigmoid(linear.x @ module.gate.weight.T + module.gate.bias).mean(1, keepdim=True)
    expected = gate * (linear.x @ module.a.T @ module.b.T)
    torch.testing.assert_close(written(module(linear.reading, NO_DELTA)), expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(AdapterError, match="a gated LoRA changes each row differently"):
        module.weight_change()


def test_two_in_a_row_read_the_same_input_and_their_changes_add() -> None:
    linear = frozen()
    first, second = linear.build(LoRAConfig(r=2)), linear.build(LoRAConfig(r=5))
    alone = second(linear.reading, NO_DELTA)
    after = second(linear.reading, first(linear.reading, NO_DELTA))
    assert torch.equal(written(after), written(alone))
    delta = Delta(before=torch.ones_like(linear.y))
    assert torch.equal(first.read(linear.reading, delta), linear.y + 1)
    assert torch.equal(first.carried(linear.reading, delta), linear.y + 1)


def test_dropout_is_on_the_input_and_only_in_training() -> None:
    linear = frozen()
    module = linear.build(LoRAConfig(r=2, alpha=2, dropout=0.5))
    still = written(module(linear.reading, NO_DELTA))
    module.train()
    torch.manual_seed(0)
    found = written(module(linear.reading, NO_DELTA))
    torch.manual_seed(0)
    x = functional.dropout(linear.x, 0.5)
    torch.testing.assert_close(found, x @ module.a.T @ module.b.T, rtol=1e-12, atol=1e-12)
    assert not torch.equal(found, still)


def test_only_its_own_parameters_get_gradients() -> None:
    linear = frozen()
    linear.weight.requires_grad_(False)
    module = linear.build(LoRAConfig(r=2, use_gating=True))
    written(module(linear.reading, NO_DELTA)).square().sum().backward()
    assert {name for name, p in module.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0} == {
        "a", "b", "gate.weight", "gate.bias"
    }  # fmt: skip
    assert linear.weight.grad is None


def test_half_precision_follows_the_base_and_answers_in_the_dtype_of_the_output() -> None:
    linear = frozen(dtype=torch.bfloat16)
    module = linear.build(LoRAConfig())
    reading = linear.reading
    assert written(module(reading, NO_DELTA)).dtype == torch.bfloat16
    reading = type(reading)(reading.output.float(), reading.residual.float(), None)
    assert written(module(reading, NO_DELTA)).dtype == torch.float32


def test_a_seed_gives_every_site_weights_of_its_own_and_leaves_the_global_generator() -> None:
    config = LoRAConfig(init_weights_seed=0, init_weights="bert", use_gating=True)
    state = torch.get_rng_state()
    one, again, other = (config.build(site(index=index)) for index in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert one is not None
    assert again is not None
    assert other is not None
    assert torch.equal(one.a, again.a)
    assert torch.equal(one.b, again.b)
    assert not torch.equal(one.a, other.a)


@pytest.mark.parametrize(
    ("config", "kinds"),
    [
        (LoRAConfig(), {"attn.query", "attn.value", "cross.query", "cross.value"}),
        (LoRAConfig(crossattn_lora=False, attn_matrices=["o", "k"]), {"attn.out", "attn.key"}),
        (LoRAConfig(selfattn_lora=False, attn_matrices=["q"]), {"cross.query"}),
        (
            LoRAConfig(attn_matrices=[], intermediate_lora=True, output_lora=True, gate_lora=True),
            {"ffn.up", "ffn.gate", "ffn.down"},
        ),
        (LoRAConfig(leave_out=[1]), set()),
        (LoRAConfig(stacks=["encoder"]), set()),
    ],
)
def test_where_it_goes(config: LoRAConfig, kinds: set[str]) -> None:
    matrices = [f"{block}.{part}" for block in ("attn", "cross") for part in ("query", "key", "value", "out")]
    others = ["attn", "ffn", "cross", "ffn.up", "ffn.gate", "ffn.down", "ffn.up.input", "attn.kv", "embed", "prompt"]
    assert {kind for kind in [*matrices, *others] if config.build(site(kind)) is not None} == kinds


def test_shapes_follow_the_linear() -> None:
    module = LoRAConfig(r=3, attn_matrices=["q"]).build(site(width=6, inputs=4))
    assert module is not None
    assert {name: tuple(p.shape) for name, p in module.named_parameters()} == {"a": (3, 4), "b": (6, 3)}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": 1.5}, "r 1.5 must be a whole number from 1"),
        ({"r": {"x": 2}}, r"r {'x': 2} must be"),
        ({"alpha": "8"}, "alpha '8' must be a finite number"),
        ({"dropout": 1.0}, r"dropout 1.0 must be in \[0, 1\)"),
        ({"init_weights": "vera"}, "init_weights 'vera' is not one of lora, bert"),
        ({"use_rslora": 1, "output_lora": "yes"}, "output_lora 'yes' must be true or false; use_rslora 1 must be"),
        ({"init_weights_seed": -1}, "init_weights_seed -1 must be none or a whole number"),
        ({"leave_out": ["a"]}, "leave_out .* must be a list of layer numbers"),
    ],
)
def test_values_out_of_range_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError, match=f"lora adapter: .*{message}"):
        LoRAConfig(**fields)


def test_a_rank_that_leaves_the_layer_out_is_refused() -> None:
    with pytest.raises(AdapterError, match=r"r {'0': 2} has neither an entry for layer 1 nor a 'default'"):
        LoRAConfig(r={"0": 2}).build(site())
