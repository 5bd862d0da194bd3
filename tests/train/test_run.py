"""A whole run on a tiny model: what it refuses, what it writes, and that a package gives the scores it says."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import normalizers, processors

from graftwork import recipe as recipes
from graftwork.build import open_encoder, open_model, package_task
from graftwork.compose.grammar import parse
from graftwork.errors import Conflict, DataError, GoalMissed, NotFound, RecipeError, UserError
from graftwork.evaluate import evaluate
from graftwork.recipe import Recipe
from graftwork.registry.package import read
from graftwork.registry.store import Registry
from graftwork.schema.sections import ModelSection
from graftwork.train.folder import RunFolder
from graftwork.train.outcome import TrainResult, read_result
from graftwork.train.run import train
from tests import strangers
from tests.train import small


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def again(result: TrainResult, made: Recipe, base: str, members: dict[str, Any] | None = None) -> dict[str, float]:
    """The test scores of the package on disk, on a fresh copy of its base."""
    model = open_model(ModelSection(name=base))
    for name, package in (members or {}).items():
        model.install(package, name, with_head=False)
    package = read(result.folder / "package")
    model.install(package)
    task = package_task(package.manifest)
    encoder = open_encoder(base, task.max_length, "truncate")
    rows = [json.loads(line) for line in Path(str(made.data.test)).read_text().splitlines()]
    return evaluate(model, task, encoder, rows, adapters=parse(result.composition), head=package.manifest.name)[0]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, TrainResult]:
    made = small.recipe(tmp_path_factory.mktemp("learned"), {"training.epochs": 3}, train=120)
    return made, train(made, command="graftwork train mood.yaml")


def test_it_learns_and_writes_everything_down(learned: tuple[Recipe, TrainResult]) -> None:
    made, result = learned
    assert result.scores["dev"]["accuracy"] > 0.9
    assert result.scores["test"]["accuracy"] > 0.9
    assert {path.name for path in result.folder.iterdir()} == {
        "recipe.yaml", "run.json", "checkpoints", "package", "result.json", "curve.png"
    }  # fmt: skip
    assert recipes.load(result.folder / "recipe.yaml") == made
    written = json.loads((result.folder / "result.json").read_text())
    assert written["scores"] == result.scores
    assert (written["command"], written["seed"], written["machine"]) == (
        "graftwork train mood.yaml", 0, result.machine
    )  # fmt: skip
    assert set(written["versions"]) >= {"graftwork", "torch", "transformers"}
    assert (result.folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert result.parameters["trained"] == result.parameters["adapter"] + result.parameters["head"]
    graft = (result.folder / "package" / "graft.json").read_text().replace(made.model.name, "the base")
    assert str(result.folder.parent) not in graft  # a package names no place of the machine that made it


def test_the_package_says_where_it_comes_from(learned: tuple[Recipe, TrainResult]) -> None:
    _, result = learned
    manifest = read(result.folder / "package").manifest
    assert (manifest.name, manifest.role, manifest.composition) == ("mood", "task", "mood")
    assert manifest.task is not None
    assert (manifest.task.kind, manifest.task.labels, manifest.task.max_length) == (
        "classification", ("bad", "good"), 32
    )  # fmt: skip
    assert manifest.scores == result.scores
    assert manifest.data["rows"] == {"train": 120, "dev": 12, "test": 12}
    assert manifest.data["source"] == {"train": "train.jsonl", "dev": "dev.jsonl", "test": "test.jsonl"}
    assert manifest.training["learning_rate"] == 1e-2
    assert manifest.training["serving"] == {"multi_adapter": False, "adapter_cache_size": 32}
    assert manifest.vocabulary is not None


def test_the_package_on_disk_gives_the_scores(learned: tuple[Recipe, TrainResult]) -> None:
    made, result = learned
    assert again(result, made, made.model.name) == pytest.approx(result.scores["test"], abs=1e-4)


def test_history_and_best_epoch(learned: tuple[Recipe, TrainResult]) -> None:
    _, result = learned
    dev = [point for point in result.history if "dev" in point]
    assert [point["epoch"] for point in dev] == [1, 2, 3]
    best = max(dev, key=lambda point: (point["dev"]["accuracy"], -point["epoch"]))
    assert result.best_epoch == best["epoch"]
    assert result.scores["dev"]["accuracy"] == best["dev"]["accuracy"]
    losses = [point for point in result.history if "loss" in point]
    assert losses[-1]["loss"] < losses[0]["loss"]
    assert all({"step", "epoch", "learning_rate"} <= point.keys() for point in losses)


def test_the_base_is_not_touched(tmp_path: Path) -> None:
    made = small.recipe(tmp_path)
    before = files(tmp_path / "base")
    for method in ("adapter", "head", "full"):
        train(recipes.override(made, {"training.method": method, "output": str(tmp_path / method)}))
    assert files(tmp_path / "base") == before


def test_two_runs_are_one(tmp_path: Path) -> None:
    made = small.recipe(tmp_path)
    first = train(made)
    torch.manual_seed(123)
    second = train(recipes.override(made, {"output": str(tmp_path / "second")}))
    other = train(recipes.override(made, {"output": str(tmp_path / "third"), "training.seed": 1}))
    assert first.package.digest == second.package.digest != other.package.digest
    assert first.history == second.history


# what is changed -> the error, and what it says
REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "a metric that is none": (
        {"training.metric": "f1"},
        RecipeError,
        r"training\.metric: 'f1' is no score of task classification; those are accuracy, f1_macro, mcc, loss",
    ),
    "an unknown variant": ({"adapter.variant": "seq_bnn"}, RecipeError, "did you mean 'seq_bn'"),
    "fewer pieces than any text": ({"training.max_seq_length": 2}, UserError, "max_length is 2"),
    "a type that cannot be trained": ({"model.dtype": "float16"}, RecipeError, r"model\.dtype: float16"),
    "labels of another task": ({"task.labels": ["good", "neutral"]}, DataError, "'bad' is not a label of task.labels"),
    "fields of another task": ({"task.kind": "tagging"}, DataError, "train.jsonl:1: tokens: missing"),
    "a base that cannot compute layers again": (
        {"training.gradient_checkpointing": True, "model.name": "mpnet"},
        RecipeError,
        r"training\.gradient_checkpointing: transformers has none for MPNetModel; leave it out",
    ),
    "no such package": (
        {"adapter": {"composition": "fuse", "members": ["a", "b"]}},
        NotFound,
        "no package 'a' in the registry",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_said_before_anything_is_written(tmp_path: Path, case: str) -> None:
    changes, error, says = REFUSED[case]
    made = small.recipe(tmp_path)
    if changes.get("model.name") == "mpnet":
        changes = {**changes, "model.name": str(tmp_path / "mpnet")}
        strangers.model("mpnet").save_pretrained(tmp_path / "mpnet")
        small.tokenizer().save_pretrained(tmp_path / "mpnet")
    made = recipes.override(made, {**changes, "output": str(tmp_path / "run")})
    before = files(tmp_path)
    with pytest.raises(error, match=says):
        train(made, registry=Registry(tmp_path / "registry"))
    assert files(tmp_path) == before
    assert not (tmp_path / "run").exists()


def test_what_is_wrong_with_a_test_row_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    made = small.recipe(tmp_path, {"output": str(tmp_path / "run")})
    tokenizer = small.tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("zzz", "")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1")
    tokenizer.save_pretrained(made.model.name)
    small.write(tmp_path / "test.jsonl", [{"text": "so good", "label": "good"}, {"text": "zzz", "label": "bad"}])
    with pytest.raises(DataError, match="gives no piece"):
        train(made)
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_written_over(tmp_path: Path) -> None:
    made = small.recipe(tmp_path)
    first = train(made)
    before = files(tmp_path)
    with pytest.raises(Conflict, match="holds a run already"):
        train(made)
    with pytest.raises(Conflict, match=r"is another run's, so it cannot go on: recipe\.training\.epochs was 2, is 1"):
        train(recipes.override(made, {"training.epochs": 1}), resume=True)
    small.write(tmp_path / "dev.jsonl", small.texts(4, seed=9))
    with pytest.raises(Conflict, match="cannot go on: data was"):
        train(made, resume=True)
    assert files(tmp_path / "run") == {
        name.removeprefix("run/"): data for name, data in before.items() if name.startswith("run/")
    }
    assert train(made, overwrite=True).package.digest == first.package.digest  # dev rows do not change the weights


def test_a_diverging_run_says_what_to_do(tmp_path: Path) -> None:
    made = small.recipe(tmp_path, {"training.learning_rate": 1e30, "training.max_grad_norm": 0})
    with pytest.raises(GoalMissed, match=r"training diverged: .* lower training\.learning_rate"):
        train(made)
    assert not (tmp_path / "run" / "package").exists()
    assert not (tmp_path / "run" / "result.json").exists()


def test_early_stopping(tmp_path: Path) -> None:
    changes = {"training.early_stopping_patience": 2, "training.epochs": 9, "training.learning_rate": 1e-7}
    result = train(small.recipe(tmp_path, changes))
    assert (result.epochs, result.best_epoch) == (3, 1)  # nothing gets better: one epoch, and two in vain


@pytest.mark.parametrize(("metric", "best"), [("loss", min), ("mcc", max)])
def test_the_metric_picks_the_epoch(tmp_path: Path, metric: str, best: Any) -> None:
    changes = {"training.metric": metric, "training.epochs": 4, "training.learning_rate": 0.02}
    result = train(small.recipe(tmp_path, changes))
    dev = {point["epoch"]: point["dev"][metric] for point in result.history if "dev" in point}
    assert dev[result.best_epoch] == best(dev.values())


TASKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "pair": (lambda row: {**row, "text_pair": "we like it"}, {}),
    "regression": (lambda row: {"text": row["text"], "label": float(row["label"] == "good")}, {}),
    "tagging": (
        lambda row: {
            "tokens": row["text"].split(),
            "tags": ["B-mood" if word in (*small.GOOD, *small.BAD) else "O" for word in row["text"].split()],
        },
        {"training.epochs": 4},
    ),
}


@pytest.mark.parametrize("kind", TASKS)
def test_every_kind_of_task(tmp_path: Path, kind: str) -> None:
    change, settings = TASKS[kind]
    for split, count in (("train", 80), ("dev", 12), ("test", 12)):
        small.write(tmp_path / f"{split}.jsonl", map(change, small.texts(count, seed=len(split))))
    made = small.recipe(tmp_path, {"task.kind": kind, **settings})
    result = train(made)
    assert set(result.scores) == {"dev", "test"}
    assert result.scores["dev"][result.main] > 0.3
    assert again(result, made, made.model.name) == pytest.approx(result.scores["test"], abs=1e-4)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """hi@1 and mood@1, trained a little on the base in tmp_path."""
    registry = Registry(tmp_path / "registry")
    for name in ("hi", "mood"):
        made = small.recipe(tmp_path, {"name": name, "output": str(tmp_path / f"run-{name}"), "training.epochs": 1})
        registry.push(train(made).package, name)
    return registry


@pytest.mark.parametrize(
    ("adapter", "composition", "members"),
    [
        ({"composition": "stack", "language_adapter": "hi"}, "Stack(hi@1, top)", ["hi@1"]),
        (
            {"composition": "stack", "language_adapter": "hi", "task_adapter": "mood"},
            "Stack(hi@1, top)",
            ["hi@1", "mood@1"],
        ),
        ({"composition": "fuse", "members": ["hi@1", "mood"]}, "Fuse(hi@1, mood@1, name=top)", ["hi@1", "mood@1"]),
    ],
    ids=["stack", "stack that goes on", "fuse"],
)
def test_compositions(
    tmp_path: Path, registry: Registry, adapter: dict[str, Any], composition: str, members: list[str]
) -> None:
    changes = {"name": "top", "adapter": adapter, "output": str(tmp_path / "top"), "training.learning_rate": 1e-3}
    made = small.recipe(tmp_path, changes)
    result = train(made, registry=registry)
    assert result.composition == composition
    manifest = read(result.folder / "package").manifest
    assert manifest.composition == composition
    assert [(member.name, member.digest) for member in manifest.members] == [
        (name, registry.get(name).digest) for name in members
    ]
    below = {name: registry.get(name) for name in members if name in composition}
    assert again(result, made, made.model.name, below) == pytest.approx(result.scores["test"], abs=1e-4)
    assert result.parameters["fusion"] > 0 or "Stack" in composition
    heavy = "fusion top has 9,408 parameters, 29.4 % of the base"
    assert any(note.startswith(heavy) for note in result.notes) is (result.parameters["fusion"] > 0)


def test_only_the_head(tmp_path: Path) -> None:
    made = small.recipe(tmp_path, {"training.method": "head"})
    result = train(made)
    assert (result.package.manifest.role, result.composition) == ("head", "none")
    assert result.parameters["trained"] == result.parameters["head"]
    assert again(result, made, made.model.name) == pytest.approx(result.scores["test"], abs=1e-4)


def test_the_whole_model(tmp_path: Path) -> None:
    made = small.recipe(tmp_path, {"training.method": "full", "training.learning_rate": 1e-3})
    result = train(made)
    tuned = result.folder / "model"
    assert result.parameters["trained"] == result.parameters["base"] + result.parameters["head"]
    assert again(result, made, str(tuned)) == pytest.approx(result.scores["test"], abs=1e-4)
    assert (tuned / "tokenizer.json").is_file()
    with pytest.raises(Conflict, match="another base"):
        open_model(made.model).install(result.package)


def test_notes_say_what_was_decided(tmp_path: Path) -> None:
    made = small.recipe(tmp_path, {"training.max_seq_length": 8, "data.dev": None, "data.test": None})
    result = train(made)
    assert "no dev data named: 4 of 40 rows of train are held out as dev (seed 0)" in result.notes
    assert any("rows of train are longer than 8 pieces and were cut" in note for note in result.notes)
    assert set(result.scores) == {"dev"}


def test_a_base_that_takes_less_than_the_recipe_allows_is_said(tmp_path: Path) -> None:
    result = train(small.recipe(tmp_path, {"training.max_seq_length": 256, "training.epochs": 1}))
    assert "training.max_seq_length is 256; this base takes 64 pieces at most" in result.notes
    assert not any("were cut" in note for note in result.notes)


def test_a_real_encoder(tmp_path: Path) -> None:
    changes = {"model.name": "minilm", "training.epochs": 2, "training.learning_rate": 3e-3}
    made = small.recipe(tmp_path, changes, train=48)
    result = train(made)
    assert result.scores["dev"]["accuracy"] > 0.8
    assert result.package.manifest.base.hidden_size == 384
    assert read_result(RunFolder(result.folder)).scores == result.scores
    assert again(result, made, "minilm") == pytest.approx(result.scores["test"], abs=1e-4)


def test_mixed_precision_scores_the_texts_own_tokens_behind_prompts(tmp_path: Path) -> None:
    change, settings = TASKS["tagging"]
    for split, count in (("train", 80), ("dev", 12), ("test", 12)):
        small.write(tmp_path / f"{split}.jsonl", map(change, small.texts(count, seed=len(split))))
    prompts = {"adapter.variant": "prompt_tuning[prompt_length=3]", "training.bf16": True}
    result = train(small.recipe(tmp_path, {"task.kind": "tagging", **settings, **prompts}))
    best = next(point for point in result.history if point["epoch"] == result.best_epoch and "dev" in point)
    assert best["dev"][result.main] == pytest.approx(result.scores["dev"][result.main], abs=0.01)


@pytest.mark.parametrize("changes", [{"training.bf16": True}, {"model.dtype": "bfloat16"}], ids=str)
def test_half_precision(tmp_path: Path, changes: dict[str, Any]) -> None:
    result = train(small.recipe(tmp_path, changes))
    kinds = {tensor.dtype for tensor in result.package.tensors.values()}
    assert kinds == {torch.bfloat16 if "model.dtype" in changes else torch.float32}
    assert result.history[-1]["dev"]["loss"] < 2
