"""One recipe as several: values, names, folders, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from graftwork.errors import RecipeError
from graftwork.recipe import override
from graftwork.train.sweep import choices, expand
from tests.train import small


def test_every_combination_has_its_name_and_folder(tmp_path: Path) -> None:
    made = small.recipe(tmp_path)
    found = expand(made, choices(["adapter.reduction_factor=2,16", "training.seed=0, 1"]))
    assert [(one.adapter.reduction_factor, one.training.seed) for one in found] == [(2, 0), (2, 1), (16, 0), (16, 1)]
    assert [one.name for one in found][:2] == ["mood-reduction_factor-2-seed-0", "mood-reduction_factor-2-seed-1"]
    assert [Path(one.output).name for one in found][:1] == ["run-reduction_factor-2-seed-0"]
    assert Path(found[0].output).parent == tmp_path
    assert found[0].data == made.data


def test_words_with_signs_make_names(tmp_path: Path) -> None:
    found = expand(
        small.recipe(tmp_path), choices(['adapter.variant="seq_bn[reduction_factor=2]",lora', "training.bf16=no"])
    )
    assert [one.adapter.variant for one in found] == ["seq_bn[reduction_factor=2]", "lora"]
    assert [one.name for one in found] == [
        "mood-variant-seq_bn-reduction_factor-2-bf16-no",
        "mood-variant-lora-bf16-no",
    ]


def test_what_is_given_on_purpose_outlives_a_method(tmp_path: Path) -> None:
    given = {"training.epochs": 1, "training.learning_rate": 0.5, "output": str(tmp_path / "x")}
    made = override(small.recipe(tmp_path), given)
    for one in expand(made, {"method": ["lora", "seq_bn"]}, given=given):
        assert (one.training.epochs, one.training.learning_rate) == (1, 0.5)
        assert Path(one.output).name.startswith("x-method-")
    rates = [one.training.learning_rate for one in expand(
        made, {"method": ["lora"], "training.learning_rate": [0.25, 0.5]}, given=given)]  # fmt: skip
    assert rates == [0.25, 0.5], "what is swept over goes before what is given"
    assert expand(made, {"method": ["lora"]})[0].training.epochs != 1, "of a recipe's own the method takes the place"


def test_without_choices_a_recipe_is_itself(tmp_path: Path) -> None:
    made = small.recipe(tmp_path)
    assert expand(made, choices([])) == [made]


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (["training.seed"], "--sweep training.seed: not a setting"),
        (["training.seed="], "--sweep training.seed: there is nothing to choose from"),
        (
            ["training.seed=0,1", "training.epochs=2", "training.seed=2"],
            "--sweep training.seed: is given 2 times; list all its values in one, as in --sweep training.seed=0,1,2",
        ),
        (["training.seed=1,1"], "--sweep training.seed: 1 is there more than once"),
        (["name=a,b"], "--sweep name: name follows from what is swept over; leave it out"),
        (["training.sed=1,2"], "--sweep: training.sed: unknown key; did you mean seed"),
        (["training.epochs=1,zero"], "--sweep: training.epochs: "),
    ],
)
def test_what_cannot_be_swept_over_is_said(pairs: list[Any], said: str, tmp_path: Path) -> None:
    made = small.recipe(tmp_path)
    with pytest.raises(RecipeError) as caught:
        expand(made, choices(pairs))
    assert said in str(caught.value), str(caught.value)
