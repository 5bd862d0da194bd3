"""store.py: versions never change, aliases move, nothing is mixed up; what is not there is said with what is near."""

import json
import multiprocessing
import shutil
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftwork.errors import Conflict, NotFound, PackageError, UserError
from graftwork.registry.package import read, write
from graftwork.registry.store import Entry, Reference, Registry, Verdict, check_name, default_root
from tests.registry.samples import task_manifest, task_package


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """ner@1, ner@2 = ner@prod, lang/hi@1."""
    registry = Registry(tmp_path / "registry")
    registry.push(task_package(seed=1), "ner")
    registry.push(task_package(seed=2), "ner")
    registry.push(task_package(seed=3), "lang/hi")
    registry.alias("ner", "prod", 2)
    return registry


def digest(seed: int) -> str:
    return task_package(seed=seed).digest


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_versions_count_up_and_a_bare_name_is_the_highest(registry: Registry) -> None:
    for version in range(3, 12):
        assert registry.push(task_package(seed=10 + version), "ner") == f"ner@{version}"
    assert registry.versions("ner") == tuple(range(1, 12))
    assert str(registry.resolve("ner")) == "ner@11"
    assert registry.get("ner").digest == digest(21)
    assert registry.get("ner@1").digest == digest(1)


def test_the_same_package_again_is_the_same_version(registry: Registry, tmp_path: Path) -> None:
    assert registry.push(task_package("another", seed=2), "ner") == "ner@2"
    write(task_package(seed=2), tmp_path / "folder")
    assert registry.push(tmp_path / "folder", "ner") == "ner@2"
    assert registry.push(str(tmp_path / "folder"), "ner", 2) == "ner@2"
    assert registry.push(task_package(seed=1), "ner") == "ner@3"  # not the newest: going back is a new version


def test_a_version_may_be_chosen_and_never_changes(registry: Registry) -> None:
    assert registry.push(task_package(seed=4), "ner", 7) == "ner@7"
    assert registry.push(task_package(seed=5), "ner") == "ner@8"
    before = files(registry.root)
    with pytest.raises(Conflict) as caught:
        registry.push(task_package(seed=6), "ner", 2)
    assert "ner@2 exists with other contents, and versions never change; push without a version" in str(caught.value)
    assert files(registry.root) == before


def test_what_is_pushed_takes_the_name_and_keeps_the_digest(registry: Registry) -> None:
    assert registry.get("lang/hi").manifest == task_manifest("lang/hi")
    assert registry.resolve("lang/hi").digest == digest(3)
    assert "# lang/hi\n" in (registry.resolve("lang/hi").path / "README.md").read_text("utf8")


def test_references_are_found(registry: Registry) -> None:
    path = registry.root / "ner" / "2"
    expected = Reference("ner", 2, path, digest(2))
    assert registry.resolve("ner") == registry.resolve("ner@2") == registry.resolve("ner@prod") == expected
    assert registry.resolve(expected) == expected
    assert registry.resolve("lang/hi@1").path == registry.root / "lang%2Fhi" / "1"


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("nor", ["no package 'nor' in the registry", "near: ner"]),
        ("hi", ["no package 'hi'", "lang/hi"]),
        ("entirely-else", ["it has lang/hi, ner"]),
        ("ner@3", ["'ner' has no version 3; it has 1, 2"]),
        ("ner@0", ["'ner' has no version 0"]),
        ("ner@02", ["'ner' has no version 02"]),
        ("ner@" + "9" * 5000, ["has no version 999"]),
        ("ner@prd", ["'ner' has no alias 'prd'; near: prod; versions: 1, 2"]),
        ("ner@", ["'ner' has no alias ''"]),
        ("ner@1@2", ["'ner' has no alias '1@2'"]),
        ("lang/hi@prod", ["'lang/hi' has no alias 'prod'; it has none; versions: 1"]),
    ],
)
def test_what_is_not_there_is_not_found(registry: Registry, reference: str, words: list[str]) -> None:
    with pytest.raises(NotFound) as caught:
        registry.resolve(reference)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


