"""Training the model's own LayerNorms leaks from one task into another; a copy for each adapter does not."""

import pytest
import torch
from torch import Tensor, nn

from graftwork.model import AdapterModel
from tests import tiny
from tests.adapted import last, same, snapshot

GIVEN = tiny.inputs("bert", rows=4)


def trained(config: str) -> AdapterModel:
    """Two new adapters of a kind, with heads."""
    torch.manual_seed(0)
    model = AdapterModel(tiny.model("bert"))
    for name in ("a", "b"):
        model.add_adapter(name, config)
        model.add_classification_head(name, 2, layers=1)
    return model


def learn(model: AdapterModel, name: str, also: list[nn.Parameter]) -> None:
    """Three steps of one adapter and whatever else shall train."""
    model.train_adapter(name)
    for parameter in also:
        parameter.requires_grad_(True)
    model.eval()  # no dropout: what changes is what was learned
    optimiser = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.5)
    for _ in range(3):
        optimiser.zero_grad()
        model(**GIVEN, adapters=name, head=name, labels=torch.tensor([0, 1, 1, 0])).loss.backward()
        optimiser.step()
    model.requires_grad_(False)


def answers(model: AdapterModel) -> Tensor:
    with torch.no_grad():
        return last(model(**GIVEN, adapters="a", head="none"))


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_norms_of_the_base_that_train_change_what_other_adapters_say(order: str) -> None:
    model = trained("double_seq_bn")
    norms = [one for part in model.base.modules() if isinstance(part, nn.LayerNorm) for one in part.parameters()]
    if order == "ab":
        learn(model, "a", norms)
    before = answers(model)
    learn(model, "b", norms)
    assert float((answers(model) - before).abs().max()) > 1e-3


@pytest.mark.parametrize("config", ["double_seq_bn", "adapter_bert"])
def test_norms_of_an_adapters_own_leave_other_adapters_and_the_base_alone(config: str) -> None:
    model = trained(config)
    base = snapshot(model.base)
    learn(model, "a", [])
    before = answers(model)
    learn(model, "b", [])
    assert torch.equal(answers(model), before)
    assert same(base, snapshot(model.base))
    assert any(".norm." in name for name, _ in model.parts.named_parameters()) is (config == "adapter_bert")
