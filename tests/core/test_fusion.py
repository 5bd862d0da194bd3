"""AdapterFusion against its formula, written out with numpy in float64."""

import math
from dataclasses import replace
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from graftwork.core.fusion import FUSIONS, Fusion, FusionConfig
from graftwork.errors import AdapterError
from tests.rig import randomise

B, T, K, D = 2, 3, 4, 6


def given(seed: int = 0) -> tuple[Tensor, list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, residual, *changes = (torch.randn(B, T, D, generator=generator, dtype=torch.float64) for _ in range(K + 2))
    return x, changes, residual


def fusion(config: FusionConfig) -> Fusion:
    module = Fusion(D, config).double().eval()
    randomise(module.parameters())
    return module


def formula(module: Fusion, x: Tensor, changes: list[Tensor], residual: Tensor) -> numpy.ndarray[Any, Any]:
    """The fused change, token by token and member by member."""
    config = module.config
    weight = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    output = numpy.zeros((B, T, D))
    for b in range(B):
        for t in range(T):
            q = x[b, t].numpy()
            if config.query:
                q = weight["query.weight"] @ q + weight["query.bias"]
            ups = [change[b, t].numpy() for change in changes]
            keys = [weight["key.weight"] @ u + weight["key.bias"] for u in ups] if config.key else ups
            scores = numpy.array([q @ k for k in keys])
            alpha = numpy.exp(scores - scores.max())
            alpha /= alpha.sum()
            carried = residual[b, t].numpy() if config.residual_before else numpy.zeros(D)
            mixed = sum(a * (u + carried) for a, u in zip(alpha, ups, strict=True))
            output[b, t] = (weight["value.weight"] @ mixed if config.value else mixed) - carried
    return output


CONFIGS = {
    "dynamic": FUSIONS["dynamic"],
    "static": FUSIONS["static"],
    "value after the softmax": FusionConfig(value_before_softmax=False),
    "residual inside": FusionConfig(residual_before=True),
    "no query": FusionConfig(query=False),
    "no key": FusionConfig(key=False),
    "nothing trained": FusionConfig(query=False, key=False, value=False),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_fusion_is_its_formula(name: str) -> None:
    module = fusion(CONFIGS[name])
    x, changes, residual = given()
    with torch.no_grad():
        found = module(x, changes, residual if module.config.residual_before else None)
    numpy.testing.assert_allclose(found.numpy(), formula(module, x, changes, residual), rtol=1e-10, atol=1e-12)


def textbook(module: Fusion, x: Tensor, changes: list[Tensor], residual: Tensor | None, kept: Tensor | None) -> Tensor:
    """The paper's code: a key and a value of every member. kept: which scores dropout keeps, (B, T, K), scaled up."""
    stacked = torch.stack(changes, dim=2)
    query = x if module.query is None else module.query(x)
    key = stacked if module.key is None else module.key(stacked)
    scores = (query.unsqueeze(2) * key).sum(-1)
    weights = (scores if kept is None else scores * kept).softmax(-1)
    values = stacked if residual is None else stacked + residual.unsqueeze(2)
    values = values if module.value is None else module.value(values)
    fused = (weights.unsqueeze(-1) * values).sum(2)
    return fused if residual is None else fused - residual


@pytest.mark.parametrize("name", [*CONFIGS, "dropout"])
def test_training_is_that_of_the_textbook_form(name: str) -> None:
    module = fusion(CONFIGS.get(name, FusionConfig(dropout_prob=0.4))).train()
    inputs = [tensor.requires_grad_() for tensor in (given()[0], *given()[1], given()[2])]
    x, *changes, residual = inputs
    carried = residual if module.config.residual_before else None
    torch.manual_seed(5)
    kept = functional.dropout(torch.ones(B, T, K, dtype=torch.float64), 0.4) if name == "dropout" else None
    weighed = torch.randn(B, T, D, dtype=torch.float64)
    wanted = textbook(module, x, changes, carried, kept)
    leaves = {**dict(module.named_parameters()), **{f"input {place}": leaf for place, leaf in enumerate(inputs)}}
    by_hand = torch.autograd.grad((wanted * weighed).sum(), list(leaves.values()), allow_unused=True)
    torch.manual_seed(5)
    found = module(x, changes, carried)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    ours = torch.autograd.grad((found * weighed).sum(), list(leaves.values()), allow_unused=True)
    for place, one, other in zip(leaves, ours, by_hand, strict=True):
        if place == "key.bias" and kept is None:
            assert one is None  # the same for all members: what the textbook form gives is rounding
            assert other is not None
            assert float(other.abs().max()) < 1e-13
        else:
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12, msg=lambda text, at=place: f"{at}: {text}")


@pytest.mark.parametrize("name", ["dynamic", "residual inside", "no key"])
def test_its_gradients_are_those_of_finite_differences(name: str) -> None:
    module = fusion(CONFIGS[name]).train()
    x, changes, residual = given()
    inputs = [tensor[:1, :2].requires_grad_() for tensor in (x, residual, *changes)]

    def run(x: Tensor, residual: Tensor, *changes: Tensor) -> Tensor:
        found: Tensor = module(x, list(changes), residual if module.config.residual_before else None)
        return found

    assert torch.autograd.gradcheck(run, inputs)


def test_a_step_multiplies_and_keeps_no_keys_or_values() -> None:
    width, members = 64, 5
    module = Fusion(width, FUSIONS["dynamic"]).train()
    x, *changes = (torch.randn(B, T, width, requires_grad=True) for _ in range(members + 1))
    with FlopCounterMode(display=False) as counter:
        module(x, changes)
    per_token = counter.get_total_flops() / (2 * B * T)
    assert per_token == 3 * width**2 + 2 * members * width  # textbook: (1 + 2 * members) * width**2 and the same rest
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(x, changes)
    weights = sum(parameter.untyped_storage().nbytes() for parameter in module.parameters())
    streams = (sum(kept.values()) - weights) / (4 * B * T * width)
    assert streams <= members + 4 + 0.5  # the members' changes, x, q, qWk, the sum; and K weights a token


def test_attention_sums_to_one_and_is_not_scaled_by_the_width() -> None:
    module = fusion(FUSIONS["dynamic"])
    x, changes, _ = given()
    assert module.query is not None
    assert module.key is not None
    stacked = torch.stack(changes, dim=2)
    with torch.no_grad():
        weights = module.weights(x, stacked)
        scores = (module.query(x).unsqueeze(2) * module.key(stacked)).sum(-1)
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, T, dtype=torch.float64))
    torch.testing.assert_close(weights.log() - weights.log()[..., :1], scores - scores[..., :1])


