"""Rows from files and data sets: what a task gets, and what every damaged row is told."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftwork.errors import DataError, UserError
from graftwork.recipe import Recipe, loads
from graftwork.train.data import LISTED, digest, load_data, read_split

Rows = list[dict[str, Any]]
GOOD: Rows = [{"text": "fine", "label": "pos"}, {"text": "bad", "label": "neg"}, {"text": "ok", "label": "pos"}]
TAGGED: Rows = [{"tokens": ["Asha", "left"], "tags": ["B-PER", "O"]}, {"tokens": ["ok"], "tags": ["O"]}]


def jsonl(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def recipe(kind: str = "classification", **data: Any) -> Recipe:
    """A recipe for a kind of task; `labels` goes to the task, `seed` to training, everything else to `data`."""
    task = {"kind": kind, "labels": data.pop("labels", None)}
    training = {"seed": data.pop("seed", 0)}
    source = {key: str(value) if isinstance(value, Path) else value for key, value in data.items()}
    whole = {"name": "x", "model": {"name": "m"}, "task": task, "training": training, "data": source}
    return loads(json.dumps(whole), check_files=False)


def problems(kind: str = "classification", **data: Any) -> list[str]:
    with pytest.raises(DataError) as caught:
        load_data(recipe(kind, **data))
    assert isinstance(caught.value, UserError)
    return caught.value.problems


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return jsonl(tmp_path / "good.jsonl", GOOD)


# What a task gets


def test_rows_of_each_task(tmp_path: Path) -> None:
    cases: dict[str, Rows] = {
        "classification": GOOD,
        "pair": [{**row, "text_pair": "two"} for row in GOOD],
        "regression": [{"text": "a", "label": 1.5}, {"text": "b", "label": -2.0}],
        "tagging": TAGGED,
    }
    for kind, rows in cases.items():
        file = jsonl(tmp_path / f"{kind}.jsonl", [{**row, "source": "x", "id": 7} for row in rows])
        data = load_data(recipe(kind, train=file, dev=file, test=file))
        assert list(data.train) == list(data.dev) == list(data.test) == rows
        assert data.notes == ()
    file = jsonl(tmp_path / "pairs.jsonl", [{"text": "a", "text_pair": "b", "label": 1}])
    assert read_split(recipe("regression", train=file).data, "train", "regression") == [
        {"text": "a", "text_pair": "b", "label": 1.0}
    ]


def test_labels_are_sorted_or_as_the_recipe_fixes_them(good: Path, tmp_path: Path) -> None:
    assert load_data(recipe(train=good, dev=good)).labels == ("neg", "pos")
    assert load_data(recipe(train=good, dev=good, labels=["pos", "other", "neg"])).labels == ("pos", "other", "neg")
    tagged = jsonl(tmp_path / "t.jsonl", TAGGED)
    assert load_data(recipe("tagging", train=tagged, dev=tagged)).labels == ("B-PER", "O")
    scores = jsonl(tmp_path / "s.jsonl", [{"text": "a", "label": 1}])
    assert load_data(recipe("regression", train=scores, dev=scores)).labels == ()


def test_class_numbers_and_flags_count_as_labels(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": label} for label in (0, 1, True, "01")])
    assert load_data(recipe(train=file, dev=file)).labels == ("0", "01", "1", "true")


def test_other_column_names(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"sentence": r["text"], "category": r["label"], "label": 9} for r in GOOD])
    columns = {"text": "sentence", "label": "category"}
    assert list(load_data(recipe(train=file, dev=file, columns=columns)).train) == GOOD


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    lines = jsonl(tmp_path / "a.jsonl", GOOD)
    lines.write_bytes(b"\xef\xbb\xbf" + lines.read_bytes().replace(b"\n", b"\r\n\r\n"))
    (tmp_path / "a.csv").write_text('\ufefflabel,text\npos,fine\n"neg","bad"\n\npos,ok\n', "utf-8")
    names = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    numbered = [{**row, "label": ["neg", "pos"].index(row["label"])} for row in GOOD]
    datasets.Dataset.from_list(numbered, features=names).to_parquet(tmp_path / "a.PARQUET")
    for name in ("a.jsonl", "a.csv", "a.PARQUET"):
        assert read_split(recipe(train=tmp_path / name).data, "train", "classification") == GOOD, name


def test_csv_cells_stand_for_numbers_and_lists_where_the_task_needs_them(tmp_path: Path) -> None:
    scores, tagged = tmp_path / "s.csv", tmp_path / "t.csv"
    scores.write_text("text,label\n1e3,-1.5e1\n")
    tagged.write_text('tokens,tags\n"[""a"", ""b""]","[""O"", ""B-X""]"\n')
    assert read_split(recipe("regression", train=scores).data, "train", "regression") == [
        {"text": "1e3", "label": -15.0}
    ]
    assert read_split(recipe("tagging", train=tagged).data, "train", "tagging") == [
        {"tokens": ["a", "b"], "tags": ["O", "B-X"]}
    ]


def test_parquet_names_the_classes_in_lists(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "words": datasets.List(datasets.Value("string")),
            "ner": datasets.List(datasets.ClassLabel(names=["O", "B-PER"])),
        }
    )
    rows = [{"words": ["Asha", "left"], "ner": [1, 0]}]
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "a.parquet")
    data = recipe("tagging", train=tmp_path / "a.parquet", columns={"tokens": "words", "tags": "ner"}).data
    assert read_split(data, "train", "tagging") == TAGGED[:1]


def test_a_hub_data_set_is_read_by_split_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "films"
    folder.mkdir()
    jsonl(folder / "train.jsonl", GOOD)
    jsonl(folder / "validation.jsonl", GOOD[:1])
    data = load_data(recipe(hub={"id": str(folder)}, train="train", dev="validation"))
    assert (list(data.train), list(data.dev), data.test) == (GOOD, GOOD[:1], ())
    [said] = problems(hub={"id": str(folder)}, train="training")
    assert said.startswith(f"{folder}, split training: cannot be loaded: ")
    assert "check data.hub, or name files instead" in said


def test_a_hub_that_is_out_of_reach_is_a_problem_not_a_traceback() -> None:
    said = problems(hub={"id": "nobody/nothing-here", "config": "en"}, train="train", dev="dev")
    assert [one.partition(": ")[0] for one in said] == [
        "nobody/nothing-here (en), split train",
        "nobody/nothing-here (en), split dev",
    ]


def test_without_dev_a_tenth_of_train_is_held_out_and_said(tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(40)]
    file = jsonl(tmp_path / "a.jsonl", rows)
    data = load_data(recipe(train=file, test=file))
    assert data.notes == ("no dev data named: 4 of 40 rows of train are held out as dev (seed 0)",)
    assert (len(data.train), len(data.dev), len(data.test)) == (36, 4, 40)
    assert sorted(row["text"] for row in (*data.train, *data.dev)) == sorted(row["text"] for row in rows)
    assert [row for row in rows if row in data.train] == list(data.train)
    assert load_data(recipe(train=file, test=file)) == data
    other = load_data(recipe(train=file, test=file, seed=1))
    assert (other.dev != data.dev, other.digest != data.digest) == (True, True)


def test_a_label_held_out_as_a_whole_is_still_a_label(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", GOOD[:2])
    data = load_data(recipe(train=file))
    assert (len(data.train), len(data.dev), data.labels) == (1, 1, ("neg", "pos"))


def test_the_digest_is_that_of_the_rows(good: Path, tmp_path: Path) -> None:
    first = load_data(recipe(train=good, dev=good))
    line = b"".join(b'{"label":"%s","text":"%s"}\n' % (r["label"].encode(), r["text"].encode()) for r in GOOD)
    assert first.digest == hashlib.sha256(b"train\n" + line + b"dev\n" + line + b"test\n").hexdigest()
    (tmp_path / "a.csv").write_text("label,more,text\npos,1,fine\nneg,2,bad\npos,3,ok\n")
    assert load_data(recipe(train=tmp_path / "a.csv", dev=good)).digest == first.digest
    changed = jsonl(tmp_path / "b.jsonl", [*GOOD[:2], {"text": "ok!", "label": "pos"}])
    assert load_data(recipe(train=changed, dev=good)).digest != first.digest
    assert load_data(recipe(train=good, dev=good, test=good)).digest != first.digest


def test_importing_is_light() -> None:
    code = (
        "import sys, graftwork.train.data; print({'torch', 'datasets', 'pyarrow', 'transformers'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.shared
def test_shared_sets_are_read(shared: Path) -> None:
    def load(kind: str, folder: str) -> Any:
        return load_data(recipe(kind, **{s: shared / "data" / folder / f"{s}.jsonl" for s in ("train", "dev", "test")}))

    sst2, ner, scores = load("classification", "sst2"), load("tagging", "wnut17"), load("regression", "stsb_multi/en")
    assert (len(sst2.train), len(sst2.dev), len(sst2.test), sst2.labels) == (6916, 872, 1821, ("negative", "positive"))
    assert (len(ner.train), ner.labels[-1]) == (3394, "O")
    assert scores.train[0] == {
        "text": "A plane is taking off.",
        "text_pair": "An air plane is taking off.",
        "label": 5.0,
    }


# What damaged rows are told


def test_every_problem_of_every_split_at_once(tmp_path: Path) -> None:
    train, dev = tmp_path / "train.jsonl", tmp_path / "dev.csv"
    train.write_text('{"text": "a", "label": "pos"}\n{"text": "b"\n{"text": "b", "label": "neg"}\n{"label": 3.5}\n')
    dev.write_text("text,label\nc,psos\n,neg\nd,neg,x\n")
    assert problems(train=train, dev=dev, test=tmp_path / "none.jsonl") == [
        f"{train}:2: not JSON: Expecting ',' delimiter (column 13); each line is one object",
        f"{train}:4: text: missing; the row has label; name their column in data.columns.text",
        f"{train}:4: label: 3.5 is not a label; a label is text or a whole number",
        f"{dev}:4: 3 cells under 2 columns; quote cells with commas",
        f"{dev}:3: text: '' is empty",
        f"{tmp_path}/none.jsonl: cannot be read: No such file or directory",
        f"{dev}:2: label: 'psos' is not a label of train (neg, pos); did you mean pos? If not, list it in task.labels",
    ]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('["a", "b"]', 'a row is an object such as {"text": ...}, this line is a list'),
        ("null", "this line is a NoneType"),
        ("{'text': 'a'}", "not JSON: Expecting property name enclosed in double quotes (column 2)"),
        ('{"text": "a", "text": "b", "label": "pos"}', "not a usable object: the key 'text' stands there twice"),
        ("[" * 100_000, "not a usable object: maximum recursion depth exceeded"),
        ('{"text": "a", "label": %s}' % ("9" * 5000), "not a usable object: Exceeds the limit"),
        ("{}", "text: missing; the row has nothing; name their column in data.columns.text"),
        (
            '{"Text": "a", "label": "pos"}',
            "text: missing; the row has Text, label; name their column in data.columns.text",
        ),
        ('{"text": 7, "label": "pos"}', "text: 7 is not text; write it in quotes"),
        ('{"text": null, "label": "pos"}', "text: null is not text; write it in quotes"),
        ('{"text": ["a"], "label": "pos"}', "text: ['a'] is not text; write it in quotes"),
        ('{"text": " \\u00a0\\n", "label": "pos"}', "text: ' \\xa0\\n' is empty"),
        ('{"text": "\\ud800", "label": "pos"}', "text: '\\ud800' holds half a character (a lone surrogate)"),
        ('{"text": "a", "label": ""}', "label: '' is empty"),
        ('{"text": "a", "label": null}', "label: null is not a label; a label is text or a whole number"),
        ('{"text": "a", "label": ["pos"]}', "label: ['pos'] is not a label"),
        ('{"text": "a", "label": 1.0}', "label: 1.0 is not a label"),
    ],
)
def test_a_damaged_line_is_named(good: Path, line: str, says: str) -> None:
    good.write_text(good.read_text() + "\n" + line + "\n")
    said = problems(train=good, dev=good)
    assert said[0].startswith(f"{good}:5: ")
    assert says in said[0]
    assert len(said[0]) < 400


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": "a", "label": "1.5"}, "label: '1.5' is not a number, which a regression learns"),
        ({"text": "a", "label": True}, "label: true is not a number, which a regression learns"),
        ({"text": "a", "label": None}, "label: null is not a number, which a regression learns"),
        ({"text": "a", "label": float("nan")}, "label: nan is not a finite number"),
        ({"text": "a", "label": float("inf")}, "label: inf is not a finite number"),
        ({"text": "a", "label": 10**400}, "is not a finite number"),
        ({"text": "a", "text_pair": "", "label": 1}, "text_pair: '' is empty"),
    ],
)
def test_a_damaged_row_of_a_regression(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    pair = {"text_pair": "b"} if "text_pair" in row else {}
    file = jsonl(tmp_path / "a.jsonl", [{"text": "a", **pair, "label": 1}, row])
    [said] = problems("regression", train=file, dev=jsonl(tmp_path / "b.jsonl", [{"text": "a", **pair, "label": 1}]))
    assert said.startswith(f"{file}:2: ")
    assert says in said


def test_a_second_text_stands_in_all_rows_or_in_none(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"text": "a", "text_pair": "b", "label": 1}, {"text": "a", "label": 2}])
    [said] = problems("regression", train=file)
    assert said == f"{file}:2: text_pair: missing; the row has text, label; name their column in data.columns.text_pair"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "2 tokens but 1 tags; give one tag for each token"),
        ({"tokens": "a b", "tags": ["O", "O"]}, "tokens: 'a b' is not a list of words"),
        ({"tokens": [], "tags": ["O"]}, "tokens: [] is empty"),
        ({"tokens": ["a"], "tags": []}, "tags: [] is empty"),
        ({"tokens": ["a", " "], "tags": ["O", "O"]}, "is not a list of words: number 2, ' ', is empty"),
        ({"tokens": ["a", 3], "tags": ["O", "O"]}, "number 2, 3, is not text; write it in quotes"),
        ({"tokens": ["a"], "tags": [None]}, "tags: [None] is not a list of tags: number 1, null, is not a label"),
        ({"tokens": ["a"], "tags": ["X-PER"]}, "tags: 'X-PER' among BIO tags; a tag is O, or B- or I- and a kind"),
        ({"tokens": ["a"], "tags": ["B-"]}, "tags: 'B-' among BIO tags"),
        ({"tokens": ["a"]}, "tags: missing; the row has tokens; name their column in data.columns.tags"),
    ],
)
def test_a_damaged_row_of_a_tagging(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    file = jsonl(tmp_path / "a.jsonl", [*TAGGED, row])
    [said] = problems("tagging", train=file, dev=jsonl(tmp_path / "b.jsonl", TAGGED))
    assert said.startswith(f"{file}:3: ")
    assert says in said
    with pytest.raises(DataError) as caught:
        read_split(recipe("tagging", train=file).data, "train", "tagging")
    assert caught.value.problems == [said]


def test_tags_that_are_not_bio_have_no_prefix_to_be_wrong(tmp_path: Path) -> None:
    rows = [{"tokens": ["a", "b"], "tags": ["NOUN", "X-1"]}, {"tokens": ["o"], "tags": ["O"]}]
    file = jsonl(tmp_path / "a.jsonl", rows)
    assert load_data(recipe("tagging", train=file, dev=file)).labels == ("NOUN", "O", "X-1")


def test_labels_that_train_or_the_recipe_does_not_know(good: Path, tmp_path: Path) -> None:
    dev = jsonl(tmp_path / "dev.jsonl", [*GOOD, {"text": "x", "label": "Poss"}, {"text": "x", "label": "17"}])
    assert problems(train=good, dev=dev) == [
        f"{dev}:4: label: 'Poss' is not a label of train (neg, pos); did you mean pos? If not, list it in task.labels",
        f"{dev}:5: label: '17' is not a label of train (neg, pos); correct it, or list it in task.labels",
    ]
    assert problems(train=good, dev=good, labels=["pos", "other"]) == [
        f"{good}:2: label: 'neg' is not a label of task.labels (pos, other); correct it, or list it in task.labels",
    ] * 2  # fmt: skip
    tagged = jsonl(tmp_path / "t.jsonl", TAGGED)
    new = jsonl(tmp_path / "n.jsonl", [{"tokens": ["a", "b"], "tags": ["B-ORG", "B-ORG"]}])
    [said] = problems("tagging", train=tagged, dev=new)
    assert said.startswith(f"{new}:1: tags: 'B-ORG' is not a label of train (B-PER, O); did you mean B-PER?")


def test_long_lists_of_labels_are_cut(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": f"{n:02}"} for n in range(77)])
    [said] = problems(train=train, dev=jsonl(tmp_path / "b.jsonl", [{"text": "a", "label": "zz"}]))
    assert "is not a label of train (00, 01, 02, 03, 04, 05, 06, 07, 08, 09 and 67 more)" in said


def test_long_lists_of_problems_are_cut(good: Path, tmp_path: Path) -> None:
    bad = jsonl(tmp_path / "bad.jsonl", [{"text": "", "label": "pos"}] * (LISTED + 5))
    said = problems(train=good, dev=bad)
    assert len(said) == LISTED + 1
    assert said[-1] == "... and 5 more problems"
    exactly = jsonl(tmp_path / "bad.jsonl", [{"text": "", "label": "pos"}] * LISTED)
    assert len(problems(train=good, dev=exactly)) == LISTED


def test_too_little_to_learn_from(tmp_path: Path) -> None:
    empty, alone = tmp_path / "empty.jsonl", jsonl(tmp_path / "alone.jsonl", GOOD[:1] * 2)
    empty.write_text("\n \n")
    assert problems(train=empty, dev=alone) == [f"{empty}: holds no rows"]
    assert problems(train=alone) == [f"{alone}: label: every row has 'pos'; there is nothing to learn"]
    one = jsonl(tmp_path / "one.jsonl", [{"text": "a", "label": 1}])
    assert problems("regression", train=one) == [
        f"{one}: one row cannot be split; name a file as data.dev, or give more rows"
    ]


def spoil(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (spoil("a.tsv", b"x"), "a.tsv: unknown kind of file '.tsv'; known are .jsonl, .csv, .parquet, .txt"),
        (spoil("rows", b"x"), "rows: unknown kind of file ''; known are"),
        (spoil("a.jsonl", b'{"text": "a", "label": "\xe9"}\n'), "a.jsonl:1: not UTF-8 text (byte 24 of the line)"),
        (spoil("a.csv", b"text,label\n\xe9,pos\n"), "a.csv: cannot be read: 'utf-8' codec can't decode byte 0xe9"),
        (spoil("a.csv", b""), "a.csv: holds no rows"),
        (spoil("a.csv", b"text,label\n"), "a.csv: holds no rows"),
        (spoil("a.csv", b"text,text\na,b\n"), "a.csv:1: the column 'text' stands there twice"),
        (spoil("a.csv", b'text,label\n"a,pos\n'), "a.csv:2: not CSV: unexpected end of data"),
        (spoil("a.csv", b'text,label\n"a"b,pos\n'), "a.csv:2: not CSV: ',' expected after '\"'"),
        (spoil("a.parquet", b"PAR1"), "a.parquet: cannot be read: Could not open Parquet"),
        (spoil("a.parquet", b"x" * 100), "a.parquet: cannot be read: Could not open Parquet"),
        (lambda folder: folder / "no.csv", "no.csv: cannot be read: No such file or directory"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, write: Callable[[Path], Path], says: str) -> None:
    [said] = problems(train=write(tmp_path))
    assert said.startswith(str(tmp_path))
    assert says in said


def test_parquet_rows_are_counted_and_rows_without_a_class_refused(tmp_path: Path) -> None:
    names = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    rows = [{"text": "a", "label": 0}, {"text": "b", "label": -1}, {"text": "c", "label": 1}]
    datasets.Dataset.from_list(rows, features=names).to_parquet(tmp_path / "a.parquet")
    [said] = problems(train=tmp_path / "a.parquet")
    assert said == f"{tmp_path}/a.parquet: row 2: label: null is not a label; a label is text or a whole number"


def test_a_split_that_the_recipe_does_not_name(good: Path) -> None:
    with pytest.raises(DataError, match=r"data\.dev: the recipe names no such split; known are train, dev, test"):
        read_split(recipe(train=good).data, "dev", "classification")


printable = st.text(min_size=1).filter(str.strip)


@given(st.lists(st.fixed_dictionaries({"text": printable, "label": printable}), min_size=1))
def test_any_text_comes_through_as_it_is(tmp_path_factory: pytest.TempPathFactory, rows: Rows) -> None:
    file = jsonl(tmp_path_factory.mktemp("any") / "a.jsonl", rows)
    read = read_split(recipe(train=file).data, "train", "classification")
    assert read == rows
    assert digest({"train": read}) == digest({"train": rows})


@given(st.binary(max_size=60))
def test_no_bytes_break_the_reader(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Any file is a DataError (these hold no rows with text and label), never a traceback from the depths."""
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        file = tmp_path_factory.mktemp("any") / name
        file.write_bytes(content)
        with pytest.raises(DataError):
            read_split(recipe(train=file).data, "train", "classification")
