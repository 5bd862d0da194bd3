"""The trunk compiled whole under one composition: one graph, equal to eager, made again when a hook comes later."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from graftwork.model import AdapterModel
from tests import tiny
from tests.rig import randomise


@pytest.mark.parametrize(
    ("setup", "execution"),
    [
        ("a", "folded"),
        ("Fuse(a, b, name=f)", "reference"),
        pytest.param("a", "reference", marks=pytest.mark.full),
        pytest.param("Stack(a, b)", "folded", marks=pytest.mark.full),
        pytest.param("Fuse(a, b, name=f)", "folded", marks=pytest.mark.full),
    ],
)
def test_one_composition_is_one_graph_and_a_later_hook_is_seen(setup: str, execution: str) -> None:
    model, inputs = AdapterModel(tiny.model("bert")), tiny.inputs("bert")
    for name in ("a", "b"):
        model.add_adapter(name, "seq_bn[reduction_factor=4]")
    model.add_adapter_fusion(["a", "b"], name="f")
    randomise(model.parts.parameters())
    model.eval().requires_grad_(False)
    model.execution = execution
    counter: Any = CompileCounter()
    torch._dynamo.reset()
    trunk = torch.compile(model.backbone.trunk, backend=counter, fullgraph=True)

    def run(called: Any, tree: Any) -> Tensor:
        plan = model._planner.plan(tree, "none", None, 2)
        with torch.no_grad(), model.backbone.runtime.running(plan.route):
            return called(**inputs)[0]  # type: ignore[no-any-return]

    for _ in range(3):
        torch.testing.assert_close(run(trunk, setup), run(model.backbone.trunk, setup), rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 1
    model.add_adapter("later", "double_seq_bn[reduction_factor=4]")  # hooks where there were none, and others for more
    randomise(model.parts.parameters(), 6)
    model.eval().requires_grad_(False)
    torch.testing.assert_close(run(trunk, "later"), run(model.backbone.trunk, "later"), rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 2
    torch._dynamo.reset()
