"""Does every file of AdapterHub's `adapters` give the same numbers here? Golden cases are run and compared.

    python benchmarks/conformance.py FOLDER [--only TEXT] [--report FILE] [--quiet]

FOLDER holds `cases/<id>/case.json` with the files beside it (their form is described in its README.md). A case passes
when every tensor it expects is matched within its tolerance. Prints one line a case, a table of method, family and
composition, and at the end `N passed, M failed`, where N + M is the number of `case.json` files; ends with status 1
when M > 0.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from graftwork import importing
from graftwork.build import without_bars
from graftwork.core.backbone import load_model
from graftwork.core.fusion import Fusion
from graftwork.model import AdapterModel
from graftwork.registry.foreign.adapterhub_setup import expression

STATIC = "static"  # the name of a head that its file leaves without one
LOCATIONS = {"attn": "mh_adapter", "ffn": "output_adapter", "cross": "cross_adapter"}


@dataclass
class Outcome:
    """What became of one case: the largest difference of every expected tensor, or why there is none."""

    case: str
    family: str
    method: str
    composition: str
    allowed: float
    differences: dict[str, float] = field(default_factory=dict)
    problem: str = ""

    @property
    def worst(self) -> float:
        """The largest difference, infinite where there are none."""
        return max(self.differences.values(), default=float("inf"))

    @property
    def passed(self) -> bool:
        """Whether every expected tensor was matched."""
        return not self.problem and self.worst <= self.allowed


def run(folder: Path) -> Outcome:
    """Run one case; every failure is an outcome, none an exception."""
    case = json.loads((folder / "case.json").read_text("utf8"))
    methods = sorted({str(adapter["config"]) for adapter in case["adapters"]})
    outcome = Outcome(
        case["id"], case["family"], "; ".join(methods), case["composition_str"], float(case["tolerance"]["atol"])
    )
    expected = load_file(folder / "expected.safetensors")
    try:
        with without_bars():
            runs = [compute(folder, case, "auto")]
            if case["fusions"]:  # only the reference has attention weights; what it answers is compared as well
                runs.append(compute(folder, case, "reference"))
    except Exception as error:  # a case that cannot run has failed, whatever the reason
        outcome.problem = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return outcome
    for name, tensor in expected.items():
        outputs = [found.get(name) for found in runs[name.startswith("fusion_attentions.") :]]
        outcome.differences[name] = max((difference(output, tensor) for output in outputs), default=float("inf"))
    missing = [name for name in expected if not any(name in found for found in runs)]
    outcome.problem = f"not computed: {', '.join(missing)}" if missing else ""
    return outcome


def difference(found: Tensor | None, expected: Tensor) -> float:
    """The largest absolute difference, infinite where shapes differ or something is no number.

    `adapters` repeats the rows of a Parallel in its first block, we do so at the entry: embeddings are compared once.
    """
    if found is not None and found.shape != expected.shape and found.shape[1:] == expected.shape[1:]:
        copies = found.unflatten(0, (-1, len(expected))) if len(found) % len(expected) == 0 else found[:0]
        found = copies[0] if len(copies) and all(torch.equal(copy, copies[0]) for copy in copies) else None
    if found is None or found.shape != expected.shape or not bool(torch.isfinite(found).all()):
        return float("inf")
    return float((found.double() - expected.double()).abs().max())


def compute(folder: Path, case: Mapping[str, Any], execution: str) -> dict[str, Tensor]:
    """Every tensor that a case could expect, by its name there."""
    model, composition = load(folder, case)
    model.execution = execution
    inputs = load_file(folder / "inputs.safetensors")
    setup = case["active_setup"]
    head = setup["head"] if isinstance(setup["head"], str) else None
    if head is None and any(one["name"] is None for one in case["heads"]):
        head = STATIC
    if head is None and not case["heads"]:
        head = "none"
    flags = {"output_hidden_states": True} if "output_hidden_states" in case["forward_kwargs"] else {}
    with torch.no_grad(), attentions(model) as attended:
        output = model(
            **inputs, **flags, adapters=composition, head=head, skip_layers=tuple(setup["skip_layers"] or ())
        )
    return named(output, model) | attended


def load(folder: Path, case: Mapping[str, Any]) -> tuple[AdapterModel, str]:
    """The base with everything that the case's folder holds, and the composition as an expression."""
    model = AdapterModel(load_model((folder / case["base"]).resolve()))
    composition, _ = expression(case["composition"], str(folder / "case.json"))
    parts = [*case["adapters"], *case["fusions"], *(one for one in case["heads"] if one["name"] is None)]
    imports = [
        imported
        for part in parts
        for imported in importing.read(folder / part["path"], model.backbone, name=part["name"] or STATIC)[1]
    ]
    for package in importing.packages(imports, model.backbone, composition=composition):
        model.install(package)
    return model.eval(), composition


