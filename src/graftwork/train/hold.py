"""A run folder is trained in by one process at a time: it holds the folder's lock, which the system lets go when the
process dies, however it does. Where a file system knows no locks of folders, nothing is held and nobody is refused.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from graftwork.errors import Conflict

LOCKS = Path("/proc/locks")  # of Linux: "1: FLOCK  ADVISORY  WRITE <process> <device>:<inode> 0 EOF"
_UNKNOWN = (errno.EBADF, errno.ENOLCK, errno.ENOTSUP, errno.EINVAL)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder that is there. Raises Conflict where another process does."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = holder(folder)
            raise Conflict(
                f"{folder}: {f'process {who}' if who else 'another process'} is training in it; let it end or stop "
                "it, or choose another output"
            ) from None
        except OSError as error:
            if error.errno not in _UNKNOWN:
                raise
        yield
    finally:
        os.close(handle)


def holder(folder: Path) -> int | None:
    """The process that holds a folder; None where none does, or the system does not say."""
    inode = str(folder.stat().st_ino)
    lines = [line.split() for line in LOCKS.read_text("utf8").splitlines()] if LOCKS.is_file() else []
    found = [int(words[4]) for words in lines if words[1] == "FLOCK" and words[5].rpartition(":")[2] == inode]
    return next((process for process in found if process > 0), None)
