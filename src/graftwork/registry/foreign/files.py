"""Files that another tool wrote: JSON and tensors, read without trusting a byte.

A folder may come from anywhere, so everything is bounded before it is believed: sizes on disk, the header of a
safetensors file, the entries of torch's zip, the depth of JSON, the memory that a tensor claims. Pickles are unpickled
with `weights_only`, which makes tensors and plain containers and nothing else. Every refusal is a PackageError that
names the file. Knows no tool's names: which files there are is for the readers.
"""

import io
import json
import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from graftwork.errors import NotFound, PackageError
from graftwork.strict_json import load_json

JSON_LIMIT = 4 * 2**20
WEIGHTS_LIMIT = 8 * 2**30
HEADER_LIMIT = 64 * 2**20  # bytes of a safetensors header
ENTRIES_LIMIT = 200_000  # tensors of a file, entries of a zip

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file of a folder. Raises PackageError, NotFound."""
    path = _inside(folder, name)
    value = load_json(_bounded(path, JSON_LIMIT), str(path))
    if not isinstance(value, dict):
        raise PackageError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def read_weights(folder: Path, safe: str, pickled: str) -> tuple[str, dict[str, torch.Tensor]]:
    """Name and tensors of the weights file of a folder, which is `safe` or `pickled`.

    Where both are there they must hold the same tensors. Raises PackageError; NotFound when neither is there.
    """
    there = [name for name in (safe, pickled) if os.path.lexists(folder / name)]
    if not there:
        raise NotFound(f"{folder}: holds neither {safe} nor {pickled}; it holds {listing(folder)}")
    read = {name: read_tensors(folder, name) for name in there}
    if len(there) == 2:
        _require_equal(folder, there, read)
    return there[0], read[there[0]]


def read_tensors(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """The floating-point tensors of a file: safetensors by its ending, else a pickle. Raises PackageError."""
    path = _inside(folder, name)
    data = _bounded(path, WEIGHTS_LIMIT)
    tensors = _safe(data, path) if name.endswith(".safetensors") else _pickled(data, path)
    for key, tensor in tensors.items():
        if tensor.dtype not in _FLOATS or tensor.layout != torch.strided or tensor.is_meta:
            raise PackageError(f"{path}: tensor {key!r} is {tensor.dtype}, {tensor.layout}; expected dense floats")
        if tensor.numel() * tensor.element_size() > len(data):
            raise PackageError(
                f"{path}: tensor {key!r} of shape {tuple(tensor.shape)} claims more bytes than the file has"
            )
        if not torch.isfinite(tensor).all():
            raise PackageError(f"{path}: tensor {key!r} holds NaN or infinity; expected finite numbers")
    return tensors


def read_tensor(folder: Path, name: str) -> torch.Tensor:
    """The one tensor that a pickle holds, as `embedding.pt` does. Raises PackageError."""
    path = _inside(folder, name)
    data = _bounded(path, WEIGHTS_LIMIT)
    value = _unpickled(data, path)
    if not isinstance(value, torch.Tensor) or value.dtype not in _FLOATS:
        raise PackageError(f"{path}: expected one tensor of floats, found {type(value).__name__}")
    if value.numel() * value.element_size() > len(data):
        raise PackageError(f"{path}: a tensor of shape {tuple(value.shape)} claims more bytes than the file has")
    return value.detach()


def listing(folder: Path) -> str:
    """The first names in a folder, for a message."""
    try:
        return ", ".join(sorted(os.listdir(folder))[:10]) or "nothing"
    except OSError:
        return "nothing that can be read"


def _safe(data: bytes, path: Path) -> dict[str, torch.Tensor]:
    if looks_pickled(data):
        raise PackageError(f"{path}: is a pickle under the name of safetensors, which can run code; refused")
    size = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else 0
    if not 2 <= size <= min(HEADER_LIMIT, len(data) - 8):
        raise PackageError(f"{path}: not a safetensors file: its header claims {size} of {len(data)} bytes")
    try:
        header = json.loads(data[8 : 8 + size])
        if len(header) > ENTRIES_LIMIT:
            raise PackageError(f"{path}: lists {len(header)} tensors; at most {ENTRIES_LIMIT} are read")
        return safetensors.torch.load(data)
    except PackageError:
        raise
    except Exception as error:  # damage shows as one of many types, and all of them mean the same
        raise PackageError(f"{path}: not a valid safetensors file: {error}") from error


def _pickled(data: bytes, path: Path) -> dict[str, torch.Tensor]:
    value = _unpickled(data, path)
    if not isinstance(value, Mapping):
        raise PackageError(f"{path}: expected names and tensors, found {type(value).__name__}")
    if len(value) > ENTRIES_LIMIT:
        raise PackageError(f"{path}: holds {len(value)} tensors; at most {ENTRIES_LIMIT} are read")
    for key, tensor in value.items():
        if not isinstance(key, str) or not isinstance(tensor, torch.Tensor):
            raise PackageError(f"{path}: entry {key!r:.80} is {type(tensor).__name__}; expected names and tensors")
    return {key: tensor.detach() for key, tensor in value.items()}


def _unpickled(data: bytes, path: Path) -> Any:
    if not looks_pickled(data):
        raise PackageError(f"{path}: not a file of torch.save")
    if data.startswith(b"PK"):
        _check_zip(data, path)
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling fails with any type; the first line says what was met
        reason = str(error).strip().split("\n")[0][:300]
        raise PackageError(f"{path}: cannot be read as tensors and nothing else: {reason}") from error


def _check_zip(data: bytes, path: Path) -> None:
    """torch.save stores entries as they are: one that is compressed was not written by it, and may be a bomb."""
    try:
        entries = zipfile.ZipFile(io.BytesIO(data)).infolist()
    except (zipfile.BadZipFile, ValueError, OSError, struct.error) as error:
        raise PackageError(f"{path}: is damaged or cut short: {error}") from error
    if len(entries) > ENTRIES_LIMIT:
        raise PackageError(f"{path}: has {len(entries)} entries; at most {ENTRIES_LIMIT} are read")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise PackageError(f"{path}: has compressed entries, which torch.save does not write; refused")
    if sum(entry.file_size for entry in entries) > len(data):
        raise PackageError(f"{path}: its entries claim more bytes than the file has; refused")


def looks_pickled(data: bytes) -> bool:
    """Whether bytes begin as torch.save's zip or a pickle does, and not as the length of a small header."""
    return data.startswith(b"PK\x03\x04") or (data[:1] == b"\x80" and data[1:2] in b"\2\3\4\5" and any(data[2:8]))


