"""Recipes: what may be written, what is refused and in which words, and that nothing is lost between YAML and back."""

# ruff: noqa: E501 (each refused value stands in one line with the words that refuse it)

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers.trainer_utils import SchedulerType

from graftwork.errors import RecipeError, UserError
from graftwork.recipe import Recipe, dump, load, loads, override, settings
from graftwork.schema.sections import ADAPTER_FLAGS, AdapterSection, TrainingSection
from tests.shared import ROOT

SMALL = "model: {name: minilm}\ntask: {kind: classification}\ndata: {train: train.jsonl}\n"
EXAMPLES = sorted((ROOT / "examples").rglob("*.yaml"))


def small(**sections: str) -> str:
    """The smallest recipe, with further or other sections as YAML text."""
    lines = dict(line.split(": ", 1) for line in SMALL.splitlines())
    return "\n".join(f"{key}: {value}" for key, value in {**lines, **sections}.items())


def reading(text: str, **options: Any) -> Recipe:
    return loads(text, **{"check_files": False, **options})


def problems(text: str, **options: Any) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        reading(text, **options)
    return caught.value.problems


def only(text: str, **options: Any) -> str:
    """The one problem of a recipe."""
    [problem] = problems(text, **options)
    return problem


# What may be written


def test_the_smallest_recipe_takes_every_default() -> None:
    recipe = reading(SMALL, folder="/desk", name="intent")
    assert (recipe.name, recipe.output) == ("intent", "runs/intent")
    assert (recipe.model.name, recipe.model.dtype, recipe.model.revision) == ("minilm", "float32", None)
    assert (recipe.adapter.variant, recipe.adapter.composition, recipe.adapter.overrides()) == ("seq_bn", None, {})
    assert (recipe.training.method, recipe.training.seed, recipe.training.eval_batch_size) == ("adapter", 0, 32)
    assert (recipe.serving.multi_adapter, recipe.serving.adapter_cache_size) == (False, 32)
    assert (recipe.data.train, recipe.data.dev, recipe.data.test) == ("/desk/train.jsonl", None, None)


def test_the_form_that_people_know_is_read_as_it_stands() -> None:
    recipe = load(ROOT / "examples" / "recipe.yaml", check_files=False)
    assert recipe.name == "recipe"
    assert recipe.model.name == "bert-base-uncased"
    assert recipe.adapter.overrides() == {
        "reduction_factor": 16,
        "non_linearity": "relu",
        "original_ln_before": True,
        "original_ln_after": True,
    }
    training = recipe.training
    assert (training.epochs, training.batch_size, training.learning_rate) == (5, 32, 0.0001)
    assert (training.warmup_ratio, training.lr_scheduler, training.max_seq_length) == (0.06, "linear", 256)
    assert recipe.data.test == str(ROOT / "examples" / "test.jsonl")


def test_the_examples_are_all_there_and_load() -> None:
    names = {str(path.relative_to(ROOT / "examples")) for path in EXAMPLES}
    desk = {f"support_desk/{task}.yaml" for task in ("intent", "sentiment", "category", "address")}
    assert {"recipe.yaml", "sst2.yaml", "trec.yaml"} | desk <= names
    for path in EXAMPLES:
        recipe = load(path, check_files=False)
        assert loads(dump(recipe), check_files=False) == recipe


def test_numbers_are_read_as_people_write_them() -> None:
    training = reading(
        small(training="{learning_rate: 1e-4, weight_decay: 0, warmup_ratio: .1, max_grad_norm: 1E+2}")
    ).training
    assert (training.learning_rate, training.weight_decay, training.warmup_ratio) == (0.0001, 0.0, 0.1)
    assert training.max_grad_norm == 100.0


def test_yes_and_no_are_flags_where_a_flag_is_expected_and_text_as_labels() -> None:
    recipe = reading(
        small(adapter="{ln_before: yes, ln_after: Off}", task="{kind: pair, labels: [yes, no, on, 0, 01]}")
    )
    assert recipe.adapter.overrides() == {"ln_before": True, "ln_after": False}
    assert recipe.task.labels == ("yes", "no", "on", "0", "01")


def test_only_flags_that_were_written_are_overrides() -> None:
    adapter = (
        "{variant: 'seq_bn[reduction_factor=8]', leave_out: [0, 2], residual_before_ln: post_add, scaling: learned}"
    )
    section = reading(small(adapter=adapter)).adapter
    assert section.variant == "seq_bn[reduction_factor=8]"
    assert section.overrides() == {"leave_out": [0, 2], "residual_before_ln": "post_add", "scaling": "learned"}


