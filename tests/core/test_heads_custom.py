"""Custom heads: what they give, and that only a registered one can be packaged."""

import pytest
import torch
from torch import Tensor, nn

from graftwork.core.heads_custom import CustomHead
from graftwork.errors import AdapterError
from graftwork.model import AdapterModel
from tests import tiny
from tests.adapted import last, shaken

GIVEN = tiny.inputs("bert")


class Spread(nn.Module):
    """How far the tokens of a row are apart, weighed."""

    def __init__(self, width: int, power: int = 2) -> None:
        super().__init__()
        self.weight, self.power = nn.Parameter(torch.ones(width)), power

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return ((hidden - hidden.mean(1, keepdim=True)) ** self.power * self.weight).sum(-1).mean(-1, keepdim=True)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (logits - labels).abs().mean()


def model() -> AdapterModel:
    made = AdapterModel(tiny.model("bert")).eval()
    made.add_adapter("a")
    shaken(made.parts, 3)
    return made


def test_a_module_of_ones_own_answers() -> None:
    made, module = model(), Spread(tiny.WIDTH)
    made.add_custom_head(module, "a")
    output = made(**GIVEN, adapters="a", labels=torch.zeros(2, 1))
    expected = module(last(made(**GIVEN, adapters="a", head="none")), None)
    torch.testing.assert_close(output.logits, expected)
    torch.testing.assert_close(output.loss, expected.abs().mean())
    with pytest.raises(AdapterError, match=r"head 'a' is a module of yours without a name .* cannot be packaged"):
        made.package("a")
    made.package("a", with_head=False)
    with pytest.raises(AdapterError, match="takes no power"):
        made.add_custom_head(module, "b", power=3)


def test_a_registered_head_travels_to_where_its_name_is_registered() -> None:
    made = model()
    with pytest.raises(AdapterError, match=r"no custom head is registered as 'spread'.* none yet"):
        made.add_custom_head("spread", "a", power=3)
    made.register_custom_head("spread", Spread)
    made.add_custom_head("spread", "a", power=3)
    shaken(made.parts, 4)
    package, other = made.package("a"), AdapterModel(tiny.model("bert")).eval()
    with pytest.raises(AdapterError, match="no custom head is registered as 'spread'"):
        other.install(package)
    assert list(other.parts.adapter_configs) == []
    other.register_custom_head("spread", Spread)
    other.install(package)
    torch.testing.assert_close(other(**GIVEN, adapters="a").logits, made(**GIVEN, adapters="a").logits)


def test_what_is_no_head_is_refused() -> None:
    made = model()
    made.add_custom_head(nn.Identity(), "a")
    with pytest.raises(AdapterError, match="the custom head Identity has no method loss"):
        CustomHead(nn.Identity(), made.parts.head_configs["a"]).loss(torch.zeros(1), torch.zeros(1))
    with pytest.raises(AdapterError, match="a custom head is a torch module, not int"):
        CustomHead(3, made.parts.head_configs["a"])  # type: ignore[arg-type]
