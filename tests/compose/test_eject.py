"""Prefixes made flat: the same output, a flat configuration, and packages of the flat kind."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from graftwork.errors import AdapterError
from graftwork.model import AdapterModel
from tests import tiny
from tests.rig import randomise

MADE = "prefix_tuning[prefix_length=3,bottleneck_size=4]"


def adapted(family: str, config: str) -> AdapterModel:
    model = AdapterModel(tiny.model(family))
    model.add_adapter("a", config)
    model.add_adapter("other", MADE)
    randomise(model.parts.parameters())
    model.set_active_adapters("a")
    return model.eval()


def hidden(model: AdapterModel, family: str, name: str = "a") -> Tensor:
    with torch.no_grad():
        return model(**tiny.inputs(family), adapters=name, head="none")[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
@pytest.mark.parametrize("config", [MADE, f"{MADE}|lora[r=2]", f"seq_bn|{MADE}", f"vera[r=2]|{MADE}"])
def test_an_adapter_says_the_same_with_its_prefixes_flat(family: str, config: str, tmp_path: Path) -> None:
    model = adapted(family, config)
    before, other = hidden(model, family), hidden(model, family, "other")
    kinds = set(model.parts.modules_of("adapters", "a"))
    model.eject_prefix_tuning("a")
    torch.testing.assert_close(hidden(model, family), before)
    assert torch.equal(hidden(model, family, "other"), other)
    assert set(model.parts.modules_of("adapters", "a")) | {"shared"} == kinds | {"shared"}
    names = {key.rpartition("/")[2] for key in model.parts.tensors("adapters", "a")}
    assert not any("project" in name or "embedding" in name for name in names)
    assert any(name.endswith("keys") for name in names)
    model.save_adapter(tmp_path / "a", "a")
    again = AdapterModel(tiny.model(family)).eval()
    again.load_adapter(tmp_path / "a")
    assert torch.equal(hidden(again, family), hidden(model, family))
    assert again.parts.adapter_configs["a"] == model.parts.adapter_configs["a"]


@pytest.mark.parametrize("config", ["seq_bn", "prefix_tuning_flat[prefix_length=3]", "lora|ia3"])
def test_an_adapter_without_a_network_of_prefixes_is_refused_and_stays(config: str) -> None:
    model = adapted("bert", config)
    before = hidden(model, "bert")
    with pytest.raises(AdapterError, match="adapter 'a' has no prefixes that a network makes"):
        model.eject_prefix_tuning("a")
    with pytest.raises(AdapterError, match="no adapter 'x'"):
        model.eject_prefix_tuning("x")
    assert torch.equal(hidden(model, "bert"), before)