def test_every_flag_of_the_bottleneck_can_be_written() -> None:
    flags: dict[str, Any] = {
        "reduction_factor": 8, "non_linearity": "gelu", "original_ln_before": False, "original_ln_after": True,
        "ln_before": True, "ln_after": True, "init_weights": "houlsby", "init_weights_seed": 7, "is_parallel": True,
        "scaling": 2, "use_gating": True, "residual_before_ln": False, "adapter_residual_before_ln": True,
        "leave_out": [1], "dropout": 0.1, "stochastic_depth": 0.2, "mh_adapter": True, "output_adapter": False,
        "cross_adapter": True,
    }  # fmt: skip
    assert set(flags) == set(ADAPTER_FLAGS)
    assert override(reading(SMALL), {"adapter": flags}, check_files=False).adapter.overrides() == flags


def test_options_of_other_methods_stand_under_options() -> None:
    section = reading(small(adapter="{variant: lora, leave_out: [1], options: {r: 16, attn_matrices: [q, v]}}")).adapter
    assert section.overrides() == {"leave_out": [1], "r": 16, "attn_matrices": ["q", "v"]}


def test_a_reduction_factor_for_each_layer() -> None:
    section = reading(small(adapter="{reduction_factor: {0: 8, 11: 2.5, default: 16}}")).adapter
    assert section.overrides() == {"reduction_factor": {"0": 8, "11": 2.5, "default": 16}}


def test_compositions() -> None:
    stack = reading(small(adapter="{composition: stack, language_adapter: hi@3, task_adapter: ner@1}")).adapter
    assert (stack.composition, stack.language_adapter, stack.task_adapter) == ("stack", "hi@3", "ner@1")
    assert reading(small(adapter="{composition: stack, language_adapter: hi}")).adapter.task_adapter is None
    fuse = reading(small(adapter="{composition: fuse, members: [a@1, team/b@best]}")).adapter
    assert fuse.members == ("a@1", "team/b@best")


def test_members_that_are_recipes_are_looked_up_from_the_folder_of_theirs(tmp_path: Path) -> None:
    text = small(adapter="{composition: fuse, members: [a.yaml, sub dir/../b.yml, a.yaml@1, c]}")
    members = (f"{tmp_path}/a.yaml", f"{tmp_path}/b.yml", "a.yaml@1", "c")
    made = loads(text, folder=tmp_path, check_files=False)
    assert made.adapter.members == members
    assert loads(dump(made), folder="/", check_files=False) == made
    (tmp_path / "b.yml").write_text("")
    said = problems(text, folder=tmp_path, check_files=True)
    assert [one for one in said if "no such recipe" in one] == [
        f"recipe:4: adapter.members: '{tmp_path}/a.yaml': no such recipe; paths start at the recipe's folder"
    ]
    twice = small(adapter="{composition: fuse, members: [a.yaml, ./a.yaml]}")
    assert f"'{tmp_path}/a.yaml' stands there twice" in problems(twice, folder=tmp_path)[0]


def test_schedulers_are_those_that_transformers_knows() -> None:
    ours = set(TrainingSection.model_fields["lr_scheduler"].annotation.__args__)  # type: ignore[union-attr]
    assert {"linear", "cosine", "constant", "constant_with_warmup"} <= ours <= {one.value for one in SchedulerType}


def test_anchors_and_merge_keys() -> None:
    text = small(training="&t {epochs: 2, seed: 4}", serving="{adapter_cache_size: 8}") + "\nname: &n x\noutput: *n\n"
    assert (reading(text).output, reading(text).training.seed) == ("x", 4)
    merged = "model: {name: minilm}\ntask: {kind: pair}\ndata: &d {train: a.csv}\n".replace(
        "&d {", "{<<: {dev: b.csv, train: z}, "
    )
    assert reading(merged, folder="/x").data.model_dump(include={"train", "dev"}) == {
        "train": "/x/a.csv",
        "dev": "/x/b.csv",
    }


def test_the_first_of_several_merged_mappings_wins() -> None:
    task = "{<<: [{kind: pair}, {kind: tagging, labels: [b, c]}]}"
    assert reading(small(task=task)).task.model_dump(exclude_none=True) == {"kind": "pair", "labels": ("b", "c")}


def test_paths_start_at_the_recipe_and_ids_stay_ids(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "r").mkdir()
    (tmp_path / "train.jsonl").write_text("{}")
    (tmp_path / "r" / "first.yaml").write_text(small(model="{name: ../base}", data="{train: ../train.jsonl}"))
    recipe = load(tmp_path / "r" / "first.yaml")
    assert (recipe.name, recipe.model.name) == ("first", str(tmp_path / "base"))
    assert recipe.data.train == str(tmp_path / "train.jsonl")
    assert reading(small(model="{name: base}"), folder=tmp_path).model.name == str(tmp_path / "base")
    assert reading(small(model="{name: org/base}"), folder=tmp_path).model.name == "org/base"
    assert reading(small(model="{name: ~/base}")).model.name == os.path.expanduser("~/base")


