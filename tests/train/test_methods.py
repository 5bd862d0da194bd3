"""The methods of a comparison as recipes: what each changes, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from graftwork.build import adapter_config
from graftwork.core.kinds import NAMED, read_config
from graftwork.errors import RecipeError
from graftwork.recipe import Recipe, override
from graftwork.train.methods import METHODS, listed, recipes_of
from tests.train import small


@pytest.fixture
def made(tmp_path: Path) -> Recipe:
    return small.recipe(tmp_path, {"adapter.dropout": 0.5, "training.base_dropout": False, "training.seed": 7})


def test_a_method_brings_its_adapter_and_rates_and_leaves_the_rest(made: Recipe) -> None:
    for name, recipe in recipes_of(made, list(METHODS)).items():
        method = METHODS[name]
        assert recipe.training.method == method.method
        assert (recipe.training.learning_rate, recipe.training.epochs) == (method.learning_rate, method.epochs)
        assert (recipe.data, recipe.task, recipe.model) == (made.data, made.task, made.model)
        assert (recipe.training.batch_size, recipe.training.seed) == (8, 7)
        assert recipe.training.base_dropout is (name == "full"), "full leaves no base that could rest"
        if method.method == "adapter":
            assert adapter_config(recipe.adapter, 3) == read_config(method.variant), "none of the recipe's own flags"
            assert method.variant in NAMED
    assert METHODS["seq_bn"].learning_rate >= 10 * METHODS["full"].learning_rate


def test_the_recipe_itself_is_a_method(made: Recipe) -> None:
    found = recipes_of(override(made, {"compare": {"lora": {"training.epochs": 2}}}), ["recipe", "lora"])
    assert found["recipe"] == made
    assert found["lora"].training.epochs == 2
    assert found["lora"].compare == {}


@pytest.mark.parametrize(
    ("name", "own", "variant", "like"),
    [
        ("pfeiffer", {}, "seq_bn", "seq_bn"),
        ("lora[r=4,alpha=8]", {}, "lora[r=4,alpha=8]", "lora"),
        ("houlsby[reduction_factor=8]", {}, "houlsby[reduction_factor=8]", "double_seq_bn"),
        ("prefix_tuning_flat", {}, "prefix_tuning_flat", None),
        ("mine", {"adapter.variant": "ia3"}, "ia3", "ia3"),
        ("mine", {"training.method": "full"}, "seq_bn", "full"),
    ],
)
def test_other_forms_have_the_rates_of_the_method_they_are_like(
    made: Recipe, name: str, own: dict[str, Any], variant: str, like: str | None
) -> None:
    found = recipes_of(made, [name], {name: own})[name]
    assert found.adapter.variant == variant
    assert found.training.learning_rate == (METHODS[like].learning_rate if like else 5e-4)


def test_changes_of_the_caller_come_after_those_of_the_recipe(made: Recipe) -> None:
    told = {"compare": {"lora": {"training.epochs": 2, "adapter.options.r": 4, "training.learning_rate": 0.1}}}
    found = recipes_of(override(made, told), ["lora"], {"lora": {"training.epochs": 9}})["lora"]
    assert (found.training.epochs, found.training.learning_rate, found.adapter.options) == (9, 0.1, {"r": 4})


@pytest.mark.parametrize(
    ("methods", "changes", "said"),
    [
        (["lroa"], {}, "method 'lroa' is unknown; did you mean lora?; there are seq_bn"),
        (["lora", "full", "lora"], {}, "method 'lora' is given twice"),
        ([], {}, "there is no method to compare; known are seq_bn"),
        (["lora"], {"full": {}}, "compare.full: is not among the methods that are compared: lora"),
        (["lora"], {"lora": {"training.epochs": 0}}, "compare.lora: training.epochs: 0 is not allowed"),
        (["lora"], {"lora": {"training.epoch": 1}}, "compare.lora: training.epoch: unknown key; did you mean epochs?"),
        (["full"], {"full": {"training.base_dropout": False}}, "method: full leaves no base frozen"),
        (["mine"], {"mine": {"training.method": "bogus"}}, "compare.mine: training.method: 'bogus' is not allowed"),
        (["mine"], {"mine": {"training.method": ["peft"]}}, "compare.mine: training.method: ['peft'] is not allowed"),
        (["lora"], {"lora": {"data.train": "other.jsonl"}}, "compare.lora: data.train is not a method's to change"),
        (["lora"], {"lora": {"model.name": "gpt2"}}, "compare.lora: model.name is not a method's to change; those of"),
        (["lora"], {"lora": {"training.seed": 5}}, "compare.lora: training.seed is not a method's to change"),
        (["lora"], {"lora": {"name": "x", "output": "y"}}, "compare.lora: output is not a method's to change"),
    ],
)
def test_what_is_wrong_is_said(made: Recipe, methods: list[str], changes: Any, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipes_of(made, methods, changes)
    assert said in str(caught.value), str(caught.value)


def test_all_problems_are_said_at_once(made: Recipe) -> None:
    with pytest.raises(RecipeError) as caught:
        recipes_of(made, ["one", "full"], {"full": {"training.epochs": "many"}})
    assert len(caught.value.problems) == 2


def test_names_are_cut_at_commas_outside_brackets() -> None:
    assert listed("seq_bn, lora[r=4,alpha=8],,full ") == ["seq_bn", "lora[r=4,alpha=8]", "full"]
