"""One trained adapter, fusion or head on disk: a folder with `graft.json`, `graft.safetensors` and a README.md.

`write` puts a whole folder in place with one rename, or nothing; `read` believes nothing: every byte of the weights and
every key that bears on behaviour is checked against the digest, and any defect is a PackageError that names file and
tensor. Only safetensors are loaded. This file knows names and tensors; not what a method, a head or a site is.
"""

import difflib
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import safetensors.torch
import torch

from graftwork.errors import Conflict, NotFound, PackageError
from graftwork.manifest import (
    PARTS,
    SITE,
    WORD,
    Contents,
    Dtype,
    FileEntry,
    Manifest,
    TensorEntry,
    dump,
    identity,
    parse,
)
from graftwork.registry.card import card
from graftwork.registry.durable import exchange, named, place, sibling, write_folder

MANIFEST, WEIGHTS, CARD = "graft.json", "graft.safetensors", "README.md"
MANIFEST_LIMIT = 4 * 2**20  # bytes of graft.json; one tensor takes about 300
DTYPES: tuple[str, ...] = get_args(Dtype)

_TENSOR = re.compile(rf"(?P<part>adapter|fusion)/(?P<site>{SITE})/{WORD}|(?P<head>head)/{WORD}")
_PATIENCE = 10  # times a reader looks again when a folder is replaced under it, 10 ms apart


@dataclass(frozen=True, eq=False)
class Package:
    """A manifest and its tensors, named adapter/<site>/<parameter>, fusion/<site>/<parameter> or head/<parameter>."""

    manifest: Manifest
    tensors: dict[str, torch.Tensor]

    @property
    def digest(self) -> str:
        """The identity (sha256 hex), computed from every byte on each access. Raises PackageError."""
        return identity(self.manifest, describe(self.tensors, f"package {self.manifest.name!r}"))


def describe(tensors: Mapping[str, torch.Tensor], where: str) -> dict[str, TensorEntry]:
    """Dtype, shape and hash of each tensor, whatever its strides. Raises PackageError on what is never stored."""
    table = {}
    for name, tensor in tensors.items():
        plain = _plain(name, tensor, where)
        if not torch.isfinite(plain).all():
            raise PackageError(f"{where}: tensor {name!r} holds NaN or infinity; expected finite numbers")
        data = plain.reshape(-1).view(torch.uint8).numpy().data
        entry = {"dtype": _dtype(plain), "shape": tuple(plain.shape), "sha256": hashlib.sha256(data).hexdigest()}
        table[name] = TensorEntry.model_validate(entry)
    return table


def write(package: Package, folder: Path | str, *, overwrite: bool = False) -> str:
    """Write a package as `folder`, whole or not at all, and return its digest.

    A folder that already holds the same digest is left as it is. `overwrite` replaces another package, never a folder
    with other files in it. Raises Conflict, PackageError (the package cannot be stored), UserError (the disk refused).
    """
    folder = Path(os.path.realpath(folder))
    digest, files = _encode(package)
    fresh = sibling(folder)
    try:
        with named(folder):
            if not overwrite and _holds(folder, digest):
                return digest
            folder.parent.mkdir(parents=True, exist_ok=True)
            write_folder(fresh, files)
            placed = place(fresh, folder)
            if not placed and overwrite:
                _replace(fresh, folder)
            elif not placed and not _holds(folder, digest):  # somebody was faster, with the same package or not
                raise Conflict(f"{folder}: is being changed by somebody else; try again")
    finally:
        shutil.rmtree(fresh, ignore_errors=True)  # is there only after a failure
    return digest


def read(folder: Path | str) -> Package:
    """Read and verify a package. Raises NotFound (no such folder) and PackageError (any defect).

    A folder that is replaced while it is read is read again, so that old and new files are never mixed.
    """
    folder = Path(folder)
    for _ in range(_PATIENCE):
        before = _stamp(folder)
        try:
            return _read(folder)
        except (NotFound, PackageError):
            if before is not None and _stamp(folder) == before:
                raise
        time.sleep(0.01)
    return _read(folder)


