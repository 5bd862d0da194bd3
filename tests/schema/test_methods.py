"""`method: NAME` in a recipe says what that name says in a comparison, and is refused where it contradicts."""

# ruff: noqa: E501 (each refused recipe stands in one line with the words that refuse it)

from pathlib import Path
from typing import Any

import pytest

from graftwork.build import adapter_config
from graftwork.errors import RecipeError
from graftwork.recipe import Recipe, dump, load, loads, override, settings
from graftwork.schema.methods import METHODS
from graftwork.train.methods import recipes_of
from graftwork.train.sweep import expand

ROWS = __file__  # a file that is there
SMALL = f"name: mood\nmodel: {{name: minilm}}\ntask: {{kind: classification}}\ndata: {{train: '{ROWS}'}}\n"
OTHERS = ["head", "pfeiffer", "lora[r=4]", "prefix_tuning", "compacter", "lora|seq_bn", "peft:lora"]


def reading(text: str) -> Recipe:
    return loads(SMALL + text, check_files=False)


def problems(text: str, changes: dict[str, Any] | None = None) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        override(reading(text), changes, check_files=False) if changes else reading(text)
    return caught.value.problems


@pytest.mark.parametrize("name", [*METHODS, *OTHERS])
def test_a_method_says_what_it_says_in_a_comparison(name: str) -> None:
    made = reading(f"method: {name}")
    assert made == recipes_of(reading(""), [name])[name]
    assert made == override(reading(""), settings([f"method={name}"]), check_files=False)
    assert loads(dump(made), check_files=False) == made
    assert "method" not in made.model_fields_set, "what it stands for is written out, and nothing is kept twice"


def test_what_the_recipe_says_itself_stays() -> None:
    made = reading("method: lora\nadapter: {options: {r: 4}, leave_out: [0]}\ntraining: {learning_rate: 0.1, seed: 3}")
    assert (made.adapter.variant, made.adapter.overrides()) == ("lora", {"r": 4, "leave_out": [0]})
    training = made.training
    assert (training.learning_rate, training.epochs, training.seed) == (0.1, METHODS["lora"].epochs, 3)
    below = reading("method: seq_bn\nadapter: {composition: stack, language_adapter: hi@3}").adapter
    assert (below.variant, below.composition) == ("seq_bn", "stack")


def test_no_method_is_none() -> None:
    assert reading("method: null") == reading("")


def test_what_says_the_same_is_no_contradiction() -> None:
    assert reading("method: seq_bn\nadapter: {variant: pfeiffer}").adapter.variant == "pfeiffer"
    assert reading("method: head_only\ntraining: {method: head}").training.method == "head"
    assert reading("method: peft:lora\nadapter: {variant: lora}\ntraining: {method: peft}").training.method == "peft"


def test_a_method_that_is_set_takes_the_place_of_the_recipes_own() -> None:
    text = "adapter: {variant: pfeiffer, reduction_factor: 8}\ntraining: {learning_rate: 0.1, epochs: 9, seed: 3}"
    made = override(reading(text), settings(["method=lora", "training.epochs=2"]), check_files=False)
    assert (made.adapter.variant, made.adapter.overrides()) == ("lora", {})
    assert (made.training.learning_rate, made.training.epochs, made.training.seed) == (5e-4, 2, 3)
    rested = reading("training: {base_dropout: false}\nmethod: lora")
    assert override(rested, {"method": "full"}, check_files=False).training.base_dropout is True
    assert [one.name for one in expand(reading(text), {"method": ["lora", "full"]})] == [
        "mood-method-lora",
        "mood-method-full",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("method: lora\nadapter: {variant: seq_bn}", "recipe:5: method: 'lora' is adapter.variant: lora, and adapter.variant is 'seq_bn'; keep one of them"),
        ("method: lora\ntraining: {method: full}", "method: 'lora' is training.method: adapter, and training.method is 'full'; keep one of them"),
        ("method: full\ntraining: {method: adapter}", "method: 'full' is training.method: full, and training.method is 'adapter'; keep"),
        ("method: full\nadapter: {variant: lora}", "method: 'full' trains no adapter of adapter.variant, which is 'lora'; keep one of them"),
        ("method: peft:lora\ntraining: {method: adapter}", "method: 'peft:lora' is training.method: peft, and"),
        ("method: lora\nadapter: {composition: fuse, members: [a, b]}", "method: 'lora' has no meaning with adapter.composition: fuse, which trains no new one; remove it"),
        ("method: full\ntraining: {base_dropout: false}", "training.base_dropout: method: full leaves no base frozen"),
        ("method: 3", "method: 3 is not allowed; write the name of a method: seq_bn, double_seq_bn"),
        ("method: ''", "method: '' is not allowed; write the name of a method"),
        ("method: [lora, full]", "method: ['lora', 'full'] is not allowed; write the name of a method"),
        ("method: 'peft:'", "method: 'peft:' is not allowed; write"),
        ("training: {method: head_onyl}", "training.method: 'head_onyl' is not allowed; write adapter, full, head or peft"),
    ],
)  # fmt: skip
def test_what_contradicts_or_cannot_be_read_is_refused(text: str, says: str) -> None:
    [problem] = problems(text)
    assert says in problem


def test_what_contradicts_among_changes_is_refused() -> None:
    [problem] = problems("", {"method": "lora", "adapter.variant": "seq_bn"})
    assert problem.startswith("--set: method: 'lora' is adapter.variant: lora, and adapter.variant is 'seq_bn'")


def test_the_head_alone_has_two_names_everywhere() -> None:
    made = reading("training: {method: head_only}")
    assert made.training.method == "head"
    assert reading("training: {method: head}") == made
    assert override(reading(""), {"training.method": "head_only"}, check_files=False).training.method == "head"
    own = reading("compare: {mine: {training.method: head_only}}")
    assert recipes_of(own, ["mine"])["mine"].training.method == "head"
    both = recipes_of(own, ["head", "head_only"])
    assert both["head"] == both["head_only"]
    [problem] = problems("training: {method: head_only, drop: random}")
    assert "method: head trains no adapter to drop" in problem


def test_a_name_that_nothing_has_is_refused_by_what_knows_configurations(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="adapter: adapter configuration 'lroa' is unknown, did you mean 'lora'"):
        adapter_config(reading("method: lroa").adapter, 2)
    (tmp_path / "a.yaml").write_text(SMALL + "method: dora")
    assert load(tmp_path / "a.yaml", check_files=False).adapter.variant == "dora"
