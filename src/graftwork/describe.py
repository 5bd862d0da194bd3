"""What something is: a model, a method, a package or a composition, as plain data that a command can print.

Parameters are counted by building the modules on the meta device: shapes without weights, however large the model.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from graftwork.compose.grammar import parse
from graftwork.compose.parts import Parts
from graftwork.compose.tree import Composition, Fuse, fusions, leaves, show, top
from graftwork.core.backbone import Backbone, load_skeleton
from graftwork.core.fusion import FUSIONS
from graftwork.core.heads import HeadConfig
from graftwork.core.kinds import ALIASES, NAMED, is_named, read_config, write_config
from graftwork.errors import AdapterError, BackboneError, NotFound, UserError
from graftwork.registry.package import MANIFEST, read, read_manifest
from graftwork.registry.store import Registry

_MEMBERS = 3  # how many members a fusion is counted with; its size does not depend on it


def describe(what: str, registry: Registry, *, model: str | None = None, method: str | None = None) -> dict[str, Any]:
    """Say what `what` is: a package folder, a composition, a method, a package of the registry, or a model.

    model: count a method on this model. method: count only this method on a model. Raises UserErrors.
    """
    if (Path(what) / MANIFEST).is_file():
        return _package(Path(what), what)
    if "(" in what:
        return _composition(parse(what), registry)
    if is_named(what):
        return _method(what, model)
    try:
        found = registry.resolve(what)
    except UserError as no_package:
        try:
            return _model(what, method)
        except BackboneError as no_model:
            raise NotFound(
                f"{what!r} is neither a package folder, a composition, a method ({', '.join([*NAMED, *ALIASES])}), a "
                f"package ({no_package}), nor a model ({no_model})"
            ) from no_model
    return _package(found.path, str(found))


def _model(name: str, method: str | None) -> dict[str, Any]:
    backbone = Backbone(load_skeleton(name))
    base = sum(parameter.numel() for parameter in backbone.model.parameters())
    fitting = [_counted(backbone, method, base)] if method else _fitting(backbone, base)
    width = backbone.sites[0].width
    return {
        "kind": "model",
        "name": name,
        "model_type": backbone.config.model_type,
        "layers": backbone.layers,
        "width": width,
        "parameters": base,
        "sites": sorted({site.kind for site in backbone.sites if site.place == "sublayer"}),
        "methods": fitting,
        "fusions": [
            {"fusion": name, "parameters": count, "share": 100 * count / base}
            for name in FUSIONS
            for count in [_fusion_size(backbone, name)]
        ],
        "heads": _head_sizes(backbone),
    }


def _fitting(backbone: Backbone, base: int) -> list[dict[str, Any]]:
    """Every named method that finds a place on the model."""
    rows = []
    for name in NAMED:
        with suppress(AdapterError):
            rows.append(_counted(backbone, name, base))
    return rows


def _counted(backbone: Backbone, method: str, base: int) -> dict[str, Any]:
    parts = Parts()
    with torch.device("meta"):
        parts.add_adapter("counted", read_config(method), backbone)
    count = parts.count("adapters", "counted")
    return {
        "method": method,
        "modules": len(parts.modules_of("adapters", "counted")),
        "parameters": count,
        "share": 100 * count / base,
    }


def _fusion_size(backbone: Backbone, config: str) -> int:
    parts = Parts()
    names = [f"member-{number}" for number in range(_MEMBERS)]
    with torch.device("meta"):
        for name in names:
            parts.add_adapter(name, read_config("seq_bn"), backbone)
        fuse = Fuse(*names, name="counted")
        parts.add_fusion(fuse, FUSIONS[config], backbone)
    return parts.count("fusions", "counted")


def _head_sizes(backbone: Backbone) -> list[dict[str, Any]]:
    configs = {
        "classification, 2 labels": HeadConfig(kind="classification", num_outputs=2),
        "tagging, 9 labels": HeadConfig(kind="tagging", num_outputs=9, layers=1, pooling="none"),
    }
    rows = []
    for name, config in configs.items():
        parts = Parts()
        with torch.device("meta"):
            parts.add_head("counted", config, backbone)
        rows.append({"head": name, "parameters": parts.count("heads", "counted")})
    return rows


def _method(text: str, model: str | None) -> dict[str, Any]:
    config = read_config(text)
    described: dict[str, Any] = {"kind": "method", "name": text, "config": write_config(config)}
    if model is not None:
        backbone = Backbone(load_skeleton(model))
        base = sum(parameter.numel() for parameter in backbone.model.parameters())
        described |= {"model": model, **_counted(backbone, text, base)}
    return described


def _package(folder: Path, name: str) -> dict[str, Any]:
    package = read(folder)  # every byte is checked before anything is said of it
    manifest, contents = read_manifest(folder)
    return {
        "kind": "package",
        "name": name,
        "digest": contents.digest,
        "bytes": sum(file.stat().st_size for file in folder.iterdir() if file.is_file()),
        "parameters": {part: contents.parameters(part) for part in ("adapter", "fusion", "head")},
        "tensors": len(package.tensors),
        "manifest": manifest.model_dump(mode="json"),
    }


def _composition(tree: Composition, registry: Registry) -> dict[str, Any]:
    return {
        "kind": "composition",
        "composition": show(tree),
        "answers": top(tree),
        "adapters": [_member(name, registry) for name in dict.fromkeys(leaves(tree))],
        "fusions": [_member(fuse.name, registry) for fuse in fusions(tree)],
    }


def _member(name: str, registry: Registry) -> dict[str, Any]:
    try:
        found = registry.resolve(name)
        manifest, contents = read_manifest(found.path)
    except UserError as error:
        return {"name": name, "problem": str(error)}
    return {
        "name": name,
        "reference": str(found),
        "role": manifest.role,
        "parameters": contents.parameters(),
        "base": manifest.base.name,
    }
