"""What do answers of several tasks to one text cost when adapters are dropped from the first layers?

    python benchmarks/shared_trunk.py [--quick] [--tasks 1,2,4,8,16] [--dropped 0,5,12] [--tokens 64] [--rounds 5]
                                      [--threads 1] [--claim-threads 1,2] [--clock cpu] [--json FILE] [--out FILE]

N tasks answer one text with one seq_bn adapter each (Parallel) on a base with random weights, BERT-base by shape;
`--quick`: 12 layers, 384 wide, fewer of each. The k lowest layers are skipped in the call (AdapterDrop). For each N all
k take turns with k = 0, where every layer but the lowest runs N times, and what is reported is the quotient k = 0 over
k: how many times as fast. Rücklé et al. 2021 measured 1.39 at N = 8, k = 5 of 12 on a GPU; this is measured on a base
of the shape of BERT-base for each number of threads of `--claim-threads`, by the wall clock if there are several.
`at the entry` is the same drop with rows repeated before the first layer: what is gained without sharing.

Then a Fuse of eight is pruned to the two members that each layer attends to most, by the reference and folded, beside
the frozen base.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from page import Curve, command, draw, page, table, write
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from graftwork.compose.forward import headless
from graftwork.compose.tree import Fuse, Parallel
from graftwork.model import AdapterModel
from graftwork.timing import CLOCKS, alternate, milliseconds, quotients

Found = dict[str, Any]
RESULTS = Path(__file__).resolve().parent / "results" / "shared_trunk.md"
PAPER = 1.39  # Rücklé et al. 2021, N = 8, k = 5 of 12
CLAIM = (8, 5)
BERT = (12, 768)  # layers, width
MEMBERS = tuple(f"m{number}" for number in range(8))
ADAPTER = "seq_bn[reduction_factor=16]"


def arithmetic(tasks: int, dropped: int, layers: int) -> float:
    """How many times as fast N tasks are with k of L layers shared: N·L / (k + N·(L - k))."""
    return tasks * layers / (dropped + tasks * (layers - dropped))


def counted(tasks: int, dropped: int, layers: int) -> float:
    """The same as layers are counted here: of s + N·(L - s) the s = k + 1 lowest run once, also at k = 0.

    Lanes part at the norm in which the first layer with adapters ends.
    """
    whole, left = (s + tasks * (layers - s) for s in (1, min(layers, dropped + 1)))
    return whole / left


def entered(tasks: int, layers: int) -> float:
    """The same for rows repeated before the first layer: no drop shares one layer, and they none."""
    return (1 + tasks * (layers - 1)) / (tasks * layers)


def made(layers: int, width: int, adapters: int) -> AdapterModel:
    """A base with random weights, and that many adapters t0, t1, … whose changes can be seen."""
    torch.manual_seed(0)
    heads = width // 64
    config = BertConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * width
    )
    model = AdapterModel(BertModel(config))
    for number in range(adapters):
        model.add_adapter(f"t{number}", ADAPTER)
    _stir(model.parts)
    return model.eval().requires_grad_(False)


def _stir(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.02)


def text(tokens: int) -> dict[str, Tensor]:
    """One row of random word pieces."""
    return {"input_ids": torch.randint(1000, 20000, (1, tokens), generator=torch.Generator().manual_seed(1))}


def answers(model: AdapterModel, inputs: dict[str, Tensor], tasks: int, skip: Sequence[int]) -> Callable[[], Tensor]:
    """A call that answers one text for N tasks, (N, T, D)."""
    setup = Parallel(*(f"t{number}" for number in range(tasks)))

    def call() -> Tensor:
        last: Tensor = model(**inputs, adapters=setup, head="none", skip_layers=skip).last_hidden_state
        return last

    return call


def at_entry(model: AdapterModel, inputs: dict[str, Tensor], tasks: int, skip: Sequence[int]) -> Callable[[], Tensor]:
    """The same call with rows repeated before the first layer."""
    setup = Parallel(*(f"t{number}" for number in range(tasks)))
    plan = replace(model.plan(setup, "none", 1, skip), fork=None)

    def call() -> Tensor:
        last: Tensor = headless(model.backbone, plan, plan.repeat(inputs), {}).last_hidden_state
        return last

    return call


def law(model: AdapterModel, inputs: dict[str, Tensor], tasks: int, dropped: Sequence[int], asked: Any) -> list[Found]:
    """For N tasks: how many times as fast each k is as no drop. Raises AssertionError where answers differ."""
    layers = model.backbone.layers
    rivals = {f"{k}": answers(model, inputs, tasks, range(k)) for k in dict.fromkeys([0, *dropped])}
    if (tasks, *dropped) == CLAIM:
        rivals["at the entry"] = at_entry(model, inputs, tasks, range(CLAIM[1]))
        for found, expected in zip(rivals[str(CLAIM[1])](), rivals["at the entry"](), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    times = alternate(rivals, asked.rounds, asked.clock)
    rows = []
    for name, own in times.items():
        k = CLAIM[1] if name == "at the entry" else int(name)
        gain = quotients(times["0"], own)
        rows.append(
            {
                "setup": f"parallel{tasks}_drop{k}" + (" at the entry" if name == "at the entry" else ""),
                "side": "graftwork",
                "tasks": tasks,
                "dropped": k,
                "shared": name != "at the entry",
                "ratio": gain.middle,
                "low": gain.low,
                "high": gain.high,
                "milliseconds": milliseconds(own),
                "arithmetic": counted(tasks, k, layers) if name != "at the entry" else entered(tasks, layers),
                "shape": f"1x{asked.tokens}",
                "dtype": "float32",
                "threads": asked.threads,
            }
        )
    return rows


def claimed(asked: Any) -> list[Found]:
    """The paper's setting on the shape of BERT-base, for each number of threads."""
    model, inputs = made(*BERT, CLAIM[0]), text(asked.tokens)
    rows: list[Found] = []
    for count in map(int, asked.claim_threads.split(",")):
        torch.set_num_threads(count)
        clock = asked.clock if count == 1 else "wall"
        own = argparse.Namespace(**vars(asked) | {"threads": count, "clock": clock})
        rows += law(model, inputs, CLAIM[0], CLAIM[1:], own)
    torch.set_num_threads(asked.threads)
    return rows


