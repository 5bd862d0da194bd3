"""A registry is a folder: `name@version` -> package. Versions never change, aliases move.

    <root>/<name, "/" written as %2F>/<version>/     a package, as `package.py` writes it
    <root>/<name, "/" written as %2F>/aliases.json   {"prod": 3}

A bare name means its highest version. Reading needs no lock; writers take turns by a lock on the root. Where a file
system has no working locks a version is still put in place by a rename that replaces nothing: two writers may then
collide with an error, never share a version. The store knows names and packages; not what is inside them.
"""

import dataclasses
import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from graftwork.errors import Conflict, GraftworkError, NotFound, PackageError, UserError
from graftwork.registry.durable import locked, named, replace_file
from graftwork.registry.package import Package, read, read_manifest, write
from graftwork.strict_json import load_json

ALIASES = "aliases.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
_NAME_LIMIT = 200  # characters of a folder's name; file systems stop at 255
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_ALIAS = re.compile(r"(?![0-9]+\Z)[A-Za-z0-9._-]{1,100}")


@dataclass(frozen=True)
class Reference:
    """One version of one name; `str()` is `name@version`. `digest` is what graft.json says; `get` verifies it."""

    name: str
    version: int
    path: Path
    digest: str

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class Entry:
    """One line of a listing; `size` in bytes. A version that cannot be read has a `problem` and no digest or role."""

    name: str
    version: int
    digest: str
    role: str
    size: int
    aliases: tuple[str, ...]
    problem: str = ""


@dataclass(frozen=True)
class Verdict:
    """What `verify` found about one reference; no problem means that every byte is as it was pushed."""

    reference: str
    problem: str = ""

    @property
    def ok(self) -> bool:
        return not self.problem


def default_root(environment: Mapping[str, str]) -> Path:
    """Where a person's registry lies: $GRAFTWORK_HOME/registry, else ~/.graftwork/registry."""
    home = environment.get("GRAFTWORK_HOME")
    return (Path(home) if home else Path.home() / ".graftwork") / "registry"


def check_name(name: str) -> None:
    """Raises UserError unless the name can stand in a registry and in a composition."""
    segments = name.split("/")
    if not _NAME.fullmatch(name) or name == "none" or any(segment in ("", ".", "..") for segment in segments):
        raise UserError(
            f"{name!r} cannot name a package: use letters, digits and - _ . /, begin with a letter or digit, "
            "no empty, '.' or '..' segment, and not 'none'"
        )
    if len(_folder(name)) > _NAME_LIMIT:
        raise UserError(f"{name!r} is too long for a name: at most {_NAME_LIMIT} characters, '/' counts as three")


