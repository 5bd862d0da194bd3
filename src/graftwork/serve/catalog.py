"""Names to packages, as the registry has them at one moment, and compositions of names to compositions of versions.

A `Catalog` is made for one request: every name and alias is resolved once, at admission, so that all rows of a request
mean the same version. Manifests are read here, weights are not. Members of a fusion are found by their digest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from graftwork.compose.order import check_order
from graftwork.compose.tree import Average, BatchSplit, Block, Composition, Fuse, Split, Stack, fusions, leaves, show
from graftwork.errors import CompositionError, Conflict, NotFound, PackageError, UserError
from graftwork.manifest import Manifest, Member
from graftwork.packing import as_written
from graftwork.registry.package import read_manifest
from graftwork.registry.store import Reference, Registry

Leaf: TypeAlias = Callable[[str], Composition]


@dataclass(frozen=True)
class Found:
    """One version of a package; `members`, of a fusion, in the order of its leaves."""

    reference: Reference
    manifest: Manifest = field(compare=False, repr=False)
    members: tuple["Found", ...] = field(default=(), compare=False)

    @property
    def name(self) -> str:
        """`name@version`: also what it is called in the engine's model."""
        return str(self.reference)

    @property
    def digest(self) -> str:
        """The identity of the package."""
        return self.reference.digest

    @property
    def fuse(self) -> Fuse | None:
        """A fusion with its members by their names here; None for any other package."""
        if self.manifest.fusion is None:
            return None
        names = iter([member.name for member in self.members])
        written = as_written(self.manifest)
        return Fuse(*(_replaced(child, lambda _: next(names)) for child in written.children), name=self.name)

    @property
    def closure(self) -> tuple["Found", ...]:
        """What must be loaded for it, members before their fusion, each once."""
        return tuple(dict.fromkeys((*self.members, self)))


class Catalog:
    """One request's look at a registry, for an engine whose tokenizer has the given vocabulary digest."""

    def __init__(self, registry: Registry, vocabulary: str) -> None:
        self._registry = registry
        self._vocabulary = vocabulary
        self._seen: dict[str, Found | Exception] = {}

    def find(self, name: str) -> Found:
        """`name`, `name@3` or `name@alias`. Raises NotFound, Conflict (another vocabulary), PackageError, UserError."""
        if name not in self._seen:
            try:
                reference = self._registry.resolve(name)
                if str(reference) not in self._seen:
                    self._seen[str(reference)] = self._read(reference)
                self._seen[name] = self._seen[str(reference)]
            except (UserError, PackageError) as error:
                self._seen[name] = error
        found = self._seen[name]
        if isinstance(found, Exception):
            raise found
        return found

    def resolve(self, tree: Composition) -> Composition:
        """The composition with every name at its version, and a fusion's name alone as its Fuse. Raises as `find`.

        Raises CompositionError for a Fuse without the name of a trained fusion, and for a language adapter on one of a
        task; Conflict for a fusion over other members.
        """
        resolved = self._resolved(tree)
        check_order(resolved, lambda name: self.find(name).manifest.role)
        return resolved

    def _resolved(self, tree: Composition) -> Composition:
        if isinstance(tree, Fuse):
            return self._fusion(tree)
        if isinstance(tree, Block):
            return _with_children(tree, [self._resolved(child) for child in tree.children])
        return None if tree is None else self._leaf(tree)

    def packages(self, tree: Composition) -> tuple[Found, ...]:
        """What a resolved composition needs loaded, members before their fusion, each once."""
        names = [*(fuse.name for fuse in fusions(tree)), *leaves(tree)]
        return tuple(dict.fromkeys(package for name in names for package in self.find(name).closure))

    def _leaf(self, name: str) -> Composition:
        found = self.find(name)
        if found.manifest.role == "head":
            raise CompositionError(f'{found.name} is a head without an adapter; name it under "head" instead')
        return found.fuse or found.name

    def _fusion(self, tree: Fuse) -> Fuse:
        if tree.label is None:
            raise CompositionError(
                f"{show(tree)} does not say which trained fusion: write Fuse(a, b, name=ab) with the name of a fusion "
                "package, or that name alone"
            )
        found = self.find(tree.label)
        trained = found.fuse
        if trained is None:
            raise CompositionError(f"{show(tree)}: {found.name} is not a fusion, it is a {found.manifest.role} package")
        if self._by_digest(tree) != self._by_digest(trained):
            asked = Fuse(*(self._resolved(child) for child in tree.children), name=found.name)
            raise Conflict(
                f"fusion {found.name} was trained over {show(trained)}, not over {show(asked)}: write {tree.label} "
                "alone, or the members that it was trained over"
            )
        return trained

    def _by_digest(self, fuse: Fuse) -> tuple[Composition, ...]:
        return tuple(_replaced(child, lambda name: self.find(name).digest) for child in fuse.children)

    def _read(self, reference: Reference) -> Found:
        manifest, _ = read_manifest(reference.path)
        if manifest.vocabulary not in (None, self._vocabulary):
            raise Conflict(
                f"package {reference} was trained with another tokenizer: its vocabulary is {manifest.vocabulary:.12}, "
                f"the one here {self._vocabulary:.12}. Serve it with the tokenizer it was trained with"
            )
        if manifest.fusion is None:
            return Found(reference, manifest)
        if any(fusions(child) for child in as_written(manifest).children):
            raise Conflict(
                f"fusion {reference} is over another fusion, {manifest.fusion.composition}, which its package does not "
                "identify; fusions of fusions cannot be served"
            )
        if len(leaves(as_written(manifest))) != len(manifest.fusion.members):
            raise PackageError(f"fusion {reference}: {manifest.fusion.composition} and its members do not correspond")
        return Found(reference, manifest, tuple(self._member(reference, one) for one in manifest.fusion.members))

    def _member(self, fusion: Reference, member: Member) -> Found:
        likely, _, _ = member.name.partition("@")
        for name in [f"{likely}@{version}" for version in self._registry.versions(likely)]:
            try:
                found = self._registry.resolve(name)
            except (PackageError, UserError):
                continue  # damaged, or no name for a registry: it cannot be the member that is looked for
            if found.digest == member.digest:
                return self.find(name)
        for entry in self._registry.list():
            if entry.digest == member.digest:
                return self.find(f"{entry.name}@{entry.version}")
        raise NotFound(
            f"fusion {fusion} needs its member {member.name!r} with digest {member.digest:.12}, which the registry "
            "does not hold; push that package"
        )


def _replaced(tree: Composition, leaf: Leaf) -> Composition:
    """The composition with every leaf, in order, replaced by what `leaf` says."""
    if isinstance(tree, Block):
        return _with_children(tree, [_replaced(child, leaf) for child in tree.children])
    return None if tree is None else leaf(tree)


def _with_children(block: Block, children: Sequence[Composition]) -> Composition:
    """The same block, with its numbers and its name, over other children."""
    match block:
        case Fuse():
            return Fuse(*children, name=block.label)
        case Stack():
            return Stack(*children, order=block.order)
        case Average():
            return Average(*children, weights=block.weights)
        case Split():
            return Split(*children, splits=block.splits)
        case BatchSplit():
            return BatchSplit(*children, batch_sizes=block.batch_sizes)
        case _:
            return type(block)(*children)  # type: ignore[return-value]  # a Parallel has only children