def read_manifest(folder: Path | str) -> tuple[Manifest, Contents]:
    """What `graft.json` says, checked against its digest; the weights are not opened. Raises as `read` does."""
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise NotFound(f"{folder}: no such folder; a package is a folder that holds {MANIFEST} and {WEIGHTS}")
    where = str(folder / MANIFEST)
    text = _bytes(folder, MANIFEST, MANIFEST_LIMIT)
    if len(text) > MANIFEST_LIMIT:
        raise PackageError(f"{where}: is larger than {MANIFEST_LIMIT} bytes, which no package needs")
    manifest, contents = parse(text, where)
    check_names(manifest, contents.tensors, where)
    found = identity(manifest, contents.tensors)
    if found != contents.digest:
        raise PackageError(f"{where}: was changed after it was written: digest is {found}, expected {contents.digest}")
    return manifest, contents


def check_names(manifest: Manifest, names: Iterable[str], where: str) -> None:
    """Every tensor has a stated place and every site has a tensor. Raises PackageError that names tensor or site."""
    names, listed, filled = list(names), set(manifest.sites), set()
    for name in names:
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise PackageError(
                f"{where}: tensor {name!r} has no place: expected adapter/<site>/<parameter>, "
                "fusion/<site>/<parameter> or head/<parameter>"
            )
        part, site = match["part"] or match["head"], match["site"]
        if getattr(manifest, PARTS[part]) is None:
            raise PackageError(f"{where}: tensor {name!r} belongs to a {PARTS[part]!r}, and the manifest has none")
        if site is not None and site not in listed:
            near = difflib.get_close_matches(site, listed, n=3) or manifest.sites[:3]
            raise PackageError(
                f"{where}: tensor {name!r} is for site {site!r}, which is not among the {len(listed)} sites "
                f"of the manifest (near: {', '.join(near) or 'none'})"
            )
        filled.add(site)
    if not names:
        raise PackageError(f"{where}: no tensors; a package holds at least one")
    if empty := [site for site in manifest.sites if site not in filled]:
        raise PackageError(f"{where}: {len(empty)} listed sites have no tensor: {', '.join(empty[:3])}")


def _encode(package: Package) -> tuple[str, dict[str, bytes]]:
    """The digest, and name -> bytes of every file. Raises PackageError on what could not be read back."""
    where = f"package {package.manifest.name!r}"
    # copies: safetensors refuses tensors that share memory, and nobody may change them between hash and file
    tensors = {name: _plain(name, tensor, where).clone() for name, tensor in package.tensors.items()}
    table = describe(tensors, where)
    check_names(package.manifest, tensors, where)
    data = safetensors.torch.save(tensors)
    weights = FileEntry(bytes=len(data), sha256=_sha256(data))
    try:
        contents = Contents(digest=identity(package.manifest, table), tensors=table, weights=weights)
        text = dump(package.manifest, contents)
    except ValueError as error:  # a manifest changed after it was validated
        raise PackageError(f"{where}: its manifest cannot be written: {error}") from error
    if len(text) > MANIFEST_LIMIT:
        raise PackageError(f"{where}: {MANIFEST} would take {len(text)} bytes, at most {MANIFEST_LIMIT} can be read")
    page = card(*parse(text, where))  # as read back: the order of keys in memory does not show
    return contents.digest, {MANIFEST: text, WEIGHTS: data, CARD: page.encode()}


def _plain(name: str, tensor: torch.Tensor, where: str) -> torch.Tensor:
    """The tensor in memory, contiguous and without a graph. Raises PackageError when it is of a kind never stored."""
    found = "without data (meta device)" if tensor.is_meta else _dtype(tensor)
    if tensor.layout != torch.strided:
        found = f"not dense ({tensor.layout})"
    if found not in DTYPES:
        raise PackageError(f"{where}: tensor {name!r} is {found}; expected dense {', '.join(DTYPES)}")
    return tensor.detach().cpu().contiguous()


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _holds(folder: Path, digest: str) -> bool:
    """Whether the same package stands there already; False where nothing stands. Raises Conflict, OSError."""
    if not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = read(folder).digest
    except (NotFound, PackageError) as error:
        raise Conflict(f"{folder}: exists and is not a whole package ({error}); choose another folder") from error
    if found != digest:
        raise Conflict(
            f"{folder}: holds another package (digest {found[:12]}, this one is {digest[:12]}); "
            "choose another folder or ask to overwrite it"
        )
    return True


