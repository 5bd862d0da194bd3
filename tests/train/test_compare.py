"""A comparison: runs in processes of their own, a row for each method, failures among them, and what is read back."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from graftwork.cli.main import run
from graftwork.errors import Conflict, DataError, RecipeError
from graftwork.recipe import Recipe, dump, load, override
from graftwork.registry.durable import sibling
from graftwork.train import apart
from graftwork.train.compare import _alike, _table, compare
from graftwork.train.comparison import MISSING, Row, Run, as_json, cells, draw, interval, page, row_of, scored
from graftwork.train.data import load_data
from graftwork.train.memory import peak
from graftwork.train.methods import recipes_of
from graftwork.train.report import written
from graftwork.train.run import How, train
from tests.train import small

WILD = {"adapter.variant": "seq_bn", "training.learning_rate": 1e30, "training.max_grad_norm": 0.0}
METHODS = ("recipe", "head_only", "full", "wild", "llm_series[linears=['ffn.nowhere']]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that was compared from the command line: compare.json and runs in `out`, rows in rows.json."""
    folder = tmp_path_factory.mktemp("compared")
    made = small.recipe(folder, {"compare": {"wild": WILD}, "training.epochs": 1}, train=16, dev=6)
    (folder / "mood.yaml").write_text(dump(made))
    there = {"name": "mood-recipe-seed-0", "output": str(folder / "out" / "mood-recipe-seed-0"), "compare": {}}
    train(override(made, there), command="an earlier run")
    words = ["compare", folder / "mood.yaml", "--methods", ",".join(METHODS), "--out", folder / "out"]
    words += ["--json", folder / "rows.json", "--set", "training.epochs=1", "--set", "full:training.max_steps=1"]
    (folder / "code").write_text(str(run([str(word) for word in words])))
    return folder


@pytest.fixture(scope="module")
def rows(folder: Path) -> dict[str, Row]:
    return {row["method"]: Row(**row) for row in json.loads((folder / "rows.json").read_text())}


def test_every_method_is_a_row_and_failures_have_a_reason(folder: Path, rows: dict[str, Row]) -> None:
    assert tuple(rows) == METHODS
    assert (folder / "code").read_text() == "1"
    assert "training diverged" in str(rows["wild"].error)
    assert "ffn.nowhere" in str(rows[METHODS[-1]].error)
    assert [name for name, row in rows.items() if row.score is None] == ["wild", METHODS[-1]]


def test_a_row_says_what_its_run_says(folder: Path, rows: dict[str, Row]) -> None:
    for name in ("recipe", "head_only", "full"):
        row = rows[name]
        (place,) = row.folders
        found = json.loads(Path(place, "result.json").read_text())
        assert (row.split, row.metric, row.score) == ("test", "accuracy", found["scores"]["test"]["accuracy"])
        assert row.parameters == found["parameters"]["trained"]
        assert row.memory == found["memory"]["resident"] > 50e6
        assert row.price is not None
        assert 0 < row.price["low"] <= row.price["middle"] <= row.price["high"]
        assert row.epochs == 1, "what the command line sets for all comes after a method's own"
    base, head = found["parameters"]["base"], rows["head_only"].parameters
    assert rows["full"].parameters == base + (head or 0)
    assert rows["recipe"].parameters == 3 * (2 * 32 * 8 + 8 + 32) + (head or 0), "2dm + m + d in three layers"
    assert (rows["full"].size or 0) > 4 * base > (rows["recipe"].size or 0)


def test_a_run_is_that_of_train(folder: Path, rows: dict[str, Row]) -> None:
    (place,) = rows["head_only"].folders
    again = train(override(load(Path(place, "recipe.yaml")), {"output": str(folder / "alone")}))
    there = json.loads(Path(place, "result.json").read_text())
    assert again.package.digest == json.loads(Path(place, "package", "graft.json").read_text())["digest"]
    assert again.scores == there["scores"]


