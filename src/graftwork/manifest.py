"""The typed contents of a package's `graft.json`: what was trained, for which base, and what its files must be.

A `Manifest` says what a package is; `Contents` seals it: the digest, the size and hash of the weights file, and dtype,
shape and hash of every tensor. `parse` and `dump` turn both into bytes and back; `identity` is the digest:

    sha256(canonical JSON of {every path in IDENTITY, and for every tensor its name, dtype, shape, sha256 of its bytes})

Names, scores, data, licence and library versions describe a package and are no part of its identity. This file knows
no tensors (`registry/package.py` measures them) and no methods or tasks: a `kind` is a word here, and the table that
owns it refuses the unknown ones.
"""

import difflib
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    JsonValue,
    NonNegativeInt,
    PositiveInt,
    SerializerFunctionWrapHandler,
    StringConstraints,
    ValidationError,
    model_serializer,
    model_validator,
)

from graftwork.errors import PackageError
from graftwork.strict_json import canonical_json, load_json

SCHEMA_VERSION: Final = 1

# The one list of what bears on behaviour; a dotted path takes one key of a part. Everything else is informative.
IDENTITY: Final[tuple[str, ...]] = (
    "schema_version",
    "semantics",
    "role",
    "method",
    "fusion",
    "sites",
    "base.fingerprint",
    "base.model_type",
    "base.hidden_size",
    "base.asserted",
    "vocabulary",
    "head",
    "task",
    "composition",
    "members",
)

# first word of a tensor's name -> the key of the manifest that describes it
PARTS: Final[dict[str, str]] = {"adapter": "method", "fusion": "fusion", "head": "head"}
# role -> (keys it must have, keys it must not have)
ROLES: Final[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "task": (("method",), ("fusion",)),
    "language": (("method",), ("fusion",)),
    "fusion": (("fusion",), ("method",)),
    "head": (("head",), ("method", "fusion", "sites")),
}

WORD: Final = r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*"  # layer.3, down.weight
SITE: Final = rf"{WORD}(?:/{WORD})*"  # layer.3/ffn, encoder.layer.0/attn, embed


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value