def test_an_empty_registry_says_so(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "nowhere")
    assert (registry.list(), registry.verify(), registry.names()) == ((), (), ())
    with pytest.raises(NotFound, match="it is empty"):
        registry.resolve("ner")
    assert not registry.root.exists()


BAD_NAMES = [
    "",
    "..",
    "../x",
    "/etc",
    "a/../b",
    "a//b",
    "a/",
    "a/.",
    "a b",
    "a\n",
    "é",
    "-a",
    ".a",
    "a@1",
    "a\\b",
    "none",
]


@pytest.mark.parametrize("name", [*BAD_NAMES, "C:x", "a%2Fb"])
def test_a_name_that_could_leave_the_registry_is_refused(tmp_path: Path, name: str) -> None:
    registry = Registry(tmp_path / "registry")
    with pytest.raises(UserError, match="cannot name a package: use letters, digits and"):
        registry.push(task_package(), name)
    with pytest.raises(UserError, match="cannot name a package"):
        check_name(name)
    assert list(tmp_path.iterdir()) == []


def test_a_name_too_long_for_a_file_system_is_refused(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    with pytest.raises(UserError, match="too long for a name: at most 200 characters"):
        registry.push(task_package(), "x" * 201)
    assert registry.push(task_package(), "x" * 200) == "x" * 200 + "@1"


def test_names_that_differ_only_in_capitals_are_refused(registry: Registry) -> None:
    with pytest.raises(Conflict, match="'NER' differs from 'ner' only in capitals"):
        registry.push(task_package(), "NER")
    with pytest.raises(Conflict, match="'Lang/hi' differs from 'lang/hi' only in capitals"):
        registry.push(task_package(), "Lang/hi")


def test_names_do_not_collide_with_versions_of_others(registry: Registry) -> None:
    assert registry.push(task_package(seed=5), "ner/1") == "ner/1@1"
    assert registry.get("ner@1").digest == digest(1)
    assert registry.names() == ("lang/hi", "ner", "ner/1")


@pytest.mark.parametrize("version", [0, -1, True, 10**9, 1.0, "1"])
def test_a_version_is_a_positive_whole_number(registry: Registry, version: int) -> None:
    with pytest.raises(UserError, match="is not a version: versions are 1, 2, 3"):
        registry.push(task_package(), "ner", version)
    with pytest.raises(UserError, match="is not a version"):
        registry.alias("ner", "prod", version)


def test_an_alias_moves(registry: Registry) -> None:
    assert registry.alias("ner", "prod", 1) == registry.resolve("ner@1")
    assert registry.resolve("ner@prod").version == 1
    registry.alias("ner", "v2-rc.1_x", 2)
    assert registry.aliases("ner") == {"prod": 1, "v2-rc.1_x": 2}
    assert json.loads((registry.root / "ner" / "aliases.json").read_text()) == {"prod": 1, "v2-rc.1_x": 2}


@pytest.mark.parametrize("alias", ["", "3", "03", "a/b", "a b", "a@b", "é", "x" * 101, "prod\n"])
def test_a_bad_alias_is_refused(registry: Registry, alias: str) -> None:
    with pytest.raises(UserError, match=r"cannot be an alias: use letters, digits and - _ \. and not digits alone"):
        registry.alias("ner", alias, 1)
    assert registry.aliases("ner") == {"prod": 2}


def test_an_alias_needs_something_to_mean(registry: Registry) -> None:
    with pytest.raises(NotFound, match="'ner' has no version 9"):
        registry.alias("ner", "prod", 9)
    with pytest.raises(NotFound, match="no package 'nor'"):
        registry.alias("nor", "prod", 1)
    assert registry.aliases("ner") == {"prod": 2}


def test_the_listing(registry: Registry) -> None:
    registry.alias("ner", "beta", 2)
    size = sum(len(data) for data in files(registry.root / "ner" / "2").values())
    assert registry.list()[-1] == Entry("ner", 2, digest(2), "task", size, ("beta", "prod"))
    assert [(entry.name, entry.version) for entry in registry.list()] == [("lang/hi", 1), ("ner", 1), ("ner", 2)]


def test_a_damaged_version_is_one_line_of_the_listing(registry: Registry) -> None:
    (registry.root / "ner" / "1" / "graft.json").write_text("{}")
    lang, first, second = registry.list()
    assert (lang.problem, second.problem) == ("", "")
    assert (first.digest, first.role) == ("", "")
    assert "key 'role' is missing" in first.problem
    with pytest.raises(PackageError, match="key 'role' is missing"):
        registry.resolve("ner@1")
    assert registry.resolve("ner").version == 2


def test_verify_reads_every_byte(registry: Registry) -> None:
    assert registry.verify() == (Verdict("lang/hi@1"), Verdict("ner@1"), Verdict("ner@2"))
    assert registry.verify("ner@prod") == (Verdict("ner@2"),)
    path = registry.root / "ner" / "2" / "graft.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    lang, first, second = registry.verify()
    assert (lang.ok, first.ok, second.ok) == (True, True, False)
    assert "graft.safetensors: tensor " in second.problem
    assert registry.resolve("ner").version == 2
    with pytest.raises(PackageError, match=r"graft\.safetensors: tensor "):
        registry.get("ner")
    with pytest.raises(NotFound, match="no package 'nor'"):
        registry.verify("nor")


def test_a_damaged_newest_version_does_not_stop_a_push(registry: Registry) -> None:
    (registry.root / "ner" / "2" / "graft.safetensors").write_bytes(b"")
    assert registry.push(task_package(seed=2), "ner") == "ner@3"


def test_damaged_and_dangling_aliases_are_named(registry: Registry) -> None:
    shutil.rmtree(registry.root / "ner" / "2")
    assert registry.verify()[-1] == Verdict("ner@prod", "means version 2, which is gone")
    with pytest.raises(NotFound, match="ner@prod is version 2, which is gone; it has 1"):
        registry.resolve("ner@prod")
    for text, words in [("[]", "expected an object"), ('{"a": "1"}', "'a': '1' is not"), ("{", "not valid JSON")]:
        (registry.root / "ner" / "aliases.json").write_text(text)
        assert words in registry.verify()[-1].problem
        assert registry.verify()[-1].reference == "ner@*"
        assert words in registry.list()[-1].problem
        with pytest.raises(PackageError, match=r"aliases\.json"):
            registry.resolve("ner@prod")
        assert registry.resolve("ner").version == 1


def test_leftovers_and_other_files_are_no_versions(registry: Registry) -> None:
    """What a killed writer leaves begins with a dot."""
    shutil.copytree(registry.root / "ner" / "1", registry.root / "ner" / ".3.0123")
    (registry.root / "ner" / "notes").mkdir()
    (registry.root / "notes.txt").write_text("x")
    (registry.root / "empty").mkdir()
    assert registry.versions("ner") == (1, 2)
    assert registry.names() == ("lang/hi", "ner")


def test_pull_copies_a_verified_package_out(registry: Registry, tmp_path: Path) -> None:
    assert str(registry.pull("ner@prod", tmp_path / "out")) == "ner@2"
    assert files(tmp_path / "out") == files(registry.root / "ner" / "2")
    assert read(tmp_path / "out").digest == digest(2)
    with pytest.raises(Conflict, match="holds another package"):
        registry.pull("ner@1", tmp_path / "out")
    registry.pull("ner@1", tmp_path / "out", overwrite=True)
    assert read(tmp_path / "out").digest == digest(1)
    (registry.root / "ner" / "1" / "graft.safetensors").write_bytes(b"")
    with pytest.raises(PackageError, match="has 0 bytes"):
        registry.pull("ner@1", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_bad_package_is_not_pushed(registry: Registry, tmp_path: Path) -> None:
    before = files(registry.root)
    write(task_package(seed=9), tmp_path / "bad")
    (tmp_path / "bad" / "graft.safetensors").write_bytes(b"")
    with pytest.raises(PackageError, match="has 0 bytes"):
        registry.push(tmp_path / "bad", "ner")
    broken = task_package(seed=9)
    broken.tensors["head/out.weight"] = broken.tensors["head/out.weight"].to("meta")
    for name, version in [("ner", None), ("ner", 9), ("fresh", None)]:
        with pytest.raises(PackageError, match="without data"):
            registry.push(broken, name, version)
    with pytest.raises(NotFound, match="no such folder"):
        registry.push(tmp_path / "nowhere", "ner")
    assert files(registry.root) == before
    assert registry.names() == ("lang/hi", "ner")


def test_a_root_that_is_no_folder_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    registry = Registry(tmp_path / "file")
    with pytest.raises(UserError, match="file: cannot be written"):
        registry.push(task_package(), "ner")
    assert registry.list() == ()


def test_processes_that_push_at_once_never_share_a_version(tmp_path: Path) -> None:
    """Three processes push six packages each; two of them push the same ones, which may or may not become one."""
    spawn = multiprocessing.get_context("spawn")
    gate = spawn.Event()
    workers = [spawn.Process(target=_push_many, args=(tmp_path, start, gate)) for start in (0, 0, 100)]
    for worker in workers:
        worker.start()
    gate.set()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 3
    registry = Registry(tmp_path)
    versions = registry.versions("ner")
    assert versions == tuple(range(1, len(versions) + 1))
    assert all(verdict.ok for verdict in registry.verify())
    expected = {digest(start + step) for start in (0, 100) for step in range(6)}
    assert {entry.digest for entry in registry.list()} == expected
    assert 12 <= len(versions) <= 18
    assert set(registry.aliases("ner")) == {f"from-{start}-{step}" for start in (0, 100) for step in range(6)}
    assert [path.name for path in (tmp_path / "ner").iterdir() if path.name.startswith(".")] == []


def _push_many(root: Path, start: int, gate: "multiprocessing.synchronize.Event") -> None:
    registry = Registry(root)
    gate.wait()
    for step in range(6):
        reference = registry.push(task_package(seed=start + step), "ner")
        assert registry.get(reference).digest == digest(start + step)
        registry.alias("ner", f"from-{start}-{step}", registry.resolve(reference).version)


@given(moves=st.lists(st.tuples(st.sampled_from(["prod", "beta", "v1"]), st.integers(1, 2)), max_size=8))
def test_aliases_are_the_last_moves(two_versions: Registry, moves: list[tuple[str, int]]) -> None:
    (two_versions.root / "ner" / "aliases.json").unlink(missing_ok=True)
    for alias, version in moves:
        two_versions.alias("ner", alias, version)
    assert two_versions.aliases("ner") == dict(moves)
    for alias, version in dict(moves).items():
        assert two_versions.resolve(f"ner@{alias}") == two_versions.resolve(f"ner@{version}")
    assert two_versions.resolve("ner").version == 2


@given(reference=st.text(string.ascii_lowercase[:3] + "ner@1/.2-", max_size=8) | st.text(max_size=6))
def test_resolving_finds_or_refuses(two_versions: Registry, reference: str) -> None:
    try:
        found = two_versions.resolve(reference)
    except UserError:
        return
    assert reference in ("ner", "ner@1", "ner@2")
    assert two_versions.resolve(str(found)) == found


@pytest.fixture(scope="module")
def two_versions(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    registry = Registry(tmp_path_factory.mktemp("registry"))
    registry.push(task_package(seed=1), "ner")
    registry.push(task_package(seed=2), "ner")
    return registry


def test_the_default_root(tmp_path: Path) -> None:
    assert default_root({"GRAFTWORK_HOME": str(tmp_path)}) == tmp_path / "registry"
    assert default_root({}) == Path.home() / ".graftwork" / "registry"