def pruning(model: AdapterModel, inputs: dict[str, Tensor], asked: Any) -> list[Found]:
    """A Fuse of eight, whole and pruned to two, by both executors: the ratio of each to the frozen base."""
    for name in MEMBERS:
        model.add_adapter(name, ADAPTER)
    whole = Fuse(*MEMBERS, name="whole")
    model.add_adapter_fusion(whole)
    _stir(model.parts)
    model.eval().requires_grad_(False)
    few = Fuse(*MEMBERS, name=model.prune_fusion(model.fusion_attention("whole", [inputs]), 2, name="few"))

    def run(tree: Fuse | None, execution: str) -> Callable[[], object]:
        def call() -> object:
            model.execution = execution
            return model(**inputs, adapters=tree, head="none")

        return call

    rivals = {"base": run(None, "reference")}
    for execution in ("reference", "folded"):
        rivals[f"fuse8, {execution}"] = run(whole, execution)
        rivals[f"fuse8 pruned to 2, {execution}"] = run(few, execution)
    times = alternate(rivals, 2 * asked.rounds, asked.clock)
    rows = []
    for name, own in times.items():
        ratio = quotients(own, times["base"])
        partner = times[name.replace(" pruned to 2", "")]
        gain = quotients(partner, own)
        rows.append(
            {
                "setup": name,
                "side": "graftwork",
                "ratio": ratio.middle,
                "low": ratio.low,
                "high": ratio.high,
                "faster": gain.middle,
                "milliseconds": milliseconds(own),
                "shape": f"1x{asked.tokens}",
                "dtype": "float32",
                "threads": asked.threads,
            }
        )
    return rows


def picture(rows: Sequence[Found], file: Path) -> str:
    """Gain against layers dropped, a curve for each number of tasks, and what arithmetic says of each."""
    curves = []
    for tasks in dict.fromkeys(row["tasks"] for row in rows):
        own = [row for row in rows if row["tasks"] == tasks and row["shared"]]
        curves.append(Curve(f"{tasks} tasks", [(row["dropped"], row["ratio"]) for row in own]))
        curves.append(Curve("arithmetic", [(row["dropped"], row["arithmetic"]) for row in own], dashed=True))
    return draw(file, "Several tasks on one text", "lowest layers without adapters", "times as fast as no drop", curves)


