"""A compiled trunk: one graph for all routings of a program shape, with the same numbers as without it."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from graftwork.model import AdapterModel
from tests import tiny
from tests.rig import randomise, relative

NAMES = [f"a{number}" for number in range(6)]
ROWS = 4


def model_of(backend: Any, slots: int = 16) -> AdapterModel:
    torch.compiler.reset()
    model = AdapterModel(tiny.model("bert")).eval()
    model._planner.executors.banks.slots = slots
    for seed, name in enumerate(NAMES):
        renew(model, name, seed)
    model.execution = "banked"
    model.compile(backend=backend, slots=slots)
    return model


def renew(model: AdapterModel, name: str, seed: int) -> None:
    model.add_adapter(name, "seq_bn[reduction_factor=4]", overwrite_ok=True)
    for site, module in enumerate(model.parts.modules_of("adapters", name).values()):
        randomise(module.parameters(), 31 * seed + site)


def run(model: AdapterModel, setup: Any) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(**tiny.inputs("bert", rows=ROWS), adapters=setup, head="none")[0]
    return found


def eager(model: AdapterModel, setup: Any) -> Tensor:
    """The same model by the reference, and without its graph."""
    graph, model.backbone.trunk._compiled_call_impl = model.backbone.trunk._compiled_call_impl, None
    model.execution = "reference"
    try:
        return run(model, setup)
    finally:
        model.execution = "banked"
        model.backbone.trunk._compiled_call_impl = graph


def test_the_graph_of_a_bare_model_of_its_class_is_not_taken_for_a_trunk() -> None:
    model, bare = model_of("eager"), tiny.model("bert").eval()
    for frozen in (bare, model):
        frozen.requires_grad_(False)
    bare.compile(fullgraph=True, backend="eager")
    with torch.inference_mode():
        bare(**tiny.inputs("bert", rows=ROWS))
    found = run(model, "a0")
    assert relative(found, eager(model, "a0")) < 1e-5
    assert relative(found, run(model, None)) > 1e-3


def test_fifty_routings_and_twenty_swaps_run_one_graph() -> None:
    counter = CompileCounter()
    model = model_of(counter)
    draw = random.Random(0)
    for number in range(50):
        setup = [draw.choice([*NAMES, None]) for _ in range(ROWS)]
        if not any(setup):
            continue  # nothing runs, which is another program
        found = run(model, setup)
        if number % 5 == 0:
            assert relative(found, eager(model, setup)) < 1e-5
    for number in range(20):
        name = draw.choice(NAMES)
        setup = [name, *draw.sample(NAMES, ROWS - 1)]
        old = run(model, setup)
        renew(model, name, 100 + number)
        new = run(model, setup)
        assert not torch.allclose(old[0], new[0], atol=1e-3)
        if number % 5 == 0:
            assert relative(new, eager(model, setup)) < 1e-5
    assert counter.frame_count == 1


@pytest.mark.full
def test_another_program_is_another_graph() -> None:
    counter = CompileCounter()
    model = model_of(counter)
    model.add_adapter_fusion(["a0", "a1"], name="f")
    shapes = [
        ["a0", "a1", "a2", None],
        ["Stack(a0, a1)", "a1", "Stack(a2, a3)", None],
        ["Fuse(a0, a1, name=f)", "a1", "a2", None],
    ]
    for count, setup in enumerate(shapes, start=1):
        for rows in (setup, setup[::-1]):
            assert relative(run(model, rows), eager(model, rows)) < 1e-5
        assert counter.frame_count == count


@pytest.mark.full
def test_tokens_are_routed_by_data_too() -> None:
    counter = CompileCounter()
    model = model_of(counter)
    for first, cut in [("a0", 3), ("a4", 5)]:
        tree = f"Split({first}:{cut}, a1:{7 - cut})"
        setup = [tree, "Split(none:2, a2:5)", tree, tree]
        assert relative(run(model, setup), eager(model, setup)) < 1e-5
    assert counter.frame_count == 1


@pytest.mark.full
def test_a_bank_that_grows_is_traced_again() -> None:
    counter = CompileCounter()
    model = model_of(counter, slots=2)
    run(model, ["a0", "a1", None, "a0"])
    run(model, ["a1", "a0", "a0", None])
    assert counter.frame_count == 1
    run(model, NAMES[:ROWS])
    assert counter.frame_count == 2
    run(model, NAMES[-ROWS:])
    assert counter.frame_count <= 3  # after that its size is data
    setup = [NAMES[5], NAMES[0], None, NAMES[2]]
    assert relative(run(model, setup), eager(model, setup)) < 1e-5


@pytest.mark.full
def test_by_inductor() -> None:
    model = model_of("inductor")
    for setup in (["a0", "a1", "a2", None], ["a5", None, "a5", "a3"]):
        assert relative(run(model, setup), eager(model, setup)) < 1e-5
