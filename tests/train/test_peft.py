"""PEFT's methods as baselines: the same trainer, PEFT's own numbers, and what is refused."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from graftwork.build import open_encoder, open_model, package_task
from graftwork.errors import RecipeError
from graftwork.evaluate import evaluate
from graftwork.model import AdapterModel
from graftwork.recipe import override
from graftwork.train.methods import recipes_of
from graftwork.train.peft import KINDS, MISSING, configured, put
from graftwork.train.run import train
from tests import tiny
from tests.train import small

needs_it = pytest.mark.skipif(
    find_spec("peft") is None, reason="peft is not installed: pip install 'graftwork[baselines]'"
)
LORA = {"training.method": "peft", "adapter": {"variant": "lora", "options": {"r": 2}}, "training.epochs": 1}


def test_without_peft_it_is_said_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)  # as where it is not installed
    made = small.recipe(tmp_path, LORA)
    with pytest.raises(RecipeError, match=r"training\.method: peft: peft is not installed") as caught:
        train(made)
    assert MISSING in str(caught.value)
    assert not Path(made.output).exists()


def test_what_is_no_method_of_peft(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="'seq_bn' is no method of peft that can be put into a model; there are lora"):
        configured("seq_bn", {})
    with pytest.raises(RecipeError, match=r"did you mean lora\?"):
        configured("loro", {})
    with pytest.raises(RecipeError, match="method: peft leaves no base frozen that could rest"):
        override(small.recipe(tmp_path), {**LORA, "training.base_dropout": False})
    with pytest.raises(RecipeError, match=r"stack has no meaning with training\.method: peft"):
        override(small.recipe(tmp_path), {**LORA, "adapter.composition": "stack", "adapter.language_adapter": "hi"})


def test_a_method_of_peft_has_the_rates_of_ours(tmp_path: Path) -> None:
    found = recipes_of(small.recipe(tmp_path), ["lora", "peft:lora", "peft:oft"])
    ours, theirs = found["lora"], found["peft:lora"]
    assert (theirs.training.method, theirs.adapter.variant) == ("peft", "lora")
    assert theirs.training.learning_rate == ours.training.learning_rate
    assert found["peft:oft"].training.learning_rate == 5e-4


@needs_it
def test_it_trains_their_layers_and_writes_their_files(tmp_path: Path) -> None:
    made = small.recipe(tmp_path, {**LORA, "training.learning_rate": 1e-2, "training.epochs": 3})
    result = train(made)
    lora = 3 * 2 * (32 * 2 + 2 * 32)  # three layers, query and value, A and B of rank 2
    assert result.parameters["trained"] - result.parameters["head"] == lora
    assert result.composition == "none"
    assert result.scores["dev"]["accuracy"] > 0.5
    config = json.loads((result.folder / "peft" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"]) == ("LORA", 2)
    tensors = safetensors.torch.load_file(result.folder / "peft" / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == lora
    assert any(bool(tensor.any()) for name, tensor in tensors.items() if "lora_B" in name), "it has learnt"
    assert result.size > sum(file.stat().st_size for file in (result.folder / "peft").iterdir())
    assert result.parameters["base"] == sum(one.numel() for one in tiny.model("bert").parameters())
    assert train(made, resume=True).package.digest == result.package.digest


@needs_it
def test_what_is_written_answers_alike_in_peft_itself(tmp_path: Path) -> None:
    import peft

    made = small.recipe(tmp_path, {**LORA, "training.learning_rate": 1e-2})
    result = train(made)
    fresh = open_model(made.model)
    assert result.package.manifest.base.fingerprint == fresh.backbone.fingerprint
    config = peft.LoraConfig.from_pretrained(str(result.folder / "peft"))
    peft.inject_adapter_in_model(config, fresh.base)
    stored = safetensors.torch.load_file(result.folder / "peft" / "adapter_model.safetensors")
    assert not peft.set_peft_model_state_dict(fresh.base, stored).unexpected_keys
    fresh.install(result.package, "mood")
    rows = [json.loads(line) for line in Path(str(made.data.test)).read_text("utf8").splitlines()]
    task, encoder = package_task(result.package.manifest), open_encoder(made.model.name, 32)
    scores, _ = evaluate(fresh, task, encoder, rows, adapters=None, head="mood")
    assert scores == pytest.approx(result.scores["test"])


@needs_it
def test_what_peft_itself_refuses_is_said() -> None:
    with pytest.raises(RecipeError, match=r"adapter\.options: peft's LoraConfig refuses them: .*rank"):
        configured("lora", {"rank": 2})


@needs_it
@pytest.mark.parametrize(
    ("options", "says", "remedy"),
    [({"r": "8"}, "peft cannot adapt a BertModel", False), ({"target_modules": ["nope"]}, "nope", False)],
)
def test_options_that_peft_cannot_use_are_said(
    tmp_path: Path, options: dict[str, Any], says: str, remedy: bool
) -> None:
    made = small.recipe(tmp_path, {**LORA, "adapter": {"variant": "lora", "options": options}})
    with pytest.raises(RecipeError) as caught:
        train(made, progress=False)
    assert says in str(caught.value)
    assert ("name the layers" in str(caught.value)) is remedy
    assert not Path(made.output).exists()


@needs_it
@pytest.mark.parametrize("kind", KINDS)
def test_every_method_of_the_table_can_be_put_into_a_model(kind: str) -> None:
    model = AdapterModel(tiny.model("bert"))
    model.add_classification_head("mood", num_labels=2)
    options: dict[str, Any] = {"target_modules": ["LayerNorm"]} if kind == "ln_tuning" else {}
    if options:  # it has no default for this base
        with pytest.raises(RecipeError, match=r"name the layers: adapter.options: \{target_modules: \[\.\.\.\]\}"):
            put(model, configured(kind, {}), "mood")
    put(model, configured(kind, options), "mood")
    assert any(weight.requires_grad for name, weight in model.base.named_parameters())


@needs_it
def test_the_package_of_a_baseline_claims_no_scores_of_its_own(tmp_path: Path) -> None:
    result = train(small.recipe(tmp_path, LORA), progress=False)
    assert result.scores["dev"]
    assert result.package.manifest.scores == {}
    assert any("the package is the head alone, without scores" in note for note in result.notes)