def test_splits_of_a_hub_data_set_are_names_not_paths() -> None:
    data = reading(small(data="{hub: {id: glue, config: sst2}, train: train, dev: validation}"), check_files=True).data
    assert (data.train, data.dev, data.hub and data.hub.config) == ("train", "validation", "sst2")


def test_reading_changes_nothing_on_disk(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(SMALL)
    load(file, check_files=False)
    with pytest.raises(RecipeError):
        load(file)
    assert list(tmp_path.iterdir()) == [file]


def test_a_recipe_cannot_be_changed() -> None:
    recipe = reading(SMALL)
    with pytest.raises(ValidationError, match="frozen"):
        recipe.training.epochs = 3  # type: ignore[misc]


# What is refused


def test_every_problem_at_once_with_file_line_key_value_and_remedy(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(
        "model: {name: bert-base-uncased, dtype: float8}\n"
        "adapter:\n"
        "  language_adapter: hi@3\n"
        "  scaling: lerned\n"
        "training:\n"
        "  epochs: 0\n"
        "  learn_rate: 1e-4\n"
        "  seed: 1\n"
        "  seed: 2\n"
        "task: {kind: classification}\n"
        "data: {train: train.jsonl, columns: {tokens: words}}\n"
        "servng: {}\n"
    )
    with pytest.raises(RecipeError) as caught:
        load(file)
    assert isinstance(caught.value, UserError)
    assert caught.value.problems == [
        f"{file}:1: model.dtype: 'float8' is not allowed; write float32, bfloat16, float16 or auto; did you mean float32?",
        f"{file}:3: adapter.language_adapter: 'hi@3' has no meaning without composition: stack",
        f"{file}:4: adapter.scaling: 'lerned' is not allowed; write a number, learned or channel or null; did you mean learned?",
        f"{file}:6: training.epochs: 0 is not allowed; write a whole number from 1 to 2147483647",
        f"{file}:7: training.learn_rate: unknown key; did you mean learning_rate? (value: 0.0001)",
        f"{file}:9: training.seed: written twice (first in line 8); keep one of them",
        f"{file}:11: data.columns.tokens: task.kind: classification has no such field, only text, label",
        f"{file}:11: data.train: '{tmp_path}/train.jsonl': no such file; paths start at the recipe's folder",
        f"{file}:12: servng: unknown key; did you mean serving? (value: {{}})",
    ]
    assert str(caught.value) == "\n".join(caught.value.problems)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "recipe: empty; write sections: name, output, model"),
        ("# nothing\n---\n", ": empty; write sections"),
        ("- model", "recipe:1: ['model'] is not a recipe; write sections"),
        ("model", "recipe:1: 'model' is not a recipe; write sections"),
        (
            "model:\n\tname: x",
            "recipe:2: not YAML: found character '\\t' that cannot start any token; indent with spaces",
        ),
        ("model: {name: x", "not YAML: expected ',' or '}'"),
        ("a: b: c", "recipe:1: not YAML: mapping values are not allowed here"),
        ("a: *b", "recipe:1: not YAML: found undefined alias 'b'"),
        ("a: 1\n---\nb: 2", "recipe:2: not YAML: but found another document"),
        ("a: \x00", "not YAML: unacceptable character #x0000"),
        ("[" * 5000, "nested too deeply"),
    ],
)
def test_text_that_is_no_recipe(text: str, says: str) -> None:
    assert says in only(text)


