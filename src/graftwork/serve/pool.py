"""Which packages are in the model: loaded when they are first needed, the least recently used dropped first.

A package is *in use* between `acquire` and `release`, and as the member of a loaded fusion. What is in use is never
dropped; so the pool holds more than its capacity only while more than that is in use, and shrinks when it is released.

Three locks, always taken in this order: `_loading` (one load at a time: whoever waited finds the package there), `turn`
(nobody changes the model while it runs; reading and verifying files does not need it), `_books` (the entries).
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from graftwork.errors import Conflict
from graftwork.model import AdapterModel
from graftwork.packing import install
from graftwork.registry.package import read, read_manifest
from graftwork.serve.catalog import Found


@dataclass
class Entry:
    """A loaded package, how many hold it now, and how many loaded fusions it is a member of."""

    found: Found
    users: int = 0
    fusions: int = 0

    @property
    def idle(self) -> bool:
        """Whether it may be dropped."""
        return self.users == 0 and self.fusions == 0


@dataclass
class PoolCounts:
    """What happened so far; `load_seconds` from the first byte read to the last tensor copied."""

    hits: int = 0
    loads: int = 0
    failures: int = 0
    evictions: int = 0
    load_seconds: float = 0.0


class Pool:
    """The packages of one model, at most `capacity` unless more are in use. `turn`: the lock of its forwards."""

    def __init__(self, model: AdapterModel, capacity: int, turn: threading.Lock) -> None:
        self.capacity = capacity
        self.counts = PoolCounts()
        self._model = model
        self._turn = turn
        self._loading = threading.RLock()
        self._books = threading.Lock()
        self._entries: OrderedDict[str, Entry] = OrderedDict()  # least recently used first

    def loaded(self) -> tuple[str, ...]:
        """`name@version` of every package in the model, least recently used first."""
        with self._books:
            return tuple(self._entries)

    def acquire(self, found: Found) -> None:
        """Load a package unless it is there, with the members of a fusion, and keep it until `release`.

        Raises NotFound, PackageError, Conflict; then nothing of it is in the model, and it is not held.
        """
        if self._held(found):
            return
        with self._loading:
            if self._held(found):
                return
            started = time.perf_counter()
            try:
                with self._members(found):
                    self._load(found)
            except BaseException:
                self.counts.failures += 1
                raise
            self.counts.loads += 1
            self.counts.load_seconds += time.perf_counter() - started

    def release(self, found: Found) -> None:
        """Give back what `acquire` took. Drops what the pool holds beyond its capacity."""
        with self._books:
            self._entries[found.name].users -= 1
            crowded = len(self._entries) > self.capacity
        if crowded:
            with self._turn, self._books:
                self._drop_idle(self.capacity)

    def _held(self, found: Found) -> bool:
        """Take the package if it is there. Raises Conflict where another one of its name and version is in use."""
        with self._books:
            entry = self._entries.get(found.name)
            if entry is None:
                return False
            if entry.found.digest == found.digest:
                entry.users += 1
                self._entries.move_to_end(found.name)
                self.counts.hits += 1
                return True
            _refuse_in_use(entry, found)
        return False

    @contextmanager
    def _members(self, found: Found) -> Iterator[None]:
        """Hold the members of a fusion while it is loaded; afterwards the fusion itself keeps them."""
        taken: list[Found] = []
        try:
            for member in dict.fromkeys(found.members):
                self.acquire(member)
                taken.append(member)
            yield
        finally:
            for member in taken:
                self.release(member)

    def _load(self, found: Found) -> None:
        package = read(found.reference.path)  # slow: every byte is read and verified, while others run forwards
        if read_manifest(found.reference.path)[1].digest != found.digest:
            raise Conflict(f"{found.name} changed in the registry while it was read; ask again")
        with self._turn, self._books:
            stale = self._entries.get(found.name)  # of another digest; somebody may have taken it meanwhile
            if stale is not None:
                _refuse_in_use(stale, found)
                self._drop(found.name)
            self._drop_idle(self.capacity - 1)
            # Not `model.install`: only here the members of a fusion have names of their own. No plan is out of date
            # afterwards, since the model makes none with a name that is not there.
            install(self._model.parts, self._model.backbone, package, found.name, True, found.fuse)
            self._entries[found.name] = Entry(found, users=1)
            for member in dict.fromkeys(found.members):
                self._entries[member.name].fusions += 1

    def _drop_idle(self, most: int) -> None:
        """Drop the least recently used idle packages until at most `most` are left, or no idle one."""
        while len(self._entries) > most:
            idle = next((name for name, entry in self._entries.items() if entry.idle), None)
            if idle is None:
                return
            self._drop(idle)

    def _drop(self, name: str) -> None:
        manifest = self._entries[name].found.manifest
        if manifest.role != "head":
            (self._model.delete_adapter_fusion if manifest.fusion else self._model.delete_adapter)(name)
        if manifest.head is not None:
            self._model.delete_head(name)
        for member in dict.fromkeys(self._entries.pop(name).found.members):
            self._entries[member.name].fusions -= 1
        self.counts.evictions += 1


def _refuse_in_use(entry: Entry, found: Found) -> None:
    """Raise Conflict where another package of the same name and version cannot be replaced now."""
    if not entry.idle:
        raise Conflict(
            f"{found.name} changed in the registry (digest {entry.found.digest:.12} became {found.digest:.12}) while "
            "it is in use; versions never change: push the new one as a new version"
        )
