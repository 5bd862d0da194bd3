"""PEFT's adapters, read: LoRA, DoRA, (IA)³ and VeRA, `adapter_config.json` beside `adapter_model.safetensors` or .bin.

    lora_A.weight -> a      lora_B.weight -> b      lora_magnitude_vector -> magnitude      ia3_l -> scale

Ranks and alphas may differ from module to module there, and are one for an adapter here: lower ranks are filled up
with zeros, other scales go into b, both exactly. VeRA becomes the LoRA it equals. Raises PackageError for every option
that changes the function and is not read, for PEFT itself drops what it does not know.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from graftwork.errors import PackageError
from graftwork.registry.foreign.files import read_json, read_weights
from graftwork.registry.foreign.imported import Asserted, Facts, Imported, Ledger, Place, honest
from graftwork.registry.foreign.linears import ROOT, means, need_base, placement, places_of

CONFIG, SAFE, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
# parameter of a module -> ours
_LEAVES = {
    "lora_A.weight": "a",
    "lora_B.weight": "b",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    "ia3_l": "scale",
    "vera_lambda_d": "d",
    "vera_lambda_b": "b",
}
_SHARED = {"vera_A", "vera_B"}
# keys that change nothing of a trained adapter, or that this file reads itself
_SETTLED = {
    *("peft_type", "peft_version", "base_model_name_or_path", "revision", "task_type", "inference_mode"),
    *("auto_mapping", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "r", "lora_alpha"),
    *("lora_dropout", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "fan_in_fan_out", "bias"),
    *("init_lora_weights", "init_ia3_weights", "init_weights", "feedforward_modules", "modules_to_save"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config", "megatron_core"),
    *("ensure_weight_tying", "qalora_group_size", "vera_dropout", "projection_prng_key", "save_projection"),
    *("d_initial", "velora_config", "use_bdlora", "arrow_config", "lora_ga"),
}
_MEANT = {"bias": ("none", None, False), "use_bdlora": (None, False), "arrow_config": (None,), "velora_config": (None,)}
# beginnings that leave the base as it is; PiSSA, OLoRA, CorDA, LoftQ move a part of its weights into the adapter
_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class _Module:
    """What a file holds for one module: our names -> tensors and the keys they come from, and its scale."""

    tensors: Mapping[str, torch.Tensor]
    sources: Mapping[str, str]
    scale: float = 1.0


def read_peft(folder: Path | str, base: Asserted, facts: Facts, *, name: str = "") -> Imported:
    """The adapter of a folder, for a base whose linears `facts` knows. Raises NotFound, PackageError."""
    with honest(str(folder)):
        return _read(Path(folder), base, facts, name)


def _read(folder: Path, base: Asserted, facts: Facts, name: str) -> Imported:
    config, where = read_json(folder, CONFIG), str(folder / CONFIG)
    kind = str(config.get("peft_type")).upper()
    if kind not in ("LORA", "IA3", "VERA"):
        raise PackageError(f"{where}: peft_type {config.get('peft_type')!r} is not read; there are LORA, IA3, VERA")
    need_base(facts, where)
    _refuse_options(config, where)
    file, tensors = read_weights(folder, SAFE, PICKLED)
    ledger = Ledger(str(folder / file), tensors)
    modules = _modules(ledger, config, kind)
    if kind == "VERA":
        modules = _unfolded(ledger, modules)
    method = _take(ledger, modules, config, kind, base, facts)
    _ignore_base(ledger, facts)
    ledger.close()
    return Imported(
        name=name or folder.name,
        role="task",
        base=base,
        tensors=ledger.tensors,
        fates=tuple(ledger.fates),
        method=method,
        notes=tuple(ledger.notes),
        source={"tool": "PEFT", "version": str(config.get("peft_version") or ""), "peft_type": kind},
    )


def _refuse_options(config: Mapping[str, Any], where: str) -> None:
    for key, allowed in _MEANT.items():
        if config.get(key) not in allowed:
            raise PackageError(f"{where}: {key} {config[key]!r} is not read; it must be one of {allowed}")
    if config.get("init_lora_weights") not in _STARTS:
        raise PackageError(
            f"{where}: init_lora_weights {config['init_lora_weights']!r} changed the base's own weights, which are not "
            "in the file; save it with PEFT's conversion to a plain LoRA"
        )
    for key, value in config.items():
        if key not in _SETTLED and value not in (None, False, [], {}, ""):
            raise PackageError(f"{where}: option {key!r} with value {value!r:.80} changes the adapter and is not read")


def _modules(ledger: Ledger, config: Mapping[str, Any], kind: str) -> dict[str, _Module]:
    """Path of a module -> what the file holds for it."""
    found: dict[str, dict[str, str]] = {}
    for key in ledger.given:
        for leaf, own in _LEAVES.items():
            if key.startswith(ROOT) and key.endswith(f".{leaf}"):
                found.setdefault(key.removesuffix(f".{leaf}"), {})[own] = key
    needed = {"LORA": {"a", "b"}, "IA3": {"scale"}, "VERA": {"d", "b"}}[kind]
    if config.get("use_dora"):
        needed.add("magnitude")
    modules = {}
    for path, sources in found.items():
        if sources.keys() != needed:
            raise PackageError(f"{ledger.where}: module {path!r} has {sorted(sources)}; expected {sorted(needed)}")
        tensors = {own: ledger.given[key] for own, key in sources.items()}
        scale = _scale(path, tensors, config, ledger.where) if kind == "LORA" else 1.0
        modules[path] = _Module(tensors, sources, scale)
    if not modules:
        raise PackageError(f"{ledger.where}: holds no module of {kind}; its keys begin {sorted(ledger.given)[:3]}")
    return modules


def _scale(path: str, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], where: str) -> float:
    """alpha / r, or alpha / √r, of one module; its rank is that of its tensors."""
    rank = tensors["a"].shape[0]
    if tensors["a"].ndim != 2 or tensors["b"].ndim != 2 or tensors["b"].shape[1] != rank or not rank:
        shapes = [tuple(tensors[one].shape) for one in "ab"]
        raise PackageError(f"{where}: module {path!r} has factors of shapes {shapes}, which do not make a matrix")
    alpha = _pattern(config.get("alpha_pattern"), path, where, config.get("lora_alpha", 8))
    if not isinstance(alpha, int | float) or isinstance(alpha, bool):
        raise PackageError(f"{where}: alpha {alpha!r} should be a number")
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _pattern(patterns: Any, path: str, where: str, default: Any) -> Any:
    """The value of the first pattern that ends the path. A pattern is compared, never run as an expression."""
    for pattern, value in (patterns or {}).items():
        plain = str(pattern).removeprefix("^").removesuffix("$").replace("\\.", ".")
        if any(character in plain for character in "\\*+?[](){}|^$"):
            raise PackageError(f"{where}: pattern {pattern!r} is an expression; only names of modules are read")
        if path == plain or path.endswith(f".{plain}"):
            return value
    return default


def _unfolded(ledger: Ledger, modules: Mapping[str, _Module]) -> dict[str, _Module]:
    """VeRA as the LoRA that it equals: A' = diag(d)·A and B' = diag(b)·B, on the part of A and B that a module uses."""
    shared = {key.rpartition(".")[2]: key for key in ledger.given if key.rpartition(".")[2] in _SHARED}
    if shared.keys() != _SHARED:
        raise PackageError(f"{ledger.where}: VeRA's frozen matrices are not in the file; save it with save_projection")
    a, b = ledger.given[shared["vera_A"]], ledger.given[shared["vera_B"]]
    made = {}
    for path, module in modules.items():
        d, scale = module.tensors["d"], module.tensors["b"]
        tensors = {"a": d[:, None] * a[: len(d)], "b": scale[:, None] * b[: len(scale), : len(d)]}
        made[path] = _Module(tensors, {"a": module.sources["d"], "b": module.sources["b"]})
    for key in shared.values():
        ledger.ignore(key, "folded into every module: A' = diag(d)·A, B' = diag(b)·B")
    return made


def _take(
    ledger: Ledger, modules: Mapping[str, _Module], config: Mapping[str, Any], kind: str, base: Asserted, facts: Facts
) -> dict[str, Any]:
    """Give every module's tensors to its sites and return the configuration that builds just these."""
    placed = {path: places_of(path, facts, base.model_type) for path in modules}
    if lost := [path for path, places in placed.items() if not places]:
        raise PackageError(
            f"{ledger.where}: {len(lost)} modules are no linears of the base that we know, such as {lost[0]!r}; "
            f"it has {', '.join(list(facts.places)[:2])}, …"
        )
    if kind == "IA3":
        return _take_scales(ledger, modules, placed, facts)
    flags, extra = placement((place.site for places in placed.values() for place in places), facts)
    ranks = [module.tensors["a"].shape[0] for module in modules.values()]
    scales = {module.scale for module in modules.values()}
    rank, one = max(ranks), len(scales) == 1 and min(ranks) == max(ranks)
    for path, module in modules.items():
        for place in placed[path]:
            _take_pair(ledger, module, place, rank, path, 1.0 if one else module.scale)
    if extra and config.get("use_dora"):
        raise PackageError(
            f"{ledger.where}: a DoRA that leaves out {extra[0].site} and others: nothing stands for that"
        )
    for place in extra:
        _fill(ledger, place, {"a": torch.zeros(rank, place.inputs), "b": torch.zeros(place.width, rank)})
    dora = {"kind": "dora"} if config.get("use_dora") else {"kind": "lora"}
    alpha = scales.pop() * rank if one else float(rank)
    return {**dora, **flags, "r": rank, "alpha": alpha, "dropout": float(config.get("lora_dropout") or 0.0)}


