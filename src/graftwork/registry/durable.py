"""Files and folders that are there whole or not at all, also after a crash: temporary sibling, fsync, rename.

Every function raises OSError as the system does; its callers know what the file was for, and say so by `named`. POSIX
only (renames that replace, `flock`).
"""

import errno
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from graftwork.errors import UserError

_KEPT = 100  # characters of a name that its sibling says
_SIBLING = re.compile(r"\.(.+)\.[0-9a-f]{32}(\.old)?", re.DOTALL)


@contextmanager
def refusals_of_the_disk() -> Iterator[None]:
    """What the writers of tensors, safetensors and torch, raise where the disk refuses, as the OSError that it is."""
    try:
        yield
    except SafetensorError as error:
        if "I/O error" not in str(error):
            raise
        raise OSError(str(error)) from error
    except RuntimeError as error:
        if "inline_container" not in str(error) and "PytorchStreamWriter" not in str(error):
            raise
        raise OSError(f"torch could not write a file: {str(error).splitlines()[0]}") from error


@contextmanager
def named(place: Path | str) -> Iterator[None]:
    """What the disk refuses is a UserError that names the place."""
    try:
        with refusals_of_the_disk():
            yield
    except OSError as error:
        raise UserError(f"{place}: cannot be written: {error.strerror or error}") from error


def write_file(path: Path, data: bytes) -> None:
    """Create a file and flush it to the disk; FileExistsError when there is one."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Give a file new contents; a reader sees the old or the new ones."""
    fresh = sibling(path)
    try:
        write_file(fresh, data)
        fresh.replace(path)
        sync(path.parent)
    finally:
        fresh.unlink(missing_ok=True)


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Create a folder with its files and flush all of it to the disk."""
    folder.mkdir()
    for name, data in files.items():
        write_file(folder / name, data)
    sync(folder)


def new_folder(folder: Path, files: Mapping[str, bytes]) -> bool:
    """Write a folder where nothing, or an empty one, stands, else False; what fails leaves nothing."""
    fresh = sibling(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    placed = False
    try:
        write_folder(fresh, files)
        placed = place(fresh, folder)
    finally:
        if not placed:
            shutil.rmtree(fresh, ignore_errors=True)
    return placed


def place(fresh: Path, folder: Path) -> bool:
    """Rename a finished folder to where nothing, or an empty folder, stands; False when something else does."""
    try:
        fresh.rename(folder)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            return False
        raise
    sync(folder.parent)
    return True


def exchange(fresh: Path, folder: Path) -> None:
    """Put a finished folder in the place of another, which is then removed.

    Between the two renames the place is empty for a moment. A crash just there leaves the old folder, whole, beside it
    under a name that begins with a dot and ends in `.old` (`is_torn` knows it).
    """
    old = fresh.parent / f"{fresh.name}.old"
    folder.rename(old)
    try:
        fresh.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def sibling(path: Path) -> Path:
    """A name beside `path` that nobody else uses; it begins with a dot."""
    return path.parent / f".{path.name[:_KEPT]}.{uuid.uuid4().hex}"


def is_torn(name: str, own: Collection[str]) -> bool:
    """Whether a name is what a process that was killed while it wrote one of the names `own` has left beside it."""
    found = _SIBLING.fullmatch(name)
    return found is not None and found[1] in {one[:_KEPT] for one in own}


def strangers(folder: Path, own: Collection[str]) -> list[str]:
    """What is in a folder, if it is there, beside the names `own` and what killed processes left of them; sorted."""
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return [name for name in there if name not in own and not is_torn(name, own)]


def remove_torn(folder: Path, own: Collection[str]) -> None:
    """Remove what killed processes left in a folder, if it is there, of the names `own`. Nobody may be writing them."""
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        if is_torn(path.name, own):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def sync(folder: Path) -> None:
    """Flush a folder's list of names to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file alone, among threads and processes; the system lets go when a process dies."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
