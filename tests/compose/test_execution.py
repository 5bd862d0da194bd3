"""Folded execution of a whole model: when it is chosen, that it equals the reference and follows the weights."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given

from graftwork.compose import execute
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


def folds(model: AdapterModel, setup: str = "Fuse(a, b)") -> tuple[Folded, ...]:
    routed = model._planner.plan(setup, "none", None, 2).routed
    assert routed is not None
    return tuple(one for made in routed.made for one in made.folds)


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
    model.execution = "auto"
    model.parts.requires_grad_(False)
    assert len(folds(model)) == 3


def test_what_learns_elsewhere_does_not_hinder_a_fold() -> None:
    model = made()
    model.add_classification_head("a", num_labels=2)
    model.parts.requires_grad_(False)
    (fusion,) = [*model.parts.modules_of("fusions", "a,b").values()][:1]
    next(fusion.parameters()).requires_grad_(True)
    model.parts.head("a").requires_grad_(True)
    assert [len(folds(model, setup)) for setup in ("a", "Stack(a, b)", "Fuse(a, b)")] == [3, 3, 0]
    inputs = tiny.inputs("bert")
    given = model.base.get_input_embeddings()(inputs["input_ids"]).requires_grad_(True)
    call: dict[str, Any] = {"inputs_embeds": given, "adapters": "Stack(b, a)", "labels": torch.tensor([0, 1])}
    found = {}
    for model.execution in ("folded", "reference"):
        learning = [given, *model.parts.head("a").parameters()]
        found[model.execution] = torch.autograd.grad(model(**call).loss, learning)
    for folded, reference in zip(*found.values(), strict=True):
        torch.testing.assert_close(folded, reference, rtol=1e-4, atol=1e-6)
        assert folded.abs().max() > 1e-5


def test_a_change_of_weights_is_followed() -> None:
    model, inputs = made(), tiny.inputs("bert")
    call: dict[str, Any] = {**inputs, "adapters": "Fuse(a, b)", "head": "none"}
    with torch.inference_mode():
        first = model(**call)[0]
        kept = folds(model)
        assert all(one is other for one, other in zip(folds(model), kept, strict=True))
    model.train_adapter("a")
    model.eval()
    with torch.no_grad():
        model.parts.tensors("adapters", "a")
        for weight in model.parts.parameters():
            weight.mul_(1.2)
        second = model(**call)[0]
        assert not any(one is other for one, other in zip(folds(model), kept, strict=True))
        model.execution = "reference"
        torch.testing.assert_close(model(**call)[0], second, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(first, second, atol=1e-3)


def test_an_adapter_alone_runs_on_its_own_weights() -> None:
    model, inputs = made(), tiny.inputs("bert")
    model.add_adapter("scaled", config="par_bn[scaling=1.3]")
    randomise(model.parts.adapters["=scaled"].parameters())
    for name, own in (("a", True), ("scaled", False)):
        call: dict[str, Any] = {**inputs, "adapters": name, "head": "none"}
        with torch.no_grad():
            model.execution = "reference"
            expected = model(**call)[0]
            model.execution = "folded"
            found = model(**call)[0]
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
            assert torch.equal(found, expected) is own
            kept = folds(model, name)
            assert all((one.plan.bytes == 0) is own for one in kept)
            for weight in model.parts.adapters[f"={name}"].parameters():
                weight.mul_(1.2)
            assert folds(model, name)[0] is kept[0] or not own
            assert not torch.equal(model(**call)[0], found)
            for module in model.parts.modules_of("adapters", name).values():
                module.down.weight = torch.nn.Parameter(2 * module.down.weight)
            assert folds(model, name)[0] is not kept[0]


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_fresh_adapters_folded_are_the_base_to_the_last_bit(family: str) -> None:
    model, inputs = AdapterModel(tiny.model(family)), tiny.inputs(family, rows=2, tokens=5)
    born = {"a": "par_bn", "b": "par_bn[reduction_factor=4]", "c": "seq_bn[init_weights=mam_adapter]"}
    for name, config in born.items():
        model.add_adapter(name, config)
    model.add_adapter_fusion("a,c")
    texts = ("a", "Average(a, b, c)", "Stack(c, a, c)", "Fuse(a, c)", "Stack(b, Fuse(a, c))", "Average(a, Stack(b, c))")
    with torch.inference_mode():
        expected = model(**inputs, adapters=None)[0]
        for text in texts:
            assert len(folds(model, text)) > 1
            assert torch.equal(model(**inputs, adapters=text)[0], expected), text


def test_what_is_not_folded_is_not_watched() -> None:
    model = AdapterModel(tiny.model("bert"))
    model.add_adapter("low", config="lora[r=2]")
    model.add_adapter("a")
    model.add_adapter("b")
    model.execution = "folded"
    with torch.no_grad():
        (low, both) = (model._planner.plan(setup, "none", None, 2).routed for setup in ("low", "Stack(low, a, b)"))
        assert low is not None
        assert both is not None
        for weight in model.parts.tensors("adapters", "low").values():
            weight.add_(1)
        assert (low.stale, both.stale) == (False, False)
        for weight in model.parts.tensors("adapters", "a").values():
            weight.add_(1)
        assert (low.stale, both.stale) == (False, True)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("execution", ["folded", "banked"])
def test_what_an_optimiser_writes_between_two_scorings_is_followed(execution: str, fused: bool) -> None:
    """Fused optimisers, the default of transformers' Trainer, write to weights and torch does not count it."""
    model, inputs = made(), tiny.inputs("bert", rows=2, tokens=5)
    setup = "Stack(a, b)"
    scored: dict[str, Any] = {"adapters": [setup, "a"], "head": "none"}

    def equal() -> bool:
        with torch.no_grad():
            model.execution = execution
            found = model(**inputs, **scored)[0]
            model.execution = "reference"
            return relative(found, model(**inputs, **scored)[0]) < 1e-5

    model.requires_grad_(False)
    assert equal()  # frozen, as what is installed is
    model.parts.train_only([("adapters", "b")])
    optimiser = torch.optim.AdamW([one for one in model.parts.parameters() if one.requires_grad], 1e-1, fused=fused)
    for _ in range(3):
        model(**inputs, adapters=setup, head="none")[0].square().sum().backward()
        optimiser.step()
        optimiser.zero_grad()
        assert equal()


def test_folds_beyond_their_room_make_place_for_those_that_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made()
    planner = model._planner
    with torch.no_grad():
        folds(model, "Average(a:1, b:99)")
        one = planner.executors._bytes
        monkeypatch.setattr(execute, "_ROOM", 3 * one)
        monkeypatch.setattr(execute, "_SHARE", 0)
        first = folds(model, "Stack(a, b)")[0]
        for share in range(1, 30):
            folds(model, f"Average(a:{share}, b:1)")
            assert folds(model, "Stack(a, b)")[0] is first  # used all the time, so it stays
            assert planner.executors._bytes == sum(made.bytes for made in planner.executors._made.values())
            assert planner.executors._bytes <= 3 * one
        assert len(planner._plans) == 2
        monkeypatch.setattr(execute, "_ROOM", 1)
        planner.forget("nobody")  # how much room there is follows the adapters
        assert len(folds(model, "Stack(b, a)")) == 3  # what runs now is never dropped
        assert len(planner._plans) == 1


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
