"""Packages as PEFT's folders: LoRA, (IA)³ and DoRA, for `PeftModel.from_pretrained(model, folder)`.

    a -> lora_A.weight      b -> lora_B.weight      magnitude -> lora_magnitude_vector      scale -> ia3_l

Modules are named by the paths of the base as it is today. Where one linear makes query, key and value, their factors
become one pair, A stacked and B block by block, which is the same matrix of a higher rank. Heads are not written: PEFT
keeps them as modules of a task class. Raises PackageError for what PEFT lacks, before anything is written.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from graftwork.errors import Conflict, PackageError
from graftwork.registry.durable import new_folder
from graftwork.registry.foreign.imported import Facts, Place
from graftwork.registry.foreign.linears import ROOT
from graftwork.registry.foreign.peft import CONFIG, SAFE
from graftwork.registry.package import Package


@dataclass(frozen=True)
class _Written:
    """One module: its tensors under PEFT's names, its rank and its alpha."""

    tensors: Mapping[str, torch.Tensor]
    rank: int = 1
    alpha: float = 1.0


def write_peft(package: Package, folder: Path | str, facts: Facts, *, prefix: str = "") -> list[str]:
    """Write a package as a new folder and return the names of its files.

    prefix: what stands before the trunk in the class it is to be loaded on ("bert" for BertForSequenceClassification,
    "model" for LlamaForCausalLM), empty for the bare model. Raises PackageError, Conflict for a folder that is there.
    """
    folder, manifest = Path(folder), package.manifest
    method = dict(manifest.method or {})
    kind = method.get("kind")
    _refuse(package, method)
    modules = {
        path: _module(path, places, package, method)
        for path, places in facts.places.items()
        if any(place.site in manifest.sites for place in places)
    }
    if kind == "ia3" and method["inner_ffn"]:
        inner = _inner(package, facts)
        if both := sorted(inner.keys() & modules.keys()):
            raise PackageError(f"{manifest.name!r} scales what goes into {both[0]} and what comes out; PEFT scales one")
        modules |= inner
    if missing := set(manifest.sites) - _sites(modules, facts, kind == "ia3"):
        raise PackageError(
            f"{manifest.name!r} cannot be written for PEFT: the base has no linear for {sorted(missing)}"
        )
    before = f"{prefix}." if prefix else ""
    state = {f"{ROOT}{before}{path}.{k}": v for path, one in modules.items() for k, v in one.tensors.items()}
    config = _config(manifest.base.name, method, modules, before)
    files = {
        CONFIG: (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
        SAFE: safetensors.torch.save(state, metadata={"format": "pt"}),
    }
    if not new_folder(folder, files):
        raise Conflict(f"{folder}: is there already; choose another folder")
    return list(files)


def _refuse(package: Package, method: Mapping[str, Any]) -> None:
    name, kind = package.manifest.name, method.get("kind")
    why = ""
    if kind not in ("lora", "dora", "ia3"):
        why = f"it has no method like {kind!r} of ours; written are lora, dora and ia3"
    elif method["use_gating"]:
        why = "it has no gates"
    elif kind == "dora" and method["variant"] != "paper":
        why = "its DoRA is the paper's, and this one is AdapterHub's function"
    elif package.manifest.head is not None:
        why = "it keeps heads as modules of a task class; pack the adapter without its head"
    if why:
        raise PackageError(f"{name!r} cannot be written for PEFT: {why}")


def _module(path: str, places: tuple[Place, ...], package: Package, method: Mapping[str, Any]) -> _Written:
    own = [place for place in places if f"adapter/{place.site}/{_first(method)}" in package.tensors]
    tensors = [_of(package, place.site) for place in own]
    outputs = sum(place.width for place in places)
    if method["kind"] == "ia3":
        scale = torch.ones(outputs)
        for place, one in zip(own, tensors, strict=True):
            scale[_rows(place)] = one["scale"] * float(method["alpha"])
        return _Written({"ia3_l": scale.reshape(-1, 1)})
    rank = sum(one["a"].shape[0] for one in tensors)
    back, begin = torch.zeros(outputs, rank), 0
    for place, one in zip(own, tensors, strict=True):
        end = begin + one["b"].shape[1]
        back[_rows(place), begin:end] = one["b"]
        begin = end
    each = tensors[0]["a"].shape[0]
    if any(one["a"].shape[0] != each for one in tensors):
        raise PackageError(f"{path}: its parts have different ranks, which one module of PEFT cannot have")
    scale = method["alpha"] / (math.sqrt(each) if method["use_rslora"] else each)
    made = {"lora_A.weight": torch.cat([one["a"] for one in tensors]), "lora_B.weight": back}
    if method["kind"] == "dora":
        if len(own) != len(places):
            raise PackageError(f"{path}: a DoRA of a part of one linear has no form in PEFT")
        magnitude = torch.zeros(outputs)
        for place, one in zip(own, tensors, strict=True):
            magnitude[_rows(place)] = one["magnitude"]
        made["lora_magnitude_vector"] = magnitude
    return _Written(made, rank, scale * rank)


def _inner(package: Package, facts: Facts) -> dict[str, _Written]:
    """(IA)³ of what the feed-forward block's last linear takes: a row, not a column."""
    return {
        path: _Written({"ia3_l": package.tensors[key].reshape(1, -1) * float((package.manifest.method or {})["alpha"])})  # type: ignore[arg-type]
        for path, places in facts.places.items()
        for place in places
        if (key := f"adapter/{place.site}.input/scale") in package.tensors
    }


def _sites(modules: Mapping[str, _Written], facts: Facts, inputs: bool) -> set[str]:
    """The sites that the modules stand for, with those of their inputs where these may be meant."""
    own = {place.site for path in modules for place in facts.places[path]}
    return own | ({f"{site}.input" for site in own} if inputs else set())


def _first(method: Mapping[str, Any]) -> str:
    return "scale" if method["kind"] == "ia3" else "a"


def _of(package: Package, site: str) -> dict[str, torch.Tensor]:
    begin = f"adapter/{site}/"
    return {key.removeprefix(begin): value for key, value in package.tensors.items() if key.startswith(begin)}


def _rows(place: Place) -> slice | torch.Tensor:
    return slice(None) if place.rows is None else place.rows


def _config(base: str, method: Mapping[str, Any], modules: Mapping[str, _Written], before: str) -> dict[str, Any]:
    paths = [f"{before}{path}" for path in modules]
    config: dict[str, Any] = {
        "base_model_name_or_path": base or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "modules_to_save": None,
        "target_modules": paths,
        "task_type": None,
    }
    if method["kind"] == "ia3":
        inner = [f"{before}{path}" for path, one in modules.items() if one.tensors["ia3_l"].shape[0] == 1]
        config.pop("bias")
        return config | {"peft_type": "IA3", "feedforward_modules": inner, "init_ia3_weights": True}
    ranks, alphas = ({path: getattr(one, key) for path, one in modules.items()} for key in ("rank", "alpha"))
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    return config | {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {f"{before}{path}": value for path, value in ranks.items() if value != rank},
        "alpha_pattern": {f"{before}{path}": value for path, value in alphas.items() if value != alpha},
        "lora_dropout": method["dropout"],
        "use_dora": method["kind"] == "dora",
        "use_rslora": False,
        "init_lora_weights": True,
    }