@pytest.mark.parametrize(
    ("section", "value", "says"),
    [
        ("training", "{epochs: 2.5}", "training.epochs: 2.5 is not allowed; write a whole number from 1"),
        ("training", "{epochs: true}", "training.epochs: true is not allowed; write a whole number from 1"),
        ("training", "{batch_size: '32'}", "training.batch_size: '32' is not allowed; write a whole number from 1"),
        ("training", "{batch_size: null}", "training.batch_size: null is not allowed; write a whole number from 1"),
        ("training", "{batch_size: [1]}", "training.batch_size: [1] is not allowed; write a whole number from 1"),
        ("training", "{learning_rate: 0}", "training.learning_rate: 0 is not allowed; write a number above 0"),
        ("training", "{learning_rate: .inf}", "training.learning_rate: inf is not allowed; write a number above 0"),
        ("training", "{learning_rate: .nan}", "training.learning_rate: nan is not allowed; write a number above 0"),
        ("training", "{learning_rate: fast}", "training.learning_rate: 'fast' is not allowed; write a number above 0"),
        ("training", "{warmup_ratio: 1}", "training.warmup_ratio: 1 is not allowed; write a number from 0 up to but not"),
        ("training", "{weight_decay: -0.1}", "training.weight_decay: -0.1 is not allowed; write a number from 0 up"),
        ("training", "{seed: -1}", "training.seed: -1 is not allowed; write a whole number from 0"),
        ("training", "{bf16: maybe}", "training.bf16: 'maybe' is not allowed; write auto or true or false"),
        ("training", "{method: adaptor}", "training.method: 'adaptor' is not allowed; write adapter, full, head or peft; did you mean adapter?"),
        ("training", "{lr_scheduler: Linaer}", "or inverse_sqrt; did you mean linear?"),
        ("training", "{lr_scheduler: zzz}", "training.lr_scheduler: 'zzz' is not allowed; write linear, cosine,"),
        ("training", "{variant: seq_bn}", "training.variant: unknown key; did you mean adapter.variant? (value: 'seq_bn')"),
        ("training", "{? [a] : 1}", "training: a key must be one word, not a list or a mapping"),
        ("training", "3", "training: 3 is not a section; write a section with method, epochs"),
        ("training", "null", "training: null is not a section; write a section with method, epochs"),
        ("serving", "{multi_adapter: 1}", "serving.multi_adapter: 1 is not allowed; write true or false"),
        ("serving", "{qqq: 1}", "serving.qqq: unknown key; known here: multi_adapter, adapter_cache_size (value: 1)"),
        ("model", "{}", "model.name: missing; write text, not empty"),
        ("model", "{name: '  '}", "model.name: '  ' is not allowed; write text, not empty"),
        ("model", "{name: 7}", "model.name: 7 is not allowed; write text, not empty (numbers and true/false in quotes)"),
        ("model", "{name: x, revision: 12e4567}", "model.revision: inf is not allowed; write text, not empty (numbers and"),
        ("model", '{name: "\\uD800"}', "model.name: '\\ud800' is not allowed; write text, not empty"),
        ("model", "{name: !!python/name:os.system x}", "the tag '!!python/name:os.system' is not allowed"),
        ("model", "{name: !!int x}", "model.name: 'x' cannot be read as int"),
        ("model", "!!set {name}", "model: the tag '!!set' is not allowed; a recipe holds plain values only"),
        ("model", "&m {name: x, revision: *m}", "model.revision: an alias that contains itself has no value"),
        ("model", "{<<: 3, name: x}", "model.<<: a merge key takes a mapping or a list of mappings"),
        ("adapter", "{variant: ''}", "adapter.variant: '' is not allowed; write text, not empty"),
        ("adapter", "{reduction_factor: 0}", "adapter.reduction_factor: 0 is not allowed; write a number above 0, or one"),
        ("adapter", "{reduction_factor: {}}", "adapter.reduction_factor: {} is not allowed; write a number above 0, or one"),
        ("adapter", "{reduction_factor: {0: -8}}", "adapter.reduction_factor.0: -8 is not allowed; write a number above 0"),
        ("adapter", "{reduction_factor: {x: 8}}", "adapter.reduction_factor.x: the key 'x' is not allowed; write a number"),
        ("adapter", "{leave_out: [0, -1]}", "adapter.leave_out.1: -1 is not allowed; write the number of a layer, from 0"),
        ("adapter", "{leave_out: 3}", "adapter.leave_out: 3 is not allowed; write a list (each item: the number of a layer, from 0"),
        ("adapter", "{init_weights: bret}", "write bert, mam_adapter, houlsby or adapter_bert or null; did you mean bert?"),
        ("adapter", "{composition: stak}", "adapter.composition: 'stak' is not allowed; write stack or fuse or null; did you mean stack?"),
        ("adapter", "{composition: stack}", "adapter.language_adapter: missing; composition: stack needs the adapter below"),
        ("adapter", "{task_adapter: a}", "adapter.task_adapter: 'a' has no meaning without composition: stack"),
        ("adapter", "{members: [a, b]}", "adapter.members: ['a', 'b'] has no meaning without composition: fuse"),
        ("adapter", "{composition: fuse}", "adapter.members: missing; composition: fuse needs two or more members"),
        ("adapter", "{composition: fuse, members: [a]}", "adapter.members: ['a']; composition: fuse needs two or more"),
        ("adapter", "{composition: fuse, members: [a, a]}", "adapter.members: 'a' stands there twice"),
        ("adapter", "{composition: fuse, members: [a, b], dropout: 0.1}", "adapter.dropout: composition: fuse trains no new"),
        ("adapter", "{composition: fuse, members: [a, 'b c']}", "adapter.members.1: 'b c' is not allowed; write a name in the registry"),
        ("training", "{fusion_regularisation: false}", "training.fusion_regularisation: false has no meaning without adapter.composition: fuse"),
        ("training", "{screen_members: off}", "training.screen_members: false has no meaning without adapter.composition: fuse"),
        ("training", "{fusion_regularisation: 0.01}", "training.fusion_regularisation: 0.01 is not allowed; write true or false"),
        ("task", "{}", "task.kind: missing; write classification, pair, regression, tagging, multilabel, multiple_choice, question_answering, dependency_parsing, masked_lm, causal_lm, seq2seq_lm, similarity or image_classification"),
        ("task", "{kind: tagger}", "task.kind: 'tagger' is not allowed; write classification, pair, regression, tagging, multilabel, multiple_choice, question_answering, dependency_parsing, masked_lm, causal_lm, seq2seq_lm, similarity or image_classification; did you mean tagging?"),
        ("task", "{kind: pair, labels: [a]}", "task.labels: ['a'] is not allowed; write a list (each item: a label"),
        ("task", "{kind: pair, labels: [a, true]}", "task.labels.1: true is not allowed; write a label: text, in quotes"),
        ("task", "{kind: pair, labels: [1, 1.5]}", "task.labels.1: 1.5 is not allowed; write a label: text, in quotes"),
        ("task", "{kind: pair, labels: [1, '1']}", "task.labels: '1' stands there twice; name each label once"),
        ("task", "{kind: regression, labels: [a, b]}", "task.labels: a regression predicts a number and has no labels"),
        ("data", "{dev: x.csv}", "data.train: missing; write text, not empty"),
        ("data", "{train: [a.csv]}", "data.train: ['a.csv'] is not allowed; write text, not empty"),
        ("data", "{train: a.csv, columns: {txt: a}}", "data.columns.txt: the key 'txt' is not allowed; write a mapping from text, text_pair"),
        ("data", "{train: a.csv, columns: {text: 3}}", "data.columns.text: 3 is not allowed"),
        ("data", "{train: a.csv, columns: {text: a, label: a}}", "data.columns: the column 'a' is given to two fields"),
        ("data", "{train: a, hub: glue}", "data.hub: 'glue' is not a section; write a section with id, config, revision"),
        ("data", "{train: a, hub: {config: x}}", "data.hub.id: missing; write text, not empty"),
        ("name", "none", "name: 'none' is not allowed; write a name of letters, digits"),
        ("name", "a/../b", "name: 'a/../b' is not allowed; write a name of letters, digits"),
        ("name", "'a\n\n'", "name: 'a\\n' is not allowed; write a name of letters, digits"),
        ("name", "3", "name: 3 is not allowed; write a name of letters, digits"),
        ("output", "''", "output: '' is not allowed; write text, not empty"),
        ('"a\\tb"', "1", "a\\tb: unknown key; known here: name, output"),
    ],
)  # fmt: skip
def test_values_that_are_refused(section: str, value: str, says: str) -> None:
    problem = only(small(**{section: value}), source="r.yaml")
    assert says in problem
    assert problem.startswith("r.yaml:")


