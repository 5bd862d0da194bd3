"""package.py: what is written is read; whatever is damaged, dishonest or impossible is refused and leaves nothing."""

import hashlib
import json
import multiprocessing
import os
import pickle
import resource
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from graftwork.errors import Conflict, NotFound, PackageError, UserError
from graftwork.registry.package import MANIFEST_LIMIT, Package, read, read_manifest, write
from tests.registry.samples import fusion_manifest, packages, task_manifest, task_package, task_tensors

FILES = ["README.md", "graft.json", "graft.safetensors"]
Victim = tuple[Path, dict[str, bytes]]
DOWN = "adapter/layer.0/ffn/down.weight"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refusal(folder: Path) -> str:
    with pytest.raises(PackageError) as caught:
        read(folder)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(task_package(), tmp_path / "mood")
    return tmp_path / "mood"


def same(one: Package, other: Package) -> bool:
    return (
        one.manifest == other.manifest
        and one.tensors.keys() == other.tensors.keys()
        and all(
            tensor.dtype == other.tensors[name].dtype and torch.equal(tensor, other.tensors[name])
            for name, tensor in one.tensors.items()
        )
    )


@given(packages())
def test_what_is_written_is_read(package: Package) -> None:
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "deep" / "er" / "package"
        digest = write(package, folder)
        again = read(folder)
        assert same(package, again)
        assert (
            digest == package.digest == again.digest == json.loads((folder / "graft.json").read_text("utf8"))["digest"]
        )
        assert names(folder) == FILES
        assert names(folder.parent) == ["package"]


def test_an_adapter_for_bert_base_takes_3_6_megabytes(tmp_path: Path) -> None:
    sites = tuple(f"layer.{layer}/ffn" for layer in range(12))
    shapes = {"down.weight": (48, 768), "down.bias": (48,), "up.weight": (768, 48), "up.bias": (768,)}
    tensors = {f"adapter/{site}/{name}": torch.randn(shape) for site in sites for name, shape in shapes.items()}
    manifest = task_manifest().model_copy(update={"sites": sites, "head": None, "task": None})
    write(Package(manifest, tensors), tmp_path / "bert")
    assert read_manifest(tmp_path / "bert")[1].parameters() == 894_528
    size = sum(path.stat().st_size for path in (tmp_path / "bert").iterdir())
    assert 4 * 894_528 < size < 3_620_000


def test_a_fusion_is_a_package_too(tmp_path: Path) -> None:
    package = Package(fusion_manifest(), {"fusion/layer.0/ffn/query.weight": torch.eye(8)})
    write(package, tmp_path / "ab")
    assert same(read(tmp_path / "ab"), package)


def test_memory_layout_and_order_do_not_change_the_digest(tmp_path: Path) -> None:
    tensors = task_tensors()
    views = {name: tensors[name] for name in reversed(tensors)}
    wide = torch.randn(8, 4)
    wide[:, ::2] = tensors[DOWN].T
    views[DOWN] = wide[:, ::2].T.requires_grad_()
    assert not views[DOWN].is_contiguous()
    assert Package(task_manifest(), views).digest == task_package().digest
    assert write(Package(task_manifest(), views), tmp_path / "x") == task_package().digest


def test_any_bit_of_a_tensor_changes_the_digest() -> None:
    tensors = task_tensors()
    bits = tensors[DOWN].clone()
    bits.view(torch.int32)[1, 3] ^= 1
    assert Package(task_manifest(), tensors | {DOWN: bits}).digest != task_package().digest
    assert Package(task_manifest(), tensors | {DOWN: tensors[DOWN].T.contiguous()}).digest != task_package().digest
    assert Package(task_manifest(), tensors | {DOWN: tensors[DOWN].double()}).digest != task_package().digest


