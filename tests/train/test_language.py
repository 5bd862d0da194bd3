"""MAD-X from plain text to another language: language adapters, a task on one of them, the other in its place."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from graftwork import workflow
from graftwork.compose.tree import Stack
from graftwork.model import AdapterModel
from graftwork.recipe import Recipe, override
from graftwork.registry.store import Registry
from graftwork.train.language import Cycle
from graftwork.train.outcome import TrainResult
from graftwork.train.run import train
from graftwork.train.together import train_together
from tests import tiny
from tests.train import small
from tests.train.test_resume import check_equal

INVERTIBLE = {"variant": "seq_bn_inv", "reduction_factor": 2}


class Languages:
    """A registry with mlm@1 (a head that was trained alone), en@1 and de@1 (language adapters under that head)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.registry = Registry(folder / "registry")
        base = small.model_folder(folder / "base")
        tokenizer = small.tokenizer()
        tokenizer.mask_token = "[UNK]"
        tokenizer.save_pretrained(base)
        lines = [row["text"] for row in small.texts(40)]
        (folder / "en.txt").write_text("\n".join(lines))
        (folder / "de.txt").write_text("\n".join(" ".join(reversed(line.split())) for line in lines))
        self.trained = {"mlm": self._train("mlm", "en", {"training.method": "head"})}
        for name in ("en", "de"):
            self.trained[name] = self._train(name, name, {"adapter": INVERTIBLE, "task.head": "mlm@1"})

    def _train(self, name: str, language: str, changes: dict[str, Any]) -> TrainResult:
        text: dict[str, Any] = {
            "task.kind": "masked_lm",
            "data.train": str(self.folder / f"{language}.txt"),
            "data.dev": None,
        }
        made = self.recipe(name, {**text, "data.test": None, **changes})
        done = train(made, registry=self.registry)
        workflow.push(done, self.registry, name)
        return done

    def recipe(self, name: str, changes: dict[str, Any]) -> Recipe:
        return override(small.recipe(self.folder), {"name": name, "output": str(self.folder / name), **changes})

    def stacked(self, name: str, below: Any, changes: dict[str, Any] | None = None) -> Recipe:
        adapter = {"composition": "stack", "language_adapter": below, "reduction_factor": 4}
        return self.recipe(name, {"adapter": adapter, **(changes or {})})


def check_inverse(model: AdapterModel, name: str) -> None:
    """What a language adapter does to embeddings is something, and can be undone."""
    (site,) = [site for site in model.backbone.sites if site.name == "embed"]
    nice: Any = model.parts.adapter(name, site.index)
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    y = x + nice.moved(x)
    assert float((y - x).abs().max()) > 1e-3
    assert float((nice.inverse(y) - x).abs().max()) < 1e-5


@pytest.fixture(scope="module")
def languages(tmp_path_factory: pytest.TempPathFactory) -> Languages:
    return Languages(tmp_path_factory.mktemp("languages"))


def test_a_language_adapter_trains_under_a_head_that_stays_as_it_is(languages: Languages) -> None:
    head, own = languages.registry.get("mlm@1"), languages.registry.get("en@1")
    assert (head.manifest.role, own.manifest.role) == ("head", "language")
    assert [(member.name, member.digest) for member in own.manifest.members] == [("mlm@1", head.digest)]
    tensors = {name: tensor for name, tensor in own.tensors.items() if name.startswith("head/")}
    assert tensors.keys() == head.tensors.keys()
    assert all(torch.equal(tensor, head.tensors[name]) for name, tensor in tensors.items())
    assert "embed" in own.manifest.sites  # the invertible adapter is part of it
    assert own.manifest.method is not None
    assert own.manifest.method["inv_adapter"] == "nice"
    done = languages.trained["en"]
    assert done.parameters["trained"] == done.parameters["adapter"]


def test_what_was_trained_inverts_itself(languages: Languages) -> None:
    engine = workflow.open_engine(str(languages.folder / "base"), languages.registry)
    with engine.holding("en@1"):
        check_inverse(engine.model, "en@1")


def test_a_task_on_its_language_and_carried_to_another(languages: Languages) -> None:
    done = train(languages.stacked("mood", "en@1"), registry=languages.registry)
    workflow.push(done, languages.registry, "mood")
    assert done.parameters["trained"] == done.parameters["adapter"] + done.parameters["head"]
    package = languages.registry.get("mood@1")
    assert package.manifest.role == "task"
    assert package.manifest.composition == "Stack(en@1, mood)"
    assert [member.name for member in package.manifest.members] == ["en@1"]
    assert package.manifest.members[0].digest == languages.registry.get("en@1").digest
    engine = workflow.open_engine(str(languages.folder / "base"), languages.registry)
    file = str(languages.folder / "test.jsonl")
    source = workflow.evaluate(engine, "Stack(en@1, mood@1)", file)
    assert source.scores == pytest.approx(done.scores["test"], abs=1e-6)
    asked = ["Stack(en, mood)", "Stack(de, mood)", "mood", "Stack(mood, de)", "Stack(mood, de, order=any)"]
    row = {"text": "the film was so good", "head": "mood"}
    answers = engine.answer([{**row, "adapters": one} for one in asked])
    assert len({answers[place]["score"] for place in (0, 1, 2, 4)}) == 4
    assert [one.get("adapters") for one in answers[:2]] == ["Stack(en@1, mood@1)", "Stack(de@1, mood@1)"]
    assert answers[3]["error"]["code"] == "invalid"
    assert "write Stack(de@1, mood@1), or Stack(mood@1, de@1, order=any)" in answers[3]["error"]["message"]
    assert answers[4]["adapters"] == "Stack(mood@1, de@1, order=any)"


