"""AdapterHub's LoRA, DoRA, VeRA and (IA)³: all of them "lora" in its files, told apart by fields.

    lora_A -> a (r, in)      lora_B -> b (out, r)      m.weight -> magnitude      (IA)³: lora_B (out, 1) -> scale (out,)

One linear that makes query, key and value has one LoRA for those that are adapted, A (r·n, in) and B (n·out, r), block
by block; it becomes one LoRA a part. AdapterHub's VeRA trains whole matrices, ΔW = B' B D A: with A' = D·A and
b = B'·B this is a LoRA, exactly. Which of the linears are adapted is read off the tensors, not off the flags: Llama
and Mistral swap the names of two. Until version 1.1 alpha was written and never used: there alpha was r.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch

from graftwork.errors import PackageError
from graftwork.registry.foreign.imported import Facts, Ledger
from graftwork.registry.foreign.keys import Key
from graftwork.registry.foreign.places import Layout, bare

DEFAULTS: dict[str, Any] = {
    "selfattn_lora": True,
    "intermediate_lora": False,
    "output_lora": False,
    "attn_matrices": ["q", "v"],
    "leave_out": [],
    "r": 8,
    "alpha": 8,
    "dropout": 0.0,
    "init_weights": "lora",
    "init_weights_seed": None,
    "use_gating": False,
}
_APART = {"composition_mode": "add", "use_dora": False, "vera_d": None, "vera_b": None, "dtype": None}
_LETTERS = {"query": "q", "key": "k", "value": "v", "out": "o"}
_OLD = re.compile(r"adapters\.(0\.|1\.0\b)")


def lora_config(written: Mapping[str, Any], version: str, where: str, notes: list[str]) -> dict[str, Any]:
    """Our configuration from AdapterHub's; kind is lora, dora, vera or ia3. Raises PackageError: an unknown field."""
    config = DEFAULTS | _APART
    for key, value in written.items():
        if key == "architecture":
            continue
        if key not in config:
            raise PackageError(f"{where}: unknown field {key!r} of a LoRA, with value {value!r:.80}")
        config[key] = value
    apart = {key: config.pop(key) for key in _APART}
    if apart["composition_mode"] not in ("add", "scale"):
        raise PackageError(f"{where}: composition_mode {apart['composition_mode']!r} is neither add nor scale")
    if apart["composition_mode"] == "scale":
        kind = "ia3"
    elif apart["vera_d"] is not None or apart["vera_b"] is not None:
        kind = "vera"
    else:
        kind = "dora" if apart["use_dora"] else "lora"
    if _OLD.match(version) and config["r"] != config["alpha"]:
        notes.append(f"{version}: alpha {config['alpha']} was written and not used; it is r, {config['r']}, here")
        config["alpha"] = config["r"]
    return {"kind": kind, "dora": bool(apart["use_dora"]), **config}


def read_lora(
    ledger: Ledger, keys: list[Key], config: Mapping[str, Any], layout: Layout, facts: Facts
) -> dict[str, Any]:
    """Take every tensor of a LoRA and return the configuration that builds just these. Raises PackageError."""
    places: dict[str, dict[str, Key]] = {}
    for key in keys:
        if key.collection == "loras":
            places.setdefault(key.place, {})[key.leaf] = key
    shared = {k.leaf: k for k in keys if k.collection == "shared" and k.leaf in ("lora_A", "lora_B")}
    kinds: set[str] = set()
    for place, own in places.items():
        site = layout.site(place)
        if site is None:
            continue  # left over: the ledger names it
        tensors = {leaf: ledger.given[key.text] for leaf, key in own.items()}
        tensors, sources, how = _unfolded(ledger, config, tensors, own, shared)
        if layout.by_heads and not site.endswith("attn.qkv"):
            tensors = _padded(tensors, len(set(config["attn_matrices"]) & set("qkv")) if config["selfattn_lora"] else 1)
        if layout.by_heads and site.endswith("attn.qkv"):
            kinds |= _put_by_heads(ledger, bare(layout.prefix, place), tensors, sources, config, facts)
        else:
            kinds |= _put(ledger, site, tensors, sources, how, config, layout)
    return _config(config, kinds, layout, ledger)


