"""The kernels of a bank against float64, item by item: on a GPU, or interpreted on a CPU where Triton is installed."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

pytest.importorskip("triton", reason="Triton is not installed: the kernels of banks did not run")

from graftwork.compose import bank_bottleneck, bank_measure, bank_product, bank_triton
from graftwork.compose.bank_bottleneck import bottleneck, kernel_of
from graftwork.compose.bank_kernels import try_kernels
from graftwork.compose.bank_slots import Routing, Traced
from graftwork.core.activations import activation

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
SLOTS = 6
# the interpreter knows no bfloat16 in matrix products
TOLERANCE = {torch.float32: 1e-6, torch.float16: 2e-3} | ({torch.bfloat16: 2e-2} if ON_GPU else {})
EXAMPLES = settings(max_examples=30 if ON_GPU else 15)  # each size is compiled anew
SIZES = st.sampled_from([33, 130])
NAMES = {"relu": torch.relu, "gelu": functional.gelu, "silu": functional.silu, "tanh": torch.tanh}
NAMES |= {"sigmoid": torch.sigmoid}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE)


def numbers(seed: int, dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [one.div(max(1, one.shape[-2]) ** 0.5 if one.dim() == 3 else 1).to(dtype).to(DEVICE) for one in made]


def each(x: Tensor, weight: Tensor, slots: Tensor) -> Tensor:
    """x·W[slot] in float64, a row at a time."""
    return torch.stack([row.double() @ weight[slot].double() for row, slot in zip(x, slots, strict=True)])


def off(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).abs().max() / expected.abs().max())


@DTYPES
@EXAMPLES
@given(
    slots=st.lists(st.integers(0, SLOTS - 1), min_size=1, max_size=6), per=st.sampled_from([1, 2, 16, 33]),
    deep=SIZES, wide=SIZES, added=st.sampled_from(["bias", "onto", "neither"]),
)  # fmt: skip
def test_product(dtype: torch.dtype, slots: list[int], per: int, deep: int, wide: int, added: str) -> None:
    rows = len(slots) * per
    x, weight, bias, onto = numbers(0, dtype, (rows, deep), (SLOTS, deep, wide), (SLOTS, wide), (rows, wide))
    own = torch.tensor(slots, device=DEVICE)
    of_rows = own.repeat_interleave(per)
    expected = each(x, weight, of_rows)
    expected += {"bias": bias[of_rows], "onto": onto, "neither": torch.zeros_like(onto)}[added].double()
    given_ = {"bias": (bias, None), "onto": (None, onto), "neither": (None, None)}[added]
    found = bank_triton.slot_product(x, weight, *given_, own)
    assert found.dtype is dtype
    assert off(found, expected) < TOLERANCE[dtype]


@DTYPES
@EXAMPLES
@given(
    slots=st.lists(st.integers(0, SLOTS - 1), min_size=1, max_size=6), per=st.sampled_from([1, 2, 16, 33]),
    width=st.sampled_from([1, 48]), deep=SIZES, name=st.sampled_from(list(NAMES)),
)  # fmt: skip
def test_bottleneck(dtype: torch.dtype, slots: list[int], per: int, width: int, deep: int, name: str) -> None:
    shapes = ((len(slots) * per, deep), (SLOTS, deep, width), (SLOTS, width), (SLOTS, width, deep), (SLOTS, deep))
    x, down, start, up, constant = numbers(1, dtype, *shapes)
    own = torch.tensor(slots, device=DEVICE)
    of_rows = own.repeat_interleave(per)
    z = NAMES[name](each(x, down, of_rows) + start[of_rows].double())
    expected = each(z, up, of_rows) + constant[of_rows].double()
    found = bank_triton.slot_bottleneck(x, down, start, up, constant, name, own)
    assert off(found, expected) < TOLERANCE[dtype]


def test_every_activation_of_a_kernel_is_one_of_ours() -> None:
    assert set(NAMES) == set(bank_triton.ACTIVATIONS)
    assert {kernel_of(activation(name).forward) for name in NAMES} == set(bank_triton.ACTIVATIONS)
    assert kernel_of(activation("leakyrelu").forward) is None


def test_columns_of_a_wider_tensor_are_read_in_place() -> None:
    x, weight = numbers(2, torch.float32, (6, 20), (SLOTS, 16, 8))
    slots = torch.tensor([1, 3, 1], device=DEVICE)
    found = bank_triton.slot_product(x[:, :16], weight, None, None, slots)
    assert off(found, each(x[:, :16], weight, slots.repeat_interleave(2))) < 1e-6


def test_what_other_items_do_changes_no_bit_of_mine() -> None:
    x, weight = numbers(3, torch.float32, (8, 64), (SLOTS, 64, 48))
    found: list[Any] = []
    for others in ([0, 1], [4, 5]):
        slots = torch.tensor([others[0], 2, others[1], 2], device=DEVICE)
        mixed = x.clone()
        mixed[:2] += others[0]
        found.append(bank_triton.slot_product(mixed, weight, None, None, slots)[2:4])
    assert torch.equal(*found)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the kernels do what they can, on a CPU too, where the interpreter runs them."""
    try_kernels(DEVICE)
    if not ON_GPU:
        for room in (bank_bottleneck, bank_product):
            monkeypatch.setattr(room, "has_kernel", lambda x, weight: x.dtype is weight.dtype)
        plain = {"slot_product": bank_triton.slot_product, "slot_bottleneck": bank_triton.slot_bottleneck}
        monkeypatch.setattr(bank_product, "slot_product", plain["slot_product"])
        monkeypatch.setattr(bank_bottleneck, "slot_bottleneck", plain["slot_bottleneck"])
    monkeypatch.setattr(bank_measure, "_CHOSEN", {})


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("fused", ["relu", None])
@pytest.mark.parametrize("per", [1, 5])
def test_every_way_to_a_bottleneck_is_the_same(fused: str | None, per: int) -> None:
    slots = [1, 4, 1]
    x, down, start, up, constant = numbers(
        4, torch.float32, (3 * per, 32), (SLOTS, 32, 8), (SLOTS, 8), (SLOTS, 8, 32), (SLOTS, 32)
    )
    of_rows = torch.tensor(slots, device=DEVICE).repeat_interleave(per)
    expected = each(torch.relu(each(x, down, of_rows) + start[of_rows].double()), up, of_rows)
    expected += constant[of_rows].double()

    def made(routing: Any) -> Tensor:
        return bottleneck(x, (down, start), torch.relu, (up, constant), routing, fused)

    assert off(made(Routing(tuple(slots))), expected) < 1e-6, "as measured"
    assert off(made(Traced(torch.tensor(slots, device=DEVICE))), expected) < 1e-6, "as data"
    torch.use_deterministic_algorithms(True)
    try:
        assert off(made(Routing(tuple(slots))), expected) < 1e-6, "without measuring"
    finally:
        torch.use_deterministic_algorithms(False)
    assert any("relu" in kind for kind in bank_measure._CHOSEN) is (fused is not None)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("made", [Routing, lambda slots: Traced(torch.tensor(slots, device=DEVICE))])
