"""Between the parts of a model and packages: what is written down, and what is checked before anything is added.

A package holds every tensor of what it names and nothing else. Reading it back, every tensor must be consumed, every
site filled and every shape right; the base must be the one it was trained on. Adds all of it or nothing.
"""

import importlib.metadata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from graftwork.compose.claims import check_part_name
from graftwork.compose.grammar import as_composition
from graftwork.compose.order import TASK
from graftwork.compose.parts import OUR_SEMANTICS, Parts
from graftwork.compose.prune import keep_members
from graftwork.compose.tree import Fuse, leaves, show
from graftwork.core.backbone import Backbone
from graftwork.core.fusion import FusionConfig
from graftwork.core.heads import HeadConfig, read_head, write_head
from graftwork.core.kinds import read_config, write_config
from graftwork.errors import AdapterError, CompositionError, Conflict, PackageError
from graftwork.manifest import BaseRef, FusionSpec, HeadSpec, Manifest, Member, TaskSpec
from graftwork.registry.modest import check_sizes
from graftwork.registry.package import Package


@dataclass(frozen=True)
class Provenance:
    """What a model cannot know of its own parts: how they were trained, on what, and how good they are."""

    role: Literal["task", "language"] | None = None  # None: as it was installed, else task
    task: TaskSpec | None = None
    vocabulary: str | None = None
    composition: str = ""  # "Stack(hi, ner)"; empty where it was trained alone
    members: tuple[Member, ...] = ()
    scores: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""
    licence: str | None = None


def pack(parts: Parts, backbone: Backbone, name: str, with_head: bool, provenance: Provenance) -> Package:
    """The adapter, fusion or head of that name as a package, with the head of its name. Raises AdapterError."""
    parts.need_unmerged(f"{name!r} cannot be packaged")
    tensors: dict[str, Tensor] = {}
    fields: dict[str, Any] = {}
    if name in parts.adapter_configs:
        tensors |= _named("adapter", parts.tensors("adapters", name))
        fields |= {
            "role": provenance.role or parts.roles.get(name, TASK),
            "method": write_config(parts.adapter_configs[name]),
        }
        fields |= {"sites": parts.sites_of("adapters", name)}
    elif name in parts.fusion_records:
        tensors |= _named("fusion", parts.tensors("fusions", name))
        fields |= {"role": "fusion", "fusion": _fusion_spec(parts, backbone, name)}
        fields |= {"sites": parts.sites_of("fusions", name)}
    elif name in parts.head_configs:
        fields |= {"role": "head"}
        with_head = True
    else:
        known = [*parts.adapter_configs, *parts.fusion_records, *parts.head_configs]
        raise AdapterError(f"nothing is called {name!r}; there are: {', '.join(sorted(set(known))) or 'no parts yet'}")
    if with_head and name in parts.head_configs:
        tensors |= _named("head", parts.tensors("heads", name))
        fields |= {"head": _head_spec(name, parts.head_configs[name])}
    manifest = Manifest(
        name=name,
        base=base_ref(backbone),
        task=provenance.task,
        vocabulary=provenance.vocabulary,
        composition=provenance.composition,
        semantics=parts.semantics.get((_table_of(parts, name), name), OUR_SEMANTICS),
        members=provenance.members,
        scores=dict(provenance.scores),
        data=dict(provenance.data),
        training=dict(provenance.training) | ({"average": parts.averages[name]} if name in parts.averages else {}),
        description=provenance.description,
        licence=provenance.licence,
        created_with={
            library: importlib.metadata.version(library) for library in ("graftwork", "torch", "transformers")
        },
        **fields,
    )
    return Package(manifest, {key: tensor.detach().cpu().clone() for key, tensor in tensors.items()})


def _head_spec(name: str, config: HeadConfig) -> HeadSpec:
    if config.kind == "custom" and not config.custom:
        raise AdapterError(
            f"head {name!r} is a module of yours without a name that another process could build it from, so it cannot "
            "be packaged: register a factory with register_custom_head(kind, factory) and add the head by "
            "add_custom_head(kind, name, ...), or pack without the head (with_head=False)"
        )
    return HeadSpec(**write_head(config))


