"""Golden cases, fresh from the real `adapters`: files that it writes and the outputs that it gives.

    .venv-adapters/bin/python benchmarks/peers/make_golden.py FOLDER [--only TEXT …] [--thin N]

Makes tiny random models, adds adapters, fusions and heads with random weights, saves them and records the outputs, in
the form that `python benchmarks/conformance.py FOLDER` reads. Needs adapters 1.3.0. Cases that it refuses or cannot run
are listed in FOLDER/refused.json with its own words.
"""

import argparse
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import adapters
import adapters.composition as blocks
import torch
import transformers
from families import FAMILIES, PAIRS, PLUGINS, ROWS, batch, build, seed_of
from grid import ALPHABET, Case, cases
from known import leave_out
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

ATOL = 1e-4


def config_of(given: Any) -> Any:
    """A configuration of theirs from a row of the grid."""
    if isinstance(given, str):
        return given
    kind, fields = given
    if isinstance(fields, list):
        made = [config_of(one) for one in fields]
        return getattr(adapters, kind)(*made)
    return getattr(adapters, kind)(**fields)


def setup_of(text: str) -> Any:
    """A composition of theirs from an expression of the grid."""
    names = {letter: letter for letter in ALPHABET}
    return eval(text, {"__builtins__": {}}, {**vars(blocks), **names})


def fuses(setup: Any) -> list[Any]:
    """The Fuse blocks in a composition."""
    if isinstance(setup, str):
        return []
    return [*([setup] if isinstance(setup, blocks.Fuse) else []), *(one for child in setup for one in fuses(child))]


def averages(setup: Any) -> list[Any]:
    """The Average blocks in a composition."""
    if isinstance(setup, str):
        return []
    own = [setup] if isinstance(setup, blocks.Average) else []
    return own + [one for child in setup for one in averages(child)]


def load_model(case: Case, base: Path) -> Any:
    """The base in the class that a case needs, ready for adapters."""
    sdpa = getattr(transformers, FAMILIES[case.family].model)._supports_sdpa
    attention = {"attn_implementation": case.attention if sdpa else "eager"}
    name = case.static or (None if not case.headed or case.family in PLUGINS else "AdapterModel")
    if name == "AdapterModel" and hasattr(adapters, adapter_class(case.family)):
        return getattr(adapters, adapter_class(case.family)).from_pretrained(base, **attention)
    model = getattr(transformers, case.static or FAMILIES[case.family].model).from_pretrained(base, **attention)
    adapters.init(model)
    own = set(load_file(base / "model.safetensors"))
    for name, module in model.base_model.named_modules():
        if type(module).__name__ == "LoRAMergedLinear" and f"{name}.bias" not in own:
            module.bias = None  # adapters gives it a random one that no file keeps
    return model


def adapter_class(family: str) -> str:
    """Their class of models with heads."""
    return FAMILIES[family].model.replace("GenerationEncoder", "Generation").replace("Model", "") + "AdapterModel"


def randomise(model: nn.Module, known: set[int]) -> None:
    """Random weights, large enough to matter, for every parameter that is new."""
    for name, parameter in model.named_parameters():
        if id(parameter) in known or ".parametrizations." in name:
            continue
        noise = torch.randn_like(parameter)
        if bool((parameter == 1).all()):
            parameter.copy_(1 + 0.3 * noise)
        elif name.endswith("m.weight"):
            parameter.mul_(1 + 0.2 * noise)
        elif "phm_rule" in name or "W_left" in name or "W_right" in name:
            parameter.copy_(0.5 * noise)
        elif ".heads." in name or "classifier" in name or "lm_head" in name:
            parameter.copy_(0.2 * noise)
        else:
            parameter.copy_(0.15 * noise + (torch.eye(*parameter.shape) if "fusion" in name and "value" in name else 0))