def _take_scales(
    ledger: Ledger, modules: Mapping[str, _Module], placed: Mapping[str, tuple[Place, ...]], facts: Facts
) -> dict[str, Any]:
    """(IA)³: a column (outputs, 1) scales what a linear gives, a row (1, inputs) what the feed-forward's last takes."""
    inner = {path for path, module in modules.items() if module.tensors["scale"].shape[0] == 1}
    outer = [place.site for path, places in placed.items() if path not in inner for place in places]
    flags, _ = placement(outer, facts)
    for path, module in modules.items():
        for place in placed[path]:
            scale, site = module.tensors["scale"].reshape(-1), place.site
            if path in inner:
                if place.kind != "ffn.down" or len(scale) != place.inputs:
                    raise PackageError(
                        f"{ledger.where}: module {path!r} scales the {len(scale)} inputs of {place.kind}; read are the "
                        "inputs of the feed-forward block's last linear"
                    )
                site += ".input"
            else:
                scale = _rows(ledger, scale, place, path)
            ledger.take(module.sources["scale"], f"adapter/{site}/scale", scale, "flattened")
    depths = {place.depth for places in placed.values() for place in places}
    known = [place for places in facts.places.values() for place in places if place.depth in depths]
    for place in [p for p in known if inner and p.kind == "ffn.down" and not _holds(ledger, f"{p.site}.input")]:
        _fill(
            ledger,
            Place(f"{place.site}.input", place.depth, place.inputs, place.inputs),
            {"scale": torch.ones(place.inputs)},
        )
    for place in [p for p in known if means(flags, p.kind) and not _holds(ledger, p.site)]:
        _fill(ledger, place, {"scale": torch.ones(place.width)})
    meant = {
        p.depth for ps in facts.places.values() for p in ps if means(flags, p.kind) or (inner and p.kind == "ffn.down")
    }
    return {"kind": "ia3", **flags, "inner_ffn": bool(inner), "leave_out": sorted(meant - depths)}


