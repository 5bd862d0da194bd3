"""What a composition of packages costs to run: its folds on the meta device, from manifests alone, as plain data.

Multiplications are those of matrix products, for each token, in one layer; beside them those of the matrices of the
frozen layer (attention's products over the length of a text come on top of these). Nothing of the weights is read.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from graftwork.compose.agree import agrees
from graftwork.compose.execute import Batch, Executors
from graftwork.compose.fold import Folded, fold
from graftwork.compose.lower import lanes_of, runs_of
from graftwork.compose.parts import OUR_SEMANTICS, Parts
from graftwork.compose.reference import bind
from graftwork.compose.tree import BatchSplit, Block, Composition, fusions, leaves, show
from graftwork.compose.trunk import shares
from graftwork.core.backbone import Backbone, load_skeleton
from graftwork.core.fusion import FUSIONS, FusionConfig
from graftwork.core.kinds import read_config
from graftwork.manifest import Manifest

USUAL = "dynamic"  # what a fusion is counted as that no package holds
_AS_ADAPTERS = "it is read as `adapters` reads it, which differs from ours here (semantics: adapters-1)"


def costs(tree: Composition, manifests: Mapping[str, Manifest], model: str) -> list[dict[str, Any]]:
    """One row for each composition that rows or tokens run, and each kind of site whose plans are the same.

    manifests: of every adapter in the tree, by the name that it has there, and of the fusions that are stored; another
    is counted as a dynamic one. model: id, folder or `minilm`.
    Raises BackboneError for a model whose shape is not known, AdapterError for a package that does not fit it.
    """
    backbone = Backbone(load_skeleton(model))
    parts = _built(tree, manifests, backbone)
    batch = sum(_sizes(tree)) or 1
    runs = [part for _, lane in lanes_of(tree, batch) for _, part in runs_of(lane)]
    return [row for part in dict.fromkeys(runs) if part is not None for row in _rows(part, parts, backbone)]


def lanes(tree: Composition, manifests: Mapping[str, Manifest], model: str) -> str:
    """Where the rows of one text become lanes, each with an answer of its own. Arguments and errors as of `costs`."""
    backbone = Backbone(load_skeleton(model))
    backbone.model.eval()
    depths = [site.depth for site in backbone.sites]
    executors = Executors(_built(tree, manifests, backbone), backbone.normed, depths)
    rows = sum(_sizes(tree)) or 1
    batch = Batch(lanes_of(tree, rows), tree, rows, frozenset(), "reference")
    fork = executors.forked(batch, executors.routed(batch))
    late = None if fork is None else fork.on(backbone)
    if late is None or not late.entered or not shares(backbone):
        return f"rows are repeated at the entry of the model, {len(batch.lanes or ())} for {rows}"
    return str(late)


def _built(tree: Composition, manifests: Mapping[str, Manifest], backbone: Backbone) -> Parts:
    parts = Parts()
    with torch.device("meta"):
        for name in dict.fromkeys(leaves(tree)):
            manifest = manifests[name]
            parts.add_adapter(name, read_config(manifest.method or {}), backbone, manifest.semantics)
        for fuse in {fuse.name: fuse for fuse in fusions(tree)}.values():
            stored = manifests[fuse.name].fusion if fuse.name in manifests else None
            config: Any = FUSIONS[USUAL] if stored is None else FusionConfig(**cast(Any, stored.config))
            semantics = OUR_SEMANTICS if stored is None else manifests[fuse.name].semantics
            parts.add_fusion(fuse, config, backbone, semantics)
    return parts


def _sizes(tree: Composition) -> tuple[int, ...]:
    """The rows of the first BatchSplit in a tree."""
    if isinstance(tree, BatchSplit):
        return tree.batch_sizes
    found = (_sizes(child) for child in tree.children) if isinstance(tree, Block) else ()
    return next((sizes for sizes in found if sizes), ())


def _rows(tree: Composition, parts: Parts, backbone: Backbone) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for site, normed in zip(backbone.sites, backbone.normed, strict=True):
        legacy = parts.as_adapters(tree) and not agrees(tree, site.index, parts)
        if legacy and bind(tree, site.index, parts) is None:
            continue
        folded = None if legacy else fold(tree, site.index, parts, normed=normed, own=True, thrifty=True)
        if folded is None and not legacy:
            continue
        layer = _matrices(backbone.layer_of(site)) if site.layer >= 0 else 0
        row = {"composition": show(tree), "site": site.kind} | _row(folded, layer)
        rows.setdefault(repr(row), row | {"layers": 0})["layers"] += 1
    return list(rows.values())


def _row(folded: Folded | None, layer: int) -> dict[str, Any]:
    if folded is None:
        return {"by the reference": _AS_ADAPTERS, "matrices of the layer": layer}
    plan = folded.plan
    return {
        "folded": list(plan.folded),
        "by the reference": "; ".join(f"{kept.composition}: {kept.reason}" for kept in plan.kept),
        "written out": "; ".join(plan.written_out),
        "multiplications": plan.multiplications,
        "by the reference alone": plan.reference_multiplications,
        "matrices of the layer": layer,
        "percent of the layer": _share(plan.multiplications, layer),
        "percent by the reference": _share(plan.reference_multiplications, layer),
        "bytes": plan.bytes,
    }


def _share(own: int, layer: int) -> float | None:
    return round(100 * own / layer, 2) if layer else None


def _matrices(layer: nn.Module) -> int:
    """The elements of the matrices of a frozen layer: what it multiplies for each token, experts all counted."""
    return sum(parameter.numel() for parameter in layer.parameters() if parameter.dim() == 2)