def test_states_under_a_language_adapter_that_is_dropped_are_not_kept() -> None:
    below = small(
        adapter="{composition: stack, language_adapter: hi}",
        training="{prefix_cache: auto, base_dropout: false, drop: [0, 2]}",
    )
    assert "prefix_cache: 'auto': drop leaves out the lowest layers of the language adapter" in only(below)
    fused = small(
        adapter="{composition: fuse, members: [a, b]}",
        training="{prefix_cache: auto, base_dropout: false, drop: [0, 2]}",
    )
    assert loads(fused, check_files=False).training.drop == (0, 2)


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"adapter": "{composition: fuse, members: [a, b], role: task}"}, "role: composition: fuse trains no adapter"),
        ({"adapter": "{role: task}", "training": "{method: head}"}, "role: training.method: head trains no adapter"),
    ],
)
def test_what_trains_no_adapter_has_no_role(sections: dict[str, str], says: str) -> None:
    assert f"adapter.{says}" in only(small(**sections))


def test_composition_needs_a_run_that_trains_an_adapter() -> None:
    text = small(adapter="{composition: stack, language_adapter: hi}", training="{method: full}")
    assert "adapter.composition: stack has no meaning with training.method: full; use adapter" in only(text)


@pytest.mark.parametrize(
    ("training", "kind", "says"),
    [
        ("{prefix_cache: auto}", "classification", "prefix_cache: 'auto': the base's dropout draws other states in every epoch; set training.base_dropout: false, or set it to off"),
        ("{prefix_cache: 2GB, base_dropout: true}", "classification", "prefix_cache: '2GB': the base's dropout"),
        ("{prefix_cache: 2GB, base_dropout: off}", "masked_lm", "prefix_cache: '2GB': masked_lm hides other pieces in every epoch, or set it to off"),
        ("{prefix_cache: 2GB, base_dropout: no}", "image_classification", "prefix_cache: '2GB': states are kept of texts, not of images"),
        ("{prefix_cache: 2GB, method: full}", "classification", "prefix_cache: '2GB': method: full trains every layer"),
        ("{base_dropout: false, method: full}", "classification", "base_dropout: method: full leaves no base frozen that could rest"),
        ("{base_dropout: false, gradient_checkpointing: true}", "classification", "gradient_checkpointing: transformers computes no layer again that rests; leave it out, or base_dropout: false"),
        ("{prefix_cache: 2, base_dropout: false}", "classification", "prefix_cache: 2 is not allowed; write off, auto, or the most bytes on disk: 500MB, 2GB"),
        ("{prefix_cache: 0GB, base_dropout: false}", "classification", "prefix_cache: '0GB' is not allowed; write off, auto, or"),
    ],
)  # fmt: skip
def test_what_rests_and_is_kept(training: str, kind: str, says: str) -> None:
    assert f"training.{says}" in only(small(training=training, task=f"{{kind: {kind}}}"))


