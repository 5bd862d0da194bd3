"""The kernels of a bank, as operations of a graph, where they run: builds of torch for GPUs bring Triton along.

Whether they do is tried once for each GPU, before anything needs them: Triton wants a C compiler, and a card that has
the types and the room.
"""

import warnings

import torch
from torch import Tensor

try:
    from graftwork.compose import bank_triton
except ImportError:
    bank_triton = None  # type: ignore[assignment]
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_RUN: dict[int, bool] = {}  # number of a GPU -> whether the kernels run on it


def try_kernels(device: torch.device) -> None:
    """Find out whether the kernels run on a device; once for each. Warns of a GPU that they do not run on."""
    if device.type != "cuda" or bank_triton is None:
        return
    number = torch.cuda.current_device() if device.index is None else device.index
    if number in _RUN:
        return
    try:
        x, slots = torch.ones(2, 16, device=device), torch.zeros(2, dtype=torch.long, device=device)
        weight, bias = torch.ones(1, 16, 16, device=device), torch.ones(1, 16, device=device)
        bank_triton.slot_product(x, weight, bias, None, slots)
        bank_triton.slot_bottleneck(x, weight, bias, weight, bias, "relu", slots)
        torch.cuda.synchronize(device)
        _RUN[number] = True
    except Exception as error:  # whatever a compiler, a driver or a card says
        _RUN[number] = False
        reason = " ".join(str(error).split())[:200]
        warnings.warn(
            f"Triton's kernels do not run on {device} ({type(error).__name__}: {reason}); batches that mix adapters "
            "run without them, slower",
            stacklevel=2,
        )


def has_kernel(x: Tensor, weight: Tensor) -> bool:
    """Whether a Triton kernel can multiply the two, as far as `try_kernels` has found."""
    return x.is_cuda and x.dtype is weight.dtype and x.dtype in _DTYPES and _RUN.get(x.device.index, False)


def product_on_gpu(x: Tensor, weight: Tensor, bias: Tensor | None, onto: Tensor | None, slots: Tensor) -> Tensor:
    """x·W[slot] + b[slot], or added to `onto` (N, O), or neither: (N, O)."""
    return bank_triton.slot_product(x, weight, bias, onto, slots)


def bottleneck_on_gpu(
    x: Tensor, down: Tensor, start: Tensor, up: Tensor, constant: Tensor, activation: str, slots: Tensor
) -> Tensor:
    """f(x·D[slot] + d[slot])·U[slot] + u[slot], (N, O)."""
    return bank_triton.slot_bottleneck(x, down, start, up, constant, activation, slots)


@torch.library.custom_op("graftwork::slot_bottleneck", mutates_args=())
def slot_bottleneck(
    x: Tensor, down: Tensor, start: Tensor, up: Tensor, constant: Tensor, activation: str, slots: Tensor
) -> Tensor:
    """The same as one operation of a compiled graph."""
    return bottleneck_on_gpu(x, down, start, up, constant, activation, slots)


@slot_bottleneck.register_fake
def _(x: Tensor, down: Tensor, start: Tensor, up: Tensor, constant: Tensor, activation: str, slots: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], up.shape[2])
