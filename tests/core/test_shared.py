"""One bottleneck for all layers: the untied one with equal weights, its gradient the sum, stored and counted once."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from graftwork.compose.tree import Average, Composition, Fuse, Stack
from graftwork.core.bottleneck import Bottleneck, BottleneckConfig
from graftwork.core.kinds import read_config
from graftwork.core.lora import LoRAConfig
from graftwork.core.union import UnionConfig
from graftwork.errors import AdapterError, PackageError
from graftwork.model import AdapterModel
from graftwork.registry.foreign.adapterhub_write import write_adapterhub
from graftwork.registry.package import Package, read, write
from graftwork.train.monitor import Monitor
from graftwork.train.prefix import untrained
from graftwork.train.run import train
from tests import tiny
from tests.train import small

FLAGS: dict[str, Any] = {
    "mh_adapter": [False, True],
    "ln_before": [False, True],
    "ln_after": [False, True],
    "use_gating": [False, True],
    "scaling": [1.0, 2.5, "learned", "channel"],
    "train_norms": [False, True],
    "leave_out": [(), (1,)],
    "linears": [(), ("ffn.up",), ("attn.query", "ffn.down.input")],
    "inv_adapter": [None, "nice"],
}


def configs() -> st.SearchStrategy[BottleneckConfig]:
    def make(flags: dict[str, Any]) -> BottleneckConfig:
        if flags["inv_adapter"]:
            flags |= {"train_norms": False, "inv_adapter_reduction_factor": 2}
        return BottleneckConfig(reduction_factor=4, shared=True, non_linearity="gelu", **flags)

    return st.fixed_dictionaries({name: st.sampled_from(values) for name, values in FLAGS.items()}).map(make)


def model(config: Any, family: str = "bert", seed: int = 0) -> AdapterModel:
    made = AdapterModel(tiny.model(family).double())
    torch.manual_seed(seed)
    made.add_adapter("a", config)
    with torch.no_grad():
        for weight in made.parts.adapters.parameters():
            weight.add_(0.1 * torch.randn_like(weight))  # nothing at its beginning
    made.set_active_adapters("a")
    return made.eval()


def owner_of(site: str) -> str:
    """shared/ffn for layer.2/ffn, shared/decoder_ffn for decoder.layer.0/ffn."""
    stack, _, place = site.rpartition("layer.")
    return "shared/" + f"{stack.strip('.')}_{place.partition('/')[2]}".strip("_").replace(".", "_")


def untied(made: AdapterModel, config: BottleneckConfig, family: str = "bert") -> tuple[AdapterModel, dict[str, str]]:
    """The same adapter with weights of its own in every layer; where each of them comes from."""
    apart = model(replace(config, shared=False), family)
    given, source = made.parts.tensors("adapters", "a"), {}
    for name, target in apart.parts.tensors("adapters", "a").items():
        site, _, leaf = name.rpartition("/")
        source[name] = name if name in given else f"{owner_of(site)}.{leaf}"
        target.copy_(given[source[name]])
    return apart, source


def said(made: AdapterModel, family: str = "bert", tree: Composition = "a") -> Tensor:
    state: Tensor = made(**tiny.inputs(family), adapters=tree, head="none").last_hidden_state
    return state


def gradients(made: AdapterModel, family: str = "bert") -> dict[str, Tensor]:
    made.train_adapter("a")
    made.eval()
    weight = torch.randn(tiny.WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    (said(made, family) @ weight).sum().backward()
    return {
        f"{site}/{name}": parameter.grad
        for site, module in made.parts.modules_of("adapters", "a").items()
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


@settings(max_examples=settings.default.max_examples // 8)
@given(config=configs())
def test_it_is_the_untied_adapter_and_its_gradient_is_the_sum_over_layers(config: BottleneckConfig) -> None:
    made = model(config)
    apart, source = untied(made, config)
    assert torch.equal(said(made), said(apart))
    found, each = gradients(made), gradients(apart)
    summed: dict[str, Tensor] = {}
    for name, gradient in each.items():
        summed[source[name]] = summed.get(source[name], torch.zeros_like(gradient)) + gradient
    assert found.keys() == summed.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, summed[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("family", ["t5", "bart", "llama"])
def test_each_stack_shares_its_own(family: str) -> None:
    config = BottleneckConfig(original_ln_before=True, reduction_factor=4, shared=True, mh_adapter=True)
    made = model(config, family)
    apart, _ = untied(made, config, family)
    assert torch.equal(said(made, family), said(apart, family))
    stacks = {name.partition(".")[0] for name in made.parts.tensors("adapters", "a")}
    alone = {"shared/ffn", "shared/attn"}
    both = {f"shared/{stack}_{kind}" for stack in ("encoder", "decoder") for kind in ("ffn", "attn")}
    assert stacks == (alone if family == "llama" else both)


def test_it_is_counted_once() -> None:
    made = model("double_seq_bn[reduction_factor=4,shared=true]")
    width, bottleneck = tiny.WIDTH, tiny.WIDTH // 4
    assert made.parts.count("adapters", "a") == 2 * (2 * width * bottleneck + width + bottleneck)
    assert sum(weight.numel() for weight in made.parts.parameters()) == made.parts.count("adapters", "a")
    assert len(made.state_dict()) == 8
    assert made.adapter_summary().rows[0].parameters == made.parts.count("adapters", "a")
    modules = [one for one in made.parts.adapters.modules() if isinstance(one, Bottleneck)]
    assert len(modules) == 2 + 6  # two owners, and a site of each in three layers


def test_a_package_holds_it_once_and_brings_it_back(tmp_path: Path) -> None:
    made = AdapterModel(tiny.model("bert"))
    made.add_adapter("a", "seq_bn[reduction_factor=4,shared=true,scaling=learned]")
    package = made.package("a")
    leaves = ("down.bias", "down.weight", "scale", "up.bias", "up.weight")
    assert sorted(package.tensors) == [f"adapter/shared/ffn.{leaf}" for leaf in leaves]
    assert package.manifest.sites == ("shared",)
    write(package, tmp_path / "a")
    fresh = AdapterModel(tiny.model("bert"))
    fresh.install(read(tmp_path / "a"), "b")
    for one, other in ((made, "a"), (fresh, "b")):
        one.eval().requires_grad_(False).set_active_adapters(other)
    assert torch.equal(said(made), said(fresh, tree="b"))
    missing = {key: tensor for key, tensor in package.tensors.items() if "scale" not in key}
    with pytest.raises(PackageError, match=r"tensor 'adapter/shared/ffn.scale' is missing"):
        AdapterModel(tiny.model("bert")).install(Package(package.manifest, missing), "c")


@pytest.mark.parametrize("flags", ["", ",ln_before=true", ",scaling=learned", ",is_parallel=true"])
def test_folded_and_banked_are_the_reference(flags: str) -> None:
    made = model(f"{'par_bn' if 'parallel' in flags else 'seq_bn'}[reduction_factor=4,shared=true{flags}]")
    made.add_adapter("b", "seq_bn[reduction_factor=8,shared=true]")
    made.add_adapter_fusion(Fuse("a", "b", name="f"))
    made.requires_grad_(False)
    setups: list[Any] = ["a", Stack("b", "a"), Average("a", "b"), Fuse("a", "b", name="f"), ["a", "b"]]
    for setup in setups:
        made.execution = "reference"
        expected = said(made, tree=setup)
        for execution in ("folded", "banked", "auto"):
            made.execution = execution
            torch.testing.assert_close(said(made, tree=setup), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("execution", ["folded", "banked"])
@pytest.mark.parametrize("leaf", ["down.weight", "scale"])
def test_what_was_folded_is_made_again_when_the_owner_changes(execution: str, leaf: str) -> None:
    made = model("seq_bn[reduction_factor=4,shared=true,scaling=learned]")
    made.requires_grad_(False)
    made.execution = execution
    before = said(made)
    with torch.no_grad():
        made.parts.tensors("adapters", "a")[f"shared/ffn.{leaf}"].mul_(1.5)
    after = said(made)
    made.execution = "reference"
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, said(made), rtol=1e-9, atol=1e-10)


def test_weights_that_get_a_gradient_run_by_the_reference() -> None:
    made = model("seq_bn[reduction_factor=4,shared=true]")
    assert all(gradient.abs().sum() > 0 for gradient in gradients(made).values())


def test_copied_loaded_and_assigned_it_stays_one() -> None:
    made = model("seq_bn[reduction_factor=4,shared=true,scaling=learned]")
    twin = copy.deepcopy(made)
    other = model("seq_bn[reduction_factor=4,shared=true,scaling=learned]", seed=1)
    different = said(other)
    for assign in (False, True):
        other.load_state_dict({key: tensor.clone() for key, tensor in made.state_dict().items()}, assign=assign)
        assert torch.equal(said(other), said(made))
        with torch.no_grad():
            for weight in other.parts.adapters.parameters():
                weight.add_(0.1)
        assert not torch.equal(said(other), said(made))
    assert torch.equal(said(twin), said(made))
    assert not torch.equal(different, said(made))
    assert other.float().parts.adapters.state_dict().popitem()[1].dtype == torch.float32
    assert said(other).dtype == torch.float32


def test_averages_and_unions() -> None:
    made = model("seq_bn[reduction_factor=4,shared=true]")
    made.add_adapter("b", "seq_bn[reduction_factor=4,shared=true]")
    made.average_adapter("m", {"a": 0.5, "b": 0.5})
    one, other, mean = (made.parts.tensors("adapters", name) for name in ("a", "b", "m"))
    assert all(torch.allclose(mean[key], (one[key] + other[key]) / 2) for key in mean)
    both = UnionConfig(members=(LoRAConfig(r=2), BottleneckConfig(reduction_factor=4, shared=True)))
    made.add_adapter("u", both)
    assert {name.rpartition("/")[0] for name in made.parts.tensors("adapters", "u") if "ffn" in name} == {"shared"}
    assert not torch.equal(said(made, tree="u"), said(made, tree=None))


@pytest.mark.full
def test_it_is_traced_into_one_graph() -> None:
    made = model("seq_bn[reduction_factor=4,shared=true]").requires_grad_(False)
    expected = said(made)
    made.compile(backend="eager")
    assert torch.allclose(said(made), expected)


def test_it_trains_from_a_recipe(tmp_path: Path) -> None:
    recipe = small.recipe(tmp_path, {"adapter.options": {"shared": True}, "training.drop": [0, 1]})
    result = train(recipe)
    assert result.parameters["adapter"] == 2 * 32 * 8 + 32 + 8
    assert result.package.manifest.method is not None
    assert result.package.manifest.method["shared"] is True
    assert all("grad_up" in point for point in result.history if "loss" in point)


def test_what_trains_is_seen_once_and_in_every_layer() -> None:
    made = model("seq_bn[reduction_factor=4,shared=true,leave_out=[0]]")
    made.add_classification_head("a", num_labels=2)
    made.train_adapter("a")
    monitor = Monitor.of(made)
    assert monitor is not None
    assert untrained(made) == 1
    gradients(made)
    monitor.see()
    assert monitor.read()["grad_up"] > 0


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("compacter[shared=true]", "shared is for dense layers; hypercomplex layers have shared_W_phm"),
        ("seq_bn[shared=1]", "shared 1 must be true or false"),
        (
            {"kind": "bottleneck", "shared": True, "reduction_factor": {"0": 4, "default": 8}},
            "shared needs one size in all layers: layer.0/ffn is 32 wide with a bottleneck of 8, layer.1/ffn 32 with "
            "4; set shared=False, or leave layers out",
        ),
    ],
)
def test_what_is_refused(config: Any, says: str) -> None:
    with pytest.raises(AdapterError) as caught:
        AdapterModel(tiny.model("bert")).add_adapter("a", read_config(config))
    assert says in str(caught.value)


def test_layers_on_several_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made = AdapterModel(tiny.model("bert"))
    made.base.encoder.layer[2].to("meta")  # type: ignore[operator, union-attr]
    with pytest.raises(
        AdapterError, match=r"adapter 'a': shared=True is one bottleneck for all layers, .* lie on cpu, meta"
    ):
        made.add_adapter("a", "seq_bn[shared=true]")
    assert "a" not in made.parts.adapter_configs


def test_adapterhub_has_none(tmp_path: Path) -> None:
    made = AdapterModel(tiny.model("bert"))
    made.add_adapter("a", "seq_bn[shared=true]")
    with pytest.raises(PackageError, match="it has no shared = True"):
        write_adapterhub(made.package("a"), tmp_path / "hub")