def outputs_of(output: Any, states: bool) -> dict[str, Tensor]:
    """The tensors that a case expects, by the names of the layout."""
    found: dict[str, Tensor] = {}
    names = ("last_hidden_state", "encoder_last_hidden_state", "logits", "start_logits", "end_logits", "rel_preds",
             "arc_preds")  # fmt: skip
    parts = output.head_outputs if hasattr(output, "head_outputs") else [output]
    for number, part in enumerate(parts):
        prefix = "" if part is output else f"head_outputs.{number}."
        for name in names:
            tensor = part.get(name) if hasattr(part, "get") else getattr(part, name, None)
            if isinstance(tensor, Tensor) and not (name == "encoder_last_hidden_state" and not states):
                found[prefix + name] = tensor
    for number, tensor in enumerate(getattr(output, "hidden_states", None) or () if states else ()):
        found[f"hidden_states.{number}"] = tensor
    for fusion, layers in (getattr(output, "adapter_fusion_attentions", None) or {}).items():
        for depth, places in layers.items():
            for place, weights in places.items():
                found[f"fusion_attentions.{fusion}.{depth}.{place}"] = torch.as_tensor(weights)
    return {name: tensor.detach().clone().contiguous() for name, tensor in found.items()}


def inputs_of(case: Case) -> dict[str, Tensor]:
    """What the forward of a case is given."""
    inputs = batch(case.family)
    kinds = {kind for _, kind, _ in case.heads}
    if "dependency_parsing" in kinds:
        inputs["word_starts"] = torch.arange(10).repeat(ROWS, 1)
    if case.family in PAIRS and kinds & {"classification", "qa"}:  # both read what they are given, up to its end
        del inputs["decoder_input_ids"]
        ends = inputs["attention_mask"].sum(1) - 1
        inputs["input_ids"][torch.arange(ROWS), ends] = 2 if "bart" in case.family else 1
    if "multiple_choice" in kinds:
        inputs = {name: torch.stack([tensor, tensor.roll(1, 0), tensor.flip(0)], 1) for name, tensor in inputs.items()}
    return inputs


def make(case: Case, root: Path) -> float:
    """Write one case; how much it changes the output of its base."""
    base = root / "bases" / case.family
    if not base.exists():
        build(case.family).save_pretrained(base)
    torch.manual_seed(seed_of(case.id))
    model = load_model(case, base)
    known = {id(parameter) for parameter in model.base_model.parameters()}
    setup, folder = setup_of(case.setup), root / "cases" / case.id
    names = ALPHABET[: len(case.configs)]
    for name, config in zip(names, case.configs, strict=True):
        model.add_adapter(name, config=config_of(config))
    for name, kind, arguments in case.heads:
        getattr(model, f"add_{kind}_head")(name, **arguments)
    for fuse in fuses(setup):
        fields = {"config": "dynamic", **case.fusion} if isinstance(case.fusion, dict) else {"config": case.fusion}
        config = adapters.AdapterFusionConfig.load(**fields)
        members = [child if isinstance(child, str) else child.last() for child in fuse]
        model.add_adapter_fusion(members, config.to_dict(), name=fuse.name)
    with torch.no_grad():
        randomise(model, known)
    model.eval()
    saved(model, case, setup, folder)
    return recorded(model, case, setup, folder)


def saved(model: Any, case: Case, setup: Any, folder: Path) -> None:
    """Write every part with their own savers."""
    headed = {name for name, _, _ in case.heads}
    for name in ALPHABET[: len(case.configs)]:
        own = {"with_head": name in headed} if hasattr(model, "heads") else {}
        (folder / "adapters" / name).mkdir(parents=True, exist_ok=True)
        model.save_adapter(str(folder / "adapters" / name), name, use_safetensors=case.safetensors, **own)
    for fuse in fuses(setup):
        (folder / "fusion" / fuse.name).mkdir(parents=True, exist_ok=True)
        model.save_adapter_fusion(str(folder / "fusion" / fuse.name), fuse.name)
    if case.static:
        (folder / "heads" / "default").mkdir(parents=True, exist_ok=True)
        model.save_head(str(folder / "heads" / "default"))