def _holds(ledger: Ledger, site: str) -> bool:
    return f"adapter/{site}/scale" in ledger.tensors


def _take_pair(ledger: Ledger, module: _Module, place: Place, rank: int, path: str, scale: float) -> None:
    a, b = module.tensors["a"], _rows(ledger, module.tensors["b"], place, path)
    missing = rank - a.shape[0]
    how = [f"times {scale:g}"] if scale != 1.0 else []
    how += [f"filled with zeros to rank {rank}"] if missing else []
    how += ["sliced" if place.rows is not None else "copied"] if not how else []
    a = torch.cat([a, a.new_zeros(missing, a.shape[1])])
    b = torch.cat([b * scale, b.new_zeros(b.shape[0], missing)], dim=1)
    ledger.take(module.sources["a"], f"adapter/{place.site}/a", a, ", ".join(how))
    ledger.take(module.sources["b"], f"adapter/{place.site}/b", b, ", ".join(how))
    if "magnitude" in module.tensors:
        magnitude = _rows(ledger, module.tensors["magnitude"].reshape(-1), place, path)
        ledger.take(module.sources["magnitude"], f"adapter/{place.site}/magnitude", magnitude)


def _rows(ledger: Ledger, tensor: torch.Tensor, place: Place, path: str) -> torch.Tensor:
    """The rows of a linear's tensor that are a site's. Raises PackageError unless there are as many as it is wide."""
    own = tensor if place.rows is None else tensor[place.rows]
    if own.shape[0] != place.width:
        raise PackageError(
            f"{ledger.where}: module {path!r} has {tuple(tensor.shape)}, and {place.site} of the base is {place.width} "
            "wide: it was made for another base"
        )
    return own


def _fill(ledger: Ledger, place: Place, tensors: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        ledger.fold([], f"adapter/{place.site}/{name}", tensor, "")
    ledger.notes.append(f"{place.site} is not adapted in the file: filled with what changes nothing")


def _ignore_base(ledger: Ledger, facts: Facts) -> None:
    """PEFT saves the base's own embedding in some cases; it is no part of the adapter while it is the base's."""
    for key, value in ledger.given.items():
        own = facts.embedding
        if own is not None and value.shape == own.shape and torch.equal(value, own.to(value)):
            ledger.ignore(key, "the base's own embedding, unchanged")