def test_a_gradient_goes_past_the_kernels(made: Any) -> None:
    x, down, start, up, constant = numbers(
        5, torch.float32, (2, 16), (SLOTS, 16, 8), (SLOTS, 8), (SLOTS, 8, 16), (SLOTS, 16)
    )
    x.requires_grad_()
    bottleneck(x, (down, start), torch.relu, (up, constant), made((2, 3)), "relu").sum().backward()
    rows = [
        (down[slot] * (x[row].detach() @ down[slot] + start[slot] > 0)) @ up[slot].sum(1)
        for row, slot in enumerate((2, 3))
    ]
    torch.testing.assert_close(x.grad, torch.stack(rows), rtol=1e-4, atol=1e-5)


def test_small_and_broken_numbers_pass_through_an_activation() -> None:
    eye = torch.eye(16, device=DEVICE).unsqueeze(0)
    zero = torch.zeros(1, 16, device=DEVICE)
    slots = torch.zeros(1, dtype=torch.long, device=DEVICE)
    x = torch.linspace(-8.0, 8.0, 1 * 16, device=DEVICE).view(1, 16)
    for scale in (1e-5, 1e-2, 0.0125, 1.0):
        found = bank_triton.slot_bottleneck(x * scale, eye, zero, eye, zero, "tanh", slots)
        torch.testing.assert_close(found.double(), torch.tanh((x * scale).double()), rtol=1e-6, atol=0)
    x[0, 3] = torch.nan
    assert torch.isnan(bank_triton.slot_bottleneck(x, eye, zero, eye, zero, "relu", slots)).any()
