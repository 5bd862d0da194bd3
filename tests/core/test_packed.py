"""Packed bases: what is refused without bitsandbytes, and with it training, fingerprint and answers."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from graftwork.build import open_model
from graftwork.core.counting import counted
from graftwork.core.packed import MISSING, packing
from graftwork.errors import BackboneError, RecipeError
from graftwork.recipe import override
from graftwork.schema.sections import ModelSection
from graftwork.train.run import train
from tests.train import small

needs_it = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: pip install 'graftwork[quantised]'"
)


def test_without_bitsandbytes_it_is_said_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as where it is not installed
    made = small.recipe(tmp_path, {"model.quantisation": "4bit"})
    with pytest.raises(BackboneError, match="a 4bit base: bitsandbytes is not installed") as caught:
        train(made)
    assert MISSING in str(caught.value)
    assert not Path(made.output).exists()


def test_what_a_recipe_may_not_pack(tmp_path: Path) -> None:
    made = small.recipe(tmp_path)
    with pytest.raises(RecipeError, match="4bit: method: full trains what is packed"):
        override(made, {"model.quantisation": "4bit", "training.method": "full"})
    with pytest.raises(RecipeError, match="'3bit' is not allowed; write 4bit or 8bit or null"):
        override(made, {"model.quantisation": "3bit"})


@needs_it
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_an_adapter_trains_on_a_packed_base_that_keeps_its_fingerprint(bits: str, tmp_path: Path) -> None:
    changes = {"adapter.variant": "lora|seq_bn[reduction_factor=4]", "training.epochs": 1, "model.quantisation": bits}
    made = small.recipe(tmp_path, changes, train=16, dev=8)
    result = train(made)
    plain = open_model(ModelSection(name=made.model.name))
    assert result.package.manifest.base.fingerprint == plain.backbone.fingerprint
    packed = open_model(made.model)
    linear = packed.base.encoder.layer[0].attention.self.query  # type: ignore[union-attr]
    assert not linear.weight.is_floating_point()
    assert counted(packed.base) == counted(plain.base) == result.parameters["base"], "not what is stored"
    for model in (plain, packed):
        model.install(result.package, "mood")
        model.eval()
    given = {"input_ids": torch.randint(4, 20, (2, 9))}
    answers = [model(**given, adapters="mood", head="mood").groups[0].logits for model in (plain, packed)]
    assert (answers[0] - answers[1]).abs().max() < 0.5 * answers[0].abs().max(), "the same adapter, a rounder base"
    assert not (answers[0] == answers[1]).all()


@needs_it
def test_what_is_told_to_the_loader() -> None:
    four = packing("4bit", torch.bfloat16)["quantization_config"]
    assert (four.bnb_4bit_quant_type, four.bnb_4bit_compute_dtype) == ("nf4", torch.bfloat16)
    assert packing("8bit", torch.float32)["quantization_config"].load_in_8bit