@pytest.mark.parametrize(
    ("training", "kind", "says"),
    [
        ("{drop: 3}", "classification", "drop: 3 is not allowed; write random, or a range to draw from: [0, 5] (for the same layers always, adapter.leave_out: [0, 1, 2])"),
        ("{drop: [3, 3]}", "classification", "drop: [3, 3] is not allowed; write random, or a range"),
        ("{drop: [0, 1, 2]}", "classification", "drop: [0, 1, 2] is not allowed; write random, or a range"),
        ("{drop: [0, -1]}", "classification", "drop.1: -1 is not allowed"),
        ("{drop: Random}", "classification", "drop: 'Random' is not allowed; write random, or a range"),
        ("{drop: random, method: head}", "classification", "drop: 'random': method: head trains no adapter to drop; remove it"),
        ("{drop: [0, 2], method: full}", "classification", "drop: [0, 2]: method: full trains no adapter to drop; remove it"),
        ("{drop: random}", "seq2seq_lm", "drop: 'random': texts are said with the adapters of all layers; remove it"),
    ],
)  # fmt: skip
def test_what_a_step_can_drop(training: str, kind: str, says: str) -> None:
    assert f"training.{says}" in only(small(training=training, task=f"{{kind: {kind}}}"))


@pytest.mark.parametrize("drop", ["random", [0, 2]])
def test_a_step_may_drop_layers(drop: Any) -> None:
    made = loads(small(training=f"{{drop: {drop}}}"), check_files=False)
    assert made.training.drop == (drop if drop == "random" else (0, 2))
    assert loads(dump(made), check_files=False) == made


@pytest.mark.parametrize("size", ["off", "auto", "500MB", "16GB"])
def test_states_may_be_kept_where_the_base_rests(size: str) -> None:
    made = loads(small(training=f"{{prefix_cache: {size}, base_dropout: no}}"), check_files=False)
    assert (made.training.prefix_cache, made.training.base_dropout) == (size, False)


def test_a_number_too_long_to_hold_is_named_not_printed() -> None:
    said = problems(small(training=f"{{epochs: {'9' * 5000}, learning_rate: {'9' * 400}}}"))
    assert "training.epochs: '99999999999999999999... (5000 characters)' cannot be read as int" in said[0]
    assert any("training.learning_rate: 9999" in problem and "write a number above 0" in problem for problem in said)
    assert all(len(problem) < 300 for problem in said)


def test_values_in_messages_are_shortened() -> None:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{name}: &{name} [{', '.join([f'*{below}'] * 9)}]\n"
        for below, name in zip("abcdefgh", "bcdefghi", strict=True)
    )
    said = problems(bomb + small(name="'" + "n " * 10_000 + "'"))
    assert len(said) == 10
    assert all(len(problem) < 500 for problem in said)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9")
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbf" + SMALL.encode())
    for name, says in [
        ("none.yaml", "none.yaml: cannot be read: No such file or directory; give the path of a recipe file"),
        (".", "cannot be read: Is a directory"),
        ("a\0b", "cannot be read: embedded null byte"),
        ("latin.yaml", "latin.yaml: not UTF-8 text (byte 6); save the recipe as UTF-8"),
    ]:
        with pytest.raises(RecipeError) as caught:
            load(tmp_path / name)
        assert says in str(caught.value)
    assert load(tmp_path / "bom.yaml", check_files=False).name == "bom"