def test_tensors_that_share_memory_are_stored_apart(tmp_path: Path) -> None:
    one = torch.randn(4, 8)
    tensors = task_tensors() | {DOWN: one[:2], "adapter/layer.1/ffn/down.weight": one[1:3]}
    write(Package(task_manifest(), tensors), tmp_path / "x")
    assert torch.equal(read(tmp_path / "x").tensors[DOWN], one[:2])


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        (DOWN, torch.zeros(2, 8, device="meta"), "without data (meta device); expected dense float32"),
        (DOWN, torch.zeros(2, 8, dtype=torch.int64), "is int64; expected dense float32, float16, bfloat16, float64"),
        (DOWN, torch.zeros(2, 8).to_sparse(), "not dense (torch.sparse_coo)"),
        (DOWN, torch.tensor([1.0, float("nan")]), "holds NaN or infinity"),
        (DOWN, torch.tensor([1.0, float("-inf")], dtype=torch.bfloat16), "holds NaN or infinity"),
        ("adapter/layer.9/ffn/x", torch.zeros(1), "site 'layer.9/ffn', which is not among the 2 sites"),
        ("adapter/x", torch.zeros(1), "has no place: expected adapter/<site>/<parameter>"),
        ("model.weight", torch.zeros(1), "has no place"),
        ("head/a/b", torch.zeros(1), "has no place"),
        ("adapter/../x/y", torch.zeros(1), "has no place"),
        ("fusion/layer.0/ffn/q", torch.zeros(1), "belongs to a 'fusion', and the manifest has none"),
    ],
)
def test_what_cannot_be_stored_leaves_nothing(tmp_path: Path, name: str, tensor: torch.Tensor, words: str) -> None:
    package = Package(task_manifest(), task_tensors() | {name: tensor})
    with pytest.raises(PackageError) as caught:
        write(package, tmp_path / "deep" / "mood")
    assert words in str(caught.value)
    assert repr(name) in str(caught.value)
    assert "package 'mood'" in str(caught.value)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("package", "words"),
    [
        (Package(task_manifest(), {}), "no tensors; a package holds at least one"),
        (Package(task_manifest(), {DOWN: torch.zeros(1)}), "1 listed sites have no tensor: layer.1/ffn"),
        (
            Package(task_manifest().model_copy(update={"scores": {"loss": float("nan")}}), task_tensors()),
            "its manifest cannot be written: Out of range float values",
        ),
        (
            Package(task_manifest().model_copy(update={"description": "x" * MANIFEST_LIMIT}), task_tensors()),
            f"at most {MANIFEST_LIMIT} can be read",
        ),
        (Package(task_manifest().model_copy(update={"method": {"m": 1}}), task_tensors()), "method needs a 'kind'"),
    ],
)
def test_a_package_that_could_not_be_read_back_is_not_written(tmp_path: Path, package: Package, words: str) -> None:
    with pytest.raises(PackageError) as caught:
        write(package, tmp_path / "mood")
    assert words in str(caught.value)
    assert names(tmp_path) == []


