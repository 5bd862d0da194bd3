"""What does a folded site cost, against the reference executor and against the frozen layer it sits on?

    python benchmarks/fold_site.py [--setups seq_bn,fuse3] [--shapes 8x64,8x1] [--rounds 20] [--clock cpu] [--json FILE]

One BERT-base layer (width 768) with random weights, one thread, float32, inference. A round runs, for each setup, the
layer, the site by the reference, the layer, the site folded: every site meets the caches as a layer leaves them, reads
the layer's output, and shares with its rival whatever else the machine does. A site's time is that of its node and of
adding the change to the stream. Medians over the rounds. `--clock cpu` counts the thread's own time, for a machine that
others use. `share` is the site's time in percent of the layer's, `limit` the same for multiplications alone. `built` is
what the first call of a composition takes longer: folding the sites of twelve layers, twelve times the median of one.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.bert.modeling_bert import BertConfig, BertLayer

from graftwork.compose.fold import FoldPlan, fold
from graftwork.compose.grammar import parse
from graftwork.compose.reference import Node, bind
from graftwork.core.adapter import Adapter
from graftwork.core.bottleneck import Bottleneck
from graftwork.core.fusion import FUSIONS, Fusion
from graftwork.core.kinds import read_config
from graftwork.core.site import NO_DELTA, Reading, Site

WIDTH, LAYERS, BUILDS = 768, 12, 5
SIDES = ("reference", "folded")
MEMBERS = [f"m{number}" for number in range(8)]
# setup -> (method of its members, composition, whether a norm follows the site's residual add)
SETUPS: dict[str, tuple[str, str, bool]] = {
    "seq_bn": ("seq_bn", "m0", True),
    "double_seq_bn": ("double_seq_bn", "m0", True),
    "par_bn": ("par_bn[reduction_factor=16]", "m0", True),
    "average3": ("seq_bn", "Average(m0, m1, m2)", True),
    "stack2": ("seq_bn", "Stack(m0, m1)", True),
    "stack3": ("seq_bn", "Stack(m0, m1, m2)", True),
    "stack3 pre-LN": ("seq_bn", "Stack(m0, m1, m2)", False),
    "fuse3": ("seq_bn", "Fuse(m0, m1, m2)", True),
    "fuse8": ("seq_bn", f"Fuse({', '.join(MEMBERS)})", True),
    "stack+fuse3": ("seq_bn", "Stack(m3, Fuse(m0, m1, m2))", True),
}


class Members:
    """Eight adapters of one method, and the fusion of a composition, with random weights."""

    def __init__(self, method: str) -> None:
        config = read_config(method)
        site = Site(0, "", 0, 0, "ffn", WIDTH)
        self._adapters = {name: Bottleneck((WIDTH, config.width(site), 0), config) for name in MEMBERS}
        self._fusion = Fusion(WIDTH, FUSIONS["dynamic"])
        for module in [*self._adapters.values(), self._fusion]:
            module.eval().requires_grad_(False)

    def adapter(self, name: str, site: int) -> Adapter | None:
        """As the executors ask."""
        return self._adapters[name]

    def fusion(self, name: str, site: int) -> Fusion | None:
        """As the executors ask."""
        return self._fusion


@dataclass(frozen=True)
class Setup:
    """One composition at one site, by the reference and folded; built: milliseconds to fold it at twelve sites."""

    sides: dict[str, Node]
    plan: FoldPlan
    norm: nn.Module | None
    built: float

    def run(self, side: str, output: Tensor, residual: Tensor) -> Tensor:
        """What a site's hook does: run the node and add its change, (B, T, D)."""
        before = self.sides[side](Reading(output, residual, self.norm), NO_DELTA).before
        assert before is not None
        return output + before


def prepared(name: str, clock: Callable[[], float]) -> Setup:
    """A setup by name, with random weights."""
    method, text, normed = SETUPS[name]
    tree = parse(text)
    members = Members(method)
    reference, folded = bind(tree, 0, members), fold(tree, 0, members, normed=normed)
    assert reference is not None
    assert folded is not None
    norm = nn.LayerNorm(WIDTH).requires_grad_(False) if normed else None
    taken = []
    for _ in range(BUILDS):
        start = clock()
        fold(tree, 0, members, normed=normed)
        taken.append(1e3 * (clock() - start))
    setup = Setup({"reference": reference, "folded": folded.node}, folded.plan, norm, LAYERS * median(taken))
    pair = [setup.run(side, *torch.randn(2, 3, 5, WIDTH, generator=torch.Generator().manual_seed(1))) for side in SIDES]
    torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-4)
    return setup