def test_a_file_name_that_is_no_adapter_name(tmp_path: Path) -> None:
    (tmp_path / "my recipe.yaml").write_text(SMALL)
    with pytest.raises(RecipeError, match="name: 'my recipe' is not allowed; write a name of letters"):
        load(tmp_path / "my recipe.yaml", check_files=False)


def test_data_and_folders_that_are_missing(tmp_path: Path) -> None:
    text = small(
        model="{name: ./base}",
        data="{train: ., dev: x.jsonl, test: 'a\\0.csv'}".replace("'a\\0", '"a\\0').replace("csv'", 'csv"'),
    )
    said = problems(text, folder=tmp_path, check_files=True)
    assert f"model.name: '{tmp_path}/base': no such folder; paths start at the recipe's folder" in said[0]
    assert f"data.train: '{tmp_path}': a folder, not a file" in said[2]
    assert f"data.dev: '{tmp_path}/x.jsonl': no such file" in said[3]
    assert "data.test:" in said[1]
    assert "is not allowed; write text, not empty" in said[1]


def test_a_recipe_built_in_python_must_hang_together_too() -> None:
    whole = reading(SMALL)
    with pytest.raises(ValidationError, match="'hi' has no meaning without composition: stack"):
        Recipe(
            name="x", model=whole.model, task=whole.task, data=whole.data, adapter=AdapterSection(language_adapter="hi")
        )


# Changes from the command line


def test_dotted_changes() -> None:
    recipe = reading(small(training="{epochs: 9, batch_size: 4}", adapter="{reduction_factor: 8}"))
    pairs = [
        "training.epochs=3",
        "training.learning_rate=1e-3",
        "adapter.reduction_factor={0: 4, default: 2}",
        "name=other",
    ]
    changed = override(recipe, settings([*pairs, "training.bf16=off"]), check_files=False)
    assert (changed.training.epochs, changed.training.learning_rate, changed.training.batch_size) == (3, 0.001, 4)
    assert changed.adapter.overrides() == {"reduction_factor": {"0": 4, "default": 2}}
    assert (changed.name, changed.output, changed.training.bf16) == ("other", "runs/other", False)
    assert recipe.training.epochs == 9
    sized = override(recipe, {"training.batch_size": 64}, check_files=False)
    assert sized.training.eval_batch_size == 64


def test_a_section_that_was_not_written_can_be_set() -> None:
    changed = override(reading(SMALL), {"data.hub.id": "glue", "data.train": "train", "data.columns.text": "sentence"})
    assert (changed.data.hub and changed.data.hub.id, changed.data.columns) == ("glue", {"text": "sentence"})


def test_changed_paths_start_where_one_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = reading(SMALL, folder="/elsewhere")
    monkeypatch.chdir(tmp_path)
    changed = override(recipe, {"data.dev": "dev.csv"}, check_files=False)
    assert (changed.data.train, changed.data.dev) == ("/elsewhere/train.jsonl", str(tmp_path / "dev.csv"))


def test_changes_that_are_refused() -> None:
    recipe = reading(small(adapter="{reduction_factor: 16}"))
    with pytest.raises(RecipeError) as caught:
        override(recipe, {"adapter.reduction_factor.0": 8, "training.epoch": 3, "serving.multi_adapter": 3, "x": 1})
    assert caught.value.problems == [
        "--set: adapter.reduction_factor.0: adapter.reduction_factor is 16, not a section; set adapter.reduction_factor itself",
        "--set: training.epoch: unknown key; did you mean epochs? (value: 3)",
        "--set: serving.multi_adapter: 3 is not allowed; write true or false",
        "--set: x: unknown key; known here: name, output, model, adapter, training, serving, task, data, compare (value: 1)",
        f"--set: data.train: '{Path.cwd()}/train.jsonl': no such file; paths start at the recipe's folder",
    ]


def test_settings_that_cannot_be_read() -> None:
    with pytest.raises(RecipeError) as caught:
        settings(["training.epochs", "=3", "a=[", "b={x: 1, x: 2}", "c=!!python/name:os.x 1", "d="])
    assert caught.value.problems == [
        "--set training.epochs: not a setting; write section.key=value, as in training.epochs=3",
        "--set =3: not a setting; write section.key=value, as in training.epochs=3",
        "--set a=[: not YAML: expected the node content, but found '<stream end>'",
        "--set b={x: 1, x: 2}: x: written twice (first in line 1); keep one of them",
        "--set c=!!python/name:os.x 1: the tag '!!python/name:os.x' is not allowed; a recipe holds plain values only",
    ]
    assert settings(["training.metric=", "name= a=b "]) == {"training.metric": None, "name": "a=b"}


# There and back

