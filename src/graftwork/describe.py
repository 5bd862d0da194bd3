"""What something is: a model, a method, a package or a composition, as plain data that a command can print.

What has parameters is counted in `sizes.py`, what a composition costs to run in `costs.py`; no weights are read.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from graftwork.compose.grammar import parse
from graftwork.compose.order import check_order
from graftwork.compose.tree import Composition, Fuse, Parallel, fusions, has, leaves, show, top
from graftwork.core.backbone import Backbone, load_skeleton
from graftwork.core.counting import counted
from graftwork.core.families import FAMILIES, Family, family_of
from graftwork.core.fusion import FUSIONS
from graftwork.core.heads import HeadConfig
from graftwork.core.kinds import NAMED, is_named, read_config, write_config
from graftwork.core.papers import PAPERS
from graftwork.core.spellings import ALIASES
from graftwork.costs import USUAL, costs, lanes
from graftwork.errors import AdapterError, BackboneError, NotFound, UserError
from graftwork.manifest import Manifest
from graftwork.registry.package import MANIFEST, read, read_manifest
from graftwork.registry.store import Registry
from graftwork.sizes import of_fusion, of_head, of_layers, of_method, storage


def describe(
    what: str, registry: Registry, *, model: str | None = None, method: str | None = None, store: Sequence[str] = ()
) -> dict[str, Any]:
    """Say what `what` is: `methods`, `families`, a package folder, a composition, a method, a package or a model.

    model: count methods on this model, or list its sites. method: count only this method on a model. store: what so
    many adapters of a model take on disk, `["16*seq_bn_inv", "9*seq_bn"]`. Raises UserErrors.
    """
    if store:
        return _storage(what, method, store)
    if what == "methods":
        return methods(model)
    if what == "families":
        return families(model)
    if (Path(what) / MANIFEST).is_file():
        return _package(Path(what), what)
    if "(" in what:
        return _composition(parse(what), registry, model)
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


def methods(model: str | None = None) -> dict[str, Any]:
    """Every named configuration: its aliases, method, paper and places; on a model also its parameters, or why none."""
    backbone = None if model is None else Backbone(load_skeleton(model))
    rows = []
    for name, config in NAMED.items():
        aliases = [alias for alias, meant in ALIASES.items() if meant == name]
        row = {"name": name, "aliases": aliases, "method": config.kind, "paper": PAPERS[name]}
        if backbone is None:
            rows.append({**row, "goes to": config.where})
            continue
        try:
            counted = of_method(backbone, name)
        except AdapterError as error:
            counted = {"refused": str(error)}
        rows.append(row | {key: value for key, value in counted.items() if key != "method"})
    described: dict[str, Any] = {"kind": "methods"} if model is None else {"kind": "methods", "model": model}
    return described | {"methods": rows}


def families(model: str | None = None) -> dict[str, Any]:
    """Every row of the table of families; with a model, the one that describes it, as its configuration has it."""
    elsewhere = "a model without a row: its sites are discovered and proven when it is loaded"
    if model is None:
        return {"kind": "families", "families": [_family(row) for row in FAMILIES], "discovery": elsewhere}
    skeleton = load_skeleton(model)
    row = family_of(skeleton.config, skeleton.base_model)
    told = []
    if row is not None:
        places: dict[str, list[str]] = {}
        for site in Backbone(skeleton).sites:
            places.setdefault(site.place, []).append(site.kind)
        kinds = {place: list(dict.fromkeys(found)) for place, found in places.items()}
        told = [
            _family(replace(row, variants=()))
            | {"model types": [skeleton.config.model_type], "sub-layers": kinds["sublayer"]}
            | {"linears": kinds.get("linear", []), "kv": [kind.removesuffix(".kv") for kind in kinds.get("kv", [])]}
            | {place: place in kinds for place in ("embed", "prompt")}
        ]
    return {"kind": "families", "model": model, "families": told} | ({} if told else {"discovery": elsewhere})


def _family(row: Family) -> dict[str, Any]:
    """One row of the table as plain data: what its stacks and those of its variants have."""
    if row.towers:
        return {"model types": list(row.model_types), "stacks": [tower.name for tower in row.towers]}
    stacks = [*row.stacks, *(stack for variant in row.variants for stack in variant.stacks)]
    sites = [site for stack in stacks for site in stack.sites]
    norms = {"sandwich" if site.inner else "post" if site.norm else "pre" for site in sites}
    return {
        "model types": list(row.model_types),
        "norm": sorted(norms),
        "stacks": list(dict.fromkeys(stack.name for stack in stacks if stack.name)),
        "sub-layers": list(dict.fromkeys(site.kind for site in sites)),
        "linears": list(dict.fromkeys(linear.kind for stack in stacks for linear in stack.linears)),
        "kv": list(dict.fromkeys(one.kind for stack in stacks for one in stack.attentions)),
        "embed": any(stack.embed for stack in stacks),
        "prompt": any(not stack.unprompted and (stack.prompt or stack.embed) for stack in stacks),
    }


def _storage(name: str, method: str | None, store: Sequence[str]) -> dict[str, Any]:
    if method is not None:
        raise UserError(f"--store names its methods itself ({', '.join(store)}); leave --method {method} out")
    backbone = Backbone(load_skeleton(name))
    return {"kind": "storage", "model": name, "parameters": counted(backbone.model), **storage(backbone, store)}


def _model(name: str, method: str | None) -> dict[str, Any]:
    backbone = Backbone(load_skeleton(name))
    described = {
        "kind": "model",
        "name": name,
        "model_type": backbone.config.model_type,
        "layers": backbone.layers,
        "width": backbone.sites[0].width,
        "parameters": counted(backbone.model),
        "parameters of the layers": of_layers(backbone),
    }
    if method is not None:
        return described | {"methods": [of_method(backbone, method)]}
    return described | {
        "sites": sorted({site.kind for site in backbone.sites if site.place == "sublayer"}),
        "methods": _fitting(backbone),
        "fusions": [of_fusion(backbone, name) for name in FUSIONS],
        "heads": _heads(backbone),
    }


def _fitting(backbone: Backbone) -> list[dict[str, Any]]:
    """Every named method that finds a place on the model."""
    rows = []
    for name in NAMED:
        with suppress(AdapterError):
            rows.append(of_method(backbone, name))
    return rows


def _heads(backbone: Backbone) -> list[dict[str, Any]]:
    configs = {
        "classification, 2 labels": HeadConfig(kind="classification", num_outputs=2),
        "tagging, 9 labels": HeadConfig(kind="tagging", num_outputs=9, layers=1, pooling="none"),
    }
    return [{"head": name, "parameters": of_head(backbone, config)} for name, config in configs.items()]


def _method(text: str, model: str | None) -> dict[str, Any]:
    config = read_config(text)
    described: dict[str, Any] = {"kind": "method", "name": text, "config": write_config(config)}
    if model is not None:
        described |= {"model": model, **of_method(Backbone(load_skeleton(model)), text)}
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


def _composition(tree: Composition, registry: Registry, model: str | None) -> dict[str, Any]:
    described = {
        "kind": "composition",
        "composition": show(tree),
        "answers": top(tree),
        "adapters": [_member(name, registry, "adapter") for name in dict.fromkeys(leaves(tree))],
        "fusions": [_fusion(fuse, registry) for fuse in fusions(tree)],
    }
    try:
        manifests, base = _packages(tree, registry, model)
        shared = {"lanes": lanes(tree, manifests, base)} if has(tree, Parallel) else {}
        return described | shared | {"execution": costs(tree, manifests, base)}
    except UserError as error:
        return described | {"execution": f"not known: {error}"}


def _packages(tree: Composition, registry: Registry, model: str | None) -> tuple[dict[str, Manifest], str]:
    """The manifests of a composition's packages, and the base that they run on, which may be given.

    Raises NotFound for what is not there, and where nothing names a base.
    """
    manifests: dict[str, Manifest] = {}
    stored = {fuse.name: "fusion" for fuse in fusions(tree) if fuse.label}
    for name, role in (dict.fromkeys(leaves(tree), "adapter") | stored).items():
        found = registry.resolve(name)
        manifests[name], contents = read_manifest(found.path)
        if not contents.parameters(role):
            raise NotFound(f"{found} holds no {role}")
    check_order(tree, lambda name: manifests[name].role)
    bases = list(dict.fromkeys(one.base.name for one in manifests.values() if one.base.name))
    if not (model or bases):
        raise NotFound("its packages name no base; say which with --model")
    return manifests, model or bases[0]


def _fusion(fuse: Fuse, registry: Registry) -> dict[str, Any]:
    if fuse.label:
        return _member(fuse.name, registry, "fusion")
    said = f"counted as a {USUAL} one, for without a name it is no package; name=... means a stored one"
    return {"name": fuse.name, "note": said}


def _member(name: str, registry: Registry, part: str) -> dict[str, Any]:
    try:
        found = registry.resolve(name)
        manifest, contents = read_manifest(found.path)
    except UserError as error:
        return {"name": name, "problem": str(error)}
    return {
        "name": name,
        "reference": str(found),
        "role": manifest.role,
        "parameters": contents.parameters(part),
        "of its head": contents.parameters("head"),
        "base": manifest.base.name,
    }
