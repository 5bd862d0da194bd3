"""Where the kernels of a bank run: builds of torch for GPUs bring Triton along.

Whether they do is tried once for each GPU, before anything needs them: Triton wants a C compiler, and a card that has
the types and the room.
"""

import warnings

import torch
from torch import Tensor

from graftwork.core.accelerator import finish
from graftwork.errors import in_a_line

try:
    from graftwork.compose import bank_triton as bank_triton
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
        finish(device)
        _RUN[number] = True
    except Exception as error:  # whatever a compiler, a driver or a card says
        _RUN[number] = False
        warnings.warn(
            f"Triton's kernels do not run on {device}, and batches that mix adapters are slower: {in_a_line(error)}",
            stacklevel=2,
        )


def has_kernel(x: Tensor, weight: Tensor) -> bool:
    """Whether a Triton kernel can multiply the two, as far as `try_kernels` has found."""
    return x.is_cuda and x.dtype is weight.dtype and x.dtype in _DTYPES and _RUN.get(x.device.index, False)
