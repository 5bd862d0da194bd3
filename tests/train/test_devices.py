"""Training in two processes is training in one: losses, weights, scores and files are equal; errors are said once."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from graftwork import workflow
from graftwork.recipe import Recipe, dump, override
from graftwork.registry.store import Registry
from graftwork.train.folder import RunFolder
from graftwork.train.outcome import TrainResult, read_result
from graftwork.train.run import train
from tests import tiny
from tests.train import small, test_kinds
from tests.train.launch import ACCELERATE, Ran, together
from tests.train.test_together import check_alike, folder_without_dropout, weights

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
    # a bias of all keys moves no attention: its gradient is nothing but rounding, and Adam makes steps of it
    check_alike(found, alone(recipe), "key.bias" if recipe.training.method == "full" else "none")
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
        ["train", file, "--set", other, "--set", "training.batch_size=256", "--sweep", "training.seed=0,1"],  # in turn
    ]
    shared = {name: of(tmp_path, *SHARED[name], name) for name in ALWAYS}
    commands += [["train", written(one, tmp_path / f"{name}.yaml"), "--json"] for name, one in shared.items()]
    ran = together(commands)
    assert ran.codes == [[0, 2, 0, 2, 2, 2, *(0 for _ in ALWAYS)]] * 2, ran.said
    assert not (tmp_path / "other").exists()
    first, *others = errors(ran.said)
    assert first.endswith("put the new one in its place (--overwrite), or choose another output")
    assert [line.removeprefix("error: ") for line in others] == [
        f"{tmp_path}/rows-1.jsonl:26: tags: missing; the row has tokens; name their column in data.columns.tags",
        "training.batch_size: 1 rows cannot be shared by 2 processes; it is the number of rows in all of them together",
        "several runs share one process, and there are 2 processes here; start it without torchrun, or train one "
        "recipe after another",
    ]
    assert ran.said.count('"name": "mood"') == 2 + len(ALWAYS)  # trained, and read back
    found = check(made)
    assert found.parallel == {"kind": "ddp", "processes": 2}
    for name, one in shared.items():
        assert check(one).parallel == {"kind": name, "processes": 2}
    registry = Registry(tmp_path / "registry")
    name = workflow.push(found, registry)
    engine = workflow.open_engine(made.model.name, registry)
    assert workflow.evaluate(engine, name, str(tmp_path / "test.jsonl")).scores == pytest.approx(
        found.scores["test"], abs=1e-6
    )


# -- many runs, behind the full profile: a launch takes seconds -------------------------------------------------------

PAIRS: dict[str, Any] = {"task.kind": "similarity"}
LANGUAGE: dict[str, Any] = {"task.kind": "causal_lm", "training.learning_rate": 1e-3}
SPARED: dict[str, Any] = {"training.base_dropout": False, "adapter.leave_out": [0, 1], "training.prefix_cache": "auto"}

# name -> base, what the recipe says
SHARED: dict[str, tuple[str, dict[str, Any]]] = {
    "ddp": ("bert", {"training.epochs": 3, "training.early_stopping_patience": 1}),
    "ddp, checkpointing": ("bert", {"training.gradient_checkpointing": True}),
    "ddp, drop": ("bert", {"training.drop": "random", "training.seed": 3}),
    "ddp, full": ("bert", {"training.method": "full", "training.learning_rate": 1e-3}),
    "ddp, full, checkpointing": (
        "bert",
        {"training.method": "full", "training.learning_rate": 1e-3, "training.gradient_checkpointing": True},
    ),
    "ddp, head": ("bert", {"training.method": "head"}),
    "ddp, prefix cache": ("bert", SPARED),
    "ddp, lora": ("bert", {"adapter.variant": "lora[r=4]"}),
    "ddp, masked": ("bert", {"task.kind": "masked_lm", "training.learning_rate": 1e-3}),
    "ddp, causal": ("llama", LANGUAGE),
    "fsdp": ("bert", {"training.parallel": "fsdp"}),
    "fsdp, checkpointing": ("bert", {"training.parallel": "fsdp", "training.gradient_checkpointing": True}),
    "fsdp, masked": ("bert", {"training.parallel": "fsdp", "task.kind": "masked_lm", "training.learning_rate": 1e-3}),
    "fsdp, llama": ("llama", {"training.parallel": "fsdp"}),
    "fsdp, causal": ("llama", {"training.parallel": "fsdp", **LANGUAGE}),
    "fsdp, lora": ("llama", {"training.parallel": "fsdp", "adapter.variant": "lora[r=4]"}),
    "fsdp, prefix": ("llama", {"training.parallel": "fsdp", "adapter.variant": "prefix_tuning_flat"}),
    "tp": ("llama", {"training.parallel": "tp"}),
    "tp, checkpointing": ("llama", {"training.parallel": "tp", "training.gradient_checkpointing": True}),
    "tp, both sub-layers": (
        "llama",
        {"training.parallel": "tp", "adapter.variant": "double_seq_bn[reduction_factor=4]"},
    ),
    "tp, causal": ("llama", {"training.parallel": "tp", **LANGUAGE}),
    "tp, prompt": ("llama", {"training.parallel": "tp", "adapter.variant": "prompt_tuning[prompt_length=3]"}),
}

ALWAYS = ("fsdp", "tp")  # of these, what is trained in every run of the tests: a recipe more in a launch takes a second
SELDOM = [name for name in SHARED if name not in ALWAYS]

# name -> base, what the recipe says, why it cannot be
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "pairs without labels": (
        "bert",
        PAIRS,
        "training.parallel: ddp: pairs without labels learn from all others of their batch, which is shared by 2 "
        "processes; train in one process",
    ),
    "full, fsdp": (
        "bert",
        {"training.parallel": "fsdp", "training.method": "full"},
        "training.parallel: fsdp: no process holds the whole base, which training.method: full copies; take ddp",
    ),
    "peft, tp": (
        "llama",
        {"training.parallel": "tp", "training.method": "peft", "adapter.variant": "lora"},
        "training.parallel: tp: no process holds the whole base, which training.method: peft copies; take ddp",
    ),
    "texts, fsdp": (
        "bert",
        {"training.parallel": "fsdp", "task.kind": "seq2seq_lm"},
        "training.parallel: fsdp: no process holds the whole base, which task kind seq2seq_lm needs to say texts; take "
        "ddp",
    ),
    "prefix cache, fsdp": (
        "bert",
        {"training.parallel": "fsdp", **SPARED},
        "training.parallel: fsdp: no process holds the whole base, which training.prefix_cache: auto runs in one; set "
        "it to off",
    ),
    "copies, fsdp": (
        "bert",
        {"training.parallel": "fsdp", "adapter.variant": "adapter_bert"},
        "training.parallel: fsdp: adapter_bert begins as a copy of the base's own tensors, which no process holds "
        "whole; take ddp",
    ),
    "no plan, tp": (
        "bert",
        {"training.parallel": "tp"},
        "training.parallel: tp: transformers has no tensor-parallel plan for bert; take fsdp, or ddp",
    ),
    "inside of matrices, tp": (
        "llama",
        {"training.parallel": "tp", "adapter.variant": "lora[r=4]"},
        "training.parallel: tp: lora[r=4] works inside of matrices that are cut (linear); take ddp or fsdp, or an "
        "adapter at the ends of sub-layers, such as seq_bn",
    ),
}


def of(folder: Path, family: str, changes: dict[str, Any], name: str) -> Recipe:
    """A recipe on rows of its kind of task: some say more than others, and the last batches are small."""
    base = folder / family
    if not base.is_dir() and family == "bert":
        folder_without_dropout(base)
    elif not base.is_dir():
        tiny.model(family).save_pretrained(base)
        small.tokenizer().save_pretrained(base)
    kind = changes.get("task.kind", "tagging")
    make = {"tagging": _tagging, "similarity": test_kinds._pairs}.get(kind, test_kinds._language)
    for split, count in (("train", 25), ("dev", 9), ("test", 5)):
        draw = test_kinds.Draw(split)
        small.write(folder / f"{split}-{kind}.jsonl", [make(draw) for _ in range(count)])
    files = {f"data.{split}": str(folder / f"{split}-{kind}.jsonl") for split in ("train", "dev", "test")}
    made = small.recipe(folder, {**COMMON, "task.kind": "tagging", "model.name": str(base), **files})
    return override(made, {"output": str(folder / name.replace(" ", "-")), **changes})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Recipe], Ran]:
    """All recipes of both tables, by two processes, one after another."""
    folder = tmp_path_factory.mktemp("runs")
    made = {name: of(folder, *SHARED[name], name) for name in SELDOM}
    made |= {name: of(folder, family, changes, name) for name, (family, changes, _) in REFUSED.items()}
    files = [written(recipe, folder / f"{number}.yaml") for number, recipe in enumerate(made.values())]
    return made, together([["train", file, "--json"] for file in files], seconds=1200)


@pytest.mark.full
@pytest.mark.parametrize("name", SELDOM)
def test_what_two_processes_learn_is_what_one_learns(runs: tuple[dict[str, Recipe], Ran], name: str) -> None:
    made, ran = runs
    place = list(made).index(name)
    assert [codes[place] for codes in ran.codes] == [0, 0], ran.said
    found = check(made[name])
    assert found.parallel == {"kind": made[name].training.parallel, "processes": 2}


@pytest.mark.full
def test_accelerate_starts_them_as_well(tmp_path: Path) -> None:
    made = tagging(tmp_path)
    ran = together([["train", written(made, tmp_path / "made.yaml"), "--json"]], by=ACCELERATE)
    assert ran.codes == [[0], [0]], ran.said
    assert check(made).parallel == {"kind": "ddp", "processes": 2}


@pytest.mark.full
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_shared_is_refused(runs: tuple[dict[str, Recipe], Ran], name: str) -> None:
    made, ran = runs
    place = list(made).index(name)
    assert [codes[place] for codes in ran.codes] == [2, 2], ran.said
    assert not Path(made[name].output).exists()
    assert errors(ran.said).count(f"error: {REFUSED[name][2]}") == 1


@pytest.mark.full
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_processes_go_on_where_they_stopped_with_the_random_numbers_of_each(tmp_path: Path, kind: str) -> None:
    made = small.recipe(tmp_path, {**COMMON, "training.parallel": kind}, train=25, dev=9)  # a base with dropout
    whole, stopped = (override(made, {"output": str(tmp_path / name)}) for name in ("whole", "stopped"))
    file = written(whole, tmp_path / "whole.yaml")
    assert together([["train", file, "--json"]]).codes == [[0], [0]]
    shutil.copytree(whole.output, stopped.output)
    folder = RunFolder(stopped.output)
    for path in (folder.checkpoints / "checkpoint-6", folder.package):  # as if killed in the second epoch
        shutil.rmtree(path)
    folder.result.unlink()
    resumed = together([["train", written(stopped, tmp_path / "stopped.yaml"), "--resume", "--json"]])
    assert resumed.codes == [[0], [0]], resumed.said
    ended, unbroken = read_result(folder), read_result(RunFolder(whole.output))
    assert (ended.resumed_from, unbroken.resumed_from) == (3, 0)
    assert ended.package.digest == unbroken.package.digest
    last = [weights(one) for one in (ended, unbroken)]
    assert all(torch.equal(tensor, last[1][name]) for name, tensor in last[0].items())
    alone = train(override(whole, {"output": str(tmp_path / "alone")}))
    assert alone.package.digest != unbroken.package.digest  # dropout is drawn for other rows