def test_a_cycle_is_balanced_and_follows_from_seed_and_step() -> None:
    stacks = [Stack(name, "x") for name in ("en", "de", "id")]
    turns = [Cycle(None, stacks, 0).at(step) for step in range(60)]  # type: ignore[arg-type]
    assert all(len(set(turns[at : at + 3])) == 3 for at in range(0, 60, 3))
    assert Counter(turns) == dict.fromkeys(stacks, 20)
    assert len({tuple(map(str, turns[at : at + 3])) for at in range(0, 60, 3)}) > 3
    assert turns != [Cycle(None, stacks, 1).at(step) for step in range(60)]  # type: ignore[arg-type]


def test_a_task_over_languages_in_turn_goes_on_where_it_stopped(languages: Languages) -> None:
    folder = languages.folder / "cycled"
    few = {"training.epochs": 3, "training.gradient_accumulation": 2, "training.metric": "loss", "data.test": None}

    def made(place: str, below: Any) -> Recipe:
        return languages.stacked("cycled", below, {**few, "output": str(folder / place)})

    unbroken = train(made("unbroken", ["en@1", "de@1"]), registry=languages.registry)
    assert unbroken.composition == "Stack(en@1, cycled)"
    assert [member.name for member in unbroken.package.manifest.members] == ["en@1", "de@1"]
    broken = folder / "broken"
    shutil.copytree(folder / "unbroken", broken)
    (broken / "result.json").unlink()
    shutil.rmtree(broken / "checkpoints" / f"checkpoint-{unbroken.steps}")
    resumed = train(made("broken", ["en@1", "de@1"]), registry=languages.registry, resume=True)
    assert 0 < resumed.resumed_from < unbroken.steps
    assert resumed.resumed_from % 2 == 0 or unbroken.steps % 2 == 1  # in the middle of a stretch, or not
    check_equal(resumed, unbroken)
    alone = train(made("alone", "en@1"), registry=languages.registry)
    assert alone.package.digest != unbroken.package.digest


def test_languages_in_turn_beside_others(languages: Languages) -> None:
    """Together and alone are the same, so a shared forward has the language of each step too."""
    rests = {"training.base_dropout": False, "training.epochs": 2, "data.test": None, "adapter.dropout": 0.0}
    recipes = [languages.stacked(name, ["en@1", "de@1"], {**rests, "training.seed": seed})
               for seed, name in enumerate(("one", "two"))]  # fmt: skip
    together = train_together(recipes, registry=languages.registry)
    for result, made in zip(together, recipes, strict=True):
        assert isinstance(result, TrainResult)
        alone = train(override(made, {"output": f"{made.output}-alone"}), registry=languages.registry)
        for name, tensor in alone.package.tensors.items():
            assert torch.allclose(tensor, result.package.tensors[name], atol=2e-4), name


def test_a_decoder_learns_a_language_with_an_adapter_that_inverts_itself(tmp_path: Path) -> None:
    tiny.model("llama").save_pretrained(tmp_path / "base")
    small.tokenizer().save_pretrained(tmp_path / "base")
    lines = [row["text"] for row in small.texts(40)]
    (tmp_path / "en.txt").write_text("\n".join(lines))
    (tmp_path / "dev.txt").write_text("\n".join(lines[:8]))
    text = {"task.kind": "causal_lm", "data.train": str(tmp_path / "en.txt"), "data.dev": str(tmp_path / "dev.txt")}
    made = small.recipe(tmp_path, {**text, "data.test": None, "adapter": INVERTIBLE, "name": "en"})
    registry = Registry(tmp_path / "registry")
    done = train(made, registry=registry)
    workflow.push(done, registry, "en")
    assert done.package.manifest.role == "language"
    assert {site.split("/")[-1] for site in done.package.manifest.sites} == {"embed", "ffn"}
    losses = [point["loss"] for point in done.history if "loss" in point]
    assert losses[-1] < 0.9 * losses[0]
    engine = workflow.open_engine(str(tmp_path / "base"), registry)
    found = workflow.evaluate(engine, "en@1", str(tmp_path / "dev.txt"))
    assert found.scores == pytest.approx(done.scores["dev"], rel=1e-5)
    with engine.holding("en@1"):
        check_inverse(engine.model, "en@1")
    below = {"composition": "stack", "language_adapter": "en@1"}
    mood = train(small.recipe(tmp_path, {"adapter": below, "output": str(tmp_path / "mood")}), registry=registry)
    assert mood.package.manifest.composition == "Stack(en@1, mood)"
    assert mood.scores["dev"]["accuracy"] > 0.5


def test_the_last_layer_is_left_to_the_base(languages: Languages) -> None:
    """MAD-X 2.0 (Pfeiffer et al. 2021): no adapters in the last layer, neither the language's nor the task's."""
    left = {"adapter.leave_out": ["last"], "data.test": None}
    text = {"task.kind": "masked_lm", "data.train": str(languages.folder / "en.txt"), "data.dev": None}
    made = languages.recipe("short", {"adapter": INVERTIBLE, **left, **text, "task.head": "mlm@1"})
    done = train(made, registry=languages.registry)
    assert workflow.push(done, languages.registry, "short") == "short@1"
    assert sorted(done.package.manifest.sites) == ["embed", "layer.0/ffn", "layer.1/ffn"]
    task = train(languages.stacked("shorter", "short@1", left), registry=languages.registry)
    assert sorted(task.package.manifest.sites) == ["layer.0/ffn", "layer.1/ffn"]
    assert task.package.manifest.composition == "Stack(short@1, shorter)"
    whole = languages.trained["en"].parameters["adapter"] - done.parameters["adapter"]
    assert whole == 2 * 32 * 16 + 32 + 16, "one layer's bottleneck less"
