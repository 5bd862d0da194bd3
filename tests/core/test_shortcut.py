"""A forward that leaves out its first layers is the whole one, bit for bit, where states are all that is handed on."""

from typing import Any

import pytest
import torch
from torch import Tensor

from graftwork.core.backbone import Backbone
from graftwork.core.locate import layers_of
from graftwork.core.shortcut import Shortcut
from graftwork.errors import BackboneError
from tests import tiny, zoo

# family -> how many layers cannot be left out alone, for later ones take more from them than the stream
MORE: dict[str, tuple[int, ...]] = {
    "t5": (1,),  # relative positions, made by the first layer
    "mt5": (1,),
    "albert-groups": (1, 3),  # two layers that run in turn, twice
    "llava": (2,),  # the text reads the last layer of the images but one
}


def opened(family: str) -> tuple[Backbone, list[Any]]:
    backbone = Backbone(zoo.model(family))
    return backbone, layers_of(backbone.trunk, backbone.family.stacks[0])


def ran(backbone: Backbone, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        output: Tensor = backbone.model(**inputs)[0]
    return output


@pytest.mark.parametrize("family", zoo.MAKERS)
def test_a_forward_behind_its_first_layers_is_the_whole_one(family: str) -> None:
    backbone, layers = opened(family)
    inputs = zoo.inputs(family)
    whole = ran(backbone, inputs)
    for count in range(1, len(layers) + 1):
        shortcut = Shortcut(layers[:count], layers[count:])
        state = shortcut.state(lambda: ran(backbone, inputs))
        with shortcut.entered(state):
            short = ran(backbone, inputs)
        assert torch.equal(short, whole) == (count not in MORE.get(family, ())), count
    assert torch.equal(ran(backbone, inputs), whole)  # nothing stays behind


def test_the_layers_do_not_run_and_later_ones_do() -> None:
    backbone, layers = opened("bert")
    inputs, seen = zoo.inputs("bert"), []
    for number, layer in enumerate(layers):
        layer.output.dense.register_forward_hook(lambda *_, at=number: seen.append(at))
    shortcut = Shortcut(layers[:2], layers[2:])
    state = shortcut.state(lambda: ran(backbone, inputs))
    assert seen == [0, 1]
    seen.clear()
    with shortcut.entered(state + 1):
        other = ran(backbone, inputs)
    assert seen == [2]
    assert not torch.equal(other, ran(backbone, inputs))


def test_an_error_leaves_nothing_behind() -> None:
    backbone, layers = opened("bert")
    inputs = zoo.inputs("bert")
    whole = ran(backbone, inputs)
    shortcut = Shortcut(layers[:1], layers[1:])
    wrong = r"have shape \(1, 2, 32\), and what enters .* \(2, 9, 32\): they are of other rows"
    with pytest.raises(BackboneError, match=wrong), shortcut.entered(torch.zeros(1, 2, tiny.WIDTH)):
        ran(backbone, inputs)
    with pytest.raises(ValueError, match="exactly one of input_ids"):
        shortcut.state(lambda: ran(backbone, {}))
    assert all("forward" not in vars(layer) for layer in layers)
    assert torch.equal(ran(backbone, inputs), whole)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)


def test_a_forward_that_a_layer_had_of_its_own_comes_back() -> None:
    backbone, layers = opened("bert")
    inputs = zoo.inputs("bert")
    calls = []
    own = layers[0].forward

    def offloaded(*args: Any, **options: Any) -> Any:
        calls.append(1)
        return own(*args, **options)

    layers[0].forward = offloaded
    shortcut = Shortcut(layers[:1], layers[1:])
    with shortcut.entered(shortcut.state(lambda: ran(backbone, inputs))):
        ran(backbone, inputs)
    assert calls == [1]
    ran(backbone, inputs)
    assert calls == [1, 1]


def test_layers_that_do_not_run_are_an_error() -> None:
    _, layers = opened("clip")
    with pytest.raises(BackboneError, match="the layers whose states are to be kept did not run on this input"):
        Shortcut(layers[:1], layers[1:]).state(lambda: None)
    assert not layers[0]._forward_hooks