def _unfolded(
    ledger: Ledger,
    config: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    own: Mapping[str, Key],
    shared: Mapping[str, Key],
) -> tuple[dict[str, torch.Tensor], dict[str, list[str]], str]:
    """Tensors by our name, the keys each comes from, and what was done."""
    if config["kind"] == "ia3":
        named = {"lora_B": "scale"}
        made = {"scale": _need(ledger, tensors, "lora_B", own).reshape(-1)}
        how = "flattened"
    elif config["kind"] == "vera":
        named, how = {}, "folded: A' = D·A and b = B'·B, one LoRA"
        if not shared:
            raise PackageError(
                f"{ledger.where}: a VeRA whose shared matrices are not in the file: AdapterHub loses them when it "
                "saves from a bare model. Save it again from a model with a head"
            )
        a, b = (_need(ledger, {n: ledger.given[k.text] for n, k in shared.items()}, n, shared) for n in _PAIR)
        d, back = (_need(ledger, tensors, name, own) for name in ("vera_D", "vera_B"))
        wrong = d.shape[-1] != a.shape[0] or back.shape[-1] != b.shape[0]
        if wrong:
            raise PackageError(f"{ledger.where}: VeRA's shared matrices do not fit {next(iter(own.values())).text!r}")
        made = {"a": d @ a, "b": back @ b}
        sources = {
            "a": [own["vera_D"].text, shared["lora_A"].text],
            "b": [own["vera_B"].text, shared["lora_B"].text],
        }
    else:
        named, how = {"lora_A": "a", "lora_B": "b"}, "copied"
        made = {new: _need(ledger, tensors, old, own) for old, new in named.items()}
    if config["kind"] != "vera":
        sources = {new: [own[old].text] for old, new in named.items()}
    for old, new in (("m.weight", "magnitude"), ("gate.weight", "gate.weight"), ("gate.bias", "gate.bias")):
        if old in tensors:
            made[new], sources[new] = tensors[old].reshape(-1) if new == "magnitude" else tensors[old], [own[old].text]
    return made, sources, how


_PAIR = ("lora_A", "lora_B")


def _need(ledger: Ledger, tensors: Mapping[str, torch.Tensor], leaf: str, own: Mapping[str, Key]) -> torch.Tensor:
    if leaf not in tensors:
        near = next(iter(own.values())).text if own else "the file"
        raise PackageError(f"{ledger.where}: {leaf} is missing beside {near!r}")
    return tensors[leaf]


