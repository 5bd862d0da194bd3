"""What an import is, before it is a package: a method or a head in our words, its tensors, and every tensor's fate.

A `Ledger` holds what a file gave. A reader takes each tensor by name, exactly once or more, or ignores it with a
reason; `close` refuses to go on while one is left. So nothing is dropped in silence, and a report can be printed that
names each source and what became of it. Knows no tool and no method.
"""

import hashlib
import importlib.metadata
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from graftwork.errors import PackageError
from graftwork.manifest import BaseRef, FusionSpec, HeadSpec, Manifest, Member
from graftwork.registry.package import Package, check_names
from graftwork.strict_json import canonical_json

COPIED = "copied"


@dataclass(frozen=True)
class Fate:
    """What became of one tensor of a file: `target` is its name in the package, empty where it was ignored."""

    source: str
    target: str
    how: str = COPIED


@dataclass(frozen=True, eq=False)
class Place:
    """A linear's site and what must be known of it: layer across stacks, widths, and which rows of the linear it is.

    rows: None for all; a slice or numbers (n,) where one linear makes query, key and value.
    """

    site: str
    depth: int
    inputs: int
    width: int
    rows: slice | torch.Tensor | None = None

    @property
    def kind(self) -> str:
        """attn.query, ffn.down."""
        return self.site.rpartition("/")[2]


@dataclass(frozen=True, eq=False)
class Facts:
    """What a reader may have to know of the frozen model, because a file does not say it; empty where it is not known.

    kv: site of the keys and values -> (heads, width of one head). places: path of a frozen linear in the trunk -> its
    sites, in the order of the model. What a head takes from the model: dropout, the epsilon of its
    norm, whether T5 scales what heads read, the id of padding, and the input embedding itself, which a head may share.
    """

    kv: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    places: Mapping[str, tuple[Place, ...]] = field(default_factory=dict)
    dropout: float | None = None
    norm_eps: float | None = None
    scaled: bool | None = None
    padding: int | None = None
    embedding: torch.Tensor | None = None


UNKNOWN = Facts()


@dataclass(frozen=True)
class Asserted:
    """The frozen model as a file names it; nothing of it can be checked but shapes."""

    model_type: str
    hidden_size: int
    name: str = ""


@dataclass(frozen=True, eq=False)
class Imported:
    """One adapter, fusion or head of another tool, in our words.

    tensors are named as in a package. fusion: its members' names in order, as `members`, and its configuration.
    """

    name: str
    role: Literal["task", "language", "fusion", "head"]
    base: Asserted
    tensors: Mapping[str, torch.Tensor]
    fates: tuple[Fate, ...]
    method: Mapping[str, Any] | None = None
    head: Mapping[str, Any] | None = None
    members: tuple[str, ...] = ()
    fusion: Mapping[str, Any] | None = None
    semantics: Literal["graftwork-1", "adapters-1"] = "graftwork-1"
    notes: tuple[str, ...] = ()
    source: Mapping[str, Any] = field(default_factory=dict)  # tool, version, class: what the file said of itself

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that have a tensor, by number and name: a file's own order is arbitrary."""
        part = "fusion/" if self.role == "fusion" else "adapter/"
        names = {name.removeprefix(part).rpartition("/")[0] for name in self.tensors if name.startswith(part)}
        return tuple(sorted(names, key=_natural))


def _natural(name: str) -> list[tuple[int, str]]:
    """layer.2 before layer.10."""
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in re.split(r"(\d+)", name)]


class Ledger:
    """The tensors of one file, each to be taken or ignored."""

    def __init__(self, where: str, given: Mapping[str, torch.Tensor]) -> None:
        self.where = where
        self.given = dict(given)
        self.member = ""  # of a union: what its parameters begin with, "0."
        self.tensors: dict[str, torch.Tensor] = {}
        self.fates: list[Fate] = []
        self.notes: list[str] = []

    def take(self, source: str, target: str, tensor: torch.Tensor | None = None, how: str = COPIED) -> None:
        """Give `target` the tensor of that name in the file, or what was made of it. Raises PackageError."""
        if source not in self.given:
            raise PackageError(f"{self.where}: tensor {source!r} is missing; it has {len(self.given)} others")
        self.fold([source], target, self.given[source] if tensor is None else tensor, how)

    def fold(self, sources: list[str], target: str, tensor: torch.Tensor, how: str) -> None:
        """Give `target` what was made of several tensors of the file. Raises PackageError for a second of one name."""
        site, _, parameter = target.rpartition("/")
        name = f"{site}/{self.member}{parameter}"
        if name in self.tensors:
            raise PackageError(f"{self.where}: two tensors would both become {name!r}")
        self.tensors[name] = tensor.detach().clone()
        self.fates += [Fate(source, name, how) for source in sources]

    def ignore(self, source: str, why: str) -> None:
        """Leave a tensor out, for a stated reason."""
        self.fates.append(Fate(source, "", f"ignored: {why}"))

    def close(self) -> None:
        """Raises PackageError that names what nobody took."""
        settled = {fate.source for fate in self.fates}
        left = [name for name in self.given if name not in settled]
        if left:
            more = f" and {len(left) - 5} more" if len(left) > 5 else ""
            raise PackageError(
                f"{self.where}: {len(left)} of {len(self.given)} tensors have no place: {', '.join(left[:5])}{more}. "
                "Nothing was imported, for a part of an adapter would give other numbers"
            )


