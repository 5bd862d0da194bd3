"""What a recipe puts on a model: the composition, what of it trains, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from graftwork.build import add_task_head
from graftwork.compose.tree import Fuse, Stack, show
from graftwork.errors import AdapterError, CompositionError, Conflict, NotFound, RecipeError
from graftwork.model import AdapterModel
from graftwork.packing import Provenance
from graftwork.recipe import Recipe, override
from graftwork.registry.store import Registry
from graftwork.tasks.classify import Classification
from graftwork.tasks.kinds import task_class
from graftwork.tasks.regression import Regression
from graftwork.train import setup
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
    add_task_head(made, TASK, "ner")
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


def test_alone(tmp_path: Path) -> None:
    made = model()
    done = setup.set_up(made, small.recipe(tmp_path), TASK)
    assert (done.name, done.composition, done.members) == ("mood", "mood", ())
    assert made.parts.head_configs["mood"].labels == TASK.labels
    assert trained(made) == {"adapters/mood", "heads/mood"}


def test_only_a_head(tmp_path: Path) -> None:
    made = model()
    done = setup.set_up_head(made, small.recipe(tmp_path), TASK)
    assert (done.name, done.composition) == ("mood", None)
    assert trained(made) == {"heads/mood"}


def test_a_stack_lies_on_its_frozen_language_adapter(tmp_path: Path, registry: Registry) -> None:
    made = model()
    asked = recipe(tmp_path, {"composition": "stack", "language_adapter": "hi@1"})
    done = setup.set_up(made, asked, TASK, registry)
    assert done.composition == Stack("hi@1", "mood") == made.active_adapters
    assert [(member.name, member.digest) for member in done.members] == [("hi@1", registry.get("hi@1").digest)]
    assert trained(made) == {"adapters/mood", "heads/mood"}
    before, after = registry.get("hi@1").tensors, made.package("hi@1").tensors
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_bare_name_means_the_version_that_it_means_now(tmp_path: Path, registry: Registry) -> None:
    asked = recipe(tmp_path, {"composition": "stack", "language_adapter": "hi"})
    assert show(setup.set_up(model(), asked, TASK, registry).composition) == "Stack(hi@2, mood)"


def test_a_stack_goes_on_from_a_task_adapter(tmp_path: Path, registry: Registry) -> None:
    made, package = model(), registry.get("ner@1")
    stack = {"composition": "stack", "language_adapter": "hi@1", "task_adapter": "ner@1"}
    done = setup.set_up(made, recipe(tmp_path, stack), TASK, registry)
    assert done.composition == Stack("hi@1", "mood")
    assert [member.name for member in done.members] == ["hi@1", "ner@1"]
    here = made.package("mood").tensors
    assert here.keys() == package.tensors.keys()
    assert all(torch.equal(tensor, package.tensors[name]) for name, tensor in here.items())
    assert trained(made) == {"adapters/mood", "heads/mood"}


def test_other_labels_get_a_new_head(tmp_path: Path, registry: Registry) -> None:
    made, package = model(), registry.get("ner@1")
    stack = {"composition": "stack", "language_adapter": "hi@1", "task_adapter": "ner@1"}
    setup.set_up(made, recipe(tmp_path, stack), Classification(("a", "b", "c"), 32), registry)
    here = made.package("mood").tensors
    assert made.parts.head_configs["mood"].labels == ("a", "b", "c")
    assert all(torch.equal(here[name], value) for name, value in package.tensors.items() if name.startswith("adapter/"))


def test_a_form_that_is_not_that_of_the_package_is_refused(tmp_path: Path, registry: Registry) -> None:
    stack = {"composition": "stack", "language_adapter": "hi@1", "task_adapter": "ner@1"}
    with pytest.raises(RecipeError, match=r"ner@1 has another form \(reduction_factor 8 there, 4 here\).* remove"):
        setup.set_up(model(), recipe(tmp_path, {**stack, "reduction_factor": 4}), TASK, registry)
    setup.set_up(model(), recipe(tmp_path, {**stack, "reduction_factor": 8}), TASK, registry)


def test_a_fusion_trains_over_frozen_members(tmp_path: Path, registry: Registry) -> None:
    made = model()
    done = setup.set_up(made, recipe(tmp_path, {"composition": "fuse", "members": ["ner", "hi@1"]}), TASK, registry)
    assert done.composition == Fuse("ner@1", "hi@1", name="mood")
    assert [member.name for member in done.members] == ["ner@1", "hi@1"]
    assert list(made.parts.head_configs) == ["mood"]
    assert trained(made) == {"fusions/mood", "heads/mood"}
    package = made.package("mood")
    assert package.manifest.fusion is not None
    assert [member.digest for member in package.manifest.fusion.members] == [m.digest for m in done.members]


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
    add_task_head(donor, TASK, "head")
    registry.push(donor.package("head"), "head")
    with pytest.raises(error, match=says):
        setup.set_up(model(), recipe(tmp_path, adapter), TASK, registry)


def test_members_of_another_base_are_refused(tmp_path: Path, registry: Registry) -> None:
    with pytest.raises(Conflict, match="another base"):
        setup.set_up(
            model(seed=5), recipe(tmp_path, {"composition": "stack", "language_adapter": "hi"}), TASK, registry
        )


def test_members_need_a_registry(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"adapter\.language_adapter: 'hi@1' is a package, and no registry was given"):
        setup.set_up(model(), recipe(tmp_path, {"composition": "stack", "language_adapter": "hi@1"}), TASK)


def test_a_name_in_use_is_refused(tmp_path: Path) -> None:
    made = model()
    made.add_adapter("mood")
    with pytest.raises(AdapterError, match="'mood' is already there"):
        setup.set_up(made, small.recipe(tmp_path), TASK)


def test_several_language_adapters_lie_below_in_turn(tmp_path: Path, registry: Registry) -> None:
    made = model()
    asked = recipe(tmp_path, {"composition": "stack", "language_adapter": ["hi@1", "hi@2"]})
    done = setup.set_up(made, asked, TASK, registry)
    assert done.composition == Stack("hi@1", "mood") == made.active_adapters
    assert done.cycle == (Stack("hi@1", "mood"), Stack("hi@2", "mood"))
    assert [member.name for member in done.members] == ["hi@1", "hi@2"]
    assert trained(made) == {"adapters/mood", "heads/mood"}
    one = recipe(tmp_path, {"composition": "stack", "language_adapter": "hi@1"})
    assert setup.set_up(model(), one, TASK, registry).cycle == ()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"adapter.language_adapter": ["hi"]}, "language_adapter: .* is not allowed; write .*a list of two or more"),
        ({"adapter.language_adapter": ["hi", "hi"]}, "'hi' stands there twice; name each language once"),
        (
            {"training.base_dropout": False, "training.prefix_cache": "auto"},
            "prefix_cache: 'auto': other language adapters lie below in every step, or set it to off",
        ),
        ({"adapter.composition": None}, "has no meaning without composition: stack"),
    ],
)
def test_lists_of_languages_that_cannot_be(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    listed = {"adapter": {"composition": "stack", "language_adapter": ["hi@1", "hi@2"]}}
    with pytest.raises(RecipeError, match=says):
        override(small.recipe(tmp_path, listed), changes)


def test_a_head_from_a_package_answers_and_stays_frozen(tmp_path: Path, registry: Registry) -> None:
    made = model()
    taken = override(recipe(tmp_path, {"composition": "stack", "language_adapter": "hi@1"}), {"task.head": "ner@1"})
    done = setup.set_up(made, taken, TASK, registry)
    assert [(member.name, member.digest) for member in done.members][1] == ("ner@1", registry.get("ner@1").digest)
    assert trained(made) == {"adapters/mood"}
    here, there = made.package("mood"), registry.get("ner@1")
    for name, tensor in there.tensors.items():
        if name.startswith("head/"):
            assert torch.equal(here.tensors[name], tensor)
    assert here.manifest.head == there.manifest.head
    assert list(made.parts.head_configs) == ["mood"]
    assert made.parts.adapter_configs.keys() == {"hi@1", "mood"}


@pytest.mark.parametrize(
    ("head", "task", "says"),
    [
        ("ner@1", Classification(("a", "b"), 32), r"ner@1 has a head for classification with the labels bad, good; "
                                                  r"the recipe's task is classification with the labels a, b"),
        ("ner@1", Regression((), 32), r"ner@1 has a head for classification .*; the recipe's task is regression$"),
        ("hi@1", TASK, r"task\.head: hi@1 has no head; the recipe's task is classification with the labels bad, good"),
    ],
)  # fmt: skip
def test_heads_that_do_not_answer_the_task(tmp_path: Path, registry: Registry, head: str, task: Any, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        setup.set_up(model(), override(small.recipe(tmp_path), {"task.head": head}), task, registry)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"training.method": "head"}, r"task\.head: 'mlm@1' stays frozen, and training\.method: head trains the head;"),
        ({"training.method": "full"}, r"task\.head: 'mlm@1' stays frozen, and training\.method: full trains every"),
        ({"task.pooling": "mean"}, r"task\.pooling: the head of 'mlm@1' keeps its own; remove it"),
    ],
)
def test_what_has_no_meaning_with_a_frozen_head(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        override(small.recipe(tmp_path), {"task.head": "mlm@1", **changes})


@pytest.mark.parametrize(
    ("adapter", "kind", "role"),
    [
        ({}, "classification", "task"),
        ({}, "masked_lm", "language"),
        ({}, "causal_lm", "language"),
        ({"role": "task"}, "causal_lm", "task"),
        ({"role": "language"}, "classification", "language"),
        ({"composition": "stack", "language_adapter": "hi@1"}, "masked_lm", "task"),
    ],
)
def test_a_package_says_what_it_is_for(
    tmp_path: Path, registry: Registry, adapter: dict[str, Any], kind: str, role: str
) -> None:
    made, task = model(), TASK if kind == "classification" else task_class(kind)((), 32)
    setup.set_up(made, override(recipe(tmp_path, adapter), {"task.kind": kind}), task, registry)
    assert made.package("mood").manifest.role == role


def test_a_language_adapter_on_one_of_a_task_is_refused(tmp_path: Path, registry: Registry) -> None:
    asked = recipe(tmp_path, {"composition": "stack", "language_adapter": "ner@1", "role": "language"})
    with pytest.raises(CompositionError, match=r"mood is a language adapter and ner@1, below it, a task adapter"):
        setup.set_up(model(), asked, TASK, registry)


def test_installed_adapters_keep_their_role(registry: Registry) -> None:
    made = model()
    for name in ("hi@1", "ner@1"):
        made.install(registry.get(name), name)
    made.set_active_adapters(Stack("hi@1", "ner@1"))
    with pytest.raises(CompositionError, match=r"write Stack\(hi@1, ner@1\), or Stack\(ner@1, hi@1, order=any\)"):
        made.set_active_adapters(Stack("ner@1", "hi@1"))
    inputs = tiny.inputs("bert")
    with pytest.raises(CompositionError, match="hi@1 is a language adapter"):
        made(**inputs, adapters=["ner@1", "Stack(ner@1, hi@1)"], head="ner@1")
    forced = made(**inputs, adapters="Stack(ner@1, hi@1, order=any)", head="ner@1").logits
    assert made.package("hi@1").digest == registry.get("hi@1").digest
    package = registry.get("hi@1")
    made.install(
        type(package)(package.manifest.model_copy(update={"role": "task"}), package.tensors), "plain", with_head=False
    )
    assert torch.equal(forced, made(**inputs, adapters="Stack(ner@1, plain)", head="ner@1").logits)
