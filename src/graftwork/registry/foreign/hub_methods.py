"""Our methods as AdapterHub has them: a configuration of its own, and tensors under the keys of its state dicts.

The inverse of the readers. What AdapterHub has no field for, or would compute differently, is refused with the reason.
Keys are those of a bare model, which its loader takes for any class.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch

from graftwork.errors import PackageError
from graftwork.registry.foreign import bottleneck, lora, prefix, reft
from graftwork.registry.foreign.imported import Facts
from graftwork.registry.foreign.places import Layout

Tensors = Mapping[str, torch.Tensor]  # site/parameter -> tensor
_BACK = {"down": "adapter_down.0", "up": "adapter_up", "norm_after": "adapter_norm_after", "gate": "gate"}
_PHM_BACK = {own: theirs for theirs, own in bottleneck.PHM_LEAVES.items()}
_SHARED_BACK = {own: theirs for theirs, own in bottleneck.SHARED.items()}


class Hub:
    """One adapter on its way out: its name and layout, and what was collected under AdapterHub's keys."""

    def __init__(self, name: str, layout: Layout, facts: Facts, width: int) -> None:
        self.name, self.layout, self.facts, self.width = name, layout, facts, width
        self.state: dict[str, torch.Tensor] = {}

    def refuse(self, why: str) -> PackageError:
        """The error that says why AdapterHub has no such thing."""
        return PackageError(f"{self.name!r} cannot be written for AdapterHub: {why}")

    def place(self, site: str, *, layer: bool = False) -> str:
        """The module path of a site, or of its layer. Raises PackageError for one that AdapterHub never adapts."""
        paths = self.layout.paths(site, layer=layer)
        if not paths:
            raise self.refuse(f"it has nothing at {site} of a {self.layout.model_types[0]}")
        return next((path for path in paths if path in self.facts.places), paths[0])

    def put(self, place: str, collection: str, leaf: str, tensor: torch.Tensor) -> None:
        """A tensor under <place>.<collection>.<name>.<leaf>."""
        at = f"{place}." if place else ""
        self.state[f"{at}{collection}.{self.name}.{leaf}"] = tensor.detach().clone().contiguous()