def _require_equal(folder: Path, names: list[str], read: Mapping[str, dict[str, torch.Tensor]]) -> None:
    one, other = (read[name] for name in names)
    differing = [key for key in one.keys() & other.keys() if not torch.equal(one[key], other[key])]
    if differing or one.keys() != other.keys():
        key = sorted(differing or one.keys() ^ other.keys())[0]
        raise PackageError(
            f"{folder}: {names[0]} and {names[1]} are both there and differ, first in {key!r}; "
            "remove the one that is out of date"
        )


def _inside(folder: Path, name: str) -> Path:
    """A regular file of the folder. Raises PackageError for a link that leads out, NotFound."""
    path = folder / name
    try:
        if not path.resolve(strict=True).is_relative_to(folder.resolve(strict=True)) and not _cached(path):
            raise PackageError(f"{path}: is a link to {path.resolve()}, outside the folder; copy the file in")
    except FileNotFoundError as error:
        raise NotFound(f"{path}: is missing; the folder holds {listing(folder)}") from error
    except (OSError, RuntimeError) as error:
        raise PackageError(f"{path}: cannot be read: {error}") from error
    if not path.is_file():
        raise PackageError(f"{path}: is not a regular file")
    return path


def _cached(path: Path) -> bool:
    """Whether a link is one that the hub's cache makes: snapshots/<revision>/<file> -> ../../blobs/<hash>."""
    real = path.resolve()
    return real.parent.name == "blobs" and real.parent.parent in path.absolute().parents


def _bounded(path: Path, limit: int) -> bytes:
    try:
        size = path.stat().st_size
        if size > limit:
            raise PackageError(f"{path}: has {size} bytes; at most {limit} are read")
        return path.read_bytes()
    except OSError as error:
        raise PackageError(f"{path}: cannot be read: {error.strerror or error}") from error
