"""What does a call cost in Python, before any arithmetic?

    python benchmarks/dispatch.py [--execution auto] [--rounds 300 | --quick] [--clock cpu] [--json FILE]

A BERT of 12 layers, hidden size 64, one row of 8 tokens, random weights, one thread, float32, no gradient: so small
that what is measured is dispatch. The sides take turns in one process; a figure is the median of the quotients to the
frozen model called directly, with its quartiles. `base again` is that model a second time: what it is away from 1 is
noise. `hook` is an empty forward hook on one norm a layer, the least that anything hooked can cost; `arithmetic` is
that hook with the products, the sum and the norm of a seq_bn adapter written out.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertModel

from graftwork.model import AdapterModel
from graftwork.timing import CLOCKS, alternate, milliseconds, quotients

WIDTH, LAYERS, TOKENS, MANY = 64, 12, 8, 8


def bert() -> BertModel:
    """The model, the same each time."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": WIDTH, "num_attention_heads": 4, "intermediate_size": 4 * WIDTH}
    made: BertModel = BertModel(BertConfig(vocab_size=1000, num_hidden_layers=LAYERS, **sizes))
    return made.eval().requires_grad_(False)


def hooked(work: bool) -> BertModel:
    """The model with a hook on the last norm of every layer: empty, or with a bottleneck's arithmetic written out."""
    model = bert()
    down, up = torch.randn(WIDTH // 16, WIDTH), torch.randn(WIDTH, WIDTH // 16)
    start, constant = torch.zeros(WIDTH // 16), torch.zeros(WIDTH)

    def adapt(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if not work:
            return None
        change = functional.linear(torch.relu(functional.linear(output, down, start)), up, constant)
        return module.forward(args[0] + change)  # type: ignore[no-any-return]

    for layer in model.encoder.layer:
        layer.output.LayerNorm.register_forward_hook(adapt)  # type: ignore[union-attr]
    return model


def adapted(count: int, execution: str, method: str = "seq_bn") -> AdapterModel:
    """A model with so many adapters, a0 first."""
    model = AdapterModel(bert())
    for number in range(count):
        model.add_adapter(f"a{number}", method)
    model.execution = execution
    return model.eval()


def sides(execution: str) -> dict[str, Callable[[], object]]:
    """Every way to call the same model, by name."""
    inputs = {
        "input_ids": torch.randint(0, 1000, (1, TOKENS), generator=torch.Generator().manual_seed(1)),
        "attention_mask": torch.ones(1, TOKENS, dtype=torch.long),
    }
    plain, again, empty, written = bert(), bert(), hooked(False), hooked(True)
    none, one, many = (adapted(count, execution) for count in (0, 1, MANY))
    double = adapted(1, execution, "double_seq_bn")
    route = one._planner.plan("a0", "none", None, 1).route

    def trunk(model: AdapterModel, own: Any) -> object:
        with model.backbone.runtime.running(own):
            return model.backbone.trunk(**inputs)

    return {
        "base": lambda: plain(**inputs),
        "base again": lambda: again(**inputs),
        "hook": lambda: empty(**inputs),
        "arithmetic": lambda: written(**inputs),
        "no adapter": lambda: none(**inputs, adapters=None),
        "trunk, idle": lambda: trunk(one, None),
        "idle, 1 attached": lambda: one(**inputs, adapters=None),
        f"idle, {MANY} attached": lambda: many(**inputs, adapters=None),
        "trunk, seq_bn": lambda: trunk(one, route),
        "seq_bn": lambda: one(**inputs, adapters="a0"),
        "double_seq_bn": lambda: double(**inputs, adapters="a0"),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--execution", default="auto")
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--quick", action="store_true", help="100 rounds")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        taken = alternate(sides(given.execution), 100 if given.quick else given.rounds, given.clock, warm=20)
    rows = []
    for name, times in taken.items():
        found = quotients(times, taken["base"])
        print(f"{name:18} {milliseconds(times):7.3f} ms  {found}")
        figures = {"ratio": found.middle, "low": found.low, "high": found.high, "milliseconds": milliseconds(times)}
        rows.append({"side": name, **figures, "execution": given.execution, "clock": given.clock})
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n", "utf8")


if __name__ == "__main__":
    main()
