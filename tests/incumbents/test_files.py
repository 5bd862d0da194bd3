"""What other libraries' files lose: a method, a rule, a seed, the base they belong to."""

import os
import pickle
from pathlib import Path

import pytest
import torch

from graftwork.core.kinds import NAMED, read_config
from graftwork.errors import AdapterError, Conflict, PackageError
from graftwork.model import AdapterModel
from graftwork.registry.package import read
from tests import tiny
from tests.adapted import adapted, last, shaken

SMALL = {
    "vera": "vera[r=4]",
    "compacter": "compacter[phm_dim=2,reduction_factor=8]",
    "compacter++": "compacter++[phm_dim=2,reduction_factor=8]",
}
ODD = [
    "seq_bn[ln_before=True,ln_after=True]",
    "compacter[phm_dim=2,reduction_factor=8,shared_W_phm=True,factorized_phm_rule=True]",
    "seq_bn[use_gating=True,leave_out=[1]]",
    "seq_bn[scaling=4]",
    "direft[non_linearity=gelu,suffix_positions=2]",
    "lora[r={'0':2,'default':4}]|prefix_tuning_flat",
]


def saved(config: str, folder: Path, family: str = "bert") -> AdapterModel:
    model = AdapterModel(tiny.model(family))
    model.add_adapter("a", config)
    shaken(model.parts, seed=3)
    model.eval().save_adapter(folder, "a")
    return model


@pytest.mark.parametrize("config", [*(SMALL.get(name, name) for name in NAMED), *ODD])
@pytest.mark.parametrize("load_as", [None, "renamed"])
def test_a_reloaded_adapter_is_never_another_method(config: str, load_as: str | None, tmp_path: Path) -> None:
    """AdapterHub's DiReFT comes back as NoReFT, a renamed prompt untrained, safetensors fail for prefixes and norms."""
    model, given = saved(config, tmp_path / "a"), tiny.inputs("bert")
    other = AdapterModel(tiny.model("bert")).eval()
    name = other.load_adapter(tmp_path / "a", load_as=load_as)
    assert other.parts.adapter_configs[name] == model.parts.adapter_configs["a"]
    with torch.no_grad():  # both folded: what may learn would run by the reference, which rounds otherwise
        expected = last(model(**given, adapters="a"))
        assert torch.equal(last(other(**given, adapters=name)), expected)
    assert expected.shape != last(model(**given)).shape or not torch.equal(expected, last(model(**given)))
    assert not os.path.exists(tmp_path / "a" / "adapter_config.json")  # PEFT would make transformers fail on it


def test_a_rule_that_layers_share_is_never_left_out_of_a_file(tmp_path: Path) -> None:
    saved("compacter[phm_dim=2,reduction_factor=8]", tmp_path / "a")
    assert any(key.startswith("adapter/shared/") for key in read(tmp_path / "a").tensors)


@pytest.mark.parametrize("family", ["distilbert", "roberta", "llama"])
def test_a_wrong_base_never_loads_silently(family: str, tmp_path: Path) -> None:
    saved("seq_bn", tmp_path / "a")
    other = AdapterModel(tiny.model(family))
    with pytest.raises(Conflict, match="was trained on another base"):
        other.load_adapter(tmp_path / "a")
    assert other.parts.adapter_configs == {}


def test_the_same_architecture_with_other_weights_is_never_the_same_base(tmp_path: Path) -> None:
    saved("seq_bn", tmp_path / "a")
    with pytest.raises(Conflict, match="was trained on another base"):
        AdapterModel(tiny.model("bert", seed=1)).load_adapter(tmp_path / "a")


def test_a_pickle_is_never_read_as_safetensors(tmp_path: Path) -> None:
    saved("seq_bn", tmp_path / "a")
    (tmp_path / "a" / "graft.safetensors").write_bytes(pickle.dumps({"x": 1}))
    with pytest.raises(PackageError, match=r"is a pickle, which can run code|cut short or changed"):
        AdapterModel(tiny.model("bert")).load_adapter(tmp_path / "a")


def test_a_whole_number_as_scaling_is_never_an_error() -> None:
    assert read_config({"kind": "bottleneck", "scaling": 4}) == read_config({"kind": "bottleneck", "scaling": 4.0})
    model = AdapterModel(tiny.model("bert"))
    model.add_adapter("a", "par_bn[scaling=4]")
    model.add_adapter("b", "par_bn[scaling=4.0]")
    for key, value in model.parts.tensors("adapters", "b").items():
        value.copy_(model.parts.tensors("adapters", "a")[key] + 0.1)
        model.parts.tensors("adapters", "a")[key].copy_(value)
    given = tiny.inputs("bert")
    assert torch.equal(last(model(**given, adapters="a")), last(model(**given, adapters="b")))


def test_seed_zero_is_a_seed_and_seeded_layers_are_never_equal() -> None:
    model = AdapterModel(tiny.model("bert"))
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(len(name) + seed)
        model.add_adapter(name, f"double_seq_bn[init_weights_seed={seed}]")
    down = {name: model.parts.tensors("adapters", name) for name in "abc"}
    keys = [key for key in down["a"] if key.endswith("down.weight")]
    assert all(torch.equal(down["a"][key], down["b"][key]) for key in keys)
    assert not any(torch.equal(down["a"][key], down["c"][key]) for key in keys)
    assert not any(torch.equal(down["a"][keys[0]], down["a"][key]) for key in keys[1:])
    state = torch.get_rng_state()
    model.add_adapter("d", "seq_bn[init_weights_seed=3]")
    assert torch.equal(state, torch.get_rng_state())  # the global generator is nobody's to seed


def test_a_model_with_adapters_is_never_beyond_pickle() -> None:
    model, given = adapted(), tiny.inputs("bert")
    twin = pickle.loads(pickle.dumps(model))
    assert torch.equal(last(twin(**given, adapters="a")), last(model(**given, adapters="a")))


def test_a_missing_target_is_never_overwritten_in_silence() -> None:
    model = adapted()
    with pytest.raises(AdapterError, match="adapter 'a' is already there"):
        model.average_adapter("a", ["a", "b"])
