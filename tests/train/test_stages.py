"""A fusion whose members are recipes: they train first, each into its own folder and the registry; and what is refused
before anything trains."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.progress import Progress
from transformers import TrainerCallback

from graftwork import recipe as recipes
from graftwork.build import open_model
from graftwork.compose.tree import Fuse
from graftwork.errors import Conflict, GraftworkError, NotFound, RecipeError
from graftwork.model import AdapterModel
from graftwork.packing import Provenance
from graftwork.recipe import Recipe
from graftwork.registry.store import Registry
from graftwork.train.batches import as_it_is
from graftwork.train.devices import Devices
from graftwork.train.folder import RunFolder
from graftwork.train.job import prepare
from graftwork.train.outcome import read_result
from graftwork.train.report import lines
from graftwork.train.run import How, carry_out, train
from graftwork.train.settings import arguments
from graftwork.train.stages import first_stage, kept
from graftwork.train.together import train_together
from graftwork.train.trainer import AdapterTrainer
from tests import tiny
from tests.adapted import same, shaken, snapshot
from tests.train import small
from tests.train.launch import together
from tests.train.test_together import check_alike, folder_without_dropout

MEMBER = """
model: {{name: ./base}}
adapter: {{variant: "seq_bn[reduction_factor=4]"{adapter}}}
training: {{epochs: 1, batch_size: 8, learning_rate: 1e-2, max_seq_length: 32, seed: {seed}{training}}}
task: {{kind: classification}}
data: {{train: train.jsonl, dev: dev.jsonl}}
output: {output}
"""


def member(folder: Path, name: str, seed: int, **more: str) -> Path:
    """The recipe of a member, beside the base and the rows."""
    written = {"adapter": "", "training": "", "output": str(folder / f"run-{name}"), **more}
    file = folder / f"{name}.yaml"
    file.write_text(MEMBER.format(seed=seed, **written), "utf8")
    return file


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """old@1, an adapter of the base in tmp_path."""
    made = small.recipe(tmp_path)
    model = open_model(made.model)
    model.add_adapter("old", "seq_bn[reduction_factor=8]")
    registry = Registry(tmp_path / "registry")
    registry.push(model.package("old", provenance=Provenance()), "old")
    return registry


def fusion(folder: Path, members: list[str], changes: dict[str, Any] | None = None) -> Recipe:
    told = {"name": "mix", "output": str(folder / "run-mix"), "training.learning_rate": 1e-3, "training.epochs": 1}
    told |= {"training.screen_members": any("/b.yaml" in member for member in members)}  # once is enough
    return small.recipe(folder, {"adapter": {"composition": "fuse", "members": members}, **told, **(changes or {})})


def test_members_train_first_and_are_what_training_them_alone_makes(tmp_path: Path, registry: Registry) -> None:
    a, b = member(tmp_path, "a", 1), member(tmp_path, "b", 2, adapter=", leave_out: [0]")
    result = train(fusion(tmp_path, [str(a), "old", str(b)]), registry=registry)
    assert result.composition == "Fuse(a@1, old@1, b@1, name=mix)"
    alone = train(recipes.override(recipes.load(a), {"output": str(tmp_path / "alone")}))
    assert registry.get("a@1").digest == alone.package.digest
    told = [(one.name, one.digest) for one in result.package.manifest.members]
    assert told == [(name, registry.get(name).digest) for name in ("a@1", "old@1", "b@1")]
    assert [path.name for path in sorted((tmp_path / "run-b").iterdir())][-1] == "run.json"
    assert any(re.fullmatch(rf"member b@1 was trained first: dev accuracy [01]\.\d+, from {b}, all of it in .*run-b", n)
               for n in result.notes)  # fmt: skip
    assert [row["member"] for row in result.screening] == ["none", "a@1", "old@1", "b@1"]
    assert any(note.startswith("screening, dev accuracy of each member before the fusion") for note in result.notes)
    assert result.attention["members"] == ["a@1", "old@1", "b@1"]
    assert list(result.attention["labels"]) == ["bad", "good"]
    assert RunFolder(result.folder).attention.read_bytes().startswith(b"\x89PNG")
    back = read_result(RunFolder(result.folder))
    assert (back.screening, back.attention) == (result.screening, result.attention)
    assert "  label bad, mean over layers: a@1 0." in "\n".join(lines(back))
    exact = recipes.load(result.folder / "recipe.yaml")
    assert exact.adapter.members == ("a@1", "old", "b@1")


def test_finished_members_are_read_back_and_stopped_ones_go_on(tmp_path: Path, registry: Registry) -> None:
    a, b = member(tmp_path, "a", 1), member(tmp_path, "b", 2)
    made = fusion(tmp_path, [str(a), str(b)])
    whole = train(made, registry=registry)
    RunFolder(tmp_path / "run-b").result.unlink()  # as if it had been stopped
    before = RunFolder(tmp_path / "run-a").result.stat().st_mtime_ns
    registry.push(registry.get("old"), "a")  # another package of that name, a@2
    with pytest.raises(Conflict, match="holds a run already"):
        train(made, registry=registry)
    changed = recipes.override(made, {"training.seed": 3})
    with pytest.raises(Conflict, match="seed was 0, is 3"):
        train(changed, registry=registry, resume=True)
    assert RunFolder(tmp_path / "run-b").finished
    assert train(made, registry=registry, resume=True).package.digest == whole.package.digest
    other = train(changed, registry=registry, overwrite=True)
    assert other.composition == "Fuse(a@1, b@1, name=mix)"
    assert RunFolder(tmp_path / "run-a").result.stat().st_mtime_ns == before
    assert [registry.versions(name) for name in ("a", "b")] == [(1, 2), (1,)]


def test_a_package_is_kept_once(tmp_path: Path, registry: Registry) -> None:
    result = train(recipes.load(member(tmp_path, "a", 1)))
    assert [kept(registry, result), kept(registry, result)] == ["a@1", "a@1"]
    assert registry.versions("a") == (1,)


Case = Callable[[Path, Registry], list[str]]


def of_another_base(folder: Path, registry: Registry) -> list[str]:
    model = AdapterModel(tiny.model("bert", seed=9))
    model.add_adapter("far", "seq_bn[reduction_factor=4]")
    registry.push(model.package("far", provenance=Provenance()), "far")
    return [str(member(folder, "a", 1)), "far"]


def with_a_wrong_row(folder: Path, registry: Registry) -> list[str]:
    small.write(folder / "wrong.jsonl", [{"text": "x", "label": "neither"}])
    file = member(folder, "b", 1)
    file.write_text(file.read_text().replace("dev: dev.jsonl", "dev: wrong.jsonl"))
    return [str(member(folder, "a", 1)), str(file)]


def with_a_run_of_another_recipe(folder: Path, registry: Registry) -> list[str]:
    train(recipes.load(member(folder, "b", 7)))
    return [str(member(folder, "a", 1)), str(member(folder, "b", 8))]


def in_a_strange_folder(folder: Path, registry: Registry) -> list[str]:
    (folder / "run-b").mkdir()
    (folder / "run-b" / "letter.txt").write_text("x")
    return [str(member(folder, "a", 1)), str(member(folder, "b", 1))]


def named_alike(folder: Path, registry: Registry) -> list[str]:
    files = [member(folder, name, 1) for name in "ab"]
    for file in files:
        file.write_text(file.read_text() + "name: same\n")
    return [*map(str, files)]


def with_its_own_package(folder: Path, registry: Registry) -> list[str]:
    a = member(folder, "a", 1)
    registry.push(train(recipes.load(a)).package, "a")
    return [str(a), str(member(folder, "b", 1)), "a@1"]


def two_of(**more: str) -> Case:
    return lambda folder, registry: [str(member(folder, "a", 1)), str(member(folder, "b", 1, **more))]


REFUSED: dict[str, tuple[Case, type[GraftworkError], str]] = {
    "another model": (
        lambda folder, registry: [
            str(member(folder, "a", 1)),
            str(_replaced(member(folder, "b", 1), "{name: ./base}", "{name: ./base, dtype: bfloat16}")),
        ],
        RecipeError,
        r"adapter.members: .*b.yaml: its model is '.*base' \(bfloat16, newest\) and the fusion's .*\(float32",
    ),
    "no adapter": (
        lambda folder, registry: [
            str(member(folder, "a", 1)),
            str(_replaced(member(folder, "b", 1, training=", method: head"), 'adapter: {variant: "seq_bn[r', "#")),
        ],
        RecipeError,
        "b.yaml: training.method is head; a member is an adapter",
    ),
    "a composition": (
        two_of(adapter=", composition: stack, language_adapter: old"),
        RecipeError,
        "b.yaml: adapter.composition is stack; a member is trained alone, or is a package",
    ),
    "one folder": (two_of(output="run-mix-too"), Conflict, "is the output of"),
    "another base": (of_another_base, Conflict, "another base"),
    "a wrong row": (with_a_wrong_row, GraftworkError, "'neither' is not a label of train"),
    "another run": (with_a_run_of_another_recipe, Conflict, "training.seed was 7, is 8"),
    "a strange folder": (in_a_strange_folder, Conflict, r"holds files that are no run's \(letter.txt\)"),
    "no such package": (lambda folder, registry: [str(member(folder, "a", 1)), "new"], NotFound, "no package 'new'"),
    "one recipe twice": (named_alike, RecipeError, r"a.yaml and .*b.yaml say the same; name each member once"),
    "a package and its finished run": (
        with_its_own_package,
        RecipeError,
        r"adapter.members: .*a.yaml, a@1 are one package, a@1; name each member once",
    ),
    "no site in common": (
        lambda folder, registry: [
            str(member(folder, "a", 1, adapter=", leave_out: [0, 1]")),
            str(member(folder, "b", 1, adapter=", leave_out: [2]")),
        ],
        GraftworkError,
        "no site",
    ),
    "an unknown variant": (two_of(adapter=", non_linearity: wavy"), RecipeError, "wavy"),
}


def _replaced(file: Path, old: str, new: str) -> Path:
    file.write_text(file.read_text().replace(old, new))
    return file


@pytest.mark.parametrize("why", REFUSED)
def test_what_is_refused_before_anything_trains(tmp_path: Path, registry: Registry, why: str) -> None:
    case, error, says = REFUSED[why]
    members = case(tmp_path, registry)
    changes = {"output": "run-mix-too"} if why == "one folder" else {}
    there = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=says):
        train(fusion(tmp_path, members, changes), registry=registry)
    assert sorted(tmp_path.rglob("*")) == there


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"training.metric": "pearson"}, "training.metric: 'pearson' is no score of task classification"),
        ({"task.head": "nope@1"}, "no package 'nope'"),
        ({"training.drop": [0, 9]}, "the highest layer with something that trains is"),
    ],
)
def test_what_is_wrong_with_the_fusion_is_said_before_its_members_train(
    tmp_path: Path, registry: Registry, changes: dict[str, Any], says: str
) -> None:
    members = [str(member(tmp_path, name, 1)) for name in "ab"]
    there = sorted(tmp_path.rglob("*"))
    with pytest.raises(GraftworkError, match=says):
        train(fusion(tmp_path, [*members, "old"], changes), registry=registry)
    assert sorted(tmp_path.rglob("*")) == there


def test_without_a_registry_and_together_with_others_there_is_no_first_stage(
    tmp_path: Path, registry: Registry
) -> None:
    made = fusion(tmp_path, [str(member(tmp_path, "a", 1)), "old"])
    with pytest.raises(RecipeError, match="is trained into the registry, and no registry was given"):
        train(made)
    with pytest.raises(RecipeError, match=r"'mix': adapter.members: .*a.yaml' is a recipe, which trains before"):
        train_together([made, recipes.override(made, {"name": "other"})], registry=registry)
    assert not (tmp_path / "run-a").exists()


def test_layers_are_computed_again_for_those_alone_that_ask_for_it(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = member(tmp_path, "a", 1, training=", gradient_checkpointing: true")
    b = member(tmp_path, "b", 2)
    seen: dict[str, set[bool]] = {}
    step = AdapterTrainer.training_step

    def watched(self: AdapterTrainer, model: Any, *given: Any) -> Any:
        found = seen.setdefault(str(Path(self.args.output_dir).parent.name), set())
        found.add(self.model.base.is_gradient_checkpointing)
        return step(self, model, *given)

    monkeypatch.setattr(AdapterTrainer, "training_step", watched)
    train(fusion(tmp_path, [str(a), str(b)], {"training.screen_members": False}), registry=registry, progress=False)
    assert seen == {"run-a": {True}, "run-b": {False}, "run-mix": {False}}


def test_the_second_stage_moves_the_fusion_and_the_head_alone(tmp_path: Path, registry: Registry) -> None:
    made = fusion(tmp_path, [str(member(tmp_path, "a", 1)), "old"], {"training.weight_decay": 0.5})
    train(made, registry=registry)
    exact = recipes.load(tmp_path / "run-mix" / "recipe.yaml")
    job = prepare(recipes.override(exact, {"output": str(tmp_path / "next")}), registry)
    base, members = snapshot(job.model.base), snapshot(job.model.parts.adapters)
    fresh = {name: module.value.weight.clone() for name, module in job.model.parts.modules_of("fusions", "mix").items()}  # type: ignore[union-attr, operator]
    for value in fresh.values():
        expected = torch.full((tiny.WIDTH, tiny.WIDTH), 1e-6).fill_diagonal_(1.0)
        assert torch.equal(value.detach(), expected)
    chosen = {name.split(".")[1] for name, one in job.model.named_parameters() if one.requires_grad}
    assert chosen == {"fusions", "heads"}
    result = carry_out(job, How(), Progress(disable=True))
    assert same(base, snapshot(job.model.base))
    assert same(members, snapshot(job.model.parts.adapters))
    for name in ("a@1", "old@1"):
        package = registry.get(name)
        ours = job.model.parts.tensors("adapters", name)
        assert all(torch.equal(ours[key.removeprefix("adapter/")], tensor) for key, tensor in package.tensors.items()
                   if key.removeprefix("adapter/") in ours)  # fmt: skip
    assert result.package.digest == train(exact, registry=registry, resume=True).package.digest


def test_the_regulariser_is_left_out_when_asked(tmp_path: Path, registry: Registry) -> None:
    registry.push(registry.get("old"), "too")
    for wanted in (True, False):
        made = fusion(tmp_path, ["old", "too"], {"training.fusion_regularisation": wanted})
        job = prepare(made, registry)
        with torch.no_grad():
            for module in job.model.parts.modules_of("fusions", "mix").values():
                module.value.weight.mul_(3.0)  # type: ignore[union-attr, operator]
        penalty = job.model.parts.fusion_penalty([Fuse("old@1", "too@1", name="mix")])
        assert (penalty is not None) is wanted
        written = job.model.package("mix").manifest.fusion
        assert written is not None
        assert written.config["regularization"] is wanted


@pytest.mark.full
def test_both_stages_in_two_processes_are_those_of_one(tmp_path: Path) -> None:
    folder_without_dropout(tmp_path / "base")
    told = {"training.batch_size": 6, "training.gradient_accumulation": 2, "training.logging_steps": 1}
    made = small.recipe(tmp_path, {**told, "name": "a", "output": str(tmp_path / "run-a"), "training.epochs": 1})
    files = [tmp_path / "a.yaml", tmp_path / "b.yaml", tmp_path / "mix.yaml"]
    files[0].write_text(recipes.dump(made))
    other = {"name": "b", "output": str(tmp_path / "run-b"), "training.seed": 3}
    files[1].write_text(recipes.dump(recipes.override(made, other)))
    mix = fusion(tmp_path, list(map(str, files[:2])), told)
    files[2].write_text(recipes.dump(mix))
    registry = Registry(tmp_path / "registry")
    ran = together([["train", str(files[2]), "--json", "--registry", str(registry.root)]])
    assert ran.codes == [[0], [0]], ran.said
    assert (registry.versions("a"), registry.versions("b")) == ((1,), (1,))
    two = read_result(RunFolder(mix.output))
    exact = {"adapter.members": ["a@1", "b@1"], "output": str(tmp_path / "one")}
    one = train(recipes.override(mix, exact), registry=registry)
    check_alike(two, one)
    assert two.screening == one.screening
    assert two.attention["entropy"] == pytest.approx(one.attention["entropy"], abs=1e-5)


class Seen(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Keeps the gradients of the first step."""

    def __init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.gradients = {name: p.grad.clone() for name, p in more["model"].named_parameters() if p.grad is not None}


