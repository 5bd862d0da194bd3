"""LLM-Adapters' `BOTTLENECK` files (Hu et al. 2023): bottlenecks on single linears, orphaned by PEFT since.

    series    gate, up: x -> x + A(x), before the linear        down: y -> y + A(y), after it
    parallel  y -> y + A(x)                                     A(x) = s·up(f(down(x))), no biases, tanh

Names of modules are paths, as in PEFT. What a linear's role is follows from which linear it is; the flags of the file
only chose defaults. Dropout stands before `down` there and after `up` here, which training alone can tell.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graftwork.errors import PackageError
from graftwork.registry.foreign.files import read_json, read_weights
from graftwork.registry.foreign.imported import Asserted, Facts, Imported, Ledger, honest
from graftwork.registry.foreign.linears import ROOT, need_base, placement, places_of
from graftwork.registry.foreign.peft import CONFIG, PICKLED, SAFE

_LEAVES = {"adapter_down.weight": "down.weight", "adapter_up.weight": "up.weight", "adapter_scaling": "scale"}
_BEFORE = ("ffn.up", "ffn.gate")  # linears whose input a series adapter changes
_KNOWN = {
    *("peft_type", "base_model_name_or_path", "task_type", "inference_mode", "target_modules", "bias", "init_weights"),
    *("bottleneck_size", "non_linearity", "adapter_dropout", "scaling", "use_parallel_adapter", "use_adapterp"),
    *("modules_to_save", "fan_in_fan_out", "enable_lora", "merge_weights"),
}


def read_llm_adapters(folder: Path | str, base: Asserted, facts: Facts, *, name: str = "") -> Imported:
    """The adapter of a folder, for a base whose linears `facts` knows. Raises NotFound, PackageError."""
    with honest(str(folder)):
        return _read(Path(folder), base, facts, name)


def _read(folder: Path, base: Asserted, facts: Facts, name: str) -> Imported:
    config, where = read_json(folder, CONFIG), str(folder / CONFIG)
    if str(config.get("peft_type")).upper() != "BOTTLENECK":
        raise PackageError(f"{where}: peft_type {config.get('peft_type')!r} should be BOTTLENECK")
    need_base(facts, where)
    if unknown := [key for key, value in config.items() if key not in _KNOWN and value not in (None, False, [], {})]:
        raise PackageError(f"{where}: options {unknown} are not read")
    file, tensors = read_weights(folder, SAFE, PICKLED)
    ledger = Ledger(str(folder / file), tensors)
    parallel = bool(config.get("use_parallel_adapter"))
    kinds = _take(ledger, parallel, base, facts)
    ledger.close()
    return Imported(
        name=name or folder.name,
        role="task",
        base=base,
        tensors=ledger.tensors,
        fates=tuple(ledger.fates),
        method=_method(config, kinds, parallel, ledger, facts),
        notes=tuple(ledger.notes),
        source={"tool": "LLM-Adapters", "version": "", "peft_type": "BOTTLENECK"},
    )


def _take(ledger: Ledger, parallel: bool, base: Asserted, facts: Facts) -> dict[str, str]:
    """Give every tensor to its site; returns linear's site -> the kind of site that its adapter has."""
    kinds: dict[str, str] = {}
    for key in ledger.given:
        leaf = next((leaf for leaf in _LEAVES if key.endswith(f".{leaf}")), None)
        if leaf is None or not key.startswith(ROOT):
            continue
        places = places_of(key.removesuffix(f".{leaf}"), facts, base.model_type)
        if len(places) != 1:
            continue
        place = places[0]
        before = not parallel and place.kind in _BEFORE
        if not parallel and not before and place.kind != "ffn.down":
            raise PackageError(f"{ledger.where}: {key!r}: a series adapter stands at the feed-forward linears only")
        kinds[place.site] = f"{place.kind}.input" if before else place.kind
        ledger.take(key, f"adapter/{place.site}{'.input' if before else ''}/{_LEAVES[leaf]}")
    return kinds


def _method(
    config: Mapping[str, Any], kinds: Mapping[str, str], parallel: bool, ledger: Ledger, facts: Facts
) -> dict[str, Any]:
    flags, extra = placement(kinds, facts)
    if extra:
        raise PackageError(f"{ledger.where}: {extra[0].site} has no adapter, and the same linear of other layers has")
    scaling = config.get("scaling", 1.0)
    return {
        "kind": "bottleneck",
        "mh_adapter": False,
        "output_adapter": False,
        "cross_adapter": False,
        "linears": sorted(set(kinds.values())),
        "bottleneck_size": config.get("bottleneck_size", 256),
        "non_linearity": config.get("non_linearity", "tanh"),
        "bias": False,
        "is_parallel": parallel,
        "scaling": float(scaling) if isinstance(scaling, int | float) else scaling,
        "dropout": float(config.get("adapter_dropout") or 0.0),
        "init_weights": config.get("init_weights", "bert"),
        "leave_out": flags["leave_out"],
    }
