"""The folder of a run: nobody else's files are touched, and only the same run goes on in it."""

import json
from pathlib import Path

import pytest

from graftwork.errors import Conflict, UserError
from graftwork.registry.durable import sibling
from graftwork.train.folder import OWN, RunFolder, encoded

IDENTITY = {"recipe.training.epochs": 5, "data": "abc"}


def claimed(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.claim(IDENTITY, "name: x\n", resume=False, overwrite=False)
    return folder


def listing(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_new_folder_gets_identity_and_recipe(tmp_path: Path) -> None:
    folder = claimed(tmp_path / "deep" / "run")
    assert json.loads(folder.run.read_text()) == IDENTITY
    assert folder.recipe.read_text() == "name: x\n"
    assert not folder.finished


def test_checking_writes_nothing(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run").check(resume=False, overwrite=False)
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_not_written_over(tmp_path: Path) -> None:
    folder = claimed(tmp_path / "run")
    before = listing(tmp_path)
    with pytest.raises(Conflict, match=r"holds a run already \(stopped after step 0\).*--resume.*--overwrite"):
        folder.claim(IDENTITY, "name: y\n", resume=False, overwrite=False)
    folder.result.write_text("{}")
    with pytest.raises(Conflict, match=r"holds a run already \(finished\)"):
        folder.check(resume=False, overwrite=False)
    folder.result.unlink()
    assert listing(tmp_path) == before


def test_the_same_run_goes_on(tmp_path: Path) -> None:
    folder = claimed(tmp_path / "run")
    before = listing(tmp_path)
    folder.claim(dict(reversed(IDENTITY.items())), "name: x\n", resume=True, overwrite=False)
    assert listing(tmp_path) == before


def test_another_run_does_not_go_on(tmp_path: Path) -> None:
    folder = claimed(tmp_path / "run")
    with pytest.raises(Conflict, match=r"recipe\.training\.epochs was 5, is 7; seed was None, is 1"):
        folder.claim({**IDENTITY, "recipe.training.epochs": 7, "seed": 1}, "", resume=True, overwrite=False)
    folder.run.write_text("{")
    with pytest.raises(Conflict, match=r"run\.json: is damaged; start again with --overwrite"):
        folder.claim(IDENTITY, "", resume=True, overwrite=False)


def test_a_run_begun_before_a_key_was_there_had_its_default(tmp_path: Path) -> None:
    folder = claimed(tmp_path / "run")
    folder.claim({**IDENTITY, "recipe.training.base_dropout": True}, "", resume=True, overwrite=False)
    with pytest.raises(Conflict, match=r"recipe\.training\.base_dropout was True, is False; put the new"):
        folder.claim({**IDENTITY, "recipe.training.base_dropout": False}, "", resume=True, overwrite=False)
    with pytest.raises(Conflict, match=r"recipe\.model\.name was None, is 'other'; put"):  # required: it has no default
        folder.claim({**IDENTITY, "recipe.model.name": "other"}, "", resume=True, overwrite=False)


def test_overwriting_takes_away_the_old_run_whole(tmp_path: Path) -> None:
    folder = claimed(tmp_path / "run")
    for name in OWN:
        path = folder.path / name
        if "." in name:
            path.write_text("old")
        else:
            (path / "inner").mkdir(parents=True)
    folder.claim({"new": 1}, "name: new\n", resume=False, overwrite=True)
    assert listing(folder.path) == {"run.json": encoded({"new": 1}), "recipe.yaml": b"name: new\n"}
    assert not folder.checkpoints.exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_files_of_others_stay(tmp_path: Path, overwrite: bool) -> None:
    path = tmp_path / "thesis"
    path.mkdir()
    (path / "thesis.tex").write_text("years of work")
    with pytest.raises(Conflict, match=r"holds files that are no run's \(thesis\.tex\); choose another output"):
        RunFolder(path).claim(IDENTITY, "", resume=False, overwrite=overwrite)
    assert listing(path) == {"thesis.tex": b"years of work"}
    (path / "thesis.tex").rename(path / "package")
    with pytest.raises(Conflict, match=r"\(no run\.json\)"):
        RunFolder(path).check(resume=True, overwrite=overwrite)


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize(("resume", "overwrite"), [(True, False), (False, True)])
def test_what_a_killed_process_was_writing_is_put_away(
    tmp_path: Path, name: str, resume: bool, overwrite: bool
) -> None:
    folder = claimed(tmp_path / "run")
    before = listing(folder.path)
    left = sibling(folder.path / name)
    if "." in name:
        left.write_text("half")
    else:
        (left / "inner").mkdir(parents=True)
    old = Path(f"{sibling(folder.path / name)}.old")
    old.mkdir()
    folder.check(resume=resume, overwrite=overwrite)
    assert left.exists(), "checking writes nothing"
    folder.claim(IDENTITY, "name: x\n", resume=resume, overwrite=overwrite)
    assert listing(folder.path) == before
    assert not left.exists()
    assert not old.exists()


def test_a_folder_whose_first_file_was_torn_is_new(tmp_path: Path) -> None:
    left = sibling(tmp_path / "run.json")
    left.write_text("{")
    folder = claimed(tmp_path)
    assert sorted(listing(folder.path)) == ["recipe.yaml", "run.json"]


def test_a_torn_file_of_another_is_a_file_of_another(tmp_path: Path) -> None:
    folder = claimed(tmp_path)
    left = sibling(tmp_path / "thesis.tex")
    left.write_text("years of work")
    with pytest.raises(Conflict, match=r"holds files that are no run's \(\.thesis\.tex\."):
        folder.check(resume=True, overwrite=False)
    assert left.read_text() == "years of work"


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(Conflict, match="is not a folder; choose another output"):
        RunFolder(tmp_path / "run").check(resume=True, overwrite=True)


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    assert claimed(tmp_path).run.is_file()


def test_what_the_disk_refuses_names_the_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"run: cannot be written: Not a directory"):
        RunFolder(tmp_path / "file" / "run").claim(IDENTITY, "", resume=False, overwrite=False)