@pytest.mark.parametrize("wanted", [True, False])
def test_a_step_of_unequal_batches_has_the_regulariser_once(tmp_path: Path, registry: Registry, wanted: bool) -> None:
    registry.push(registry.get("old"), "too")
    told = {"training.batch_size": 32, "training.gradient_accumulation": 2, "training.max_grad_norm": 0}
    told |= {"training.fusion_regularisation": wanted}
    job = prepare(fusion(tmp_path, ["old", "too"], told), registry)
    shaken(job.model.parts.fusions, seed=4)  # so that V is far from the identity
    for module in job.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    named = job.model.parts.fusions.named_parameters(prefix="parts.fusions")
    values = {name: one.detach().double() for name, one in named if name.endswith("value.weight")}
    seen = Seen()
    trainer = AdapterTrainer(
        model=job.model,
        args=arguments(job.recipe, tmp_path / "checkpoints", 40, "loss"),
        data_collator=as_it_is,
        train_dataset=job.sets["train"],
        eval_dataset=job.sets["dev"],
        callbacks=[seen],
    )
    before = {name: one.detach().clone() for name, one in job.model.named_parameters()}
    trainer.train()
    assert trainer.state.global_step == 1  # of 32 rows and 8
    with torch.no_grad():
        for name, one in job.model.named_parameters():
            one.copy_(before[name])
    job.model.double().eval()
    job.model.zero_grad()
    batch = job.sets["train"].__getitems__(range(40))
    labels = batch.pop("labels")
    logits = job.model(**batch, adapters=job.setup.composition).logits
    torch.nn.functional.cross_entropy(logits, labels).backward()
    assert len(values) == 3
    eye = torch.eye(tiny.WIDTH, dtype=torch.float64)
    for name, one in job.model.named_parameters():
        if one.grad is not None:
            hand = one.grad + (2 * 0.01 * (values[name] - eye) if name in values and wanted else 0.0)
            torch.testing.assert_close(seen.gradients[name].double(), hand, rtol=1e-3, atol=1e-5)
    assert seen.gradients.keys() == {name for name, one in job.model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("which", ["member", "fusion"])
def test_what_several_processes_cannot_share_is_seen_in_a_member_and_in_the_fusion(
    tmp_path: Path, registry: Registry, which: str
) -> None:
    few, enough = {"training.batch_size": 2}, {"training.batch_size": 6}
    member = small.recipe(
        tmp_path, {**(few if which == "member" else enough), "name": "a", "output": str(tmp_path / "a")}
    )
    (tmp_path / "a.yaml").write_text(recipes.dump(member))
    made = fusion(tmp_path, [str(tmp_path / "a.yaml"), "old"], few if which == "fusion" else enough)
    with pytest.raises(RecipeError, match=r"training\.batch_size: 2 rows cannot be shared by 3 processes"):
        first_stage(made, registry, Devices(0, 3))
    assert not (tmp_path / "a").exists()