def _table_of(parts: Parts, name: str) -> str:
    return next((table for table in ("adapters", "fusions") if name in parts.records(table)), "heads")


def base_ref(backbone: Backbone) -> BaseRef:
    """What a manifest says of the frozen model."""
    return BaseRef(
        fingerprint=backbone.fingerprint,
        model_type=backbone.config.model_type,
        name=backbone.name,
        hidden_size=backbone.config.get_text_config().hidden_size,
    )


def member_digest(parts: Parts, backbone: Backbone, name: str) -> str:
    """The digest of the package an adapter came from, or that it would be on its own."""
    return parts.origins.get(name) or pack(parts, backbone, name, False, Provenance()).digest


def _fusion_spec(parts: Parts, backbone: Backbone, name: str) -> FusionSpec:
    record = parts.fusion_records[name]
    members = [Member(name=n, digest=member_digest(parts, backbone, n)) for n in leaves(record.tree)]
    return FusionSpec(
        composition=record.composition, members=tuple(members), config=asdict(record.config), kept=dict(record.kept)
    )


def _named(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{part}/{key}": tensor for key, tensor in tensors.items()}


def install(
    parts: Parts, backbone: Backbone, package: Package, name: str, with_head: bool, fuse: Fuse | None = None
) -> str:
    """Add what a package holds under `name`, all of it or nothing. `fuse` gives a fusion's members their names here.

    Raises Conflict (another base, other members), PackageError (tensors that do not fit), AdapterError (name in use).
    """
    parts.need_unmerged(f"{name!r} cannot be installed")
    manifest = package.manifest
    table = "heads" if manifest.role == "head" else "fusions" if manifest.fusion else "adapters"
    check_part_name(name, table)
    _check_base(manifest, backbone, name)
    fuse = _local_fuse(manifest, parts, backbone, name, fuse) if manifest.fusion else None
    name = fuse.name if fuse else name
    with_head = (with_head or table == "heads") and manifest.head is not None
    wanted = [*([table] if table != "heads" else []), *(["heads"] if with_head else [])]
    for one in wanted:
        if name in parts.records(one):
            raise AdapterError(f"{one[:-1]} {name!r} is already there; install the package under another name")
    check_sizes(package, name, max(site.width for site in backbone.sites))
    try:
        _add(parts, backbone, manifest, name, fuse, with_head)
        _check_sites(manifest, parts, table, name)
        _fill(parts, wanted, name, package)
    except BaseException:
        for one in wanted:
            parts.remove(one, name)
        raise
    if table == "adapters":
        parts.origins[name] = package.digest
        parts.roles[name] = manifest.role
    return name


def install_head(parts: Parts, backbone: Backbone, package: Package, name: str) -> None:
    """Add only the head that a package holds, frozen, under `name`. Raises as `install`, AdapterError for no head."""
    if package.manifest.head is None:
        raise AdapterError(f"package {package.manifest.name!r} (role {package.manifest.role}) has no head")
    check_part_name(name, "heads")
    _check_base(package.manifest, backbone, name)
    check_sizes(package, name, max(site.width for site in backbone.sites))
    parts.add_head(name, read_head(package.manifest.head.model_dump()), backbone)
    try:
        _fill(parts, ["heads"], name, package)
    except BaseException:
        parts.remove("heads", name)
        raise
    parts.head(name).requires_grad_(False)


def _add(parts: Parts, backbone: Backbone, manifest: Manifest, name: str, fuse: Fuse | None, with_head: bool) -> None:
    """Build what the manifest describes. What comes from a package is trained: it is frozen until somebody says so."""
    try:
        fusion = FusionConfig(**manifest.fusion.config) if manifest.fusion else None  # type: ignore[arg-type]
        method = read_config(manifest.method) if manifest.method is not None else None
        head = read_head(manifest.head.model_dump()) if manifest.head else None
    except (AdapterError, TypeError) as error:
        raise PackageError(f"package {name!r} asks for what this version cannot build: {error}") from error
    made = []
    if fuse is not None and manifest.fusion is not None and fusion is not None:
        parts.add_fusion(fuse, fusion, backbone, manifest.semantics)
        try:
            keep_members(parts, name, manifest.fusion.kept)
        except AdapterError as error:
            raise PackageError(f"package {name!r}: {error}") from error
        made.append("fusions")
    elif method is not None:
        parts.add_adapter(name, method, backbone, manifest.semantics)
        made.append("adapters")
    if with_head and head is not None:
        parts.add_head(name, head, backbone)
        made.append("heads")
    for table in made:
        for module in parts.modules_of(table, name).values():
            module.requires_grad_(False)


def _check_base(manifest: Manifest, backbone: Backbone, name: str) -> None:
    base, here = manifest.base, base_ref(backbone)
    if base.asserted and base.hidden_size == here.hidden_size and base.model_type == here.model_type:
        return  # read from another tool's file: the shapes are checked when it is filled
    if base.fingerprint != here.fingerprint:
        raise Conflict(
            f"package {name!r} was trained on another base: {base.name or base.model_type} ({base.model_type}, width "
            f"{base.hidden_size}, {base.fingerprint[:12]}); this one is {here.name or here.model_type} "
            f"({here.model_type}, width {here.hidden_size}, {here.fingerprint[:12]}). Load the base it was trained on"
        )


def _local_fuse(manifest: Manifest, parts: Parts, backbone: Backbone, name: str, fuse: Fuse | None) -> Fuse:
    assert manifest.fusion is not None
    if fuse is None:
        written = as_written(manifest)
        own = name if name not in (manifest.name, written.name) else written.label
        fuse = Fuse(*written.children, name=own)
    local = leaves(fuse)
    members = manifest.fusion.members
    if len(local) != len(members):
        raise Conflict(f"fusion {name!r} has {len(members)} members, {show(fuse)} names {len(local)}")
    for here, member in zip(local, members, strict=True):
        parts.need_adapter(here)
        # a member that was trained beside the fusion is listed by what it is on its own, without its head
        alone = pack(parts, backbone, here, False, Provenance()).digest
        if member.digest not in (alone, member_digest(parts, backbone, here)):
            raise Conflict(
                f"fusion {name!r} was trained over {member.name!r} with digest {member.digest[:12]}, but {here!r} here "
                "is another adapter; install the member packages that it names"
            )
    return fuse


def as_written(manifest: Manifest) -> Fuse:
    """The fusion's members as its manifest writes them. Raises PackageError when that is no Fuse."""
    try:
        from_manifest = as_composition(manifest.fusion.composition if manifest.fusion else None)
    except CompositionError as error:
        raise PackageError(f"package {manifest.name!r}: {error}") from error
    if not isinstance(from_manifest, Fuse):
        raise PackageError(f"package {manifest.name!r}: {show(from_manifest)} is not a Fuse")
    return from_manifest


def _check_sites(manifest: Manifest, parts: Parts, table: str, name: str) -> None:
    if table == "heads":
        return
    built = set(parts.sites_of(table, name))
    listed = set(manifest.sites)
    if built != listed:
        raise PackageError(
            f"package {name!r}: its sites are not those of its configuration on this base; only in the package: "
            f"{sorted(listed - built)[:5]}, only on the base: {sorted(built - listed)[:5]}"
        )


def _fill(parts: Parts, tables: list[str], name: str, package: Package) -> None:
    words = {"adapters": "adapter", "fusions": "fusion", "heads": "head"}
    targets = {key: t for table in tables for key, t in _named(words[table], parts.tensors(table, name)).items()}
    given = {k: v for k, v in package.tensors.items() if k.partition("/")[0] in {words[table] for table in tables}}
    problems = [f"tensor {key!r} is missing" for key in targets if key not in given]
    problems += [f"tensor {key!r} belongs nowhere" for key in given if key not in targets]
    problems += [
        f"tensor {key!r} has shape {tuple(given[key].shape)}, expected {tuple(target.shape)}"
        for key, target in targets.items()
        if key in given and given[key].shape != target.shape
    ]
    if problems:
        raise PackageError(f"package {name!r}: " + "; ".join(problems[:10]))
    with torch.no_grad():
        for key, target in targets.items():
            target.copy_(given[key])
