"""The kernels of a bank, as operations of a graph, where Triton is there: builds of torch for GPUs bring it along."""

import torch
from torch import Tensor

try:
    from graftwork.compose import bank_triton
except ImportError:
    bank_triton = None  # type: ignore[assignment]
_TRITON = bank_triton is not None
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def has_kernel(x: Tensor, weight: Tensor) -> bool:
    """Whether a Triton kernel can multiply the two."""
    return _TRITON and x.is_cuda and x.dtype is weight.dtype and x.dtype in _DTYPES


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
