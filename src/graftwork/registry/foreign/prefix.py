"""AdapterHub's prefix tuning: one vector or one small network for all layers, cut into ours, one a layer.

    flat             control_trans, a vector [P, 2·L, H, W] with keys at even and values at odd places
    reparameterised  wte (P, D) -> control_trans.0 -> tanh -> control_trans.2 (2·L·H·W): the last is cut by layers

Every attention module stores a copy of the whole group (`….pool.…`); copies must equal what they copy, and are left
out. Layers that the configuration leaves out have no part of the vector.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch

from graftwork.errors import PackageError
from graftwork.registry.foreign.imported import Facts, Ledger
from graftwork.registry.foreign.keys import Key
from graftwork.registry.foreign.places import Layout, Stack, site_name

DEFAULTS: dict[str, Any] = {
    "encoder_prefix": True,
    "cross_prefix": True,
    "leave_out": [],
    "flat": False,
    "prefix_length": 30,
    "bottleneck_size": 512,
    "non_linearity": "tanh",
    "dropout": 0.0,
    "use_gating": False,
    "shared_gating": True,
    "init_weights_seed": None,
}
_LAYER = re.compile(r"layer\.(\d+)/")


def prefix_config(written: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Our configuration from AdapterHub's. Raises PackageError for an unknown field."""
    config = dict(DEFAULTS)
    for key, value in written.items():
        if key == "architecture":
            continue
        if key not in config:
            raise PackageError(f"{where}: unknown field {key!r} of a prefix, with value {value!r:.80}")
        config[key] = value
    return {"kind": "prefix_tuning", **config}


def read_prefix(ledger: Ledger, keys: list[Key], config: Mapping[str, Any], layout: Layout, facts: Facts) -> None:
    """Take every tensor of a prefix: its groups, the copies of them, and the gates. Raises PackageError."""
    prefixes = [key for key in keys if key.collection == "prefixes"]
    originals = {key.leaf: key for key in prefixes if not key.copy and layout.is_root(key.place)}
    copies = [key for key in prefixes if key.copy]
    for key in copies:
        _ignore_copy(ledger, key, originals)
    groups: dict[str, dict[str, Key]] = {}
    for leaf, key in originals.items():
        location, _, rest = leaf.partition(".")
        groups.setdefault(location, {})[rest] = key
    layers = {site for key in copies if (site := layout.site(key.place)) is not None}
    for location, own in groups.items():
        stack, kind = _place(ledger, layout, location)
        sites = _sites(ledger, stack, kind, layers, config, facts, layout)
        if config["flat"]:
            _take_flat(ledger, own, sites, config, facts)
        else:
            _take_network(ledger, own, sites, f"{stack.name}_{kind}" if stack.name else kind)
    for key in keys:
        site = layout.site(key.place) if key.collection == "gates" else None
        if site is not None:
            ledger.take(key.text, f"adapter/{site}/gate.{key.leaf}")


def _ignore_copy(ledger: Ledger, key: Key, originals: Mapping[str, Key]) -> None:
    original = originals.get(key.leaf)
    if original is None:
        raise PackageError(f"{ledger.where}: {key.text!r} copies a prefix that the file does not hold itself")
    if not torch.equal(ledger.given[original.text], ledger.given[key.text]):
        raise PackageError(f"{ledger.where}: {key.text!r} should be a copy of {original.text!r} and differs from it")
    ledger.ignore(key.text, f"a copy of {original.text}")


def _place(ledger: Ledger, layout: Layout, location: str) -> tuple[Stack, str]:
    for stack in layout.stacks:
        if location in stack.prefixes:
            return stack, stack.prefixes[location]
    known = [name for stack in layout.stacks for name in stack.prefixes]
    raise PackageError(f"{ledger.where}: a prefix at {location!r}, which {layout.model_types} has not: {known}")