@contextmanager
def honest(where: str) -> Iterator[None]:
    """Turn what a value of the wrong kind or shape raises while a file is taken apart into PackageError.

    A file of others may hold anything anywhere; damage shows as one of many types, and all of them mean the same.
    """
    try:
        yield
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError, OverflowError) as error:
        raise PackageError(
            f"{where}: is not of the form that it should have: {type(error).__name__}: {error}"
        ) from error


def asserted_base(base: Asserted) -> BaseRef:
    """What a manifest says of a base that only the file names: the fingerprint is of the assertion, not of weights."""
    text = canonical_json({"asserted": [base.model_type, base.hidden_size, base.name]})
    return BaseRef(
        fingerprint=hashlib.sha256(text.encode()).hexdigest(),
        model_type=base.model_type,
        name=base.name,
        hidden_size=base.hidden_size,
        asserted=True,
    )


def to_package(
    imported: Imported,
    base: BaseRef | None = None,
    members: Mapping[str, str] | None = None,
    name: str | None = None,
    composition: str | None = None,
) -> Package:
    """The package of an import. base: the model it is to run on; left out, what the file asserts.

    members: digest of every member of a fusion, by name. composition: of a fusion over stacks, of which a file lists
    the last member of each; `members` then holds all its leaves in order. Raises PackageError: another model type or
    width, a member without a digest, tensors without a place.
    """
    with honest(f"import of {imported.name!r}"):
        return _package(imported, _agreed(imported, base), members or {}, name, composition)


def _package(
    imported: Imported, base: BaseRef, members: Mapping[str, str], name: str | None, composition: str | None
) -> Package:
    fields: dict[str, Any] = {"role": imported.role, "head": _head_spec(imported), "sites": imported.sites}
    if imported.fusion is not None:
        fields["fusion"] = _fusion_spec(imported, members, composition)
    elif imported.method is not None:
        fields["method"] = dict(imported.method)
    manifest = Manifest(
        name=name or imported.name,
        base=base,
        semantics=imported.semantics,
        training={"imported": {**imported.source, "notes": list(imported.notes)}},
        created_with={"graftwork": importlib.metadata.version("graftwork")},
        **fields,
    )
    check_names(manifest, imported.tensors, f"import of {imported.name!r}")
    return Package(manifest, dict(imported.tensors))


def _head_spec(imported: Imported) -> HeadSpec | None:
    if imported.head is None:
        return None
    plain = {key: value for key, value in imported.head.items() if key != "options" or value}
    return HeadSpec.model_validate({**plain, "labels": tuple(plain["labels"])})


def _agreed(imported: Imported, base: BaseRef | None) -> BaseRef:
    if base is None:
        return asserted_base(imported.base)
    for key in ("model_type", "hidden_size"):
        said, have = getattr(imported.base, key), getattr(base, key)
        if said != have:
            raise PackageError(
                f"import of {imported.name!r}: it was made for {key} {said!r}, and {base.name or 'this base'} has "
                f"{have!r}; import it for the base that it names: {imported.base.name or imported.base.model_type}"
            )
    return base.model_copy(update={"asserted": True})


def _fusion_spec(imported: Imported, digests: Mapping[str, str], composition: str | None) -> FusionSpec:
    names = tuple(digests) if composition else imported.members
    if missing := [name for name in imported.members if name not in digests]:
        raise PackageError(
            f"fusion {imported.name!r}: import its members first and hand in their digests; missing: {missing}"
        )
    own = "" if imported.name == ",".join(imported.members) else f", name={imported.name}"
    return FusionSpec(
        composition=composition or f"Fuse({', '.join(names)}{own})",
        members=tuple(Member(name=name, digest=digests[name]) for name in names),
        config=dict(imported.fusion or {}),
    )