words = st.text(min_size=1).filter(lambda text: text.strip() and "\0" not in text)
TEMPTING = [
    "yes",
    "null",
    "1e-4",
    "12",
    "0x1F",
    "01",
    "1:30",
    "1_0",
    "<<",
    "=",
    "~",
    "2020-01-01",
    ".inf",
    "True",
    "- a",
]
TEMPTING += [
    "a: b",
    "'",
    '"',
    "#x",
    "a #x",
    "\u2028x",
    "0\x85",
    "😀",
    "a\nb ",
    " x",
    "x ",
    "\x1c.",
    "\ufeffx",
    "%a",
    "@a",
    "&a",
]
texts = st.one_of(words, st.sampled_from(TEMPTING))
paths = st.from_regex(r"/[a-z]{1,8}(/[a-z0-9 '\"#:]{1,8}x){0,2}\.(jsonl|csv)", fullmatch=True)
names = st.from_regex(r"[a-z][a-z0-9._-]{0,5}(/[a-z][a-z0-9]{0,3})?", fullmatch=True).filter(
    lambda name: name != "none"
)
counts, shares = st.integers(1, 2**31 - 1), st.floats(0, 1, exclude_max=True)
rates = st.floats(0, exclude_min=True, allow_infinity=False)
factors = st.one_of(st.integers(1, 2**31 - 1), rates)
sections: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "model": {"dtype": st.sampled_from(["float32", "auto"]), "revision": st.none() | texts},
    "adapter": {
        "variant": texts, "reduction_factor": factors | st.dictionaries(st.integers(0, 40).map(str) | st.just("default"), factors, min_size=1),
        "non_linearity": st.none() | texts, "ln_before": st.booleans(), "scaling": factors | st.sampled_from(["learned", "channel"]),
        "leave_out": st.lists(st.integers(0, 40)), "residual_before_ln": st.booleans() | st.just("post_add"),
    },
    "training": {
        "method": st.sampled_from(["adapter", "full", "head"]), "epochs": counts, "batch_size": counts, "learning_rate": rates,
        "warmup_ratio": shares, "weight_decay": st.floats(0, allow_infinity=False), "seed": st.integers(0, 2**31 - 1),
        "metric": st.none() | texts, "bf16": st.booleans() | st.just("auto"), "max_steps": st.none() | counts,
    },
    "serving": {"multi_adapter": st.booleans(), "adapter_cache_size": counts},
    "task": {"labels": st.none() | st.lists(texts, min_size=2, unique=True)},
    "data": {"dev": st.none() | paths, "columns": st.fixed_dictionaries({}, optional={"text": texts.map("t{}".format), "label": texts.map("l{}".format)})},
}  # fmt: skip
recipes = st.fixed_dictionaries(
    {"name": names, "model": st.fixed_dictionaries({"name": names}, optional=sections["model"]),
     "task": st.fixed_dictionaries({"kind": st.sampled_from(["classification", "pair"])}, optional=sections["task"]),
     "data": st.fixed_dictionaries({"train": paths}, optional=sections["data"])},
    optional={name: st.fixed_dictionaries({}, optional=sections[name]) for name in ("adapter", "training", "serving")},
).map(Recipe.model_validate)  # fmt: skip


@pytest.mark.parametrize("text", TEMPTING)
def test_text_that_looks_like_something_else_stays_text(text: str) -> None:
    changed = override(reading(SMALL), {"training.metric": text, "task.labels": ["a", text]}, check_files=False)
    again = reading(dump(changed))
    assert (again.training.metric, again.task.labels) == (text, ("a", text))


@given(recipes)
def test_what_is_written_reads_back_the_same(recipe: Recipe) -> None:
    text = dump(recipe)
    again = loads(text, name="another", folder="/another", check_files=False)
    assert again == recipe
    assert again.adapter.overrides() == recipe.adapter.overrides()
    assert dump(again) == text


def test_what_is_written_is_complete() -> None:
    text = dump(reading(SMALL, folder="/x"))
    for section in (AdapterSection, TrainingSection):
        assert all(f"  {key}: " in text for key in section.model_fields)
    assert "learning_rate: 0.0001\n" in text
    assert "train: /x/train.jsonl\n" in text


@given(st.text(st.sampled_from("ab:{}[],-?&*!|>'\"#%@`\n \t<0.e~\\x\x85\u2028é"), max_size=40))
def test_no_text_breaks_the_reader(text: str) -> None:
    """Any text is a recipe or a RecipeError, never a traceback from the depths."""
    with pytest.raises(RecipeError):
        reading(text)


def test_pooling_is_refused_where_nothing_is_pooled() -> None:
    text = "model: {name: minilm}\ntask: {kind: tagging, pooling: mean}\ndata: {train: a.jsonl}\n"
    with pytest.raises(RecipeError, match=r"task\.pooling: tagging answers once a token and pools nothing"):
        loads(text, check_files=False)
