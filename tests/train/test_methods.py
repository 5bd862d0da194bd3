"""The methods of a comparison as recipes: what each changes, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from graftwork.build import adapter_config
from graftwork.core.kinds import NAMED, read_config
from graftwork.errors import RecipeError
from graftwork.recipe import Recipe, override
from graftwork.schema.methods import METHODS
from graftwork.train.methods import listed, recipes_of
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


def test_a_method_may_pack_the_base_and_full_may_not(made: Recipe) -> None:
    own = {"lora": {"model.quantisation": "4bit"}, "full": {"model.dtype": "bfloat16"}}
    found = recipes_of(override(made, {"compare": own}), ["lora", "full"])
    assert {name: (one.model.quantisation, one.model.dtype) for name, one in found.items()} == {
        "lora": ("4bit", "float32"),
        "full": (None, "bfloat16"),
    }
    packed = override(made, {"model.quantisation": "8bit"})
    with pytest.raises(
        RecipeError, match=r"compare\.full: model\.quantisation: 8bit: method: full trains what is packed"
    ):
        recipes_of(packed, ["lora", "full"])
    found = recipes_of(packed, ["lora", "full"], {"full": {"model.quantisation": None}})
    assert [one.model.quantisation for one in found.values()] == ["8bit", None]


@pytest.mark.parametrize(
    ("methods", "changes", "said"),
    [
        (
            ["lora"],
            {"lora": {"model.quantisation": "3bit"}},
            "model.quantisation: '3bit' is not allowed; write 4bit or 8bit",
        ),
        (
            ["full"],
            {"full": {"model.quantisation": "4bit"}},
            "4bit: method: full trains what is packed; remove one of them",
        ),
        (["lroa"], {}, "method 'lroa' is unknown; did you mean lora?; there are seq_bn"),
        (["lora", "full", "lora"], {}, "method 'lora' is given twice"),
        ([], {}, "there is no method to compare; known are seq_bn"),
        (["lora"], {"full": {}}, "compare.full: is not among the methods that are compared: lora"),
        (["lora"], {"lora": {"training.epochs": 0}}, "compare.lora: training.epochs: 0 is not allowed"),
        (["mine"], {"mine": {"training.method": "bogus"}}, "compare.mine: training.method: 'bogus' is not allowed"),
        (["mine"], {"mine": {"training.method": ["peft"]}}, "compare.mine: training.method: ['peft'] is not allowed"),
        (["lora"], {"lora": {"training.epoch": 1}}, "compare.lora: training.epoch: unknown key; did you mean epochs?"),
        (["full"], {"full": {"training.base_dropout": False}}, "method: full leaves no base frozen"),
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