def _put(
    ledger: Ledger,
    site: str,
    tensors: Mapping[str, torch.Tensor],
    sources: Mapping[str, list[str]],
    how: str,
    config: Mapping[str, Any],
    layout: Layout,
) -> set[str]:
    """Give one linear's tensors to its site, or to one site a part; returns the kinds of site."""
    head, _, kind = site.rpartition("/")
    parts = layout.merged.get(kind)
    if parts is None:
        for name, tensor in tensors.items():
            ledger.fold(sources[name], f"adapter/{site}/{name}", tensor, how)
        return {kind}
    chosen = [part for part in parts if _letter(part) in config["attn_matrices"]]
    if config["kind"] == "ia3" and config["alpha"] != 1 and not config["use_gating"]:
        for part in parts:
            if part not in chosen:  # alpha multiplies the whole output there, adapted or not
                ones = torch.ones(tensors["scale"].shape[0] // max(1, len(chosen)))
                ledger.fold(sources["scale"], f"adapter/{head}/{part}/scale", ones, f"ones: alpha reaches {part} too")
        return _sliced(ledger, head, chosen, tensors, sources) | set(parts)
    return _sliced(ledger, head, chosen, tensors, sources)


def _sliced(
    ledger: Ledger, head: str, chosen: list[str], tensors: Mapping[str, torch.Tensor], sources: Mapping[str, list[str]]
) -> set[str]:
    """Give every part of a merged linear its rows."""
    for number, part in enumerate(chosen):
        for name, tensor in tensors.items():
            sliced = _slice(ledger, name, tensor, number, len(chosen))
            ledger.fold(sources[name], f"adapter/{head}/{part}/{name}", sliced, f"sliced: part {number} for {part}")
    return set(chosen)


def _put_by_heads(
    ledger: Ledger,
    place: str,
    tensors: Mapping[str, torch.Tensor],
    sources: Mapping[str, list[str]],
    config: Mapping[str, Any],
    facts: Facts,
) -> set[str]:
    """DeBERTa's projection gives query, key and value head by head, and AdapterHub adapts thirds of it all the same.

    Its thirds are parts of all three. Each of them gets the whole A, and of B the rows that are its own.
    """
    sites = facts.places.get(place)
    if not sites or config["use_gating"]:
        why = "with gates it has no equal here" if sites else "give the base, which says how many heads it has"
        raise PackageError(f"{ledger.where}: {place!r} is adapted by thirds whose outputs lie head by head: {why}")
    letters = [letter in config["attn_matrices"] for letter in "qkv"]
    back = tensors.get("b", tensors.get("scale"))
    assert back is not None
    size, count = back.shape[0] // sum(letters), sum(letters)
    whole = torch.ones(3 * size) if "scale" in tensors else torch.zeros(3 * size, count * back.shape[1])
    thirds = [third for third in range(3) if letters[third]]
    for number, third in enumerate(thirds):
        rows, own = slice(third * size, (third + 1) * size), back[number * size : (number + 1) * size]
        if "scale" in tensors:
            whole[rows] = own
        else:
            whole[rows, number * back.shape[1] : (number + 1) * back.shape[1]] = own
    for site in sites:
        part = whole if site.rows is None else whole[site.rows]
        name = "scale" if "scale" in tensors else "b"
        ledger.fold(sources[name], f"adapter/{site.site}/{name}", part, "its rows of three thirds")
        if "a" in tensors:
            ledger.fold(sources["a"], f"adapter/{site.site}/a", tensors["a"], "copied to query, key and value")
    return {site.kind for site in sites}


def _padded(tensors: Mapping[str, torch.Tensor], times: int) -> dict[str, torch.Tensor]:
    """a and b of `times` their rank, with zeros: DeBERTa's projection needs that rank, and all linears have one."""
    padded = dict(tensors)
    if "a" in tensors:
        a, b = tensors["a"], tensors["b"]
        padded["a"] = torch.cat([a, a.new_zeros((times - 1) * a.shape[0], a.shape[1])])
        padded["b"] = torch.cat([b, b.new_zeros(b.shape[0], (times - 1) * b.shape[1])], dim=1)
    return padded


def _slice(ledger: Ledger, name: str, tensor: torch.Tensor, number: int, count: int) -> torch.Tensor:
    """Part `number` of `count` of a merged linear's tensor."""
    if not count or tensor.shape[0] % count:
        raise PackageError(f"{ledger.where}: {name} of shape {tuple(tensor.shape)} does not split into {count} parts")
    size = tensor.shape[0] // count
    return tensor[number * size : (number + 1) * size]


def _config(config: Mapping[str, Any], kinds: set[str], layout: Layout, ledger: Ledger) -> dict[str, Any]:
    """The configuration that says which linears have tensors."""
    config = dict(config)
    dora = config.pop("dora")
    if layout.by_heads and config["kind"] != "ia3" and kinds & {"attn.query", "attn.key", "attn.value"}:
        count = len(set(config["attn_matrices"]) & set("qkv"))
        config |= {"r": config["r"] * count, "alpha": config["alpha"] * count}
    attention = {_letter(kind) for kind in kinds if kind.startswith(("attn.", "cross."))}
    config["attn_matrices"] = [letter for letter in "qkvo" if letter in attention]
    config["selfattn_lora"] = any(kind.startswith("attn.") for kind in kinds)
    config["crossattn_lora"] = any(kind.startswith("cross.") for kind in kinds)
    config["intermediate_lora"] = "ffn.up" in kinds
    config["gate_lora"] = "ffn.gate" in kinds
    config["output_lora"] = "ffn.down" in kinds
    if layout.swapped and (config["intermediate_lora"] or config["output_lora"]):
        ledger.notes.append("AdapterHub calls up_proj 'output' and down_proj 'intermediate' here; ours name the linear")
    if config["kind"] == "ia3":
        for field in ("r", "dropout"):
            config.pop(field)
        config["init_weights"] = "bert" if config["init_weights"] == "bert" else "ia3"
    if config["kind"] == "vera":
        ledger.notes.append("AdapterHub's VeRA trains whole matrices: folded into the LoRA that it equals")
        config["kind"] = "dora" if dora else "lora"
        config["init_weights"] = "lora"
    return config | ({"variant": "adapters"} if config["kind"] == "dora" else {})


def _letter(kind: str) -> str:
    return _LETTERS[kind.partition(".")[2]]
