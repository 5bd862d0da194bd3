"""Hooks at linears, embeddings and the vocabulary: placed only when asked for, on what is meant, and once."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertForMaskedLM, GPT2Model
from transformers.pytorch_utils import Conv1D

from graftwork.core.backbone import Backbone
from graftwork.core.site import Delta, Positions, Reading
from graftwork.core.taps import weight_of
from graftwork.errors import BackboneError
from graftwork.model import AdapterModel
from tests import tiny, zoo


class Adding:
    """A route that adds a number at one site, and keeps what it read."""

    def __init__(self, site: int, amount: float = 1.0) -> None:
        self.site, self.amount = site, amount
        self.read: list[Reading] = []

    def delta(self, site: int, reading: Reading) -> Delta | None:
        if site != self.site:
            return None
        self.read.append(reading)
        return Delta(before=torch.full_like(reading.output, self.amount))

    def positions(self, site: int, reading: Reading) -> Positions | None:
        return None

    def prompted(self, site: int, embeddings: Tensor) -> Tensor | None:
        return None

    def inverse(self, site: int, hidden: Tensor) -> Tensor | None:
        return None


def at(backbone: Backbone, name: str, amount: float = 1.0) -> Adding:
    site = next(site for site in backbone.sites if site.name == name)
    backbone.open(site)
    return Adding(site.index, amount)


def run(backbone: Backbone, family: str, route: Any) -> Tensor:
    with torch.no_grad(), backbone.runtime.running(route):
        output: Tensor = backbone.trunk(**tiny.inputs(family))[0]
    return output


def hooks(module: nn.Module) -> int:
    return sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in module.modules())


def test_a_site_has_hooks_when_something_attaches_there_and_only_once() -> None:
    backbone = Backbone(tiny.model("bert"))
    site = next(site for site in backbone.sites if site.name == "layer.0/attn.query")
    before = hooks(backbone.model)
    backbone.open(site)
    backbone.open(site)
    assert hooks(backbone.model) == before + 1


def test_only_the_columns_that_are_meant_change() -> None:
    backbone = Backbone(tiny.model("gpt2"))
    assert isinstance(backbone.trunk, GPT2Model)
    route, made = at(backbone, "layer.0/attn.key"), []
    linear = backbone.trunk.h[0].attn.c_attn
    linear.register_forward_hook(lambda module, args, output: made.append(output))
    run(backbone, "gpt2", None)
    run(backbone, "gpt2", route)
    moved = made[1] - made[0]
    expected = torch.zeros_like(moved)
    expected[..., tiny.WIDTH : 2 * tiny.WIDTH] = 1
    assert torch.allclose(moved, expected, atol=1e-5)
    assert route.read[0].residual.shape[-1] == tiny.WIDTH


def test_an_input_is_changed_before_the_linear_reads_it() -> None:
    backbone = Backbone(tiny.model("llama"))
    route = at(backbone, "layer.0/ffn.up.input", 0.5)
    seen: list[Tensor] = []
    backbone.trunk.get_submodule("layers.0.mlp.up_proj").register_forward_hook(
        lambda module, args, output: seen.append(args[0])
    )
    run(backbone, "llama", route)
    assert torch.equal(seen[0], route.read[0].output + 0.5)


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_embeddings_change_once_in_a_forward(family: str) -> None:
    backbone = Backbone(tiny.model(family))
    name = next(site.name for site in backbone.sites if site.place == "embed")
    route = at(backbone, name)
    run(backbone, family, route)
    run(backbone, family, route)
    assert len(route.read) == 2


@pytest.mark.parametrize("family", ["llava", "paligemma", "gemma3"])
def test_a_model_that_looks_up_the_embeddings_of_its_text_tower_is_changed_in_every_forward(family: str) -> None:
    backbone = Backbone(zoo.model(family))
    name = next(site.name for site in backbone.sites if site.place == "embed")
    route = at(backbone, name)
    made = []
    for _ in range(2):
        with torch.no_grad(), backbone.runtime.running(route):
            made.append(backbone.trunk(**zoo.inputs(family))[0])
    assert len(route.read) == 2
    assert torch.equal(made[0], made[1])


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_a_weight_is_what_multiplies_its_input(kind: str) -> None:
    module = nn.Linear(3, 5) if kind == "linear" else Conv1D(5, 3)
    x = torch.randn(2, 3)
    assert torch.allclose(x @ weight_of(module).T + module.bias, module(x), atol=1e-6)
    assert torch.equal(weight_of(module, slice(1, 3)), weight_of(module)[1:3])


def test_a_packed_weight_that_cannot_be_opened_is_refused() -> None:
    module = nn.Module()
    module.weight = nn.Parameter(torch.zeros(3, 3, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(BackboneError, match=r"a Module holds a packed weight \(torch.uint8\)"):
        weight_of(module)


def test_the_vocabulary_sees_what_was_before_the_invertible_adapter() -> None:
    _, config, options = tiny.MAKERS["bert"]
    model = AdapterModel(BertForMaskedLM(config(**options)))
    model.add_adapter("hi", "seq_bn_inv[output_adapter=False]")
    entering, leaving = [], []
    model.base.get_output_embeddings().register_forward_hook(lambda module, args, output: leaving.append(args[0]))
    model.base.cls.predictions.transform.register_forward_hook(lambda module, args, output: entering.append(output))
    model.eval()(**tiny.inputs("bert"), adapters="hi", head="none")
    module: Any = model.parts.modules_of("adapters", "hi")["embed"]
    assert torch.allclose(leaving[0], module.inverse(entering[0]), atol=1e-6)
    assert not torch.allclose(leaving[0], entering[0])


def test_compiled_code_is_not_shared_with_a_model_whose_hooks_it_lacks() -> None:
    """torch.compile guards no hooks: what it made for a model without one must not serve for another of its class."""
    inputs, found = tiny.inputs("llama"), []
    for opened in (False, True):
        backbone = Backbone(tiny.model("llama"))
        site = next(site for site in backbone.sites if site.name == "embed")
        if opened:
            backbone.open(site)
        backbone.trunk.compile(backend="eager")
        with torch.no_grad(), backbone.runtime.running(Adding(site.index)):
            found.append(backbone.trunk(**inputs)[0])
    assert not torch.allclose(*found)


def test_a_sub_layer_that_ends_in_a_linear_reads_what_the_linear_gives_by_now() -> None:
    backbone = Backbone(tiny.model("llama"))
    linear, sublayer = at(backbone, "layer.0/ffn.down"), at(backbone, "layer.0/ffn", 0.0)
    plain = at(backbone, "layer.0/ffn", 0.0)
    run(backbone, "llama", plain)

    class Both(Adding):
        def delta(self, site: int, reading: Reading) -> Delta | None:
            found = linear.delta(site, reading)
            return sublayer.delta(site, reading) if found is None else found

    run(backbone, "llama", Both(-1))
    torch.testing.assert_close(sublayer.read[0].output, plain.read[0].output + 1)
