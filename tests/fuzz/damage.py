"""Damage to files, drawn at random: bytes, JSON, tensors, and files that are dressed as what they are not.

A folder is a mapping of names to bytes. `damaged(draw, files)` returns another one. A pickle that would run code writes
to `CANARY`, an environment variable that nothing of ours reads.
"""

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import safetensors.torch
import torch
from hypothesis import strategies as st

Files = dict[str, bytes]
Draw = Any
CANARY = "GRAFTWORK_FUZZ_CANARY"

VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 3, 1.5, -0.0, 10**9, 10**30, 1e-300, 1e300),
    *("", "0", "a", "none", "relu", "../../x", "ä\0", "x" * 5000, "Stack(" * 40),
    *([], {}, [[]], [1, 2], {"default": 1}, {"0": 1}, {"kind": "union", "members": []}),
)


def explosive(protocol: int) -> bytes:
    """A pickle that runs code: `os.environ` gets the canary."""

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return exec, (f"import os; os.environ[{CANARY!r}] = '1'",)

    return pickle.dumps({"weight": Bomb()} if protocol % 2 else Bomb(), protocol=protocol)


def is_weights(name: str) -> bool:
    return name.endswith((".safetensors", ".bin"))


def tensors_of(name: str, data: bytes) -> dict[str, torch.Tensor] | None:
    """What torch or safetensors themselves read in a weights file, or None."""
    try:
        if name.endswith(".safetensors"):
            return dict(safetensors.torch.load(data))
        found = torch.load(io.BytesIO(data), weights_only=True)
    except Exception:
        return None
    return found if isinstance(found, dict) else None


def saved(name: str, tensors: dict[str, torch.Tensor]) -> bytes:
    """A weights file of the kind that its name says."""
    if name.endswith(".safetensors"):
        return safetensors.torch.save({key: value.contiguous().clone() for key, value in tensors.items()})
    target = io.BytesIO()
    torch.save(tensors, target)
    return target.getvalue()