@contextmanager
def attentions(model: AdapterModel) -> Iterator[dict[str, Tensor]]:
    """The attention weights (B, T, K) of every fusion layer that runs inside, worked out beside it."""
    found: dict[str, Tensor] = {}

    def hook(name: str, layer: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(layer, Fusion)
        found[name] = layer.weights(args[0], torch.stack(list(args[1]), dim=2))

    depths = {site.name: site for site in model.backbone.sites}
    handles = []
    for fusion in model.parts.fusion_records:
        for place, layer in model.parts.modules_of("fusions", fusion).items():
            site = depths[place]
            name = f"fusion_attentions.{fusion}.{site.depth}.{LOCATIONS[site.kind]}"
            handles.append(layer.register_forward_pre_hook(lambda module, args, name=name: hook(name, module, args)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def named(output: Any, model: AdapterModel) -> dict[str, Tensor]:
    """The tensors of an output under the names of the cases."""
    found: dict[str, Tensor] = {}
    for key in ("last_hidden_state", "encoder_last_hidden_state", "logits"):
        if isinstance(tensor := getattr(output, key, None), Tensor):
            found[key] = tensor
    for number, tensor in enumerate(getattr(output, "hidden_states", None) or ()):
        found[f"hidden_states.{number}"] = tensor
    for number, tensor in enumerate(getattr(output, "decoder_hidden_states", None) or ()):
        found.setdefault(f"hidden_states.{number}", tensor)
    for number, group in enumerate(getattr(output, "groups", ())):
        own = dict(group.outputs) if group.outputs else {"logits": group.logits}
        found |= {f"head_outputs.{number}.{name}": tensor for name, tensor in own.items()}
        if len(output.groups) == 1:
            found |= own
    return found


def table(outcomes: list[Outcome]) -> str:
    """A Markdown table: method × family × composition, passed of all."""
    groups: dict[tuple[str, str, str], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        groups[shortened(outcome.method), outcome.family, outcome.composition].append(outcome)
    lines = ["| method | family | composition | passed | largest difference |", "|---|---|---|---|---|"]
    for (method, family, composition), own in sorted(groups.items()):
        passed = sum(outcome.passed for outcome in own)
        worst = max(outcome.worst for outcome in own)
        lines.append(f"| {method} | {family} | {composition} | {passed} of {len(own)} | {worst:.1e} |")
    return "\n".join(lines)


def shortened(method: str) -> str:
    return method if len(method) <= 60 else f"{method[:57]}..."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="cases whose id holds this text")
    parser.add_argument("--report", type=Path, help="write the table there, as Markdown")
    parser.add_argument("--quiet", action="store_true", help="print failures and the end only")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    files = sorted(arguments.folder.rglob("case.json"))
    outcomes = []
    for file in files:
        if arguments.only in file.parent.name:
            outcomes.append(run(file.parent))
            line = f"{'ok    ' if outcomes[-1].passed else 'FAILED'} {outcomes[-1].case:40} {outcomes[-1].worst:.1e}"
            if not (arguments.quiet and outcomes[-1].passed):
                print(f"{line}  {outcomes[-1].problem}", flush=True)
    text = table(outcomes)
    passed = sum(outcome.passed for outcome in outcomes)
    end = f"{passed} passed, {len(outcomes) - passed} failed"
    if arguments.report:
        arguments.report.write_text(report(text, end), "utf8")
    print(text if not arguments.quiet else "", end, sep="\n")
    return int(passed < len(outcomes))


def report(text: str, end: str) -> str:
    """The page that a report is."""
    return f"""# Conformance with AdapterHub's `adapters`

Golden cases: files that the real `adapters` 1.3.0 wrote, imported here, with the numbers that they must give. A case
passes when every tensor that it expects (hidden states of every layer, logits, attention over fused members) is matched
within its tolerance, 1e-4 in float32 where it says no other. Run by

    python benchmarks/conformance.py FOLDER --report docs/conformance.md

**{end}.**

{text}
"""


if __name__ == "__main__":
    sys.exit(main())