def claim_table(rows: Sequence[Found]) -> str:
    """What the paper's setting gains, for each number of threads."""
    cells = [
        [str(row["threads"]), row["setup"], f"{row['ratio']:.2f} ({row['low']:.2f}-{row['high']:.2f})",
         f"{row['milliseconds']:.0f}", f"{row['arithmetic']:.2f}"]
        for row in rows
        if row["dropped"] == CLAIM[1]
    ]  # fmt: skip
    return table(["threads", "setup", "times as fast as no drop (quartiles)", "ms", "arithmetic"], cells)


def page_of(rows: Sequence[Found], claim: Sequence[Found], pruned: Sequence[Found], base: str, drawn: str) -> str:
    """The page of results."""
    tasks = list(dict.fromkeys(row["tasks"] for row in rows))
    dropped = sorted({row["dropped"] for row in rows})
    at = {(row["tasks"], row["dropped"]): row for row in rows if row["shared"]}
    cells = [
        [str(k), *(f"{at[n, k]['ratio']:.2f} / {at[n, k]['arithmetic']:.2f}" if (n, k) in at else "" for n in tasks)]
        for k in dropped
    ]
    fused = [
        [row["setup"], f"{row['ratio']:.3f} ({row['low']:.3f}-{row['high']:.3f})", f"{row['milliseconds']:.1f}",
         f"{row['faster']:.2f}"]
        for row in pruned
    ]  # fmt: skip
    parts = [
        f"Base: {base}, random weights, float32. How many times as fast as with no layer dropped: measured / counted.",
        table(["layers dropped", *(f"{n} task{'s' * (n > 1)}" for n in tasks)], cells),
        *([f"![times as fast against layers dropped]({drawn})"] if drawn else []),
        f"## The paper's setting: {CLAIM[0]} tasks on one text, no adapters in the first {CLAIM[1]} layers",
        f"{BERT[0]} layers, {BERT[1]} wide, as BERT-base. The paper measured {PAPER} on a GPU.",
        claim_table(claim),
        "## A Fuse of eight pruned to the two most attended members of each layer",
        table(["setup", "ratio to the base", "ms", "times as fast as whole"], fused),
    ]
    return page("Layers dropped, and the trunk that tasks share", command(), *parts)


def main() -> None:
    """Measure, print, and write what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a narrower base, three numbers of tasks, two rounds")
    parser.add_argument("--tasks")
    parser.add_argument("--dropped")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, help="of the base's stream, a multiple of 64")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--claim-threads", default="1,2", help="of the paper's setting")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--out", type=Path, help=f"write page, rows and picture there, such as {RESULTS.name}")
    asked = parser.parse_args()
    asked.rounds = asked.rounds or (2 if asked.quick else 5)
    width = asked.width or (384 if asked.quick else 768)
    tasks = [int(n) for n in (asked.tasks or ("1,4,8" if asked.quick else "1,2,4,8,16")).split(",")]
    some = "0,3,5,9,12" if asked.quick else ",".join(map(str, range(asked.layers + 1)))
    dropped = [int(k) for k in (asked.dropped or some).split(",")]
    torch.set_num_threads(asked.threads)
    model, inputs = made(asked.layers, width, max(tasks)), text(asked.tokens)
    with torch.inference_mode():
        rows = [row for n in tasks for row in law(model, inputs, n, dropped, asked)]
        claim = claimed(asked)
    with torch.no_grad():  # members are added meanwhile
        pruned = pruning(model, inputs, asked)
    file = None if asked.out is None else asked.out.with_suffix(".svg")
    drawn = "" if file is None else picture(rows, file)
    base = (
        f"{asked.layers} layers, {width} wide, {asked.tokens} tokens, {asked.threads} thread{'s' * (asked.threads > 1)}"
    )
    done = page_of(rows, claim, pruned, base, "" if file is None or drawn else file.name)
    print(done, drawn)
    if asked.json is not None:
        write(asked.json, json.dumps([*rows, *claim, *pruned], indent=1) + "\n")
    if asked.out is not None:
        write(asked.out.with_suffix(".json"), json.dumps([*rows, *claim, *pruned], indent=1) + "\n")
        write(asked.out, done)


if __name__ == "__main__":
    main()
