"""benchmarks/together.py: steps together do what steps apart do, and the page says what was measured."""

import torch

from tests.benchmarks.scripts import script

together = script("together")


def test_both_ways_give_the_same_gradients() -> None:
    torch.manual_seed(0)
    made = together.models(2)
    rivals = together.steps(made, 2, 4)
    torch.nn.Module.eval(made[0]), torch.nn.Module.eval(made[1])  # without the dropout of heads
    found = []
    for name in ("apart", "together"):
        rivals[name]()
        found.append([own.grad.clone() for model in made for own in model.parts.parameters()])
        for model in made:
            model.zero_grad()
    for one, other in zip(*found, strict=True):
        assert (one - other).abs().max() <= 1e-5 * one.abs().max().clamp_min(1e-3)


def test_the_page_tells_steps_and_runs() -> None:
    step = {"part": "step", "adapters": 8, "shape": "1x16", "speedup": 2.2, "low": 2.1, "high": 2.3}
    step |= {"apart_ms": 230.0, "together_ms": 105.0, "clock": "wall"}
    run = {"part": "run", "set": "tasks", "recipes": 8, "batch": 4, "apart_wall": 20.0, "wall": 10.0}
    run |= {"apart_cpu": 20.0, "cpu": 16.0, "difference": 0.0}
    said = together.told([step, run], 1)
    assert "| 8 | 1x16 | 230 | 105 | 2.20 (2.10-2.30) |" in said
    assert "| 8 tasks | 4 rows | 20.0 s, 20.0 s | 10.0 s, 16.0 s | 2.00, 1.25 | 0.0000 at most |" in said
    assert "Whole runs" not in together.told([step], 1)
