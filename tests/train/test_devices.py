"""Training in two processes is training in one: losses, weights, scores and files are equal; errors are said once."""

from pathlib import Path
from typing import Any

import pytest

from graftwork import workflow
from graftwork.recipe import Recipe, dump, override
from graftwork.registry.store import Registry
from graftwork.train.folder import RunFolder
from graftwork.train.outcome import TrainResult, read_result
from graftwork.train.run import train
from tests.train import small, test_kinds
from tests.train.processes import together
from tests.train.test_together import check_alike, folder_without_dropout

COMMON: dict[str, Any] = {"training.batch_size": 6, "training.gradient_accumulation": 2, "training.logging_steps": 1}


def _tagging(draw: Any) -> dict[str, Any]:
    said = test_kinds.words(draw, draw.randint(1, 12))
    return {"tokens": said, "tags": ["GOOD" if word in small.GOOD else "OTHER" for word in said]}


def tagging(folder: Path, changes: dict[str, Any] | None = None) -> Recipe:
    """25 rows in batches of 6: the fifth has one row, so that the second process has none; two batches a step."""
    if not (folder / "base").is_dir():
        folder_without_dropout(folder / "base")
        for split, count in (("train", 25), ("dev", 9), ("test", 5)):
            draw = test_kinds.Draw(split)
            small.write(folder / f"{split}.jsonl", [_tagging(draw) for _ in range(count)])
    made = small.recipe(folder, {**COMMON, "task.kind": "tagging"})
    return override(made, {"output": str(folder / "two"), **(changes or {})})


def written(recipe: Recipe, file: Path) -> str:
    file.write_text(dump(recipe), "utf8")
    return str(file)


def alone(recipe: Recipe) -> TrainResult:
    """The same in this process."""
    return train(override(recipe, {"output": f"{recipe.output}-alone"}))


def check(recipe: Recipe) -> TrainResult:
    """What two processes made of a recipe is what one makes of it."""
    found = read_result(RunFolder(recipe.output))
    check_alike(found, alone(recipe))
    return found


def errors(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("error: ")]


def test_two_processes_train_and_fail_as_one(tmp_path: Path) -> None:
    made = tagging(tmp_path)
    file = written(made, tmp_path / "made.yaml")
    for rank in range(2):
        rows = (tmp_path / "train.jsonl").read_text("utf8") + rank * '{"tokens": ["so"]}\n'
        (tmp_path / f"rows-{rank}.jsonl").write_text(rows, "utf8")
    other = f"output={tmp_path / 'other'}"
    damaged = f"data.train={tmp_path}/rows-{{rank}}.jsonl"
    commands = [
        ["train", file, "--json"],
        ["train", file],
        ["train", file, "--resume", "--json"],
        ["train", file, "--set", other, "--set", damaged],
        ["train", file, "--set", other, "--set", "training.batch_size=1"],
        ["train", file, "--set", other, "--sweep", "training.seed=0,1"],
    ]
    ran = together(commands)
    assert ran.codes == [[0, 2, 0, 2, 2, 2]] * 2, ran.said
    assert not (tmp_path / "other").exists()
    first, *others = errors(ran.said)
    assert first.endswith("put the new one in its place (--overwrite), or choose another output")
    assert [line.removeprefix("error: ") for line in others] == [
        f"{tmp_path}/rows-1.jsonl:26: tags: missing; the row has tokens; name their column in data.columns.tags",
        "training.batch_size: 1 rows cannot be shared by 2 processes; it is the number of rows in all of them together",
        "2 recipes together, in 2 processes: what shares a forward runs in one; train them in one process, or one "
        "after another",
    ]
    assert ran.said.count('"name": "mood"') == 2  # trained, and read back
    found = check(made)
    assert found.parallel == {"kind": "ddp", "processes": 2}
    registry = Registry(tmp_path / "registry")
    name = workflow.push(found, registry)
    engine = workflow.open_engine(made.model.name, registry)
    assert workflow.evaluate(engine, name, str(tmp_path / "test.jsonl")).scores == pytest.approx(
        found.scores["test"], abs=1e-6
    )
