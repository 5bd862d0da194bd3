"""Training costs what is above the first trained layer: below it nothing enters autograd's graph and nothing is kept.

Tensors that autograd keeps are counted where the first trained layer begins, those still alive.
"""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graftwork.compose.grammar import as_composition
from graftwork.core.locate import layers_of
from graftwork.model import AdapterModel
from tests import zoo

# families of several shapes: post-LN, pre-LN, rotary, relative positions computed once, encoder-decoders
FAMILIES = ("bert", "deberta-v2", "modernbert", "llama", "gpt2", "t5", "bart", "vit")
TOP = "leave_out=[0]"  # every tiny model has two layers or more, of which the first has nothing to train


class _Holder:
    """A tensor that autograd keeps for the backward."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class Watch:
    """What a forward has put into the graph by the time that a module begins."""

    def __init__(self, place: nn.Module) -> None:
        self.entering: list[bool] = []  # whether each tensor that enters needs a gradient
        self.alive: list[int] = []
        self._kept: weakref.WeakSet[_Holder] = weakref.WeakSet()
        place.register_forward_pre_hook(self._look, with_kwargs=True)

    def pack(self, tensor: Tensor) -> _Holder:
        """What is kept in the place of a tensor."""
        holder = _Holder(tensor)
        self._kept.add(holder)
        return holder

    def _look(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor) and one.is_floating_point()]
        if not self.entering:  # a layer that is recomputed begins again, in the backward
            self.entering = [one.requires_grad for one in given]
            self.alive = [len(self._kept)]


def step(model: AdapterModel, family: str, place: nn.Module) -> Watch:
    """One training step, watched where `place` begins."""
    watch = Watch(place)
    with torch.autograd.graph.saved_tensors_hooks(watch.pack, lambda holder: holder.tensor):
        output = model(**zoo.inputs(family), labels=torch.tensor([0, 1]))
    output.loss.backward()
    trained = [p for p in model.parts.parameters() if p.requires_grad]
    assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in trained)
    assert all(p.grad is None for p in model.base.parameters())
    return watch


def layers(model: AdapterModel) -> list[nn.Module]:
    """The layers of the first stack."""
    return layers_of(model.backbone.trunk, model.backbone.family.stacks[0])


def _top(method: str) -> Callable[[AdapterModel], None]:
    def train(model: AdapterModel) -> None:
        model.add_adapter("task", f"{method}[{TOP}]")
        model.train_adapter("task")

    return train


def _stack(model: AdapterModel) -> None:
    """On a frozen language adapter in every layer, with dropout, and an invertible one where there are tokens."""
    images = model.base.main_input_name == "pixel_values"
    model.add_adapter("language", "seq_bn[dropout=0.1]" if images else "seq_bn_inv[dropout=0.1]")
    model.add_adapter("task", f"seq_bn[{TOP}]")
    model.train_adapter("task")
    model.set_active_adapters(as_composition("Stack(language, task)"))


def _fuse(model: AdapterModel) -> None:
    """A fusion of frozen members, of which the language adapter below them is in every layer."""
    model.add_adapter("language", "double_seq_bn")
    for name in ("a", "b"):
        model.add_adapter(name, f"seq_bn[{TOP}]")
    fuse = as_composition("Fuse(a, b, name=ab)")
    model.add_adapter_fusion(fuse)
    model.train_adapter_fusion(fuse)
    model.set_active_adapters(as_composition("Stack(language, Fuse(a, b, name=ab))"))


SETUPS = {"bottleneck": _top("seq_bn"), "lora": _top("lora"), "stack": _stack, "fuse": _fuse}


def prepared(family: str, setup: str, asked: bool = False) -> AdapterModel:
    """A model in training; asked: embeddings were told to need gradients, as for reentrant checkpointing."""
    base = zoo.model(family)
    if asked:
        base.enable_input_require_grads()
    model = AdapterModel(base)
    if base.main_input_name == "pixel_values":
        model.add_image_classification_head("task", num_labels=2)
    else:
        model.add_classification_head("task", num_labels=2)
    SETUPS[setup](model)
    model.active_head = "task"
    return model


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_below_the_first_trained_layer_is_in_the_graph(family: str, setup: str) -> None:
    model = prepared(family, setup)
    watch = step(model, family, layers(model)[1])
    assert watch.entering
    assert not any(watch.entering)
    assert watch.alive == [0]


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2", "bart"])
@pytest.mark.parametrize("setup", ["bottleneck", "stack"])
def test_nor_with_activation_checkpointing_or_embeddings_that_were_to_need_gradients(family: str, setup: str) -> None:
    model = prepared(family, setup, asked=True)
    model.activation_checkpointing_enable()
    watch = step(model, family, layers(model)[1])
    assert watch.entering
    assert not any(watch.entering)
    assert watch.alive == [0]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_only_a_head_keeps_nothing_of_the_base(checkpointing: bool) -> None:
    model = AdapterModel(zoo.model("bert"))
    model.add_classification_head("task", num_labels=2)
    model.parts.train_only([("heads", "task")])
    model.train()
    if checkpointing:
        model.activation_checkpointing_enable()
    watch = step(model, "bert", model.parts.head("task"))
    assert watch.entering == [False]
    assert watch.alive == [0]


def test_the_watch_sees_a_graph() -> None:
    model = AdapterModel(zoo.model("bert"))
    model.add_adapter("task", "seq_bn")
    model.add_classification_head("task", num_labels=2)
    model.train_adapter("task")
    watch = step(model, "bert", layers(model)[1])
    assert any(watch.entering)
    assert watch.alive[0] > 0