def test_writing_the_same_again_changes_nothing(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    described = task_manifest().model_copy(update={"description": "other words"})
    assert write(Package(described, task_tensors()), folder) == task_package().digest
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_another_package_is_not_replaced_unless_asked(folder: Path) -> None:
    with pytest.raises(Conflict, match=r"holds another package \(digest [0-9a-f]{12}, this one is [0-9a-f]{12}\)"):
        write(task_package(seed=1), folder)
    assert same(read(folder), task_package())
    write(task_package(seed=1), folder, overwrite=True)
    assert same(read(folder), task_package(seed=1))
    assert names(folder.parent) == ["mood"]


def test_overwriting_also_renews_words_and_heals_damage(folder: Path) -> None:
    described = Package(task_manifest().model_copy(update={"description": "other words"}), task_tensors())
    write(described, folder, overwrite=True)
    assert read(folder).manifest.description == "other words"
    (folder / "graft.safetensors").write_bytes(b"short")
    with pytest.raises(Conflict, match="exists and is not a whole package"):
        write(described, folder)
    write(described, folder, overwrite=True)
    assert same(read(folder), described)


def test_other_peoples_files_are_never_replaced(tmp_path: Path, folder: Path) -> None:
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(Conflict, match=r"no part of a package, so it is not replaced: \['thesis.tex'\]"):
        write(task_package(seed=1), folder, overwrite=True)
    assert (folder / "thesis.tex").read_text() == "years of work"
    (tmp_path / "file").write_text("x")
    with pytest.raises(Conflict, match="is not a folder"):
        write(task_package(), tmp_path / "file", overwrite=True)
    with pytest.raises(Conflict, match="exists and is not a whole package"):
        write(task_package(), tmp_path / "file")
    assert names(tmp_path) == ["file", "mood"]


def test_an_empty_folder_and_a_link_to_one_are_filled(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(task_package(), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert same(read(tmp_path / "real"), task_package())


@pytest.mark.parametrize("place", ["file/mood", "x" * 300, "/"])
def test_a_place_that_cannot_be_written_is_a_user_error(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot be written|is not replaced|not a whole package"):
        write(task_package(), tmp_path / place)
    assert names(tmp_path) == ["file"]


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """The system's own limit on the size of a file stands in for the disk."""
    worker = multiprocessing.get_context("spawn").Process(target=_write_with_a_small_limit, args=(tmp_path / "mood",))
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    assert names(tmp_path) == []


def _write_with_a_small_limit(folder: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
    package = Package(task_manifest(), task_tensors() | {DOWN: torch.zeros(100, 100)})
    with pytest.raises(UserError, match="cannot be written: File too large"):
        write(package, folder)


def test_a_reader_never_sees_a_mixture(folder: Path) -> None:
    """One process replaces the package all the time; every read returns one of the two, whole."""
    stop = folder.parent / "stop"
    worker = multiprocessing.get_context("spawn").Process(target=_replace_until, args=(folder, stop))
    worker.start()
    good = {task_package(seed=seed).digest for seed in (0, 1)}
    seen: set[str] = set()
    try:
        until = time.monotonic() + 60
        while seen != good and time.monotonic() < until:  # the other process needs a while to start
            seen.add(read(folder).digest)
        for _ in range(300):
            seen.add(read(folder).digest)
    finally:
        stop.touch()
        worker.join()
    assert seen == good
    assert worker.exitcode == 0


def _replace_until(folder: Path, stop: Path) -> None:
    seed = 0
    while not stop.exists():
        seed = 1 - seed
        write(task_package(seed=seed), folder, overwrite=True)


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Victim:
    """A package to damage again and again, and its files as they were."""
    folder = tmp_path_factory.mktemp("damage") / "mood"
    write(task_package(), folder)
    return folder, {path.name: path.read_bytes() for path in folder.iterdir()}


def damage(victim: Victim, name: str, data: bytes) -> Path:
    folder, files = victim
    for each, whole in files.items():
        (folder / each).write_bytes(data if each == name else whole)
    return folder


def flipped(whole: bytes, at: int, bits: int) -> bytes:
    return whole[:at] + bytes([whole[at] ^ bits]) + whole[at + 1 :]


@given(at=st.integers(0), bits=st.integers(1, 255))
def test_any_flipped_byte_of_the_weights_is_caught(victim: Victim, at: int, bits: int) -> None:
    whole = victim[1]["graft.safetensors"]
    folder = damage(victim, "graft.safetensors", flipped(whole, at % len(whole), bits))
    assert "graft.safetensors: " in refusal(folder)


@given(at=st.integers(0), bits=st.integers(1, 255))
def test_a_flipped_byte_of_the_manifest_is_caught_or_bears_on_nothing(victim: Victim, at: int, bits: int) -> None:
    whole = victim[1]["graft.json"]
    folder = damage(victim, "graft.json", flipped(whole, at % len(whole), bits))
    try:
        found = read(folder)
    except PackageError:
        return
    assert found.digest == task_package().digest


BEARING = [b'"bottleneck"', b'"relu"', b'"layer.1/ffn"', b'"bert"', b'"yes"', b'"classification"', b'"graftwork-1"']
BEARING += [b'"abab', b'"cdcd', b'"reduction_factor": 4', b'"max_length": 128', b'"digest":', b'"head/out.weight"']


@given(mark=st.sampled_from(BEARING), at=st.integers(0), bits=st.integers(1, 255))
def test_any_flipped_byte_that_bears_on_behaviour_is_caught(victim: Victim, mark: bytes, at: int, bits: int) -> None:
    whole = victim[1]["graft.json"]
    where = [whole.index(mark) + index for index in range(len(mark)) if mark[index : index + 1] != b" "]
    folder = damage(victim, "graft.json", flipped(whole, where[at % len(where)], bits))
    assert "graft" in refusal(folder)


@given(name=st.sampled_from(["graft.json", "graft.safetensors"]), length=st.integers(0))
def test_any_truncation_is_caught(victim: Victim, name: str, length: int) -> None:
    whole = victim[1][name]
    length %= len(whole.rstrip())
    message = refusal(damage(victim, name, whole[:length]))
    assert f"{name}: " in message
    if name == "graft.safetensors":
        assert f"has {length} bytes, expected {len(whole)}: it was cut short or changed" in message


def test_a_longer_file_is_caught(folder: Path) -> None:
    path = folder / "graft.safetensors"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"\0")
    assert f"has more bytes, expected {size}" in refusal(folder)


def test_a_changed_tensor_is_named_with_both_hashes(folder: Path) -> None:
    path = folder / "graft.safetensors"
    path.write_bytes(safetensors.torch.save(task_tensors() | {DOWN: torch.zeros(2, 8)}))
    message = refusal(folder)
    assert f"{path}: tensor '{DOWN}': sha256 is " in message
    assert ", expected " in message


def test_a_changed_header_is_caught(folder: Path) -> None:
    path = folder / "graft.safetensors"
    whole = path.read_bytes()
    head = 8 + int.from_bytes(whole[:8], "little")
    path.write_bytes(whole[:8] + whole[8:head].replace(b'"shape":[2,8]', b'"shape":[8,2]', 1) + whole[head:])
    assert "shape is (8, 2), expected (2, 8)" in refusal(folder)
    assert whole[head - 1 : head] == b" "
    path.write_bytes(whole[: head - 1] + b"\t" + whole[head:])
    assert "header was changed: sha256 is " in refusal(folder)


def reseal(folder: Path, change: Callable[[dict[str, object]], None]) -> None:
    """Edit graft.json, as somebody does who does not recompute the digest."""
    path = folder / "graft.json"
    whole = json.loads(path.read_text("utf8"))
    change(whole)
    path.write_text(json.dumps(whole), "utf8")


def forge(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Other weights under an honest manifest, with the file's size and hash made to fit."""
    data = safetensors.torch.save(tensors)
    (folder / "graft.safetensors").write_bytes(data)
    weights = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    reseal(folder, lambda whole: whole.update(weights=weights))


def test_forged_weights_are_named(folder: Path) -> None:
    short = {name: tensor for name, tensor in task_tensors().items() if name != DOWN}
    forge(folder, short)
    assert f"tensor '{DOWN}' is missing" in refusal(folder)
    forge(folder, task_tensors() | {"adapter/layer.0/ffn/extra": torch.zeros(1)})
    assert "tensor 'adapter/layer.0/ffn/extra' is not in graft.json" in refusal(folder)
    forge(folder, task_tensors() | {DOWN: task_tensors()[DOWN].half()})
    assert f"tensor '{DOWN}': dtype is float16, expected float32" in refusal(folder)
    forge(folder, task_tensors() | {DOWN: torch.zeros(3, 8)})
    assert f"tensor '{DOWN}': shape is (3, 8), expected (2, 8)" in refusal(folder)
    forge(folder, task_tensors() | {DOWN: torch.full((2, 8), float("nan"))})
    assert f"tensor '{DOWN}' holds NaN or infinity" in refusal(folder)
    forge(folder, task_tensors() | {DOWN: torch.zeros(2, 8, dtype=torch.int8)})
    assert f"tensor '{DOWN}' is int8; expected dense float32" in refusal(folder)


def test_an_edited_manifest_is_caught(folder: Path) -> None:
    reseal(folder, lambda whole: whole.update(composition="Stack(hi, mood)"))
    message = refusal(folder)
    assert "graft.json: was changed after it was written: digest is " in message
    assert f"expected {task_package().digest}" in message


def test_a_tensor_without_a_place_is_caught_in_a_file_too(folder: Path) -> None:
    entry = {"dtype": "float32", "shape": [1], "sha256": "0" * 64}
    reseal(folder, lambda whole: whole["tensors"].update({"anything": entry}))  # type: ignore[attr-defined]
    assert "graft.json: tensor 'anything' has no place" in refusal(folder)


def test_a_promise_of_too_much_is_not_believed(folder: Path) -> None:
    reseal(folder, lambda whole: whole["weights"].update(bytes=10**15))  # type: ignore[attr-defined]
    assert f"expected {10**15}" in refusal(folder)
    (folder / "graft.json").write_bytes(b" " * (MANIFEST_LIMIT + 1))
    assert f"is larger than {MANIFEST_LIMIT} bytes" in refusal(folder)


@pytest.mark.parametrize("name", ["graft.json", "graft.safetensors"])
def test_missing_and_irregular_files_are_named(folder: Path, name: str) -> None:
    path = folder / name
    path.rename(folder / "kept")
    message = refusal(folder)
    assert f"{name}: is missing; a package holds graft.json and graft.safetensors, this folder README.md, " in message
    path.mkdir()
    assert f"{name}: is not a regular file" in refusal(folder)
    path.rmdir()
    os.mkfifo(path)
    assert f"{name}: is not a regular file" in refusal(folder)
    path.unlink()
    path.symlink_to(name)
    assert f"{name}: cannot be read" in refusal(folder)
    path.unlink()
    path.symlink_to("kept")
    assert same(read(folder), task_package())
    path.unlink()
    (folder / "kept").rename(folder.parent / "outside")
    path.symlink_to(folder.parent / "outside")
    assert f"{name}: is a link to {folder.parent / 'outside'}, outside the package" in refusal(folder)


def test_a_pickle_is_refused_unread(folder: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    path = folder / "graft.safetensors"
    for data in [pickle.dumps(Trap(), protocol) for protocol in (2, 4, 5)]:
        path.write_bytes(data)
        assert "is a pickle, which can run code; expected safetensors" in refusal(folder)
    torch.save(task_tensors(), path)
    assert "is a pickle" in refusal(folder)
    path.rename(folder / "pytorch_adapter.bin")
    assert "Only safetensors are loaded" in refusal(folder)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x580])
def test_no_length_of_header_is_taken_for_a_pickle(tmp_path: Path, length: int) -> None:
    """A file whose header has 640 bytes begins with 80 02, as a pickle of protocol 2 does."""
    empty = len(safetensors.torch.save({"head/": torch.zeros(1)})) - 8 - 4
    package = Package(task_manifest(sites=()), {"head/" + "x" * (length - empty): torch.zeros(1)})
    write(package, tmp_path / "x")
    assert (tmp_path / "x" / "graft.safetensors").read_bytes()[:8] == length.to_bytes(8, "little")
    assert same(read(tmp_path / "x"), package)


@pytest.mark.parametrize(
    "header", [b"{}", b"{" * 50, b'{"a":{"dtype":"F4","shape":[1],"data_offsets":[0,1]}}', b"\xff"]
)
def test_rubbish_is_not_a_safetensors_file(folder: Path, header: bytes) -> None:
    path = folder / "graft.safetensors"
    size = path.stat().st_size
    path.write_bytes((len(header).to_bytes(8, "little") + header).ljust(size, b"\0"))
    assert "graft.safetensors: not a valid safetensors file" in refusal(folder)


@pytest.mark.parametrize("place", ["nowhere", "file", "x" * 300, "nul\0"])
def test_no_folder_is_not_found(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotFound, match="no such folder; a package is a folder that holds graft"):
        read(tmp_path / place)


def test_nothing_is_called_adapter_config(folder: Path) -> None:
    """With peft installed, transformers takes a folder with adapter_config.json for one of peft's."""
    assert names(folder) == FILES


def test_a_package_is_frozen() -> None:
    package = task_package()
    with pytest.raises(AttributeError):
        package.manifest = task_manifest("other")  # type: ignore[misc]
    assert replace(package, manifest=task_manifest("other")).digest == package.digest