def test_what_is_finished_is_read_back(folder: Path, rows: dict[str, Row]) -> None:
    commands = {}
    for name in ("recipe", "head_only"):
        (place,) = rows[name].folders
        commands[name] = json.loads(Path(place, "result.json").read_text())["command"]
    assert commands["recipe"] == "an earlier run"
    assert commands["head_only"].startswith("graftwork"), "what was typed, by this process"
    assert (folder / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")
    told = (folder / "out" / "compare.md").read_text()
    assert "score: accuracy of test, 1 seed;" in told
    assert "| recipe |" in told


PRICE = {"low": 1.0, "middle": 1.1, "high": 1.2, "rows": 6, "pieces": 9}


def earlier(folder: Path, *rows: Row) -> Path:
    """The folder of a comparison that was stopped with these rows."""
    folder.mkdir()
    (folder / "compare.json").write_bytes(as_json(rows))
    return folder


def test_rows_and_prices_of_before_stay_while_a_comparison_goes_on(tmp_path: Path) -> None:
    made = small.recipe(tmp_path, {"training.epochs": 1}, train=16, dev=6)
    known = {
        "split": "test",
        "metric": "accuracy",
        "dev": 0.5,
        "parameters": 9,
        "share": 0.1,
        "size": 9,
        "seconds": 1.0,
        "folders": [],
    }
    old = [Row("recipe", 0.1, seeds={"0": 0.1, "1": 0.1}, price=PRICE, **known), Row("a", 0.3, price=PRICE, **known),
           Row("head_only", 0.2, seeds={"0": 0.2}, price=PRICE, **known)]  # fmt: skip
    place = earlier(tmp_path / "out", *old)
    seen: list[dict[str, Row]] = []

    def told(line: str) -> None:
        seen.append({row["method"]: Row(**row) for row in json.loads((place / "compare.json").read_text())})

    methods = {"head_only": {"training.epochs": 1}, "recipe": {}, "b": {"training.method": "head"}}
    rows = compare(made, list(methods), folder=place, seeds=[0, 1], changes=methods, told=told)
    assert [row.method for row in rows] == list(methods)
    assert [list(table) for table in seen] == [["recipe", "a", "head_only"]] * 2 + [
        ["recipe", "a", "head_only", "b"]
    ] * 4
    assert all(table["a"] == old[1] for table in seen), "of no method of this call"
    assert all(table["recipe"] == old[0] for table in seen[:4]), "its second seed is to come"
    assert [list(table["head_only"].seeds) for table in seen] == [["0"]] * 3 + [["0", "1"]] * 3
    assert seen[0]["head_only"].folders, "it is the row of this call"
    assert [table["head_only"].price for table in seen] == [PRICE] * 6
    assert (seen[-1]["recipe"].seeds, seen[-1]["recipe"].price) == (rows[1].seeds, PRICE)
    assert list(rows[1].seeds) == ["0", "1"]
    assert rows[2].price not in (None, PRICE)
    page = (place / "compare.md").read_text()
    assert [page.count(f"| {name} | 0.") for name in ("recipe", "a", "head_only", "b")] == [1] * 4
    again: list[str] = []
    compare(made, ["a"], folder=place, changes={"a": {"adapter.variant": "ia3", "training.epochs": 1}},
            how=How(overwrite=True), told=again.append)  # fmt: skip
    there = json.loads((place / "compare.json").read_text())
    assert [row["method"] for row in there] == list(seen[-1])
    assert there[1]["price"] != PRICE, "what is trained again is measured again"
    assert there[0]["price"] == PRICE
    small.write(tmp_path / "train.jsonl", small.texts(8))
    with pytest.raises(
        Conflict, match=r"out.compare.json: holds rows of other data \(recipe, a, head_only, b\); choose"
    ):
        compare(made, ["lora"], folder=place)


def ran(made: Recipe, place: Path, seed: int = 0) -> Row:
    """The row of `head_only` in the folder of a comparison, trained by itself and written into its table."""
    (head_only,) = recipes_of(made, ["head_only"]).values()
    name = f"{made.name}-head_only-seed-{seed}"
    recipe = override(head_only, {"name": name, "output": str(place / name), "training.seed": seed})
    result = train(recipe, progress=False)
    row = row_of("head_only", [Run("head_only", recipe, {"result": written(result), "size": 1, "price": None})])
    (place / "compare.json").write_bytes(as_json([row]))
    return row


def test_other_settings_for_what_is_finished_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    made = small.recipe(tmp_path, {"training.epochs": 1}, train=16, dev=6)
    ran(made, tmp_path / "out")
    before = {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()}
    longer = {name: {"training.epochs": 2} for name in ("head_only", "recipe")}
    with pytest.raises(Conflict, match=r"epochs was \d+, is 2; put the new one in its place \(--overwrite\)"):
        compare(made, ["recipe", "head_only"], folder=tmp_path / "out", changes=longer, told=ignored)
    assert {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()} == before


def test_a_row_stays_where_its_runs_are_and_cannot_be_gone_on_with(tmp_path: Path) -> None:
    old = Row("a", 0.5, seeds={"0": 0.5, "1": 0.5}, folders=["elsewhere/out/x-seed-0", "elsewhere/out/x-seed-1"])
    for place in old.folders:
        (tmp_path / Path(place).name).mkdir()
        (tmp_path / Path(place).name / "result.json").write_text("{}")
    failed, half = Row("a", None, error="no (seed 0, 1)"), Row("a", 0.4, seeds={"0": 0.4}, error="no (seed 1)")
    whole = Row("a", 0.4, seeds={"0": 0.4, "1": 0.4}, error="its price was not measured (seed 0)")
    asked_less = Row("a", 0.4, seeds={"0": 0.4})
    for row, stays in ((failed, True), (half, True), (whole, False), (asked_less, False)):
        assert _table(tmp_path, {"a": old}, [row], set()) == [old if stays else row]
    (tmp_path / "x-seed-1" / "result.json").unlink()
    assert _table(tmp_path, {"a": old}, [failed], set()) == [failed], "a run of it is gone"


@pytest.mark.parametrize("seed", [0, 5])
def test_rows_of_other_data_are_refused_also_without_dev_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    made = small.recipe(tmp_path, {"training.epochs": 1, "training.seed": 5}, train=16)
    made = made.model_copy(update={"data": made.data.model_copy(update={"dev": None, "test": None})})
    monkeypatch.chdir(tmp_path)
    row = ran(made, Path("out"), seed)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    small.write(tmp_path / "more.jsonl", small.texts(18, 3))
    for change in ({"train": str(tmp_path / "more.jsonl")}, {"test": str(tmp_path / "more.jsonl")}):
        other = made.model_copy(update={"data": made.data.model_copy(update=change)})
        with pytest.raises(Conflict, match=r"holds rows of other data \(head_only\)"):
            compare(other, ["lora"], folder=tmp_path / "out", told=ignored)
    _alike(made, load_data(made), tmp_path / "out", [row])


def test_a_price_that_cannot_be_measured_costs_no_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def scarce(job: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(apart, "price", scarce)
    made = small.recipe(tmp_path, {"training.epochs": 1}, train=16, dev=6)
    asked = {"recipe": dump(made), "registry": None, "how": asdict(How()), "priced": True, "threads": 1}
    row = row_of("a", [Run("a", made, apart._answer(asked))])
    assert row.score is not None
    assert row.error == "its price was not measured: OutOfMemoryError: CUDA out of memory. (seed 0)"


def ignored(line: str) -> None:
    """Nobody is told."""


@pytest.mark.parametrize("held", ['{"a": 1}', "[1]", '[{"score": 1}]', '[{"method": "a", "score": "x"}]', "[", "\xff"])
def test_a_table_of_another_shape_is_a_conflict(tmp_path: Path, held: str) -> None:
    place = earlier(tmp_path / "out")
    (place / "compare.json").write_bytes(held.encode("latin1"))
    with pytest.raises(Conflict, match=r"out.compare.json: is not the table of a comparison; remove it"):
        compare(small.recipe(tmp_path), ["lora"], folder=place)
    assert [path.name for path in place.iterdir()] == ["compare.json"]


def ended(recipe: Recipe, seed: int, test: float, **more: Any) -> Run:
    result = {
        "main": "f1", "scores": {"dev": {"f1": 0.5}, "test": {"f1": test}}, "seconds": 10.0 * test, "machine": "m",
        "parameters": {"trained": 30, "head": 10, "base": 300}, "memory": {"resident": 5, "device": 0}, **more,
    }  # fmt: skip
    return Run("a", override(recipe, {"training.seed": seed}), {"result": result, "size": 7, "price": None})


def test_a_row_is_the_mean_of_its_seeds_and_names_those_that_failed(tmp_path: Path) -> None:
    made = small.recipe(tmp_path)
    failed = [Run("a", override(made, {"training.seed": seed}), {"error": "no"}) for seed in (2, 3)]
    row = row_of("a", [ended(made, 0, 0.6), ended(made, 1, 0.8), *failed, Run("b", made, {"error": "else"})])
    assert (row.score, row.seconds) == (pytest.approx(0.7), pytest.approx(7.0))
    assert row.seeds == {"0": 0.6, "1": 0.8}
    assert (row.low, row.high) == interval([0.6, 0.8])
    assert (row.parameters, row.head, row.share, row.size, row.memory, row.device) == (30, 10, 0.1, 7, 5, None)
    assert row.error == "no (seed 2, 3)"
    assert row_of("a", failed) == Row("a", None, error="no (seed 2, 3)", learning_rate=1e-2, epochs=2)


def test_what_is_wrong_with_all_runs_is_said_before_any(tmp_path: Path) -> None:
    made = small.recipe(tmp_path)
    with pytest.raises(Conflict, match=r"holds files that are no comparison's \(base"):
        compare(made, ["lora"], folder=tmp_path)
    with pytest.raises(Conflict, match="is the folder of two methods"):
        compare(made, ["lora[r=4]", "lora[r=[4]]"], folder=tmp_path / "out")
    (tmp_path / "out").mkdir()
    torn = sibling(tmp_path / "out" / "compare.json")
    torn.write_text("half")  # what a killed process was writing is no stranger
    (tmp_path / "train.jsonl").write_text('{"text": "good"}\n')
    with pytest.raises(DataError, match="label: missing"):
        compare(made, ["lora"], folder=tmp_path / "out")
    assert [*(tmp_path / "out").iterdir()] == [torn]


def refused(words: Sequence[object], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert run([str(word) for word in words]) == 2
    return capsys.readouterr().err


def test_the_command_refuses_what_it_cannot_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mood.yaml").write_text(dump(small.recipe(tmp_path)))
    words: list[object] = ["compare", tmp_path / "mood.yaml", "--methods"]
    assert "did you mean lora?" in refused([*words, "lroa"], capsys)
    assert "'a' is no seed" in refused([*words, "lora", "--seeds", "0,a"], capsys)
    assert "no such folder; make it first" in refused([*words, "lora", "--json", tmp_path / "no" / "x"], capsys)
    assert f"{tmp_path}: is a folder; name a file for the rows" in refused([*words, "lora", "--json", tmp_path], capsys)
    assert "--set full: training.epochs: not a setting" in refused(
        [*words, "full", "--set", "full:training.epochs"], capsys
    )
    assert "training.method: 'bogus' is not allowed" in refused(
        [*words, "mine", "--set", "mine:training.method=bogus"], capsys
    )
    assert "compare.full: is not among" in refused([*words, "lora", "--set", "full:training.epochs=1"], capsys)
    for key in ("data.train=other.jsonl", "model.name=gpt2", "training.seed=5", "name=x", "output=x"):
        said = refused([*words, "lora", "--set", f"lora:{key}"], capsys)
        assert f"compare.lora: {key.partition('=')[0]} is not a method's to change" in said
    assert not (tmp_path / "run-compare").exists()


def test_the_name_of_a_method_may_hold_equals_signs_and_colons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mood.yaml").write_text(dump(small.recipe(tmp_path)))
    names = ("lora[r=4]", "lora[r=8,alpha=16]", "peft:lora", "peft")
    words: list[object] = ["compare", tmp_path / "mood.yaml", "--methods", ",".join(names)]
    words += ["--set", "peft:training.method=head"]  # "peft" is a name of one's own, and peft:lora another
    said = refused([*words, *(f"--set={name}:training.epochs={-n}" for n, name in enumerate(names))], capsys)
    assert [line.partition(";")[0].removeprefix("error: ") for line in said.splitlines()] == [
        f"compare.{name}: training.epochs: {-n} is not allowed" for n, name in enumerate(names)
    ]
    said = refused([*words, "--set", "lora[r=2]:training.epochs=3"], capsys)
    assert "compare.lora[r=2]: is not among the methods that are compared: lora[r=4], lora" in said
    said = refused([*words, "--set", "training.warmup_steps='a:b'"], capsys)
    assert "warmup_steps: unknown key" in said, said


def test_what_is_set_for_all_may_be_anything_of_the_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mood.yaml").write_text(dump(small.recipe(tmp_path)))
    (tmp_path / "wrong.jsonl").write_text('{"text": "good"}\n')
    words = ["compare", tmp_path / "mood.yaml", "--methods", "lora", "--set", "training.seed=5"]
    said = refused([*words, "--set", f"data.train={tmp_path}/wrong.jsonl"], capsys)
    assert "wrong.jsonl:1: label: missing" in said, said


def test_the_interval_is_students() -> None:
    assert interval([0.5]) == (None, None)
    assert interval([0.8, 0.8, 0.8]) == (pytest.approx(0.8), pytest.approx(0.8))
    low, high = interval([0.70, 0.80, 0.90])  # s = 0.1, t(0.975, 2) = 4.3027, from a printed table
    assert low == pytest.approx(0.8 - 4.3027 * 0.1 / 3**0.5, abs=1e-5)
    assert high == pytest.approx(0.8 + 4.3027 * 0.1 / 3**0.5, abs=1e-5)


def test_a_row_reads_well() -> None:
    row = Row("a|b", 0.5, split="dev", metric="f1", dev=0.5, parameters=1500, share=0.015, size=2_000_000, seconds=61.0,
              memory=5 * 10**8, device=10**9, seeds={"0": 0.5})  # fmt: skip
    found = cells(row)
    assert (found["trained"], found["of base"], found["file"], found["memory"]) == (
        "1,500",
        "1.50%",
        "2.00 MB",
        "1000 MB",
    )
    assert found["interval"] == found["inference"] == ""
    assert cells(Row("x", None, error="no")) == {"method": "x", "note": "no"}
    assert "| a\\|b | 0.5000 |" in page("p", [row, Row("x", None, error="two\nlines")], "graftwork compare p")
    assert scored([Row("x", None)]) == "no method has a score"
    pictures = Row("x", 0.5, split="dev", metric="accuracy", seeds={"0": 0.5}, price={**PRICE, "pieces": 0})
    assert scored([pictures]) == "score: accuracy of dev, 1 seed; inference with 6 rows"


def test_a_picture_needs_scores_and_matplotlib(tmp_path: Path) -> None:
    assert draw("p", [Row("x", None)], tmp_path / "a.png") == "no picture: no method has a score"
    code = (
        "import sys; sys.modules['matplotlib'] = None\nfrom pathlib import Path\n"
        "import importlib.util as u; u.find_spec = lambda name: None\n"
        "from graftwork.train.comparison import Row, draw\n"
        "print(draw('p', [Row('x', 0.5, parameters=3)], Path('a.png')))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == MISSING
    assert not list(tmp_path.iterdir())


def test_the_peak_is_no_less_than_what_is_held() -> None:
    status = dict(line.partition(":")[::2] for line in Path("/proc/self/status").read_text().splitlines())
    assert peak()["resident"] >= 1024 * int(status["VmRSS"].split()[0]) > 0
    assert peak()["device"] >= 0


def test_changes_are_checked_when_a_recipe_is_read(tmp_path: Path) -> None:
    made = small.recipe(tmp_path)
    for changes, said in (
        ({"training.seed": 1}, "training.seed is not a method's to change"),
        ({"data.train": "x"}, "data.train is not a method's to change"),
        (
            {"model.name": "x"},
            "model.name is not a method's to change; those of adapter and training are, training.seed excepted, "
            "and model.dtype and model.quantisation",
        ),
        ({"training.learning_rate": "fast"}, "compare.lora: training.learning_rate: 'fast' is not allowed"),
        ({"training.lerning_rate": 1}, "did you mean learning_rate?"),
        (
            {"adapter.variant": "lora", "adapter.variant.x": 1},
            "adapter.variant.x: adapter.variant is 'lora', not a section",
        ),
    ):
        with pytest.raises(RecipeError) as caught:
            override(made, {"compare": {"lora": changes}})
        assert said in str(caught.value), str(caught.value)


def test_a_recipe_with_methods_is_the_same_run(tmp_path: Path) -> None:
    made: Recipe = small.recipe(tmp_path)
    one = train(made)
    again = train(override(made, {"compare": {"lora": {"training.epochs": 1}}}), resume=True)
    assert again.package.digest == one.package.digest
