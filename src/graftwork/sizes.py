"""How many parameters methods, fusions and heads have on a model, and what many adapters take on disk.

Everything is counted by building the modules on the meta device: shapes without weights, however large the model.
Percentages name what they are of: all parameters of the model (pooler and embeddings too), or those of its layers.
"""

import re
from collections.abc import Sequence
from typing import Any

import torch

from graftwork.compose.parts import Parts
from graftwork.compose.tree import Fuse
from graftwork.core.backbone import Backbone
from graftwork.core.counting import counted
from graftwork.core.fusion import FUSIONS
from graftwork.core.heads import HeadConfig
from graftwork.core.kinds import read_config
from graftwork.errors import UserError
from graftwork.summary import LIGHT, heavy

_MEMBERS = 2  # that a fusion is counted with; its size does not depend on them
_STORED = re.compile(r"\s*([1-9][0-9]*)\s*\*\s*(\S.*)")
_BYTES = {"float32": 4, "bfloat16": 2}


def of_layers(backbone: Backbone) -> int:
    """The parameters of its layers: no embeddings, no pooler, no head; layers that share weights count once."""
    layers = {id(layer): layer for site in backbone.sites if site.layer >= 0 for layer in [backbone.layer_of(site)]}
    own = {id(parameter): parameter for layer in layers.values() for parameter in layer.parameters()}
    return sum(parameter.numel() for parameter in own.values())


def of_method(backbone: Backbone, method: str) -> dict[str, Any]:
    """A method's modules and parameters, without a head. Raises AdapterError where it finds no place."""
    parts = Parts()
    with torch.device("meta"):
        parts.add_adapter("counted", read_config(method), backbone)
    count = parts.count("adapters", "counted")
    return {"method": method, "modules": len(parts.modules_of("adapters", "counted")), **_shares(count, backbone)}


def of_fusion(backbone: Backbone, config: str) -> dict[str, Any]:
    """A fusion of bottlenecks after every feed-forward block, and what is to be said of one that is heavy."""
    parts = Parts()
    names = [f"member-{number}" for number in range(_MEMBERS)]
    with torch.device("meta"):
        for name in names:
            parts.add_adapter(name, read_config("seq_bn"), backbone)
        parts.add_fusion(Fuse(*names, name="counted"), FUSIONS[config], backbone)
    count = parts.count("fusions", "counted")
    note = f"above {LIGHT:g} %: no small module" if heavy(config, count, counted(backbone.model)) else ""
    return {"fusion": config, **_shares(count, backbone), "note": note}


def of_head(backbone: Backbone, config: HeadConfig) -> int:
    """The parameters of a head."""
    parts = Parts()
    with torch.device("meta"):
        parts.add_head("counted", config, backbone)
    return parts.count("heads", "counted")


def storage(backbone: Backbone, wanted: Sequence[str]) -> dict[str, Any]:
    """What adapters take on disk beside one copy of their model, and whole models in their place: millions of bytes.

    wanted: `16*seq_bn_inv[reduction_factor=2]` for each sort of adapter. Heads and manifests are not counted. Raises
    UserError for what cannot be read, AdapterError for a method that finds no place.
    """
    rows = []
    for text in wanted:
        found = _STORED.fullmatch(text)
        if found is None:
            raise UserError(f"--store {text!r}: write a number, *, and a method, as in '16*seq_bn' or '9*lora[r=4]'")
        count, made = int(found[1]), of_method(backbone, found[2].strip())
        each = made["parameters"]
        sizes = {f"MB in {dtype}": _megabytes(count * each * size) for dtype, size in _BYTES.items()}
        rows.append({"adapters": count, "method": made["method"], "parameters each": each, **sizes})
    base, number = counted(backbone.model), sum(row["adapters"] for row in rows)
    adapters = sum(row["adapters"] * row["parameters each"] for row in rows)
    totals = [
        {
            "dtype": dtype,
            "adapters, MB": _megabytes(adapters * size),
            "one model and they, MB": _megabytes((base + adapters) * size),
            "as many whole models, MB": _megabytes(number * base * size),
            "times less": round(number * base / (base + adapters), 1),
        }
        for dtype, size in _BYTES.items()
    ]
    return {"storage": rows, "in all": totals}


def _megabytes(size: int) -> float:
    return round(size / 1e6, None if size >= 1e8 else 2)


def _shares(count: int, backbone: Backbone) -> dict[str, Any]:
    of_all, in_layers = counted(backbone.model), of_layers(backbone)
    return {"parameters": count, "% of model": 100 * count / of_all, "% of layers": 100 * count / in_layers}
