"""The shipped index says what AdapterHub's identifiers meant; without a network the error says what to do."""

import json
import re
from pathlib import Path

import pytest
import torch

from graftwork.errors import NotFound, PackageError
from graftwork.registry.foreign.embeddings import read_embeddings
from graftwork.registry.foreign.hub import locate
from graftwork.registry.foreign.index import entries, is_identifier, resolve

SST = "AdapterHub/bert-base-uncased_sentiment_sst-2_"


def test_there_are_291_entries_each_with_one_repository() -> None:
    assert len(entries()) == 291
    assert all(re.fullmatch(r"AdapterHub/[\w.+-]+", entry.repository) for entry in entries())
    assert len({entry.repository for entry in entries()}) == 291


@pytest.mark.shared
def test_the_table_is_that_of_the_archive(shared: Path) -> None:
    rows = json.loads((shared / "adapterhub-index.json").read_text())["rows"]
    theirs = {(r["base"], r["task"], r["subtask"], r["org"], r["config"], r["default"], r["repo"]) for r in rows}
    assert {(e.base, e.task, e.subtask, e.org, e.config, e.default, e.repository) for e in entries()} == theirs


@pytest.mark.parametrize(
    ("identifier", "base", "config", "repository"),
    [
        ("sentiment/sst-2@ukp", "bert-base-uncased", None, SST + "pfeiffer"),
        ("sentiment/sst-2", "google-bert/bert-base-uncased", None, SST + "pfeiffer"),
        ("sst-2@ukp", "bert-base-uncased", "houlsby", SST + "houlsby"),
        ("sst-2", "bert-base-uncased", "double_seq_bn", SST + "houlsby"),
        ("sst-2", "facebook/bart-base", "9076f36a74755ac4", "AdapterHub/facebook-bart-base_sentiment_sst-2_pfeiffer"),
        ("dialect/arabic", None, None, "AdapterHub/bert-base-arabert-ar-dialect"),
    ],
)
def test_identifiers(identifier: str, base: str | None, config: str | None, repository: str) -> None:
    assert resolve(identifier, base, config).repository == repository


def test_every_default_is_found_by_its_whole_identifier() -> None:
    for entry in entries():
        if entry.default:
            assert resolve(f"{entry.task}/{entry.subtask}@{entry.org}", entry.base).repository == entry.repository


@pytest.mark.parametrize(
    ("identifier", "base", "config", "message"),
    [
        ("sst-2@nobody", "bert-base-uncased", None, "not in AdapterHub's index"),
        ("no/such@ukp", None, None, "not in AdapterHub's index"),
        ("a/b/c", None, None, "not in AdapterHub's index"),
        ("sentiment/sst-2@ukp", None, None, "several bases.*say which one"),
        ("sentiment/sst-2@ukp", "t5-small", None, "no adapter for 't5-small'; there are ones for bert-base-uncased"),
        ("sentiment/sst-2@ukp", "gpt2", "compacter", "none with configuration 'compacter'"),
    ],
)
def test_what_is_not_there_is_said(identifier: str, base: str | None, config: str | None, message: str) -> None:
    with pytest.raises(NotFound, match=message):
        resolve(identifier, base, config)


def test_without_a_network_the_error_says_what_to_fetch_and_where_to_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_identifier("sentiment/sst-2@ukp")
    with pytest.raises(NotFound, match=rf"{SST}pfeiffer.*put them into a folder, such as \./bert-base-uncased"):
        locate("sentiment/sst-2@ukp", base="bert-base-uncased")
    with pytest.raises(NotFound, match="somebody/something"):
        locate("somebody/something")
    with pytest.raises(NotFound, match="no folder, no repository"):
        locate("./nowhere/at/all")


def test_a_folder_goes_before_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sentiment" / "sst-2@ukp").mkdir(parents=True)
    assert locate("sentiment/sst-2@ukp")[0] == Path("sentiment/sst-2@ukp")


def test_embeddings(tmp_path: Path) -> None:
    torch.save(torch.nn.Parameter(torch.ones(5, 3)), tmp_path / "embedding.pt")
    (tmp_path / "tokenizer").mkdir()
    found = read_embeddings(tmp_path)
    assert torch.equal(found.weight, torch.ones(5, 3))
    assert not found.weight.requires_grad
    assert found.tokenizer == tmp_path / "tokenizer"
    torch.save(torch.ones(5), tmp_path / "embedding.pt")
    with pytest.raises(PackageError, match=r"\(5,\)"):
        read_embeddings(tmp_path)
    torch.save({"a": torch.ones(5)}, tmp_path / "embedding.pt")
    with pytest.raises(PackageError, match="expected one tensor"):
        read_embeddings(tmp_path)
