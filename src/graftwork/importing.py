"""Other tools' files on one base: what is read is made to fit, tried on the model, and handed back as packages.

    facts_of      what a reader must know of the base: heads, linears, what its heads take over
    read          whatever lies in a folder, by the files it holds
    packages      imports as packages of that base, members before the fusions that mix them, each one installed once

A package that this file returns has been installed on the base: every tensor found its place and every shape was right.
What the readers know of files is in `registry/foreign/`; nothing here knows a file's name but to tell tools apart.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from graftwork.compose.grammar import parse
from graftwork.compose.parts import SHARED, Parts
from graftwork.compose.tree import Fuse, fusions, leaves, show
from graftwork.core.backbone import Backbone
from graftwork.core.heads_facts import embedding_of
from graftwork.core.heads_facts import facts_of as facts_of_heads
from graftwork.core.kinds import read_config, write_config
from graftwork.errors import AdapterError, NotFound, PackageError
from graftwork.packing import base_ref, install
from graftwork.registry.foreign.adapterhub import (
    ADAPTER_CONFIG,
    ADAPTER_PICKLED,
    ADAPTER_SAFE,
    FUSION_CONFIG,
    FUSION_PICKLED,
    FUSION_SAFE,
    read_adapterhub,
    read_fusion,
    read_head,
)
from graftwork.registry.foreign.adapterhub_setup import SETUP_CONFIG, read_setup
from graftwork.registry.foreign.files import listing, read_json
from graftwork.registry.foreign.heads import CONFIG as HEAD_CONFIG
from graftwork.registry.foreign.heads import PICKLED as HEAD_PICKLED
from graftwork.registry.foreign.heads import SAFE as HEAD_SAFE
from graftwork.registry.foreign.imported import Asserted, Facts, Imported, Place, to_package
from graftwork.registry.foreign.llm_adapters import read_llm_adapters
from graftwork.registry.foreign.peft import read_peft
from graftwork.registry.package import Package


def facts_of(backbone: Backbone) -> Facts:
    """What readers must know of a base."""
    heads = facts_of_heads(backbone)
    embedding = embedding_of(backbone.model)
    return Facts(
        kv={site.name: (site.heads, site.head_width) for site in backbone.sites if site.place == "kv"},
        places={
            path: tuple(Place(site.name, site.depth, site.inputs, site.width, rows) for site, rows in found)
            for path, found in backbone.linears.items()
        },
        dropout=heads.dropout,
        norm_eps=heads.norm_eps,
        scaled=heads.scale != 1.0,
        padding=getattr(backbone.config.get_text_config(), "pad_token_id", None),
        embedding=None if embedding is None else embedding.detach(),
    )


def asserted(backbone: Backbone) -> Asserted:
    """A base by what files of others call it."""
    ref = base_ref(backbone)
    return Asserted(ref.model_type, ref.hidden_size, ref.name)


def read(
    folder: Path | str, backbone: Backbone, *, name: str = "", subtract_projection: bool | None = None
) -> tuple[str, list[Imported]]:
    """What a folder of AdapterHub, PEFT or LLM-Adapters holds: its composition where it is a whole setup, else "", and
    its parts. name: for files that have none. Raises NotFound, PackageError.
    """
    folder = Path(folder)
    _check_described(folder)
    facts = facts_of(backbone)
    if (folder / SETUP_CONFIG).exists():
        return read_setup(folder, facts=facts)
    if (folder / ADAPTER_CONFIG).exists():
        kind = read_json(folder, ADAPTER_CONFIG).get("peft_type")
        if kind is None:
            return "", read_adapterhub(folder, facts=facts, subtract_projection=subtract_projection)
        reader = read_llm_adapters if str(kind).upper() == "BOTTLENECK" else read_peft
        return "", [reader(folder, asserted(backbone), facts, name=name)]
    if (folder / FUSION_CONFIG).exists():
        return "", [read_fusion(folder)]
    if (folder / HEAD_CONFIG).exists():
        return "", [read_head(folder, facts=facts, name=name or None)]
    raise NotFound(
        f"{folder}: holds no {ADAPTER_CONFIG}, {FUSION_CONFIG}, {HEAD_CONFIG} or {SETUP_CONFIG}; it holds "
        f"{listing(folder)}"
    )


def _check_described(folder: Path) -> None:
    """Raise PackageError for weights of a part whose description is gone: the rest alone would be a part of it."""
    described = {
        ADAPTER_CONFIG: (ADAPTER_SAFE, ADAPTER_PICKLED),
        FUSION_CONFIG: (FUSION_SAFE, FUSION_PICKLED),
        HEAD_CONFIG: (HEAD_SAFE, HEAD_PICKLED),
    }
    for config, weights in described.items():
        for name in weights:
            if (folder / name).exists() and not (folder / config).exists():
                raise PackageError(
                    f"{folder}: holds {name}, but not {config}, which says what it is; get the whole folder"
                )


def packages(
    imports: Sequence[Imported],
    backbone: Backbone,
    *,
    composition: str = "",
    members: Mapping[str, Package] | None = None,
) -> list[Package]:
    """Imports as packages of a base, in the order given. Each has been installed on it, and removed again.

    composition: of a whole setup; a fusion over stacks is found in it. members: packages that a fusion mixes and the
    imports lack. Raises PackageError where a tensor has no place, Conflict for another base.
    """
    parts = Parts()
    made: dict[str, Package] = dict(members or {})
    for name, package in made.items():
        install(parts, backbone, package, name, with_head=False)
    found = []
    for imported in imports:
        fuse = _fuse_of(imported, composition)
        package = _package(imported, backbone, made, fuse)
        if not (imported.role == "head" and imported.name in parts.head_configs):
            install(parts, backbone, package, imported.name, with_head=imported.role != "fusion", fuse=fuse)
        if imported.role not in ("fusion", "head"):
            made[imported.name] = package
        found.append(package)
    return found


def _package(imported: Imported, backbone: Backbone, members: Mapping[str, Package], fuse: Fuse | None) -> Package:
    names = leaves(fuse) if fuse else imported.members
    if missing := [name for name in names if name not in members]:
        raise PackageError(
            f"fusion {imported.name!r} mixes {', '.join(names)}; import these first, or give their packages as "
            f"members. Missing: {', '.join(missing)}"
        )
    digests = {name: members[name].digest for name in names}
    package = to_package(imported, base_ref(backbone), digests, composition=show(fuse) if fuse else None)
    manifest = package.manifest
    order = {SHARED: -1, **{site.name: site.index for site in backbone.sites}}
    sites = tuple(sorted(manifest.sites, key=lambda site: order.get(site, len(order))))
    method = manifest.method
    if method is not None:
        try:
            method = write_config(read_config(method))
        except AdapterError as error:
            raise PackageError(f"import of {imported.name!r}: {error}") from error
    return Package(manifest.model_copy(update={"sites": sites, "method": method}), package.tensors)


def _fuse_of(imported: Imported, composition: str) -> Fuse | None:
    """The block of a setup that a fusion stands for, where there is one."""
    if imported.role != "fusion" or not composition:
        return None
    return next((fuse for fuse in fusions(parse(composition)) if fuse.name == imported.name), None)
