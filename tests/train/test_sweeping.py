"""Sweeps: lists in a recipe, together or one after another with the same result, and what they are told as."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from graftwork.errors import Conflict, GoalMissed, GraftworkError, RecipeError
from graftwork.recipe import Recipe, override, swept
from graftwork.registry.durable import sibling
from graftwork.train import devices, sweeping
from graftwork.train.comparison import Row
from graftwork.train.outcome import TrainResult
from graftwork.train.run import How, train
from graftwork.train.sweeping import Swept, gap, pays, sweep
from graftwork.train.trainer import AdapterTrainer
from tests.train import small
from tests.train.test_together import folder_without_dropout

TEXT = """
model: {name: ./base}
adapter: {variant: seq_bn, reduction_factor: [2, 8], leave_out: [0]}
training: {seed: [0, 1], epochs: 1, batch_size: 4, learning_rate: 1e-2, max_seq_length: 32}
task: {kind: classification}
data: {train: train.jsonl, dev: dev.jsonl}
"""
WIDTHS = {"adapter.reduction_factor": [2, 8]}


@pytest.fixture
def made(tmp_path: Path) -> Recipe:
    folder_without_dropout(tmp_path / "base")
    return small.recipe(tmp_path, {"adapter.variant": "seq_bn", "training.epochs": 1}, train=8, dev=6)


def test_lists_in_a_recipe_are_a_sweep_where_a_key_takes_one_value(made: Recipe, tmp_path: Path) -> None:
    (tmp_path / "mood.yaml").write_text(TEXT)
    recipe, choices = swept(tmp_path / "mood.yaml")
    assert choices == {"adapter.reduction_factor": [2, 8], "training.seed": [0, 1]}
    assert (recipe.adapter.reduction_factor, recipe.training.seed, recipe.adapter.leave_out) == (2, 0, (0,))
    (tmp_path / "one.yaml").write_text(TEXT.replace("[2, 8]", "2").replace("[0, 1]", "0"))
    assert swept(tmp_path / "one.yaml")[1] == {}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "reduction_factor: [2, 8]",
            "reduction_factor: [wide, 8]",
            "5|adapter.reduction_factor: 'wide' is not allowed",
        ),
        ("seed: [0, 1]", "seed: []", "training.seed: [] is not allowed"),
        ("epochs: 1", "epoch: [1, 2]", "training.epoch: unknown key; did you mean epochs?"),
    ],
)
def test_a_wrong_list_is_said_with_its_line(made: Recipe, tmp_path: Path, old: str, new: str, said: str) -> None:
    (tmp_path / "mood.yaml").write_text(TEXT.replace(old, new))
    with pytest.raises(RecipeError) as caught:
        swept(tmp_path / "mood.yaml")
    assert said.rpartition("|")[2] in str(caught.value), str(caught.value)
    assert "mood.yaml:" in str(caught.value)


def result(one: TrainResult | GraftworkError) -> TrainResult:
    assert isinstance(one, TrainResult)
    return one


def test_together_and_one_after_another_are_the_same_sweep(made: Recipe, tmp_path: Path) -> None:
    def swept_to(name: str, together: bool) -> Swept:
        return sweep(override(made, {"output": str(tmp_path / name)}), WIDTHS, progress=False, together=together)

    apart, shared = swept_to("apart", False), swept_to("shared", True)
    for one, other in zip(apart.results, shared.results, strict=True):
        assert result(one).scores["dev"] == pytest.approx(result(other).scores["dev"], abs=1e-4)
    assert [row.method for row in apart.rows] == ["reduction_factor=2", "reduction_factor=8"]
    assert [row.score for row in apart.rows] == pytest.approx([row.score for row in shared.rows])
    assert [row.parameters for row in shared.rows] == [result(one).parameters["trained"] for one in shared.results]
    assert shared.folder == tmp_path / "shared-sweep"
    told = json.loads((shared.folder / "sweep.json").read_text())
    assert (told["together"], len(told["rows"]), told["gap"]["widest"]) == (True, 2, "reduction_factor=2")
    assert {(row.memory, row.device) for row in (*apart.rows, *shared.rows)} == {(None, None)}, "of all runs so far"
    assert all(row.seconds for row in apart.rows)
    assert [row.seconds for row in shared.rows] == [None, None], "the others' work is in it"
    page, alone = (shared.folder / "sweep.md").read_text(), (apart.folder / "sweep.md").read_text()
    assert "a sweep, trained together" in page
    assert "| of base | file |" in page
    assert "| of base | file | training |" in alone
    for text in (page, alone):
        assert "memory" not in text.lower()
        assert "Inference" not in text
        assert "Trained: all that trained" in text
    with pytest.raises(Conflict, match="holds a run already"):
        swept_to("apart", False)
    (shared.folder / "mine.txt").write_text("")
    with pytest.raises(Conflict, match=r"holds files that are no sweep's \(mine.txt\)"):
        sweep(override(made, {"output": str(tmp_path / "shared")}), WIDTHS, how=How(resume=True))


def test_what_diverges_fails_alone(made: Recipe) -> None:
    wild = override(made, {"training.max_grad_norm": 0.0, "training.batch_size": 2})
    found = sweep(wild, {"training.learning_rate": [1e30, 1e-3]}, progress=False, together=False)
    assert "training diverged" in str(found.results[0])
    assert [row.error is None for row in found.rows] == [False, True]
    assert found.gap is None, "equally wide"


def test_a_value_that_cannot_be_fails_alone_also_as_the_first(made: Recipe) -> None:
    found = sweep(made, {"training.metric": ["pearson", "mcc"]}, progress=False)
    assert "training.metric: 'pearson' is no score of task classification" in (found.rows[0].error or "")
    assert found.rows[1].score == result(found.results[1]).scores["test"]["accuracy"]
    assert not found.together, "recipes of which one is wrong cannot be put together"
    with pytest.raises(RecipeError, match="'pearson' is no score"):
        sweep(made, {"training.metric": ["pearson", "mcc"]}, progress=False, how=How(overwrite=True), together=True)


@pytest.mark.parametrize("together", [None, False, True])
def test_what_is_wrong_with_all_ends_the_sweep(made: Recipe, together: bool | None) -> None:
    with pytest.raises(RecipeError, match="'pearson' is no score"):
        sweep(made, {"training.metric": ["pearson", "spearman"]}, progress=False, together=together)
    assert not [*Path(made.output).parent.glob("run*")]


def test_a_run_that_a_library_ends_fails_alone(made: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def scarce(recipe: Recipe, **given: Any) -> TrainResult:
        if recipe.adapter.reduction_factor == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.\n  Tried to allocate 3 GiB")
        return train(recipe, **given)

    monkeypatch.setattr(sweeping, "train", scarce)
    found = sweep(made, WIDTHS, progress=False, together=False)
    assert found.rows[0].error == "OutOfMemoryError: CUDA out of memory. Tried to allocate 3 GiB (seed 0)"
    assert found.rows[1].score == result(found.results[1]).scores["test"]["accuracy"]
    assert "out of memory" in (found.folder / "sweep.md").read_text()


@pytest.mark.parametrize("together", [None, True])
def test_what_a_library_refuses_of_one_recipe_is_a_row_also_together(
    made: Recipe, together: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = AdapterTrainer.create_optimizer

    def scarce(self: AdapterTrainer, *given: Any) -> Any:
        if self.args.learning_rate < 1e-6:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return create(self, *given)

    monkeypatch.setattr(AdapterTrainer, "create_optimizer", scarce)
    few = override(made, {"training.batch_size": 2})
    found = sweep(few, {"training.learning_rate": [1e-2, 1e-8]}, progress=False, together=together)
    assert found.together
    assert found.rows[0].score == result(found.results[0]).scores["test"]["accuracy"]
    assert (found.rows[1].error or "").startswith("OutOfMemoryError: CUDA out of memory.")


@pytest.mark.parametrize("together", [None, True])
def test_what_a_library_refuses_of_all_at_once_goes_on_one_after_another(
    made: Recipe, monkeypatch: pytest.MonkeyPatch, together: bool | None
) -> None:
    def scarce(recipes: list[Recipe], **given: Any) -> None:
        for recipe in recipes:
            train(override(recipe, {"training.epochs": 1}), registry=None, progress=False)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(sweeping, "train_together", scarce)
    few = override(made, {"training.batch_size": 2})
    if together:  # what is asked for is not tried another way
        with pytest.raises(torch.OutOfMemoryError):
            sweep(few, WIDTHS, progress=False, together=True)
        return
    found = sweep(few, WIDTHS, progress=False)
    assert not found.together
    assert [row.error for row in found.rows] == [None, None]


def test_seconds_that_others_share_stay_unsaid_when_the_runs_are_read_back(made: Recipe) -> None:
    sweep(made, WIDTHS, progress=False, together=True)
    again = sweep(made, WIDTHS, progress=False, together=False, how=How(resume=True))
    assert [row.seconds for row in again.rows] == [None, None]


@pytest.mark.parametrize("together", [None, False, True])
def test_several_processes_are_refused(made: Recipe, together: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "devices_of", lambda recipe: devices.Devices(rank=0, count=2))
    with pytest.raises(RecipeError, match="several runs share one process, and there are 2 processes here"):
        sweep(made, WIDTHS, progress=False, together=together)
    assert not [*Path(made.output).parent.glob("run*")]


def diverging(made: Recipe, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe whose runs all diverge at once."""

    def fail(recipe: Recipe, **given: Any) -> TrainResult:
        raise GoalMissed("training diverged")

    monkeypatch.setattr(sweeping, "train", fail)
    return made


