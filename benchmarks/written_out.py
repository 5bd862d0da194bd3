"""What would the bare operators cost in the place of our hooks? The floor of a site, in the middle of a real forward.

    python benchmarks/written_out.py [--setups seq_bn,stack2] [--shape 8x1] [--layers 12] [--width 768] [--rounds 25]
                                     [--clock cpu] [--out FILE]

For each setup two models on one set of frozen weights: graftwork's, and one with the least Python there can be: a hook
a site that calls the operators of the folded composition on tensors it holds, and nothing else. What counts is the time
spent *inside* all hooks of a call, in turns, as a share of the bare base's call. Between two sites tens of megabytes of
weights pass through the caches, so that code and weights of a site come from memory each time: an operator costs here
several times what it costs in a loop by itself. That the arithmetic is graftwork's is for the test to say. `--out`
writes the page, and its rows beside it as JSON. float32, one thread.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from page import command, page, table, write
from setups import METHODS, Shape, floors, goal, parse
from steps import base_of
from torch import Tensor, nn
from torch.nn import functional

from graftwork.model import AdapterModel
from graftwork.timing import CLOCKS, Spread, spread

SETUPS = ("seq_bn", "double_seq_bn", "stack2", "stack3", "fuse3", "fuse8", "mixed8")
Change = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]  # (norm, s) -> s + Δ, or (norm, h₀) -> h₀ + Δ
Run = Callable[[], object]


def small(*sizes: int) -> Tensor:
    """Random weights."""
    return 0.02 * torch.randn(*sizes)


def alone(width: int, reads_norm: bool) -> Change:
    """A bottleneck of width/16."""
    size = max(1, width // 16)
    down, start, up, constant = small(size, width), small(size), small(width, size), small(width)
    activate = torch.relu if reads_norm else functional.silu

    def change(norm: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        z = activate(functional.linear(norm(x) if reads_norm else x, down, start))
        return functional.linear(z, up, constant).add_(x)

    return change


def stacked(width: int, members: int) -> Change:
    """Bottlenecks one after another."""
    parts = [alone(width, True) for _ in range(members)]

    def change(norm: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        for part in parts:
            x = part(norm, x)
        return x

    return change


def fused(width: int, members: int) -> Change:
    """A folded Fuse: columns of bottlenecks, of queries by key, and one of constants a member."""
    size = max(1, width // 16)
    features, total = members * size, 2 * members * size + members
    down, start, up = small(width, total + -total % 16)[:, :total], small(total), small(features + members, width)
    own = torch.eye(members).repeat_interleave(size, dim=1)  # (K, F)
    sums, weights, constant = own.T.contiguous(), torch.cat([own, torch.eye(members)], dim=1), small(width)

    def change(norm: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        columns = torch.addmm(start, norm(x).flatten(0, 1), down)
        z = torch.relu(columns[:, :features])
        scores = torch.addmm(columns[:, 2 * features :], z * columns[:, features : 2 * features], sums)
        weighed = torch.mm(scores.softmax(-1), weights)
        weighed[:, :features].mul_(z)
        return torch.addmm(constant, weighed, up).view(x.shape).add_(x)

    return change


def mixed(width: int, members: int) -> Change:
    """A bottleneck for each row."""
    size = max(1, width // 16)
    down, start, up = small(members, width, size), small(members, 1, size), small(members, size, width)
    constant = small(members, 1, width)

    def change(norm: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return torch.baddbmm(constant, torch.relu(torch.baddbmm(start, norm(x), down)), up).add_(x)

    return change


def written(name: str, model: nn.Module, width: int) -> None:
    """Put the bare operators of a setup into a model."""
    setup = parse(name)
    kinds: dict[str, Callable[[int, int], Change]] = {"stack": stacked, "fuse": fused, "mixed": mixed}
    double = setup.method == "double_seq_bn"
    for layer in model.encoder.layer:  # type: ignore[union-attr]
        for block in (layer.attention.output, layer.output) if double else (layer.output,):  # type: ignore[union-attr]
            change = alone(width, not double) if setup.kind == "one" else kinds[setup.kind](width, setup.members)
            if double:
                block.dropout.register_forward_hook(lambda m, a, out, change=change: change(m.forward, out))
            else:
                block.LayerNorm.register_forward_pre_hook(lambda m, a, change=change: (change(m.forward, a[0]),))


def ours(name: str, model: nn.Module, inputs: dict[str, Tensor]) -> Run:
    """The same setup as graftwork runs it, run once."""
    setup, adapted = parse(name), AdapterModel(model).eval()
    for adapter in setup.adapters:
        adapted.add_adapter(adapter, METHODS[setup.method])
    composed: Any = setup.rows(len(inputs["input_ids"])) if setup.kind == "mixed" else setup.expression()
    if setup.kind == "fuse":
        adapted.add_adapter_fusion(list(setup.adapters))
    adapted.eval().requires_grad_(False)

    def run() -> object:
        return adapted(**inputs, adapters=composed)

    with torch.inference_mode():
        run()
    return run


def clocked(model: nn.Module, now: Callable[[], float], spent: list[float]) -> None:
    """Let every hook in a model add the time that it takes."""
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in list(hooks.items()):

                def timed(*given: Any, hook: Callable[..., Any] = hook) -> Any:
                    start = now()
                    found = hook(*given)
                    spent[0] += now() - start
                    return found

                hooks[key] = timed


def measured(name: str, base: nn.Module, inputs: dict[str, Tensor], rounds: int, clock: str) -> dict[str, Any]:
    """Shares of the base's call that hooks take, written out and ours: quartiles over the rounds."""
    now, config = CLOCKS[clock], base.config
    bare, under = (base_of(config.num_hidden_layers, config.hidden_size).eval().requires_grad_(False) for _ in range(2))
    for model in (bare, under):
        model.load_state_dict(base.state_dict(), assign=True)  # type: ignore[arg-type]
    written(name, bare, config.hidden_size)
    runs: dict[str, Run] = {"written": lambda: bare(**inputs), "ours": ours(name, under, inputs)}
    spent = [0.0]
    for model in (bare, under):
        clocked(model, now, spent)
    found: dict[str, list[float]] = {"written": [], "ours": []}
    with torch.inference_mode():
        for number in range(-2, rounds):
            start = now()
            base(**inputs)
            whole = now() - start
            for side, run in runs.items():
                spent[0] = 0.0
                run()
                if number >= 0:
                    found[side].append(spent[0] / whole)
    return {"setup": name, "clock": clock, **{side: vars(spread(shares)) for side, shares in found.items()}}