def write_method(hub: Hub, method: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    """Collect the tensors of a method and return AdapterHub's configuration. Raises PackageError."""
    kind = method["kind"]
    if kind == "union":
        members = []
        for number, member in enumerate(method["members"]):
            own = {key.replace(f"/{number}.", "/"): value for key, value in tensors.items() if f"/{number}." in key}
            members.append(write_method(hub, member, own))
        return {"architecture": "union", "configs": members}
    writers = {
        "bottleneck": _bottleneck,
        "lora": _lora,
        "dora": _lora,
        "ia3": _lora,
        "prefix_tuning": _prefix,
        "prompt_tuning": _prompt,
        "reft": _reft,
    }
    if kind not in writers:
        raise hub.refuse(f"it has no method like {kind!r} of ours; there are {', '.join(writers)}")
    if method.get("stacks"):
        raise hub.refuse(f"it cannot leave out whole stacks, and this one goes to {method['stacks']} only")
    return writers[kind](hub, method, tensors)


def _bottleneck(hub: Hub, method: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    for key, plain in (("linears", []), ("bias", True), ("train_norms", False), ("shared", False)):
        if method.get(key, plain) not in (plain, tuple(plain) if isinstance(plain, list) else plain):
            raise hub.refuse(f"it has no {key} = {method[key]!r}")
    fields = {**bottleneck.DEFAULTS, **bottleneck.PHM, **bottleneck.INVERTIBLE}
    config = {key: method.get(key, default) for key, default in fields.items()}
    if config["inv_adapter"] == "glow":
        raise hub.refuse("its GLOW fails on every input")
    if config["init_weights"] not in ("bert", "mam_adapter", "houlsby"):
        config["init_weights"] = "bert"  # only what is trained matters by now
    if method.get("bottleneck_size") is not None:
        if hub.width % method["bottleneck_size"]:
            raise hub.refuse(f"a bottleneck of {method['bottleneck_size']} is no whole part of width {hub.width}")
        config["reduction_factor"] = hub.width // method["bottleneck_size"]
    for key, tensor in tensors.items():
        site, _, parameter = key.rpartition("/")
        module, _, leaf = parameter.partition(".")
        if site == "shared":
            hub.put("", "shared_parameters", _SHARED_BACK[parameter], tensor)
        elif site == hub.layout.embed_site:
            hub.put(hub.layout.embed, "invertible_adapters", parameter, tensor)
        elif parameter == "scale":
            hub.put(hub.place(site), "adapters", "scaling", tensor)
        elif module == "norm_before":
            hub.put(hub.place(site), "adapters", f"adapter_norm_before.{leaf}", tensor)
            hub.put(hub.place(site), "adapters", f"adapter_down.0.{leaf}", tensor)
        else:
            theirs = "adapter_down.1" if module == "down" and config["ln_before"] else _BACK[module]
            leaf = _PHM_BACK[leaf] if config["phm_layer"] and module in ("down", "up") else leaf
            hub.put(hub.place(site), "adapters", f"{theirs}.{leaf}", tensor)
    return config


def _lora(hub: Hub, method: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    kind = method["kind"]
    if "o" in method["attn_matrices"]:
        raise hub.refuse("its LoRA never adapts the output of an attention")
    if method.get("gate_lora"):
        raise hub.refuse("its LoRA never adapts the gate of a feed-forward block")
    if method.get("inner_ffn"):
        raise hub.refuse("its (IA)³ scales the first linear of a feed-forward block, not what the last one takes")
    if kind == "dora" and method["variant"] != "adapters":
        raise hub.refuse("its DoRA is another function than the paper's; train with variant='adapters' to write it")
    if isinstance(method.get("r"), Mapping):
        raise hub.refuse("its LoRA has one rank for all layers")
    config = {key: method.get(key, default) for key, default in lora.DEFAULTS.items()}
    swapped = ("output_lora", "intermediate_lora") if hub.layout.swapped else ("intermediate_lora", "output_lora")
    config |= dict(zip(swapped, (method["intermediate_lora"], method["output_lora"]), strict=True))
    config["selfattn_lora"] = method["selfattn_lora"] or method["crossattn_lora"]
    if method.get("use_rslora"):
        config["alpha"] = method["alpha"] * math.sqrt(method["r"])
    config |= {"architecture": "lora", "composition_mode": "scale" if kind == "ia3" else "add", "dtype": None}
    config |= {"use_dora": kind == "dora", "vera_d": None, "vera_b": None}
    config |= {"r": 1, "dropout": 0.0, "init_weights": "ia3"} if kind == "ia3" else {}
    for place, parts in _by_linear(hub, tensors).items():
        for leaf, theirs in (("a", "lora_A"), ("b", "lora_B"), ("scale", "lora_B"), ("magnitude", "m.weight"),
                             ("gate.weight", "gate.weight"), ("gate.bias", "gate.bias")):  # fmt: skip
            if leaf in parts[0]:
                whole = torch.cat([part[leaf] for part in parts])
                column = leaf in ("scale", "magnitude")
                hub.put(place, "loras", theirs, whole.reshape(-1, 1) if column else whole)
    return config


def _by_linear(hub: Hub, tensors: Tensors) -> dict[str, list[dict[str, torch.Tensor]]]:
    """Module path -> parameters of every part of the linear there, query before key before value."""
    sites: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        site, _, parameter = key.rpartition("/")
        sites.setdefault(site, {})[parameter] = tensor
    found: dict[str, dict[int, dict[str, torch.Tensor]]] = {}
    for site, own in sites.items():
        head, _, kind = site.rpartition("/")
        whole = next((one for one, parts in hub.layout.merged.items() if kind in parts), None)
        if whole is not None and hub.layout.by_heads:
            raise hub.refuse("it adapts thirds of DeBERTa's projection, which are no query, key and value")
        order = hub.layout.merged[whole].index(kind) if whole else 0
        found.setdefault(hub.place(f"{head}/{whole or kind}"), {})[order] = own
    return {place: [parts[order] for order in sorted(parts)] for place, parts in found.items()}


def _prefix(hub: Hub, method: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    config = {"architecture": "prefix_tuning"} | {k: method.get(k, v) for k, v in prefix.DEFAULTS.items()}
    done: set[tuple[str, str]] = set()  # a kind of attention may have two names, of which the first is written
    for stack in hub.layout.stacks:
        for location, kind in stack.prefixes.items():
            begin = f"{stack.name}.layer." if stack.name else "layer."
            sites = {key.rpartition("/")[0] for key in tensors if key.startswith(begin) and f"/{kind}.kv/" in key}
            if not sites or (stack.name, kind) in done:
                continue
            done.add((stack.name, kind))
            ordered = sorted(sites, key=prefix.layer_number)
            _put_group(hub, tensors, ordered, location, f"{stack.name}_{kind}" if stack.name else kind, config["flat"])
            for site in ordered:
                for leaf in ("weight", "bias"):
                    if f"{site}/gate.{leaf}" in tensors:
                        place = f"{hub.place(site)}.prefix_tuning"
                        hub.put(place, "prefix_gates", leaf, tensors[f"{site}/gate.{leaf}"])
    return config


def _put_group(hub: Hub, tensors: Tensors, sites: list[str], location: str, shared: str, flat: bool) -> None:
    place = "prefix_tuning"
    if flat:
        both = [tensors[f"{site}/{name}"] for site in sites for name in ("keys", "values")]
        hub.put(place, "prefix_tunings", f"{location}.control_trans", torch.stack(both, dim=1).reshape(-1))
        return
    hub.put(place, "prefix_tunings", f"{location}.wte.weight", tensors[f"shared/{shared}.embedding"])
    for leaf in ("weight", "bias"):
        hub.put(place, "prefix_tunings", f"{location}.control_trans.0.{leaf}", tensors[f"shared/{shared}.down.{leaf}"])
        whole = torch.cat([tensors[f"{site}/project.{leaf}"] for site in sites])
        hub.put(place, "prefix_tunings", f"{location}.control_trans.2.{leaf}", whole)


def _prompt(hub: Hub, method: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    (tensor,) = tensors.values()
    hub.put("prompt_tuning", "prompt_tunings", "prompt_embedding.weight", tensor)
    keys = [key for key in reft.PROMPT if key != "random_uniform_scale"]
    return {"architecture": "prompt_tuning"} | {key: method.get(key, reft.PROMPT[key]) for key in keys}


def _reft(hub: Hub, method: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    if not method["subtract_projection"]:
        raise hub.refuse("its files cannot say that a projection is not subtracted: a DiReFT would load as a NoReFT")
    if method.get("leave_out"):
        left = sorted(method["leave_out"])
        raise hub.refuse(f"its ReFT names layers and leaves none out; say layers instead of leave_out {left}")
    sites = sorted({key.rpartition("/")[0] for key in tensors})
    for site in sites:
        for unit, side in enumerate(("prefix", "suffix")):
            if side == "suffix" and method["tied_weights"]:
                continue
            used = side if f"{site}/{side}.projection" in tensors else "prefix" if side == "suffix" else "suffix"
            own = {leaf: tensors[f"{site}/{used}.{leaf}"] for leaf in ("source.weight", "source.bias", "projection")}
            at = f"{hub.place(site, layer=True)}.reft_layer"
            hub.put(at, "refts", f"units.{unit}.learned_source.weight", own["source.weight"])
            hub.put(at, "refts", f"units.{unit}.learned_source.bias", own["source.bias"])
            _put_projection(hub, at, f"units.{unit}.projection", own["projection"], method["orthogonality"])
    keys = [key for key in reft.REFT if key != "subtract_projection"]
    config = {key: method.get(key, reft.REFT[key]) for key in keys}
    return config | {"architecture": "reft", "output_reft": True, "dtype": None}


def _put_projection(hub: Hub, at: str, leaf: str, matrix: torch.Tensor, orthonormal: bool) -> None:
    """A plain matrix, or the reflectors and the base that torch's parametrisation makes it of."""
    if not orthonormal:
        hub.put(at, "refts", f"{leaf}.weight", matrix)
        return
    rank, width = matrix.shape
    rows, _ = torch.linalg.qr(matrix.double().mT, mode="complete")
    signs = torch.sign((rows[:, :rank] * matrix.double().mT).sum(dim=0))
    rows[:, :rank] *= signs
    start = torch.zeros(rank, width) if rank == width else -torch.eye(rank, width)
    hub.put(at, "refts", f"{leaf}.parametrizations.weight.original", start)
    hub.put(at, "refts", f"{leaf}.parametrizations.weight.0.base", rows.to(matrix.dtype))
