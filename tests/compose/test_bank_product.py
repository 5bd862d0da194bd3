"""The product of a bank: every backend against float64, item by item; others never change an item's bits."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from graftwork.compose import bank_measure
from graftwork.compose.bank_product import BACKENDS, Call, chosen, possible, product
from graftwork.compose.bank_slots import Routing

TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 2e-2}  # relative to the largest number
ROUTINGS = st.lists(st.integers(0, 6), min_size=1, max_size=9) | st.integers(1, 3).map(lambda s: list(range(s, s + 4)))


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def made(slots: list[int], per: int, sizes: tuple[int, int], dtype: torch.dtype, added: str = "bias") -> Call:
    generator = torch.Generator().manual_seed(len(slots) * 100 + per)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    weight, x = random(7, *sizes), random(len(slots) * per, sizes[0])
    bias = random(7, sizes[1]) if added == "bias" else None
    onto = random(len(x), sizes[1]) if added == "onto" else None
    return Call(x, weight, bias, onto, Routing(tuple(slots)))


def expected(call: Call) -> Tensor:
    """Item by item, in float64."""
    per = len(call.x) // len(call.routing.slots)
    rows = []
    for number, slot in enumerate(slot for slot in call.routing.slots for _ in range(per)):
        row = call.x[number].double() @ call.weight[slot].double()
        if call.bias is not None:
            row = row + call.bias[slot].double()
        rows.append(row if call.onto is None else row + call.onto[number].double())
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", TOLERANCE)
@given(slots=ROUTINGS, per=st.integers(1, 5), added=st.sampled_from(["bias", "onto", "neither"]))
def test_every_backend_is_the_product_of_each_item(dtype: torch.dtype, slots: list[int], per: int, added: str) -> None:
    call = made(slots, per, (16, 24), dtype, added)
    want = expected(call)
    names = possible(call)
    assert {"loop", "view" if call.routing.consecutive else "gather"} <= set(names)
    for name in names:
        found = BACKENDS[name](call)
        assert found.dtype is dtype
        assert float((found.double() - want).abs().max() / want.abs().max()) < TOLERANCE[dtype], name


def test_what_a_backend_can_do() -> None:
    assert possible(made([2, 3, 4], 2, (16, 8), torch.float32)) == ["view", "loop"]
    assert possible(made([2, 4, 3], 2, (16, 8), torch.float32)) == ["loop", "gather", "grouped"]
    assert possible(made([2, 4, 2], 2, (16, 8), torch.float32)) == ["loop", "sorted", "gather", "grouped"]
    assert "grouped" not in possible(made([2, 4, 2], 2, (16, 7), torch.float32))  # strides of 28 bytes
    assert "grouped" not in possible(made([2, 4, 2], 2, (16, 8), torch.float64))


def test_columns_of_a_wider_tensor_are_read_in_place() -> None:
    call = made([1, 3, 1], 2, (16, 8), torch.float32)
    wider = torch.cat([call.x, torch.ones(6, 3)], dim=1)
    same = Call(wider[:, :16], call.weight, call.bias, None, call.routing)
    for name in possible(same):
        torch.testing.assert_close(BACKENDS[name](same), expected(call).float(), rtol=1e-5, atol=1e-5)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=20))
def test_packed_tokens_each_with_a_slot(slots: list[int]) -> None:
    call = made(slots, 1, (16, 8), torch.float32)
    found = product(call.x, call.weight, call.bias, None, call.routing)
    torch.testing.assert_close(found, expected(call).float(), rtol=1e-5, atol=1e-5)


def test_measured_once_for_a_kind_of_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank_measure, "_CHOSEN", {})
    first, second = made([1, 5, 3], 2, (16, 8), torch.float32), made([6, 2, 4], 2, (16, 8), torch.float32)
    name = chosen(first)
    assert name in possible(first)
    assert chosen(second) == name
    assert len(bank_measure._CHOSEN) == 1
    chosen(made([1, 5, 3], 40, (16, 8), torch.float32))
    assert len(bank_measure._CHOSEN) == 2


@pytest.mark.usefixtures("deterministic")
@given(mine=st.integers(0, 4), others=st.lists(st.integers(1, 6), min_size=4, max_size=4), per=st.sampled_from([1, 3]))
def test_what_other_items_do_changes_no_bit_of_mine(mine: int, others: list[int], per: int) -> None:
    slots = [*others[:mine], 2, *others[mine:]]
    call, alike = made(slots, per, (64, 16), torch.float32), made([2] * 5, per, (64, 16), torch.float32)
    place = slice(mine * per, mine * per + per)
    x = torch.randn_like(call.x)
    x[place] = alike.x[place]  # other inputs for the others, too
    found = product(x, call.weight, call.bias, None, call.routing)[place]
    assert torch.equal(found, product(alike.x, alike.weight, alike.bias, None, alike.routing)[place])


def test_the_gradient_of_what_is_read() -> None:
    call = made([1, 4, 1], 2, (16, 8), torch.float64)
    x = call.x.clone().requires_grad_()
    product(x, call.weight, call.bias, None, call.routing).sum().backward()
    rows = [call.weight[slot].sum(dim=1) for slot in (1, 1, 4, 4, 1, 1)]
    torch.testing.assert_close(x.grad, torch.stack(rows))