def page_of(rows: Sequence[dict[str, Any]], shape: Shape) -> str:
    """The page: shares of the base's call, beside what multiplications and weights say, and the goal of the call."""
    lines = []
    for row in rows:
        least, wanted = floors(parse(row["setup"]), shape), goal(row["setup"], shape)
        counted = f"{least.multiplications - 1:.3f} / {least.weights - 1:.3f}"
        taken = [str(Spread(**row[side])) for side in ("written", "ours")]
        lines.append([row["setup"], counted, *taken, f"{wanted:g}" if wanted else "–"])
    head = ["setup", "multiplications / weights read", "bare operators", "graftwork", "goal of the whole call"]
    said = (
        f"Base: {shape.layers} layers, {shape.width} wide, random weights, float32, one thread; {shape} rows x tokens. "
        "What all hooks of a call take, as a share of the bare base's call: medians of calls in turns, by the "
        f"{rows[0]['clock']} clock, with their quartiles. Bare operators: a hook a site that calls the operators of "
        "the folded composition on tensors it holds, and nothing else."
    )
    return page("What a site must cost", command(), said, table(head, lines))


def main() -> None:
    """Measure, print, and write what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setups", default=",".join(SETUPS))
    parser.add_argument("--shape", default="8x1", help="rows x tokens")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--quick", action="store_true", help="8 rounds")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--out", type=Path, help="write the page there, and its rows beside it as .json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    base = base_of(asked.layers, asked.width).eval().requires_grad_(False)
    shape = Shape(*map(int, asked.shape.split("x")), asked.layers, asked.width)
    ids = torch.randint(0, 1000, (shape.rows, shape.tokens))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    print(f"{'in hooks, of the base':22} {'written out':>22} {'graftwork':>22}")
    rows = []
    for name in asked.setups.split(","):
        rows.append(row := measured(name, base, inputs, 8 if asked.quick else asked.rounds, asked.clock))
        print(f"{name:22} {Spread(**row['written'])!s:>22} {Spread(**row['ours'])!s:>22}", flush=True)
    if asked.out is not None:
        write(asked.out.with_suffix(".json"), json.dumps(rows, indent=1) + "\n")
        write(asked.out, page_of(rows, shape))


if __name__ == "__main__":
    main()