def recorded(model: Any, case: Case, setup: Any, folder: Path) -> float:
    """Run the model as it is and write inputs, outputs and case.json."""
    early = "Reft" in str(case.configs)  # some models note their hidden states before ReFT edits them
    states = FAMILIES[case.family].states and not case.heads and not case.static and not early
    inputs = inputs_of(case)
    composition = setup.to_dict()
    for average in averages(setup):  # adapters divides by the number of children once too often: undone here
        average.weights = [weight * len(average.children) for weight in average.weights]
    model.set_active_adapters(setup, skip_layers=list(case.skip_layers) or None)
    flags = {"return_dict": True, **({"output_hidden_states": True} if states else {})}
    attended = {"output_adapter_fusion_attentions": True} if fuses(setup) and states else {}
    target = model if case.heads or case.static else model.base_model
    if case.heads:
        model.active_head = [name for name, _, _ in case.heads] if len(case.heads) > 1 else case.heads[0][0]
        if len(case.heads) > 1 and isinstance(setup, blocks.BatchSplit):
            model.active_head = blocks.BatchSplit(*(n for n, _, _ in case.heads), batch_sizes=setup.batch_sizes)
    with torch.no_grad():
        found = outputs_of(target(**inputs, **flags, **attended), states)
        model.set_active_adapters(None)
        plain = outputs_of(model.base_model(**batch(case.family)), False).get("last_hidden_state")
    if not found or not all(bool(torch.isfinite(tensor).all()) for tensor in found.values()):
        raise ValueError(f"outputs are not finite, or there are none: {sorted(found)}")
    save_file({name: tensor.contiguous() for name, tensor in inputs.items()}, folder / "inputs.safetensors")
    save_file(found, folder / "expected.safetensors")
    (folder / "case.json").write_text(json.dumps(described(case, setup, composition, found, flags), indent=1), "utf8")
    main = found.get("last_hidden_state")
    if main is None or plain is None or main.shape != plain.shape:
        return float("nan")
    return float((main - plain).norm() / plain.norm())


def described(
    case: Case, setup: Any, composition: dict[str, Any], found: dict[str, Tensor], flags: dict[str, bool]
) -> dict[str, Any]:
    """case.json."""
    headed = {name for name, _, _ in case.heads}
    file = "safetensors" if case.safetensors else "bin"
    adapters_ = [
        {"name": name, "path": f"adapters/{name}", "config": str(config), "format": file, "head": name in headed}
        for name, config in zip(ALPHABET, case.configs, strict=False)
    ]
    heads = [{"name": n, "kind": kind, "kwargs": given, "path": f"adapters/{n}"} for n, kind, given in case.heads]
    if case.static:
        heads = [{"name": None, "kind": case.static, "kwargs": {}, "path": "heads/default"}]
    head: Any = [name for name, _, _ in case.heads]
    return {
        "format_version": 1, "id": case.id, "family": case.family, "base": f"../../bases/{case.family}",
        "adapters": adapters_,
        "fusions": [
            {"name": fuse.name, "path": f"fusion/{fuse.name}", "config": str(case.fusion), "format": "bin"}
            for fuse in fuses(setup)
        ],
        "heads": heads, "composition": composition, "composition_str": case.setup,
        "active_setup": {
            "adapters": case.setup, "head": head[0] if len(head) == 1 else head or None,
            "skip_layers": list(case.skip_layers) or None,
        },
        "attn_implementation": case.attention, "forward_kwargs": flags,
        "outputs": {name: list(tensor.shape) for name, tensor in found.items()},
        "primary_output": next(iter(found)), "tolerance": {"dtype": "float32", "atol": ATOL, "rtol": 0.0},
        "notes": case.notes,
        "provenance": {"adapters": adapters.__version__, "transformers": transformers.__version__},
    }  # fmt: skip


def main() -> int:
    """Write all cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", default=[""], help="cases whose id holds one of these texts")
    parser.add_argument("--thin", type=int, default=1, help="every N-th case only, spread over all families")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    refused: dict[str, str] = {}
    left: dict[str, str] = {}
    weak: list[str] = []
    wanted = [case for case in cases() if any(text in case.id for text in arguments.only)][:: arguments.thin]
    for case in wanted:
        if reason := leave_out(case):
            left[case.id] = reason
            continue
        try:
            effect = make(case, arguments.folder)
            weak += [case.id] if effect < 0.02 else []
        except Exception as error:  # what the library cannot do is a finding, not the end
            refused[case.id] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    made = len(wanted) - len(refused) - len(left)
    facts = {"made": made, "left out": left, "refused by adapters": refused, "hardly change their base": weak}
    (arguments.folder / "refused.json").write_text(json.dumps(facts, indent=1), "utf8")
    print(f"{made} cases made, {len(left)} left out, {len(refused)} refused by adapters itself, {len(weak)} weak")
    return int(made == 0)


if __name__ == "__main__":
    sys.exit(main())