def test_the_folder_of_a_sweep_is_looked_at_before_anything_trains(
    made: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverging(made, monkeypatch)
    folder = Path(f"{made.output}-sweep")
    left = sibling(folder / "sweep.md")
    folder.mkdir()
    left.write_text("half")
    found = sweep(made, WIDTHS, progress=False, together=False)
    assert sorted(path.name for path in folder.iterdir()) == ["sweep.json", "sweep.md"]
    assert found.told()[0] == "no picture: no method has a score"
    assert "no picture: no method has a score" in (folder / "sweep.md").read_text()
    shutil.rmtree(folder)
    folder.write_text("mine")
    monkeypatch.setattr(sweeping, "train", lambda *_, **__: pytest.fail("it trains"))
    with pytest.raises(Conflict, match=r"run-sweep: is not a folder; move it away, or choose another output"):
        sweep(made, WIDTHS, progress=False, together=False)


def test_together_pays_for_few_pieces_a_step(made: Recipe) -> None:
    def recipes(changes: dict[str, Any]) -> list[Recipe]:
        return [override(made, {**changes, "training.seed": seed, "output": f"runs/{seed}"}) for seed in (0, 1)]

    assert pays(recipes({"training.batch_size": 4}))
    assert not pays(recipes({"training.batch_size": 64}))
    assert not pays(recipes({"training.batch_size": 4})[:1])
    assert not pays(recipes({"training.batch_size": 4, "training.method": "full", "adapter": {}}))


def row(name: str, dev: float, parameters: int, *scores: float) -> Row:
    return Row(name, sum(scores) / len(scores), split="test", metric="f1", dev=dev, parameters=parameters,
               seeds={str(seed): score for seed, score in enumerate(scores)})  # fmt: skip


def test_the_gap_is_paired_by_seed() -> None:
    found = gap(
        [row("wide", 0.8, 90, 0.7, 0.9, 0.8), row("best", 0.9, 30, 0.6, 0.8, 0.7), row("small", 0.9, 20, 0.5, 0.7)]
    )
    assert found is not None
    assert (found.chosen, found.widest) == ("small", "wide"), "of equals on dev the smallest"
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == (pytest.approx(0.2), pytest.approx(0.2)), "no seed differs from another"
    assert str(found) == "chosen on dev: small; the widest, wide, has +0.2000 (+0.2000 to +0.2000) f1 of test beside it"
    alone = gap([row("wide", 0.9, 90, 0.7), row("small", 0.8, 20, 0.5)])
    assert str(alone) == "chosen on dev: wide, which is the widest"
    assert gap([row("one", 0.9, 90, 0.7)]) is None


def test_of_several_as_wide_the_gap_takes_the_best_on_dev() -> None:
    wide, slow = row("wide", 0.91, 90, 0.90), row("wide, slow", 0.30, 90, 0.30)
    assert str(gap([slow, wide, row("small", 0.9, 20, 0.88)])) == "chosen on dev: wide, which is the widest"
    found = gap([slow, wide, row("small", 0.92, 20, 0.88)])
    assert found is not None
    assert (found.widest, found.value) == ("wide", pytest.approx(0.02))


def test_what_lost_a_seed_is_neither_chosen_nor_the_widest() -> None:
    left = replace(row("fast", 0.95, 90, 0.95), error="training diverged (seed 1)")
    whole = [row("small", 0.9, 20, 0.9, 0.9), row("wide", 0.8, 50, 0.9, 0.8)]
    found = gap([left, *whole])
    assert found is not None
    assert (found.chosen, found.widest) == ("small", "wide")
    assert gap([left, replace(whole[0], error="training diverged (seed 2)")]) is not None, "better than nothing"
