"""From recipes and manifests to objects: what is put on a model, what trains, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from graftwork import build
from graftwork.compose.tree import Fuse, Stack, show
from graftwork.errors import AdapterError, BackboneError, Conflict, DataError, NotFound, RecipeError, UserError
from graftwork.manifest import BaseRef, HeadSpec, Manifest
from graftwork.model import AdapterModel
from graftwork.packing import Provenance
from graftwork.recipe import Recipe
from graftwork.registry.store import Registry
from graftwork.schema.sections import ModelSection
from graftwork.tasks.classify import Classification
from graftwork.tasks.regression import Regression
from graftwork.tasks.tag import Tagging
from tests import tiny
from tests.train import small

TASK = Classification(("bad", "good"), 32)


def model(family: str = "bert", seed: int = 0) -> AdapterModel:
    return AdapterModel(tiny.model(family, seed))


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """hi@1 and hi@2 (other weights), ner@1 with a head for TASK."""
    made = model()
    made.add_adapter("hi", "seq_bn[reduction_factor=4]")
    made.add_adapter("second", "seq_bn[reduction_factor=4]")
    made.add_adapter("ner", "seq_bn[reduction_factor=8]")
    build.add_task_head(made, TASK, "ner")
    registry = Registry(tmp_path / "registry")
    registry.push(made.package("hi", provenance=Provenance(role="language")), "hi")
    registry.push(made.package("second", provenance=Provenance(role="language")), "hi")
    registry.push(made.package("ner", provenance=Provenance(task=TASK.spec)), "ner")
    return registry


def trained(made: AdapterModel) -> set[str]:
    """The parts that receive gradients, from a real backward pass."""
    made.eval()
    made(**tiny.inputs("bert"), labels=torch.tensor([0, 1])).loss.backward()
    found = set()
    for table, names in (("adapters", made.parts.adapter_configs), ("fusions", made.parts.fusion_records),
                         ("heads", made.parts.head_configs)):  # fmt: skip
        for name in names:
            modules = made.parts.modules_of(table, name).values()
            if any(p.grad is not None for module in modules for p in module.parameters()):
                found.add(f"{table}/{name}")
    assert all(parameter.grad is None for parameter in made.base.parameters())
    return found


def recipe(tmp_path: Path, adapter: dict[str, Any]) -> Recipe:
    return small.recipe(tmp_path, {"adapter": adapter})


def test_a_model_opens_in_the_type_that_is_asked_for(tmp_path: Path) -> None:
    folder = small.model_folder(tmp_path / "base")
    assert build.open_model(ModelSection(name=str(folder))).dtype == torch.float32
    assert build.open_model(ModelSection(name=str(folder), dtype="bfloat16")).dtype == torch.bfloat16
    assert build.open_model(ModelSection(name=str(folder), dtype="auto")).dtype == torch.float32
    with pytest.raises(BackboneError, match="nowhere"):
        build.open_model(ModelSection(name=str(tmp_path / "nowhere")))


def test_opening_draws_no_bar_and_leaves_the_setting(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = small.model_folder(tmp_path / "base")
    enabled = build.logging.is_progress_bar_enabled()
    capfd.readouterr()
    build.open_model(ModelSection(name=str(folder)))
    assert capfd.readouterr().err == ""
    assert build.logging.is_progress_bar_enabled() is enabled is True


def test_an_encoder_has_the_limit_and_the_habit_that_is_asked_for(tmp_path: Path) -> None:
    folder = str(small.model_folder(tmp_path / "base"))
    assert len(build.open_encoder(folder, 8, "truncate").text("the film was so good and " * 5).input_ids) == 8
    assert build.open_encoder(folder, 8).too_long == "refuse"
    assert build.open_encoder(folder, 65).max_length == 64  # the tokenizer's own limit
    assert build.open_encoder(folder, 65, longest=16).max_length == 16  # the model's
    with pytest.raises(UserError, match=r"max_length is 2; this tokenizer .* at least"):
        build.open_encoder(folder, 2)


def test_the_task_of_a_recipe_and_of_a_package(tmp_path: Path) -> None:
    made = build.recipe_task(small.recipe(tmp_path), ["bad", "good"])
    assert made == TASK
    with pytest.raises(DataError, match="at least two different labels"):
        build.recipe_task(small.recipe(tmp_path), ["bad"])
    manifest = Manifest(
        role="head",
        head=HeadSpec(kind="classification", num_outputs=2),
        base=BaseRef(fingerprint="0" * 64, model_type="bert", hidden_size=4),
        name="x",
        task=TASK.spec,
    )
    assert build.package_task(manifest) == TASK
    with pytest.raises(Conflict, match=r"package 'x' \(role head\) does not say what task"):
        build.package_task(manifest.model_copy(update={"task": None}))


@pytest.mark.parametrize(
    "task", [TASK, Regression((), 32), Tagging(("O", "B-x", "I-x"), 32)], ids=lambda task: str(task.kind)
)
def test_a_head_is_the_one_that_the_task_describes(task: Any) -> None:
    made = model()
    build.add_task_head(made, task, "x")
    config, spec = made.parts.head_configs["x"], task.head(dropout=0.1, pooling="first")
    assert {key: getattr(config, key) for key in spec.model_dump()} == spec.model_dump()
    assert build.add_task_head(decoder := model("llama"), TASK, "x") is None
    assert decoder.parts.head_configs["x"].pooling == "last"


def test_flags_change_the_variant(tmp_path: Path) -> None:
    flags = {"variant": "pfeiffer", "reduction_factor": 8, "non_linearity": "gelu", "leave_out": [0]}
    config = build.adapter_config(recipe(tmp_path, flags).adapter)
    assert (config.reduction_factor, config.non_linearity, config.leave_out) == (8, "gelu", (0,))
    assert config.original_ln_before  # pfeiffer's own


@pytest.mark.parametrize(
    ("flags", "says"), [({"variant": "pfeifer"}, "did you mean 'pfeiffer'"), ({"non_linearity": "gellu"}, "gellu")]
)
def test_a_variant_that_is_not_there_is_a_recipe_error(tmp_path: Path, flags: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=f"adapter: .*{says}"):
        build.adapter_config(recipe(tmp_path, flags).adapter)


def test_alone(tmp_path: Path) -> None:
    made = model()
    setup = build.set_up(made, small.recipe(tmp_path), TASK)
    assert (setup.name, setup.composition, setup.members) == ("mood", "mood", ())
    assert made.parts.head_configs["mood"].labels == TASK.labels
    assert trained(made) == {"adapters/mood", "heads/mood"}


def test_only_a_head(tmp_path: Path) -> None:
    made = model()
    setup = build.set_up_head(made, small.recipe(tmp_path), TASK)
    assert (setup.name, setup.composition) == ("mood", None)
    assert trained(made) == {"heads/mood"}


def test_a_stack_lies_on_its_frozen_language_adapter(tmp_path: Path, registry: Registry) -> None:
    made = model()
    asked = recipe(tmp_path, {"composition": "stack", "language_adapter": "hi@1"})
    setup = build.set_up(made, asked, TASK, registry)
    assert setup.composition == Stack("hi@1", "mood") == made.active_adapters
    assert [(member.name, member.digest) for member in setup.members] == [("hi@1", registry.get("hi@1").digest)]
    assert trained(made) == {"adapters/mood", "heads/mood"}
    before, after = registry.get("hi@1").tensors, made.package("hi@1").tensors
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_bare_name_means_the_version_that_it_means_now(tmp_path: Path, registry: Registry) -> None:
    asked = recipe(tmp_path, {"composition": "stack", "language_adapter": "hi"})
    assert show(build.set_up(model(), asked, TASK, registry).composition) == "Stack(hi@2, mood)"


def test_a_stack_goes_on_from_a_task_adapter(tmp_path: Path, registry: Registry) -> None:
    made, package = model(), registry.get("ner@1")
    stack = {"composition": "stack", "language_adapter": "hi@1", "task_adapter": "ner@1"}
    setup = build.set_up(made, recipe(tmp_path, stack), TASK, registry)
    assert setup.composition == Stack("hi@1", "mood")
    assert [member.name for member in setup.members] == ["hi@1", "ner@1"]
    here = made.package("mood").tensors
    assert here.keys() == package.tensors.keys()
    assert all(torch.equal(tensor, package.tensors[name]) for name, tensor in here.items())
    assert trained(made) == {"adapters/mood", "heads/mood"}


def test_other_labels_get_a_new_head(tmp_path: Path, registry: Registry) -> None:
    made, package = model(), registry.get("ner@1")
    stack = {"composition": "stack", "language_adapter": "hi@1", "task_adapter": "ner@1"}
    build.set_up(made, recipe(tmp_path, stack), Classification(("a", "b", "c"), 32), registry)
    here = made.package("mood").tensors
    assert made.parts.head_configs["mood"].labels == ("a", "b", "c")
    assert all(torch.equal(here[name], value) for name, value in package.tensors.items() if name.startswith("adapter/"))


def test_a_form_that_is_not_that_of_the_package_is_refused(tmp_path: Path, registry: Registry) -> None:
    stack = {"composition": "stack", "language_adapter": "hi@1", "task_adapter": "ner@1"}
    with pytest.raises(RecipeError, match=r"ner@1 has another form \(reduction_factor 8 there, 4 here\).* remove"):
        build.set_up(model(), recipe(tmp_path, {**stack, "reduction_factor": 4}), TASK, registry)
    build.set_up(model(), recipe(tmp_path, {**stack, "reduction_factor": 8}), TASK, registry)


def test_a_fusion_trains_over_frozen_members(tmp_path: Path, registry: Registry) -> None:
    made = model()
    setup = build.set_up(made, recipe(tmp_path, {"composition": "fuse", "members": ["ner", "hi@1"]}), TASK, registry)
    assert setup.composition == Fuse("ner@1", "hi@1", name="mood")
    assert [member.name for member in setup.members] == ["ner@1", "hi@1"]
    assert list(made.parts.head_configs) == ["mood"]
    assert trained(made) == {"fusions/mood", "heads/mood"}
    package = made.package("mood")
    assert package.manifest.fusion is not None
    assert [member.digest for member in package.manifest.fusion.members] == [m.digest for m in setup.members]


@pytest.mark.parametrize(
    ("adapter", "error", "says"),
    [
        ({"composition": "stack", "language_adapter": "hu"}, NotFound, "no package 'hu'"),
        ({"composition": "stack", "language_adapter": "hi@7"}, NotFound, "no version 7"),
        ({"composition": "fuse", "members": ["hi", "hi@2"]}, RecipeError, "'hi@2' is hi@2, which is a member already"),
        ({"composition": "fuse", "members": ["hi", "head"]}, RecipeError, "head@1 is a head package"),
    ],
)
def test_members_that_cannot_be(
    tmp_path: Path, registry: Registry, adapter: dict[str, Any], error: type[Exception], says: str
) -> None:
    donor = model()
    build.add_task_head(donor, TASK, "head")
    registry.push(donor.package("head"), "head")
    with pytest.raises(error, match=says):
        build.set_up(model(), recipe(tmp_path, adapter), TASK, registry)


def test_members_of_another_base_are_refused(tmp_path: Path, registry: Registry) -> None:
    with pytest.raises(Conflict, match="another base"):
        build.set_up(
            model(seed=5), recipe(tmp_path, {"composition": "stack", "language_adapter": "hi"}), TASK, registry
        )


def test_members_need_a_registry(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"adapter\.language_adapter: 'hi@1' is a package, and no registry was given"):
        build.set_up(model(), recipe(tmp_path, {"composition": "stack", "language_adapter": "hi@1"}), TASK)


def test_a_name_in_use_is_refused(tmp_path: Path) -> None:
    made = model()
    made.add_adapter("mood")
    with pytest.raises(AdapterError, match="'mood' is already there"):
        build.set_up(made, small.recipe(tmp_path), TASK)
