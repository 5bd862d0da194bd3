"""Folded execution of a whole model: when it is chosen, that it equals the reference and follows the weights."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given

from graftwork.compose.fold import Folded
from graftwork.compose.tree import Composition
from graftwork.errors import AdapterError
from graftwork.model import AdapterModel
from tests import tiny
from tests.rig import ZOO, Rig, randomise, relative
from tests.trees import compositions

RIGS = {family: Rig(family) for family in ("bert", "gpt2")}
INPUTS = {family: tiny.inputs(family, rows=4, tokens=6) for family in RIGS}


@pytest.mark.parametrize("family", RIGS)
@given(tree=compositions(tuple(ZOO), batch=4, tokens=6))
def test_a_whole_model_folded_equals_the_reference(family: str, tree: Composition) -> None:
    rig = RIGS[family]
    rig.learn_fusions([tree])
    with torch.no_grad():
        rig.planner.executors.execution = "reference"
        expected = rig.run(tree, INPUTS[family])
        rig.planner.executors.execution = "folded"
        assert relative(rig.run(tree, INPUTS[family]), expected) < 1e-4
    rig.planner.forget()


def made() -> AdapterModel:
    model = AdapterModel(tiny.model("bert"))
    for name in ("a", "b"):
        model.add_adapter(name)
    model.add_adapter_fusion("Fuse(a, b)")
    randomise(model.parts.parameters())
    model.execution = "folded"
    return model


def folds(model: AdapterModel) -> tuple[Folded, ...]:
    routed = model._planner.plan("Fuse(a, b)", "none", None, 2).routed
    assert routed is not None
    return routed.folds


def test_folded_only_where_no_gradient_is_needed() -> None:
    model = made()
    assert model.execution == "folded"
    assert folds(model) == ()  # fresh adapters may receive gradients
    with torch.no_grad():
        assert len(folds(model)) == 3
        model.train()
        assert folds(model) == ()
        model.eval()
        model.execution = "reference"
        assert folds(model) == ()
    model.execution = "folded"
    model.parts.requires_grad_(False)
    assert len(folds(model)) == 3


def test_a_change_of_weights_is_followed() -> None:
    model, inputs = made(), tiny.inputs("bert")
    call: dict[str, Any] = {**inputs, "adapters": "Fuse(a, b)", "head": "none"}
    with torch.inference_mode():
        first = model(**call)[0]
        assert folds(model) is folds(model)
        kept = folds(model)
    model.train_adapter("a")
    model.eval()
    with torch.no_grad():
        model.parts.tensors("adapters", "a")
        for weight in model.parts.parameters():
            weight.mul_(1.2)
        second = model(**call)[0]
        assert folds(model) is not kept
        model.execution = "reference"
        torch.testing.assert_close(model(**call)[0], second, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(first, second, atol=1e-3)


def test_a_copy_folds_its_own_weights() -> None:
    model, inputs = made(), tiny.inputs("bert")
    call: dict[str, Any] = {**inputs, "adapters": "Fuse(a, b)", "head": "none"}
    with torch.no_grad():
        first = model(**call)[0]
        other = copy.deepcopy(model)
        assert other.execution == "folded"
        randomise(other.parts.parameters(), seed=9)
        assert not torch.allclose(other(**call)[0], first, atol=1e-3)
        torch.testing.assert_close(model(**call)[0], first, rtol=0, atol=0)


def test_an_unknown_execution_is_refused() -> None:
    with pytest.raises(AdapterError, match="execution 'fast' is unknown; there are auto, reference, folded"):
        made().execution = "fast"