def _sites(
    ledger: Ledger,
    stack: Stack,
    kind: str,
    copied: set[str],
    config: Mapping[str, Any],
    facts: Facts,
    layout: Layout,
) -> list[str]:
    """The kv sites of a group in the order of its parts: those that hold a copy of it, or those of the base."""
    named = re.compile(re.escape(site_name(stack.name, 0, f"{kind}.kv")).replace("layer\\.0/", r"layer\.\d+/"))
    known = copied or set(facts.kv)
    if not known:
        raise PackageError(
            f"{ledger.where}: how many layers the prefix is for is not in the file; give the base it was made for"
        )
    numbers = sorted(layer_number(site) for site in known if named.fullmatch(site))
    before = _layers_before(stack, layout, known)
    kept = [number for number in numbers if number + before not in config["leave_out"]]
    return [site_name(stack.name, number, f"{kind}.kv") for number in kept]


def _layers_before(stack: Stack, layout: Layout, known: set[str]) -> int:
    """How many layers stand before a stack, as depths count: encoder first."""
    if layout.stacks[0] is stack:
        return 0
    first = layout.stacks[0].name
    return len({layer_number(site) for site in known if site.startswith(f"{first}.layer.")})


def layer_number(site: str) -> int:
    """3 of decoder.layer.3/cross.kv; -1 where there is none."""
    match = _LAYER.search(site)
    return int(match.group(1)) if match else -1


def _take_flat(
    ledger: Ledger, own: Mapping[str, Key], sites: list[str], config: Mapping[str, Any], facts: Facts
) -> None:
    key = own.get("control_trans")
    if key is None:
        raise PackageError(f"{ledger.where}: a flat prefix without control_trans; it holds {sorted(own)}")
    vector, length = ledger.given[key.text], int(config["prefix_length"])
    shapes = {facts.kv[site] for site in sites if site in facts.kv}
    if len(shapes) != 1:
        raise PackageError(
            f"{ledger.where}: a prefix is one long vector; give the base it was made for, which says how many heads of "
            "what width its keys have"
        )
    heads, width = shapes.pop()
    if vector.numel() != length * 2 * len(sites) * heads * width:
        raise PackageError(
            f"{ledger.where}: {key.text!r} has {vector.numel()} numbers; {length} positions in {len(sites)} layers of "
            f"{heads} heads of {width} need {length * 2 * len(sites) * heads * width}"
        )
    cut = vector.reshape(length, 2 * len(sites), heads, width)
    for number, site in enumerate(sites):
        how = f"sliced: layer {number} of {len(sites)}"
        ledger.take(key.text, f"adapter/{site}/keys", cut[:, 2 * number], how)
        ledger.take(key.text, f"adapter/{site}/values", cut[:, 2 * number + 1], how)


def _take_network(ledger: Ledger, own: Mapping[str, Key], sites: list[str], location: str) -> None:
    wanted = {
        "wte.weight": f"{location}.embedding",
        "control_trans.0.weight": f"{location}.down.weight",
        "control_trans.0.bias": f"{location}.down.bias",
    }
    last = ("control_trans.2.weight", "control_trans.2.bias")
    if missing := [leaf for leaf in (*wanted, *last) if leaf not in own]:
        raise PackageError(f"{ledger.where}: prefix {location}: {', '.join(missing)} missing; it holds {sorted(own)}")
    for leaf, name in wanted.items():
        ledger.take(own[leaf].text, f"adapter/shared/{name}")
    for leaf in last:
        tensor = ledger.given[own[leaf].text]
        if not sites or tensor.shape[0] % len(sites):
            raise PackageError(f"{ledger.where}: {own[leaf].text!r} does not split into {len(sites)} layers")
        size = tensor.shape[0] // len(sites)
        for number, site in enumerate(sites):
            part = tensor[number * size : (number + 1) * size]
            name = f"adapter/{site}/project.{leaf.rpartition('.')[2]}"
            ledger.take(own[leaf].text, name, part, f"sliced: layer {number} of {len(sites)}")
