"""Lending an attention another function: what masks become, and that everything is given back."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graftwork.core.attention import KvTap, _biased, lengthened
from graftwork.core.site import Positions
from graftwork.errors import AdapterError, BackboneError
from graftwork.model import AdapterModel
from tests import tiny
from tests.adapted import last

POSITIONS = Positions(torch.zeros(2, 1, 2, 4), torch.zeros(2, 1, 2, 4))
QUERY, KEY = torch.zeros(2, 1, 3, 4), torch.zeros(2, 1, 3, 4)
SOME = Positions(POSITIONS.keys, POSITIONS.values, torch.tensor([[True, True], [False, True]]))


def seen(mask: Tensor | None, found: Positions = POSITIONS, causal: bool = False, query: Tensor = QUERY) -> Any:
    longer = lengthened(mask, found, (query.shape[2], KEY.shape[2]), causal)
    return None if longer is None else longer.int().tolist()


def test_without_a_mask_everything_is_seen_and_no_mask_is_made() -> None:
    assert seen(None) is None


def test_what_is_causal_sees_every_position_in_front_and_nothing_ahead() -> None:
    assert seen(None, causal=True)[0][0] == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert seen(None, causal=True, query=QUERY[:, :, :1]) is None  # one new token sees all that is cached


def test_positions_that_are_not_real_are_hidden_for_their_rows_only() -> None:
    assert [row[0][0] for row in seen(None, SOME)] == [[1, 1, 1, 1, 1], [0, 1, 1, 1, 1]]


def test_a_mask_of_truth_values_keeps_what_it_hides() -> None:
    mask = torch.tensor([True, True, False]).expand(2, 1, 3, 3)
    assert seen(mask, SOME)[1][0] == [[0, 1, 1, 1, 0]] * 3


def test_a_mask_of_numbers_gets_zero_for_what_is_seen_and_the_least_number_for_what_is_not() -> None:
    mask = torch.full((2, 1, 3, 3), -1.5)
    longer = lengthened(mask, SOME, (3, 3), causal=True)
    assert longer is not None
    assert longer[1, 0, 0].tolist() == [torch.finfo(torch.float32).min, 0.0, -1.5, -1.5, -1.5]


def test_a_position_bias_has_nothing_for_what_stands_nowhere() -> None:
    bias = torch.ones(1, 1, 3, 3)
    assert _biased(nn.Module(), bias, POSITIONS, KEY)[0, 0].tolist() == [[0, 0, 1, 1, 1]] * 3


def model() -> AdapterModel:
    made = AdapterModel(tiny.model("bert"))
    made.add_adapter("p", "prefix_tuning_flat[prefix_length=2]")
    return made.eval()


def configs(made: AdapterModel) -> list[Any]:
    return [module.config for module in made.base.modules() if hasattr(module, "config")]


def test_every_attention_has_its_configuration_back_after_a_forward_and_after_an_error() -> None:
    made = model()
    before = configs(made)
    made(**tiny.inputs("bert"), adapters="p")
    assert all(now is then for now, then in zip(configs(made), before, strict=True))
    handle = made.base.encoder.layer[1].attention.self.key.register_forward_hook(lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        made(**tiny.inputs("bert"), adapters="p")
    handle.remove()
    assert all(now is then for now, then in zip(configs(made), before, strict=True))
    plain = last(AdapterModel(tiny.model("bert"))(**tiny.inputs("bert")))
    assert torch.equal(last(made(**tiny.inputs("bert"), adapters=None)), plain)


def test_an_attention_function_without_free_masks_is_refused() -> None:
    made = model()
    made.base.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(AdapterError, match="prefixes need attention by one of sdpa, eager, and this model runs"):
        made(**tiny.inputs("bert"), adapters="p")


def test_an_attention_that_never_asks_is_refused() -> None:
    made = model()
    attention = made.base.encoder.layer[0].attention.self
    own = next(hook.__self__ for hook in attention._forward_pre_hooks.values() if isinstance(hook.__self__, KvTap))
    own.runtime.prefixes[own.index] = POSITIONS
    own._own = attention.config
    with pytest.raises(BackboneError, match=r"site layer.0/attn.kv: a BertSelfAttention does not call transformers'"):
        own.end(attention, (), torch.zeros(1))
