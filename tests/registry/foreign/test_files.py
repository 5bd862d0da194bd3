"""Files of others are bounded before they are believed: every kind of bad one ends in an error that names it."""

import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from graftwork.errors import NotFound, PackageError
from graftwork.registry.foreign import files
from graftwork.registry.foreign.files import read_json, read_tensor, read_tensors, read_weights

GOOD = {"a": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.float16)}


class Touch:
    """A pickle that would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (str(self.path),))


def test_both_formats_give_the_tensors(tmp_path: Path) -> None:
    torch.save(GOOD, tmp_path / "x.bin")
    save_file(GOOD, tmp_path / "x.safetensors")
    for name in ("x.bin", "x.safetensors"):
        found = read_tensors(tmp_path, name)
        assert found.keys() == GOOD.keys()
        assert all(torch.equal(found[key], GOOD[key]) for key in GOOD)
    assert read_weights(tmp_path, "x.safetensors", "x.bin")[0] == "x.safetensors"


def test_the_oldest_format_of_torch_is_read(tmp_path: Path) -> None:
    torch.save(GOOD, tmp_path / "x.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(read_tensors(tmp_path, "x.bin")["a"], GOOD["a"])


def test_both_formats_that_differ_are_refused(tmp_path: Path) -> None:
    torch.save(GOOD, tmp_path / "x.bin")
    save_file(GOOD | {"a": torch.zeros(2, 3)}, tmp_path / "x.safetensors")
    with pytest.raises(PackageError, match="differ, first in 'a'"):
        read_weights(tmp_path, "x.safetensors", "x.bin")
    save_file({"a": GOOD["a"]}, tmp_path / "x.safetensors")
    with pytest.raises(PackageError, match="differ, first in 'b'"):
        read_weights(tmp_path, "x.safetensors", "x.bin")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["x.bin", "x.safetensors"])
def test_a_pickle_never_runs_code(tmp_path: Path, zipped: bool, name: str) -> None:
    trap = tmp_path / "made"
    torch.save({"a": Touch(trap)}, tmp_path / name, _use_new_zipfile_serialization=zipped)
    with pytest.raises(PackageError, match="x"):
        read_tensors(tmp_path, name)
    (tmp_path / name).write_bytes(pickle.dumps(Touch(trap)))
    with pytest.raises(PackageError, match="x"):
        read_tensors(tmp_path, name)
    assert not trap.exists()


def test_a_compressed_zip_is_refused(tmp_path: Path) -> None:
    plain = io.BytesIO()
    torch.save({"a": torch.zeros(100_000)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(tmp_path / "x.bin", "w", zipfile.ZIP_DEFLATED) as bomb:
        for entry in source.infolist():
            bomb.writestr(entry.filename, source.read(entry))
    with pytest.raises(PackageError, match="compressed"):
        read_tensors(tmp_path, "x.bin")


def test_a_tensor_that_claims_more_than_its_file_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(10**9)}, tmp_path / "x.bin")
    with pytest.raises(PackageError, match="claims more bytes"):
        read_tensors(tmp_path, "x.bin")
    torch.save(torch.zeros(1).expand(10**9), tmp_path / "x.pt")
    with pytest.raises(PackageError, match="claims more bytes"):
        read_tensor(tmp_path, "x.pt")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("name", ["x.bin", "x.safetensors"])
def test_a_file_that_was_cut_short(tmp_path: Path, name: str, share: float) -> None:
    torch.save(GOOD, tmp_path / "x.bin")
    save_file(GOOD, tmp_path / "x.safetensors")
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(PackageError, match=name):
        read_tensors(tmp_path, name)


@pytest.mark.parametrize("size", [0, 2**40, 2**63])
def test_a_header_that_lies(tmp_path: Path, size: int) -> None:
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", size) + b"{}" * 50)
    with pytest.raises(PackageError, match="header claims"):
        read_tensors(tmp_path, "x.safetensors")


def test_what_is_no_table_of_floats_is_refused(tmp_path: Path) -> None:
    for value, message in (
        ([1, 2], "names and tensors"),
        ({"a": 3}, "'a' is int"),
        ({1: torch.zeros(2)}, "names and tensors"),
        ({"a": torch.zeros(2, dtype=torch.int64)}, "dense floats"),
        ({"a": torch.tensor([float("nan")])}, "NaN"),
    ):
        torch.save(value, tmp_path / "x.bin")
        with pytest.raises(PackageError, match=message):
            read_tensors(tmp_path, "x.bin")


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(GOOD, tmp_path / "x.bin")
    (tmp_path / "x.json").write_text("{}")
    monkeypatch.setattr(files, "WEIGHTS_LIMIT", 10)
    monkeypatch.setattr(files, "JSON_LIMIT", 1)
    with pytest.raises(PackageError, match="at most 10"):
        read_tensors(tmp_path, "x.bin")
    with pytest.raises(PackageError, match="at most 1"):
        read_json(tmp_path, "x.json")


def test_json_is_strict(tmp_path: Path) -> None:
    for text in ("[1]", "{", '{"a": 1, "a": 2}', '{"a": NaN}', "[" * 100_000):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(PackageError, match=r"x\.json"):
            read_json(tmp_path, "x.json")
    (tmp_path / "x.json").write_text(json.dumps({"a": [1, None]}))
    assert read_json(tmp_path, "x.json") == {"a": [1, None]}


def test_links_that_lead_out_are_refused_but_for_the_cache_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("{}")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "x.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(PackageError, match="outside the folder"):
        read_json(folder, "x.json")
    snapshot = tmp_path / "models--o--n" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    blobs = tmp_path / "models--o--n" / "blobs"
    blobs.mkdir()
    (blobs / "123").write_text('{"a": 1}')
    (snapshot / "x.json").symlink_to(Path("../../blobs/123"))
    assert read_json(snapshot, "x.json") == {"a": 1}


def test_missing_files_are_named_with_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(NotFound, match=r"x\.json.*notes\.txt"):
        read_json(tmp_path, "x.json")
    with pytest.raises(NotFound, match=r"neither a\.safetensors nor b\.bin.*notes\.txt"):
        read_weights(tmp_path, "a.safetensors", "b.bin")
    (tmp_path / "x.json").mkdir()
    with pytest.raises(PackageError, match="not a regular file"):
        read_json(tmp_path, "x.json")
