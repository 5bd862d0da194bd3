"""A whole bottleneck of a bank, f(x·D[slot] + d[slot])·U[slot] + u[slot]: two products, or one kernel on a GPU.

The kernel (`bank_triton.py`) keeps z on the chip and is one launch, which counts where a site has few tokens. With many
tokens two products may be quicker, so that it is measured, as for one product. Compiled graphs always take the kernel.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from graftwork.compose.bank_kernels import bank_triton, has_kernel
from graftwork.compose.bank_measure import quickest
from graftwork.compose.bank_product import learns, product
from graftwork.compose.bank_slots import Routing, Traced
from graftwork.core.activations import operator_of

_WIDEST = 512  # bytes of a row of z: the kernel keeps blocks of them on the chip
_IN_KERNEL: dict[object, str] = {
    torch.relu: "relu",
    torch.tanh: "tanh",
    torch.sigmoid: "sigmoid",
    torch._C._nn.silu: "silu",
    functional.gelu: "gelu",
}


def bottleneck(
    x: Tensor,
    inner: tuple[Tensor, Tensor],
    activation: Callable[[Tensor], Tensor],
    outer: tuple[Tensor, Tensor],
    routing: Routing | Traced,
    fused: str | None,
) -> Tensor:
    """f(x·D[slot] + d[slot])·U[slot] + u[slot], (N, O): two products, or one kernel.

    fused: what `kernel_of` says of f.
    """

    def parts() -> Tensor:
        return product(activation(product(x, *inner, None, routing)), *outer, None, routing)

    if fused is None or not has_kernel(x, outer[0]) or inner[0].shape[2] * x.element_size() > _WIDEST or learns(x):
        return parts()
    if isinstance(routing, Traced):
        return cast(Tensor, slot_bottleneck(x, *inner, *outer, fused, routing.slots))
    slots = routing.on(x.device)

    def kernel() -> Tensor:
        return bank_triton.slot_bottleneck(x, *inner, *outer, fused, slots)  # past torch's dispatcher

    if torch.are_deterministic_algorithms_enabled():
        return kernel()
    sizes = len(slots), x.shape[0] // len(slots)  # alike is what has as many bits: not every length is measured
    kind = (fused, x.device, x.dtype, *inner[0].shape[1:], outer[0].shape[2], *map(int.bit_length, sizes))
    way = routing.ways.get(kind)
    if way is None:
        way = routing.ways[kind] = quickest(kind, {"kernel": kernel, "parts": parts}, x.device)
    return kernel() if way == "kernel" else parts()


def kernel_of(activation: Callable[[Tensor], Tensor]) -> str | None:
    """The name by which a bottleneck's kernel knows a non-linearity; None for one that it does not know."""
    return _IN_KERNEL.get(operator_of(activation))


@torch.library.custom_op("graftwork::slot_bottleneck", mutates_args=())
def slot_bottleneck(
    x: Tensor, down: Tensor, start: Tensor, up: Tensor, constant: Tensor, activation: str, slots: Tensor
) -> Tensor:
    """The kernel as one operation of a compiled graph."""
    return bank_triton.slot_bottleneck(x, down, start, up, constant, activation, slots)


@slot_bottleneck.register_fake
def _(x: Tensor, down: Tensor, start: Tensor, up: Tensor, constant: Tensor, activation: str, slots: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], up.shape[2])