def measure(
    layer: nn.Module, stream: Tensor, setups: dict[str, Setup], rounds: int, clock: Callable[[], float]
) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """(setup, side) -> for every round milliseconds of the site and of the layer before it; two rounds warm up."""
    taken: dict[tuple[str, str], list[tuple[float, float]]] = {(name, side): [] for name in setups for side in SIDES}
    for number in range(rounds + 2):
        for name, side in taken:
            start = clock()
            output = layer(stream)
            middle = clock()
            setups[name].run(side, output, stream)
            end = clock()
            if number >= 2:
                taken[name, side].append((1e3 * (end - middle), 1e3 * (middle - start)))
    return taken


CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}


def rows_of(shape: str, setups: list[str], rounds: int, clock: str) -> list[dict[str, Any]]:
    """One row per setup at one shape `rows x tokens`."""
    rows, tokens = map(int, shape.split("x"))
    torch.manual_seed(0)
    config = BertConfig(attn_implementation="sdpa")
    layer, stream = BertLayer(config).eval().requires_grad_(False), torch.randn(rows, tokens, WIDTH)
    prepared_setups = {name: prepared(name, CLOCKS[clock]) for name in setups}
    with torch.inference_mode():
        taken = measure(layer, stream, prepared_setups, rounds, CLOCKS[clock])
    base = median(time for pairs in taken.values() for _, time in pairs)
    multiplied = 12 * WIDTH * WIDTH + 2 * WIDTH * tokens  # of one layer, for each token
    found = []
    for name, setup in prepared_setups.items():
        reference, folded = ([site for site, _ in taken[name, side]] for side in SIDES)
        gains = [a / b for a, b in zip(reference, folded, strict=True)]
        found.append(
            {
                "setup": name,
                "shape": shape,
                "clock": clock,
                "layer_ms": base,
                "reference_ms": median(reference),
                "folded_ms": median(folded),
                "faster": median(gains),
                "low": quantiles(gains, n=4)[0],
                "high": quantiles(gains, n=4)[2],
                "reference_share": 100 * median(reference) / base,
                "folded_share": 100 * median(folded) / base,
                "limit": 100 * setup.plan.multiplications / multiplied,
                "multiplications": setup.plan.multiplications,
                "reference_multiplications": setup.plan.reference_multiplications,
                "bytes": setup.plan.bytes,
                "built_ms": setup.built,
            }
        )
    return found


def main() -> None:
    """Measure, print the table, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setups", default=",".join(SETUPS))
    parser.add_argument("--shapes", default="8x64,8x1")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="five rounds")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    setups, shapes = given.setups.split(","), given.shapes.split(",")
    rows = [row for shape in shapes for row in rows_of(shape, setups, 5 if given.quick else given.rounds, given.clock)]
    head = f"{'setup':14} {'shape':>6} {'layer':>9} {'reference':>10} {'folded':>9} {'faster':>17} "
    print(head + f"{'share: reference':>17} {'folded':>7} {'limit':>6} {'built':>9}")
    for row in rows:
        spread = f"{row['faster']:.1f}x ({row['low']:.1f}-{row['high']:.1f})"
        print(
            f"{row['setup']:14} {row['shape']:>6} {row['layer_ms']:6.2f} ms {row['reference_ms']:7.3f} ms "
            f"{row['folded_ms']:6.3f} ms {spread:>17} {row['reference_share']:16.1f}% {row['folded_share']:6.2f}% "
            f"{row['limit']:5.2f}% {row['built_ms']:6.0f} ms"
        )
    if given.json:
        machine = {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
        }
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        given.json.write_text(json.dumps({"machine": machine | versions, "rows": rows}, indent=2) + "\n", "utf8")


if __name__ == "__main__":
    main()