def test_the_value_begins_as_the_identity() -> None:
    module = Fusion(D, FUSIONS["dynamic"])
    assert module.value is not None
    assert module.value.bias is None
    expected = torch.full((D, D), 1e-6)
    expected[range(D), range(D)] = 1.0
    assert torch.equal(module.value.weight, expected)
    equal = torch.randn(B, T, D)
    with torch.no_grad():
        torch.testing.assert_close(module(torch.randn(B, T, D), [equal] * K), equal, rtol=1e-4, atol=1e-4)


def test_queries_keys_and_other_values_begin_small() -> None:
    torch.manual_seed(0)
    module = Fusion(300, replace(FUSIONS["dynamic"], value_initialized=False))
    for linear in (module.query, module.key, module.value):
        assert linear is not None
        assert float(linear.weight.detach().std()) == pytest.approx(0.02, rel=0.02)
        assert linear.bias is None or not linear.bias.any()


def test_what_each_configuration_trains() -> None:
    names = {name: {key for key, _ in Fusion(D, config).named_parameters()} for name, config in FUSIONS.items()}
    pair = {"query.weight", "query.bias", "key.weight", "key.bias"}
    assert names == {"dynamic": {*pair, "value.weight"}, "static": pair}


def test_the_penalty_is_the_distance_of_the_value_from_the_identity() -> None:
    module = fusion(FUSIONS["dynamic"])
    assert module.value is not None
    value = module.value.weight.detach().numpy()
    penalty = module.penalty()
    assert penalty is not None
    assert float(penalty.detach()) == pytest.approx(0.01 * ((numpy.eye(D) - value) ** 2).sum(), rel=1e-12)
    penalty.backward()
    torch.testing.assert_close(module.value.weight.grad, 0.02 * (module.value.weight.detach() - torch.eye(D)).double())
    assert fusion(FUSIONS["static"]).penalty() is None
    assert fusion(FusionConfig(regularization=False)).penalty() is None


def test_dropout_on_the_scores_only_in_training() -> None:
    module = fusion(FusionConfig(dropout_prob=0.5))
    x, changes, _ = given()
    stacked = torch.stack(changes, dim=2)
    assert torch.equal(module.weights(x, stacked), module.weights(x, stacked))
    exact = module.weights(x, stacked)
    module.train()
    torch.manual_seed(0)
    dropped = module.weights(x, stacked)
    assert not torch.equal(dropped, exact)
    torch.testing.assert_close(dropped.sum(-1), torch.ones_like(dropped.sum(-1)))
    # a dropped score is 0 before the softmax, not -inf
    assert bool((dropped > 0).all())


def test_mixed_types_come_out_in_the_type_of_the_changes() -> None:
    module = Fusion(D, FusionConfig(residual_before=True)).to(torch.bfloat16)
    x, changes, residual = given()
    found = module(x, [change.float() for change in changes], residual)
    assert found.dtype == torch.float32
    assert bool(found.isfinite().all())


@pytest.mark.parametrize("value", [1.0, -0.1, None, "0.1", math.nan])
def test_a_dropout_out_of_range_is_refused(value: Any) -> None:
    with pytest.raises(AdapterError, match=r"fusion: dropout_prob .* must be in \[0, 1\)"):
        FusionConfig(dropout_prob=value)


def test_switches_must_be_true_or_false() -> None:
    with pytest.raises(AdapterError, match=r"fusion: query 1 must be true or false; value 'no' must be true or false"):
        FusionConfig(query=1, value="no")