def changed_tensors(draw: Draw, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One tensor renamed, dropped, doubled, or with other contents."""
    made = dict(tensors)
    if not made:
        return made
    key = draw(st.sampled_from(sorted(made)))
    value = made[key]
    floats = value.float() if value.is_floating_point() else torch.ones(value.shape)
    how = draw(st.sampled_from(["rename", "drop", "add", "swap", "nan", "inf", "dtype", "shape", "empty", "huge"]))
    if how in ("rename", "drop"):
        del made[key]
    if how in ("rename", "add"):
        made[draw(st.sampled_from([key + "x", key[1:], key.replace("0", "7", 1), "x", "", "a.b", key.upper()]))] = value
    if how == "swap":
        other = draw(st.sampled_from(sorted(made)))
        made[key], made[other] = made[other], made[key]
    if how in ("nan", "inf"):
        made[key] = torch.full_like(floats, float(how))
    if how == "dtype":
        kinds = [torch.int64, torch.bool, torch.float64, torch.bfloat16, torch.float16, torch.uint8]
        made[key] = value.to(draw(st.sampled_from(kinds)))
    if how == "shape":
        shapes = [floats.flatten(), floats[None], floats.T if floats.dim() == 2 else floats.repeat(2), floats[:1]]
        made[key] = draw(st.sampled_from(shapes)) if floats.dim() else floats[None]
    if how == "empty":
        made[key] = floats.flatten()[:0]
    if how == "huge":
        made[key] = floats * 1e38
    return made


def changed_json(draw: Draw, value: Any, depth: int = 0) -> Any:
    """A JSON value with one of its parts replaced, renamed or removed."""
    if isinstance(value, dict) and value and draw(st.integers(0, 5 if depth < 4 else 0)):
        key = draw(st.sampled_from(sorted(value)))
        how = draw(st.sampled_from(["inside", "inside", "inside", "remove", "rename"]))
        rest = {one: other for one, other in value.items() if one != key}
        if how == "inside":
            return {**value, key: changed_json(draw, value[key], depth + 1)}
        return rest if how == "remove" else {**rest, draw(st.sampled_from([key + "_", "kind", "x"])): value[key]}
    if isinstance(value, list) and value and draw(st.booleans()):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], changed_json(draw, value[at], depth + 1), *value[at + 1 :]]
    return draw(st.sampled_from(VALUES))


def _json(draw: Draw, name: str, data: bytes) -> bytes:
    try:
        value = json.loads(data)
    except ValueError:
        return data
    return json.dumps(changed_json(draw, value)).encode()


def _weights(draw: Draw, name: str, data: bytes) -> bytes:
    tensors = tensors_of(name, data)
    return data if tensors is None else saved(name, changed_tensors(draw, tensors))


def _cut(draw: Draw, name: str, data: bytes) -> bytes:
    return data[: draw(st.integers(0, len(data)))]


def _flip(draw: Draw, name: str, data: bytes) -> bytes:
    if not data:
        return data
    at, bit = draw(st.integers(0, len(data) - 1)), draw(st.integers(0, 7))
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


def _grow(draw: Draw, name: str, data: bytes) -> bytes:
    return data + draw(st.sampled_from([b"\0", b"{}", b"PK\x05\x06" + bytes(18), data]))


def _header(draw: Draw, name: str, data: bytes) -> bytes:
    """A safetensors header that lies: about its length, shapes, offsets, or with deep or doubled keys."""
    entry = {"dtype": "F32", "shape": [draw(st.sampled_from([2**62, 2**40, -1, 0, 1]))] * 2, "data_offsets": [0, 4]}
    texts = [
        json.dumps({"a": entry}),
        json.dumps({"a": {**entry, "shape": [1]}, "b": {**entry, "shape": [1]}}),
        json.dumps({"a": {**entry, "shape": [1], "data_offsets": [4, 0]}}),
        json.dumps({"a": {**entry, "shape": [1], "dtype": "F8"}}),
        "[" * 100_000,
        '{"a":' * 5000,
        '{"__metadata__": {"format": "pt"}}',
        "{}",
    ]
    text = draw(st.sampled_from(texts)).encode()
    size = draw(st.sampled_from([len(text), 2**63, 2**32, len(text) + 1, 0]))
    return struct.pack("<Q", size) + text + bytes(4)


def _pickle(draw: Draw, name: str, data: bytes) -> bytes:
    """A pickle that would run code, bare or in torch's zip."""
    bomb = explosive(draw(st.integers(0, 5)))
    if draw(st.booleans()):
        return bomb
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("archive/data.pkl", bomb)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return packed.getvalue()


def _zip_bomb(draw: Draw, name: str, data: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(draw(st.sampled_from([10**3, 10**7]))))
        archive.writestr("archive/data/0", bytes(10**6))
    return packed.getvalue()


def _text(draw: Draw, name: str, data: bytes) -> bytes:
    deep = draw(st.sampled_from([50, 3000, 100_000]))
    return draw(
        st.sampled_from(
            [
                b"[" * deep,
                b'{"config":' * deep + b"1" + b"}" * deep,
                b'{"a": 1, "a": 2}',
                b'{"hidden_size": NaN}',
                b"\xff\xfe{}",
                b"null",
                b"{" + data,
                b'{"x": ' + b"9" * 6000 + b"}",
            ]
        )
    )


def _other(files: Files, name: str, draw: Draw) -> Files:
    """A file that is gone, empty, renamed, or has the contents of another."""
    how = draw(st.sampled_from(["gone", "empty", "other", "renamed"]))
    made = dict(files)
    if how == "gone":
        del made[name]
    elif how == "empty":
        made[name] = b""
    elif how == "other":
        made[name] = files[draw(st.sampled_from(sorted(files)))]
    else:
        made[name.replace(".safetensors", ".bin") if ".safe" in name else name + ".safetensors"] = made.pop(name)
    return made


_BYTES: tuple[Callable[[Draw, str, bytes], bytes], ...] = (_cut, _flip, _grow)
_OF_WEIGHTS = (_weights, _weights, _weights, _header, _pickle, _zip_bomb)
_OF_JSON = (_json, _json, _json, _text)


@st.composite
def damage(draw: Draw, files: Files) -> Files:
    """The files of a folder with one to three kinds of damage."""
    made = dict(files)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        if not made:
            break
        name = draw(st.sampled_from(sorted(made)))
        if draw(st.integers(0, 9)) == 0:
            made = _other(made, name, draw)
            continue
        own = _OF_WEIGHTS if is_weights(name) else _OF_JSON if name.endswith(".json") else ()
        made[name] = draw(st.sampled_from([*_BYTES, *own, *own]))(draw, name, made[name])
    return made
