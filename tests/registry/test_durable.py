"""durable.py: whole or not at all."""

import resource
import threading
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from graftwork.errors import UserError
from graftwork.registry.durable import (
    exchange,
    is_torn,
    locked,
    named,
    new_folder,
    place,
    refusals_of_the_disk,
    replace_file,
    sibling,
    write_file,
    write_folder,
)


def test_what_the_disk_refuses_names_the_place() -> None:
    with pytest.raises(UserError, match=r"here: cannot be written: No space left"), named(Path("here")):
        raise OSError(28, "No space left on device")


def test_a_file_is_created_once(tmp_path: Path) -> None:
    write_file(tmp_path / "a", b"one")
    with pytest.raises(FileExistsError):
        write_file(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"one"


def test_a_file_is_replaced_whole_or_stays(tmp_path: Path) -> None:
    replace_file(tmp_path / "a", b"one")
    replace_file(tmp_path / "a", b"two")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        replace_file(tmp_path / "folder", b"three")
    assert (tmp_path / "a").read_bytes() == b"two"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "folder"]


def test_a_folder_is_placed_where_nothing_stands(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "file").touch()
    for name, expected in [("new", True), ("empty", True), ("full", False), ("file", False)]:
        write_folder(tmp_path / "fresh", {"a": b"1"})
        assert place(tmp_path / "fresh", tmp_path / name) is expected
        assert (tmp_path / "fresh").exists() is not expected
        if not expected:
            (tmp_path / "fresh" / "a").unlink()
            (tmp_path / "fresh").rmdir()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["x"]
    with pytest.raises(FileNotFoundError):
        place(tmp_path / "nowhere", tmp_path / "other")


def test_an_exchange_that_fails_changes_nothing(tmp_path: Path) -> None:
    write_folder(tmp_path / "old", {"a": b"1"})
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "nowhere", tmp_path / "old")
    assert (tmp_path / "old" / "a").read_bytes() == b"1"
    write_folder(tmp_path / "fresh", {"a": b"2"})
    exchange(tmp_path / "fresh", tmp_path / "old")
    assert (tmp_path / "old" / "a").read_bytes() == b"2"
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_one_holder_of_a_lock_at_a_time(tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def enter() -> None:
        with locked(tmp_path / "lock"):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8


def test_a_new_folder_is_there_whole_or_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "new"
    assert new_folder(folder, {"a": b"1"})
    assert not new_folder(folder, {"a": b"2"})
    with pytest.raises(FileNotFoundError):
        new_folder(tmp_path / "in" / "other", {"a": b"1", "no/such": b"2"})
    assert [path.name for path in folder.parent.iterdir()] == ["new"]
    assert (folder / "a").read_bytes() == b"1"


def test_what_a_killed_process_was_writing_is_known_by_its_name() -> None:
    long = "x" * 300
    for name in ("package", "result.json", long):
        fresh = sibling(Path("run") / name).name
        assert is_torn(fresh, ["model", name])
        assert is_torn(f"{fresh}.old", ["model", name])
        assert not is_torn(fresh, ["model", f"a{name}"])
        assert not is_torn(f"{fresh}x", [name])
        assert not is_torn(fresh[1:], [name])
        assert not is_torn(name, [name])
    assert not is_torn(f".package.{'z' * 32}", ["package"])


def test_a_disk_that_refuses_tensors_is_an_os_error(tmp_path: Path) -> None:
    numbers, limits = torch.zeros(10_000), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # files cannot become larger
    try:
        with pytest.raises(OSError, match="I/O error"), refusals_of_the_disk():
            safetensors.torch.save_file({"numbers": numbers}, tmp_path / "one")
        with pytest.raises(OSError, match="torch could not write a file"), refusals_of_the_disk():
            torch.save(numbers, tmp_path / "other")
        with pytest.raises(UserError, match=r"runs/a: cannot be written: .*I/O error"), named("runs/a"):
            safetensors.torch.save_file({"numbers": numbers}, tmp_path / "one")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with pytest.raises(RuntimeError, match="another reason"), refusals_of_the_disk():
        raise RuntimeError("another reason")