class Registry:
    """Packages by name and version under one root folder, which is created at the first push."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def push(self, source: Package | Path | str, name: str, version: int | None = None) -> str:
        """Store a package, or the package in a folder, and return `name@version`.

        Without a version it becomes the next one, unless the newest is the same package already. The name inside the
        package becomes `name`; its digest stays. Raises Conflict, UserError, PackageError.
        """
        check_name(name)
        package = source if isinstance(source, Package) else read(source)
        package = dataclasses.replace(package, manifest=package.manifest.model_copy(update={"name": name}))
        if version is not None:
            self._check_version(version)
        with named(f"registry {self.root}"):
            self.root.mkdir(parents=True, exist_ok=True)
            with locked(self.root / ".lock"):
                self._refuse_twin(name)
                newest = max(self.versions(name), default=0)
                if version is None and newest and self._is(name, newest, package.digest):
                    return f"{name}@{newest}"
                version = version or newest + 1
                self._put(package, name, version)
        return f"{name}@{version}"

    def resolve(self, reference: str | Reference) -> Reference:
        """Find `name`, `name@3` or `name@alias`. Raises NotFound with what is near, UserError, PackageError."""
        name, at, selector = str(reference).partition("@")
        check_name(name)
        held = self.versions(name)
        if not held:
            near = _near(name, self.names())
            raise NotFound(f"no package {name!r} in the registry {self.root}; {near or 'it is empty'}")
        if not at:
            return self._reference(name, held[-1])
        if selector.isascii() and selector.isdigit():
            if not _VERSION.fullmatch(selector) or int(selector) not in held:
                raise NotFound(f"{name!r} has no version {selector}; it has {_few(held)}")
            return self._reference(name, int(selector))
        aliases = self.aliases(name)
        if selector not in aliases:
            near = _near(selector, aliases)
            raise NotFound(f"{name!r} has no alias {selector!r}; {near or 'it has none'}; versions: {_few(held)}")
        if aliases[selector] not in held:
            raise NotFound(f"{name}@{selector} is version {aliases[selector]}, which is gone; it has {_few(held)}")
        return self._reference(name, aliases[selector])

    def get(self, reference: str | Reference) -> Package:
        """Read and verify a package. Raises NotFound, UserError, PackageError."""
        return read(self.resolve(reference).path)

    def pull(self, reference: str | Reference, folder: Path | str, *, overwrite: bool = False) -> Reference:
        """Copy a verified package out into a folder. Raises as `get` and `package.write` do."""
        found = self.resolve(reference)
        write(read(found.path), folder, overwrite=overwrite)
        return found

    def list(self) -> tuple[Entry, ...]:
        """Every version of every name, in order; weights are not opened, and a damaged version is a line too."""
        entries = []
        for name in self.names():
            aliases, damage = self._readable_aliases(name)
            for version in self.versions(name):
                path, digest, role, problem = self._path(name, version), "", "", damage
                try:
                    manifest, contents = read_manifest(path)
                    digest, role = contents.digest, manifest.role
                except (PackageError, NotFound) as error:
                    problem = str(error)
                called = tuple(sorted(alias for alias, target in aliases.items() if target == version))
                size = sum(file.stat().st_size for file in path.glob("*") if file.is_file())
                entries.append(Entry(name, version, digest, role, size, called, problem))
        return tuple(entries)

    def alias(self, name: str, alias: str, version: int) -> Reference:
        """Let `name@alias` mean a version from now on; an alias that exists moves. Raises NotFound, UserError."""
        if not _ALIAS.fullmatch(alias):
            raise UserError(f"{alias!r} cannot be an alias: use letters, digits and - _ . and not digits alone")
        check_name(name)
        self._check_version(version)
        found = self.resolve(f"{name}@{version}")
        with named(f"registry {self.root}"), locked(self.root / ".lock"):
            aliases = self.aliases(name) | {alias: version}
            replace_file(self._aliases_file(name), json.dumps(aliases, sort_keys=True, indent=2).encode() + b"\n")
        return found

    def verify(self, reference: str | Reference | None = None) -> tuple[Verdict, ...]:
        """Read every byte of one reference, or of everything with all aliases. Raises NotFound, UserError only."""
        if reference is not None:
            return (self._verdict(str(reference)),)
        verdicts = []
        for name in self.names():
            aliases, problem = self._readable_aliases(name)
            verdicts += [self._verdict(f"{name}@{version}") for version in self.versions(name)]
            verdicts += [Verdict(f"{name}@*", problem)] if problem else []
            for alias, version in sorted(aliases.items()):
                if version not in self.versions(name):
                    verdicts.append(Verdict(f"{name}@{alias}", f"means version {version}, which is gone"))
        return tuple(verdicts)

    def names(self) -> tuple[str, ...]:
        """Every name that has a version, sorted."""
        names = [unquote(folder) for folder in _listing(self.root)]
        return tuple(sorted(name for name in names if _NAME.fullmatch(name) and self.versions(name)))

    def versions(self, name: str) -> tuple[int, ...]:
        """The versions of a name, ascending; none when it is unknown."""
        return tuple(
            sorted(int(folder) for folder in _listing(self.root / _folder(name)) if _VERSION.fullmatch(folder))
        )

    def aliases(self, name: str) -> dict[str, int]:
        """The aliases of a name. Raises PackageError when their file is damaged."""
        path = self._aliases_file(name)
        try:
            found = load_json(path.read_bytes(), str(path))
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise PackageError(f"{path}: cannot be read: {error.strerror}") from error
        if not isinstance(found, dict):
            raise PackageError(f"{path}: expected an object of aliases, found {type(found).__name__}")
        aliases = {}
        for alias, version in found.items():
            if not _ALIAS.fullmatch(alias) or type(version) is not int or version < 1:
                raise PackageError(f"{path}: {alias!r}: {version!r} is not an alias and its version")
            aliases[alias] = version
        return aliases

    def _put(self, package: Package, name: str, version: int) -> None:
        try:
            write(package, self._path(name, version))
        except Conflict as error:
            raise Conflict(
                f"{name}@{version} exists with other contents, and versions never change; "
                f"push without a version to get the next one ({error})"
            ) from error

    def _is(self, name: str, version: int, digest: str) -> bool:
        try:
            return read(self._path(name, version)).digest == digest
        except (PackageError, NotFound):
            return False

    def _refuse_twin(self, name: str) -> None:
        """On some file systems `NER` and `ner` are one folder. Raises Conflict before they could be mixed."""
        for other in _listing(self.root):
            if other != _folder(name) and other.lower() == _folder(name).lower():
                raise Conflict(f"{name!r} differs from {unquote(other)!r} only in capitals; choose another name")

    def _check_version(self, version: int) -> None:
        if type(version) is not int or not _VERSION.fullmatch(str(version)):
            raise UserError(f"{version!r} is not a version: versions are 1, 2, 3 and so on")

    def _verdict(self, reference: str) -> Verdict:
        try:
            found = self.resolve(reference)
            read(found.path)
        except PackageError as error:
            return Verdict(reference, str(error))
        return Verdict(str(found))

    def _readable_aliases(self, name: str) -> tuple[dict[str, int], str]:
        try:
            return self.aliases(name), ""
        except GraftworkError as error:
            return {}, str(error)

    def _reference(self, name: str, version: int) -> Reference:
        path = self._path(name, version)
        return Reference(name, version, path, read_manifest(path)[1].digest)

    def _path(self, name: str, version: int) -> Path:
        return self.root / _folder(name) / str(version)

    def _aliases_file(self, name: str) -> Path:
        return self.root / _folder(name) / ALIASES


def _folder(name: str) -> str:
    return quote(name, safe="")


def _listing(folder: Path) -> tuple[str, ...]:
    """What a folder holds, hidden names left out; nothing where there is no folder. Raises UserError."""
    try:
        return tuple(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as error:
        raise UserError(f"{folder}: cannot be read: {error.strerror}") from error


def _near(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    if near := difflib.get_close_matches(name, known, n=3, cutoff=0.5):
        return f"near: {', '.join(near)}"
    return f"it has {_few(known)}" if known else ""


def _few(known: Iterable[object]) -> str:
    words = [str(one) for one in known]
    return ", ".join(words if len(words) <= 10 else [*words[:9], "...", words[-1]])
