"""Names to packages: versions and aliases once per request, fusions with their members found by digest."""

import dataclasses

import pytest

from graftwork.compose.grammar import parse
from graftwork.compose.tree import show
from graftwork.errors import CompositionError, Conflict, NotFound, PackageError, UserError
from graftwork.registry.package import Package
from graftwork.serve.catalog import Catalog
from graftwork.tasks.text import vocabulary_digest
from tests.serve.world import CLASSES, World


def catalog_of(world: World) -> Catalog:
    return Catalog(world.registry, vocabulary_digest(world.tokenizer))


def resolved(world: World, expression: str) -> str:
    return show(catalog_of(world).resolve(parse(expression)))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("intent", "intent@2"),
        ("intent@1", "intent@1"),
        ("intent@stable", "intent@1"),
        ("none", "none"),
        ("Stack(hi, intent@stable)", "Stack(hi@1, intent@1)"),
        ("Average(intent:0.7, mood:0.3)", "Average(intent@2:0.7, mood@1:0.3)"),
        ("Split(hi:3, mood:4)", "Split(hi@1:3, mood@1:4)"),
        ("BatchSplit(hi:3, mood:4)", "BatchSplit(hi@1:3, mood@1:4)"),
        ("Parallel(hi, none)", "Parallel(hi@1, none)"),
        ("both", "Fuse(intent@1, mood@1, name=both@1)"),
        ("Fuse(intent@1, mood, name=both)", "Fuse(intent@1, mood@1, name=both@1)"),
        ("Stack(hi, both@1)", "Stack(hi@1, Fuse(intent@1, mood@1, name=both@1))"),
    ],
)
def test_names_become_versions(tiny_world: World, written: str, meant: str) -> None:
    assert resolved(tiny_world, written) == meant


def test_what_is_needed_comes_members_first_each_once(tiny_world: World) -> None:
    catalog = catalog_of(tiny_world)
    packages = catalog.packages(catalog.resolve(parse("Average(Stack(hi, both), mood, headless)")))
    names = [package.name for package in packages]
    assert sorted(names) == ["both@1", "headless@1", "hi@1", "intent@1", "mood@1"]
    assert names.index("intent@1") < names.index("both@1")
    assert max(names.index("mood@1"), names.index("hi@1")) < names.index("headless@1")
    assert catalog.packages(None) == ()


@pytest.mark.parametrize(
    ("written", "kind", "message"),
    [
        ("gone", NotFound, r"no package 'gone' in the registry"),
        ("intent@7", NotFound, r"'intent' has no version 7; it has 1, 2"),
        ("probe", CompositionError, r'probe@1 is a head without an adapter; name it under "head" instead'),
        ("Fuse(intent, mood)", CompositionError, r"Fuse\(intent, mood\) does not say which trained fusion: write Fuse"),
        ("Fuse(intent@1, hi, name=mood)", CompositionError, r"mood@1 is not a fusion, it is a task package"),
        (
            "Fuse(intent, mood, name=both)",
            Conflict,
            r"fusion both@1 was trained over Fuse\(intent@1, mood@1, name=both@1\), not over Fuse\(intent@2, mood@1, "
            r"name=both@1\): write both alone, or the members that it was trained over",
        ),
        ("Fuse(mood, intent@1, name=both)", Conflict, r"was trained over"),
        ("Fuse(Stack(hi, intent@1), mood, name=both)", Conflict, r"was trained over"),
    ],
)
def test_what_cannot_be_meant_is_refused(tiny_world: World, written: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        resolved(tiny_world, written)


def test_a_request_sees_one_state_of_the_registry(world: World) -> None:
    world.adapter("mood")
    world.registry.alias("mood", "prod", 1)
    catalog = catalog_of(world)
    assert catalog.find("mood").name == catalog.find("mood@prod").name == "mood@1"
    world.adapter("mood")
    world.registry.alias("mood", "prod", 2)
    assert catalog.find("mood").name == catalog.find("mood@prod").name == "mood@1"
    assert catalog_of(world).find("mood@prod").name == "mood@2"
    with pytest.raises(NotFound, match="gone"):
        catalog.find("gone")
    world.adapter("gone")
    with pytest.raises(NotFound, match="gone"):
        catalog.find("gone")


def test_members_are_found_under_whatever_name_they_have_now(world: World) -> None:
    world.adapter("a")
    world.adapter("b")
    world.fusion("ab", ["a", "b"])
    world.adapter("a")  # a newer version is not the member
    assert resolved(world, "ab") == "Fuse(a@1, b@1, name=ab@1)"
    first = world.registry.resolve("a@1")
    world.registry.push(world.registry.get(first), "renamed")
    (first.path / "graft.json").write_text("{")
    assert resolved(world, "ab") == "Fuse(renamed@1, b@1, name=ab@1)"


def test_a_fusion_whose_member_is_gone_names_the_member(world: World) -> None:
    world.adapter("a")
    world.adapter("b")
    world.fusion("ab", ["a", "b"])
    digest = world.registry.resolve("b").digest
    for file in world.registry.resolve("b").path.iterdir():
        file.unlink()
    with pytest.raises(
        NotFound, match=rf"fusion ab@1 needs its member 'b@1' with digest {digest[:12]}, which the registry"
    ):
        resolved(world, "ab")


def test_a_damaged_manifest_and_a_name_that_cannot_be_one(world: World) -> None:
    world.adapter("a")
    (world.registry.resolve("a").path / "graft.json").write_text("[]")
    with pytest.raises(PackageError, match="expected a JSON object"):
        resolved(world, "a")
    with pytest.raises(UserError, match="'a//b' cannot name a package"):
        resolved(world, "a//b")


def changed(package: Package, composition: str) -> Package:
    """The same fusion, its manifest saying another composition."""
    fusion = package.manifest.fusion
    assert fusion is not None
    written = fusion.model_copy(update={"composition": composition})
    return dataclasses.replace(package, manifest=package.manifest.model_copy(update={"fusion": written}))


def test_fusions_that_do_not_identify_their_members_are_refused(world: World) -> None:
    world.adapter("a")
    world.adapter("b")
    world.fusion("ab", ["a", "b"], CLASSES)
    package = world.registry.get("ab")
    world.registry.push(changed(package, "Fuse(Fuse(a, b, name=inner), b, name=outer)"), "outer")
    world.registry.push(changed(package, "Fuse(a, b, a, name=three)"), "three")
    with pytest.raises(Conflict, match=r"fusion outer@1 is over another fusion, .*fusions of fusions cannot be served"):
        resolved(world, "outer")
    with pytest.raises(PackageError, match=r"fusion three@1: Fuse\(a, b, a, name=three\) and its members do not corr"):
        resolved(world, "three")