def _site(value: str) -> str:
    if not re.fullmatch(SITE, value):
        raise ValueError("a site is written like layer.3/ffn or decoder.layer.0/cross")
    return value


Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, StringConstraints(min_length=1)]
Dtype = Literal["float32", "float16", "bfloat16", "float64"]
SiteName = Annotated[str, AfterValidator(_site)]
Json = Annotated[dict[str, JsonValue], BeforeValidator(_lists)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BaseRef(_Part):
    """The frozen model a package belongs to. `asserted`: taken on trust from another tool's file, shapes checked."""

    fingerprint: Sha256
    model_type: Text
    name: str = ""  # informative: a hub id or a folder
    hidden_size: PositiveInt
    asserted: bool = False


class HeadSpec(_Part):
    """A prediction head: `labels` in the order of its outputs, empty where outputs are numbers.

    options: what the kind has beyond that and is not at its default; the key is not written where it is empty.
    """

    kind: Text
    labels: tuple[str, ...] = ()
    num_outputs: PositiveInt
    layers: NonNegativeInt = 1
    activation: Text = "tanh"
    dropout: FiniteFloat = 0.0
    pooling: Text = "first"
    options: Json = Field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _without_empty_options(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = plain(self)
        return {key: value for key, value in written.items() if key != "options" or value}

    @model_validator(mode="after")
    def _one_output_per_label(self) -> Self:
        if self.labels and len(self.labels) != self.num_outputs:
            raise ValueError(f"{self.num_outputs} outputs but {len(self.labels)} labels: give one label per output")
        return self


class TaskSpec(_Part):
    """How rows become inputs and outputs become answers."""

    kind: Text
    max_length: PositiveInt
    labels: tuple[str, ...] = ()


class Member(_Part):
    """Another package, by the name the composition uses and by its digest."""

    name: Text
    digest: Sha256


class FusionSpec(_Part):
    """What a fusion mixes: K members in the order of its composition.

    kept: at sites where it was pruned, the places of the members that are left; not written where it is empty.
    """

    composition: Text
    members: tuple[Member, ...] = Field(min_length=1)
    config: Json
    kept: dict[SiteName, tuple[NonNegativeInt, ...]] = Field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _without_empty_kept(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = plain(self)
        return {key: value for key, value in written.items() if key != "kept" or value}


class Manifest(_Part):
    """What a package is. A wrong one raises pydantic.ValidationError, which `parse` turns into PackageError."""

    schema_version: int = Field(default=SCHEMA_VERSION, ge=1, le=SCHEMA_VERSION)
    role: Literal["task", "language", "fusion", "head"]
    method: Json | None = None  # kind and every default written out
    fusion: FusionSpec | None = None
    sites: tuple[SiteName, ...] = ()
    base: BaseRef
    vocabulary: Sha256 | None = None
    head: HeadSpec | None = None
    task: TaskSpec | None = None
    composition: str = ""  # how it was trained: "Stack(hi, ner)"
    members: tuple[Member, ...] = ()  # packages it was trained with
    semantics: Literal["graftwork-1", "adapters-1"] = "graftwork-1"

    name: Text
    description: str = ""
    scores: Json = Field(default_factory=dict)
    data: Json = Field(default_factory=dict)
    training: Json = Field(default_factory=dict)
    licence: str | None = None
    created_with: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _parts_fit_the_role(self) -> Self:
        needed, forbidden = ROLES[self.role]
        if missing := [key for key in needed if not getattr(self, key)]:
            raise ValueError(f"a package of role {self.role!r} needs {', '.join(missing)}")
        if extra := [key for key in forbidden if getattr(self, key)]:
            raise ValueError(f"a package of role {self.role!r} cannot have {', '.join(extra)}")
        if self.method is not None and not isinstance(self.method.get("kind"), str):
            raise ValueError("method needs a 'kind', such as {'kind': 'bottleneck', ...}")
        if twice := [site for site, count in Counter(self.sites).items() if count > 1]:
            raise ValueError(f"sites are listed twice: {', '.join(twice)}")
        return self

    @model_validator(mode="after")
    def _can_be_written(self) -> Self:
        canonical_json(self.model_dump(mode="json")).encode()  # ValueError: NaN, infinity, half a surrogate pair
        return self


class TensorEntry(_Part):
    """One tensor as it lies in the file; `sha256` is of its bytes, row-major, little-endian."""

    dtype: Dtype
    shape: tuple[NonNegativeInt, ...]
    sha256: Sha256


class FileEntry(_Part):
    """The weights file: its length in bytes and its hash."""

    bytes: NonNegativeInt
    sha256: Sha256


class Contents(_Part):
    """What seals a manifest to its weights: `digest` is the identity of the whole package."""

    digest: Sha256
    tensors: dict[str, TensorEntry]
    weights: FileEntry

    def parameters(self, part: str = "") -> int:
        """How many numbers the tensors hold; of one part ("adapter", "fusion", "head") when it is named."""
        return sum(
            math.prod(e.shape) for name, e in self.tensors.items() if name.startswith(f"{part}/" if part else "")
        )


def identity(manifest: Manifest, tensors: Mapping[str, TensorEntry]) -> str:
    """The digest of a package (sha256, 64 hex digits): equal exactly when behaviour-bearing fields and tensors are."""
    whole = manifest.model_dump(mode="json")
    behaviour: dict[str, JsonValue] = {}
    for path in IDENTITY:
        value = whole
        for key in path.split("."):
            value = value[key]
        behaviour[path] = value
    table: JsonValue = {name: entry.model_dump(mode="json") for name, entry in tensors.items()}
    return hashlib.sha256(canonical_json({"behaviour": behaviour, "tensors": table}).encode()).hexdigest()


def dump(manifest: Manifest, contents: Contents) -> bytes:
    """The bytes of `graft.json`: one object, keys sorted, indented, no NaN."""
    whole = manifest.model_dump(mode="json") | contents.model_dump(mode="json")
    return (json.dumps(whole, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def parse(data: bytes, where: str) -> tuple[Manifest, Contents]:
    """Read the bytes of `graft.json`; `where` names the file in messages. Raises PackageError with every problem."""
    whole = load_json(data, where)
    if not isinstance(whole, dict):
        raise PackageError(f"{where}: expected a JSON object, found {type(whole).__name__}")
    version = whole.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise PackageError(
            f"{where}: schema_version {version} is newer than this graftwork reads "
            f"(up to {SCHEMA_VERSION}): upgrade graftwork to use this package"
        )
    seal = {key: whole.pop(key) for key in Contents.model_fields if key in whole}
    problems: list[str] = []
    manifest, contents = _validate(Manifest, whole, where, problems), _validate(Contents, seal, where, problems)
    if manifest is None or contents is None:
        raise PackageError("\n".join(problems))
    return manifest, contents


_Model = TypeVar("_Model", bound=BaseModel)


def _validate(model: type[_Model], value: Mapping[str, JsonValue], where: str, problems: list[str]) -> _Model | None:
    try:
        return model.model_validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        problems += [f"{where}: {_problem(model, detail['loc'], detail)}" for detail in error.errors()]
        return None


def _problem(model: type[BaseModel], path: tuple[int | str, ...], detail: Mapping[str, Any]) -> str:
    key = ".".join(map(str, path)) or "the whole"
    if detail["type"] == "missing":
        return f"key {key!r} is missing"
    if detail["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(path[-1]), model.model_fields, n=1) if len(path) == 1 else []
        return f"unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "; remove it")
    found = f", found {detail['input']!r:.80}" if path else ""
    return f"{key}: {detail['msg'].removeprefix('Value error, ')}{found}"