def _replace(fresh: Path, folder: Path) -> None:
    """Put a finished package in the place of another one. Raises Conflict where files of somebody else would go."""
    if not folder.is_dir():
        raise Conflict(f"{folder}: is not a folder; it is not replaced by a package")
    if strangers := sorted({path.name for path in folder.iterdir()} - {MANIFEST, WEIGHTS, CARD}):
        raise Conflict(f"{folder}: holds files that are no part of a package, so it is not replaced: {strangers[:5]}")
    exchange(fresh, folder)


def _stamp(folder: Path) -> tuple[int, int, int] | None:
    """What tells one folder from another under the same name; None where there is none."""
    try:
        found = folder.stat()
    except (OSError, ValueError):  # ValueError: a name with a null character
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _read(folder: Path) -> Package:
    manifest, contents = read_manifest(folder)
    where, expected = str(folder / WEIGHTS), contents.weights
    data = _bytes(folder, WEIGHTS, expected.bytes)
    if _is_pickle(data):
        raise PackageError(f"{where}: is a pickle, which can run code; expected safetensors. Import it explicitly")
    if len(data) != expected.bytes:
        have = f"{len(data)} bytes" if len(data) < expected.bytes else "more bytes"
        raise PackageError(f"{where}: has {have}, expected {expected.bytes}: it was cut short or changed")
    try:
        tensors = safetensors.torch.load(data)
    except Exception as error:  # damage shows as one of many types, and all of them mean the same
        raise PackageError(f"{where}: not a valid safetensors file: {error}") from error
    _compare(tensors, contents.tensors, where)
    found = _sha256(data)
    if found != expected.sha256:  # the tensors are right, so it is the header
        raise PackageError(f"{where}: header was changed: sha256 is {found}, expected {expected.sha256}")
    return Package(manifest, tensors)


def _compare(tensors: Mapping[str, torch.Tensor], expected: Mapping[str, TensorEntry], where: str) -> None:
    """Raises PackageError that names the first tensor that is missing, unexpected or different."""
    for name in sorted(expected.keys() ^ tensors.keys()):
        raise PackageError(f"{where}: tensor {name!r} is " + ("missing" if name in expected else f"not in {MANIFEST}"))
    found = describe(tensors, where)
    for name, entry in expected.items():
        for key in TensorEntry.model_fields:
            have, want = getattr(found[name], key), getattr(entry, key)
            if have != want:
                raise PackageError(f"{where}: tensor {name!r}: {key} is {have}, expected {want}")


def _is_pickle(data: bytes) -> bool:
    """Whether it begins as torch.save's zip or a pickle does, and not as the length of a header (below 2**16)."""
    return data.startswith(b"PK\x03\x04") or (data[:1] == b"\x80" and data[1:2] in b"\2\3\4\5" and any(data[2:8]))


def _bytes(folder: Path, name: str, limit: int) -> bytes:
    """At most `limit` + 1 bytes of a regular file inside the folder. Raises PackageError."""
    path = folder / name
    try:
        if not path.resolve(strict=True).is_relative_to(folder.resolve(strict=True)):
            raise PackageError(f"{path}: is a link to {path.resolve()}, outside the package; copy the file in")
        if not path.is_file():
            raise PackageError(f"{path}: is not a regular file")
        with path.open("rb") as file:
            return file.read(min(limit, os.fstat(file.fileno()).st_size) + 1)  # never ask for what a liar promised
    except FileNotFoundError as error:
        raise PackageError(
            f"{path}: is missing; a package holds {MANIFEST} and {WEIGHTS}, this folder {_listing(folder)}. "
            "Only safetensors are loaded; other files go through an import"
        ) from error
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise PackageError(f"{path}: cannot be read: {error}") from error


def _listing(folder: Path) -> str:
    try:
        return ", ".join(sorted(os.listdir(folder))[:10]) or "nothing"
    except OSError:  # it vanished meanwhile
        return "nothing"
