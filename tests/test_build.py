"""From recipes and manifests to objects: what is put on a model, what trains, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from graftwork import build
from graftwork.errors import BackboneError, Conflict, DataError, RecipeError, UserError
from graftwork.manifest import BaseRef, HeadSpec, Manifest
from graftwork.model import AdapterModel
from graftwork.recipe import Recipe
from graftwork.schema.sections import ModelSection
from graftwork.tasks.classify import Classification
from graftwork.tasks.regression import Regression
from graftwork.tasks.tag import Tagging
from tests import tiny
from tests.train import small

TASK = Classification(("bad", "good"), 32)


def model(family: str = "bert", seed: int = 0) -> AdapterModel:
    return AdapterModel(tiny.model(family, seed))


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
    config = build.adapter_config(recipe(tmp_path, flags).adapter, 2)
    assert (config.reduction_factor, config.non_linearity, config.leave_out) == (8, "gelu", (0,))
    assert config.original_ln_before  # pfeiffer's own
    last = build.adapter_config(recipe(tmp_path, {"leave_out": ["last", 0]}).adapter, 2)
    assert last.leave_out == (1, 0)


@pytest.mark.parametrize(
    ("flags", "says"), [({"variant": "pfeifer"}, "did you mean 'pfeiffer'"), ({"non_linearity": "gellu"}, "gellu")]
)
def test_a_variant_that_is_not_there_is_a_recipe_error(tmp_path: Path, flags: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=f"adapter: .*{says}"):
        build.adapter_config(recipe(tmp_path, flags).adapter, 2)
