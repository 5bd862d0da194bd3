"""Non-linearities by the names people write: transformers' table and two of AdapterHub's own spellings.

Knows nothing of the modules that use them.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN, GELUActivation, SiLUActivation

ACTIVATIONS = tuple(sorted({*ACT2FN, "leakyrelu", "swish"}))


def activation(name: str) -> nn.Module:
    """A non-linearity by its name in transformers' table; `swish` is SiLU, `leakyrelu` has torch's slope of 0.01."""
    name = name.lower()
    if name == "leakyrelu":
        return nn.LeakyReLU()
    return ACT2FN["silu" if name == "swish" else name]  # type: ignore[no-any-return]


def operator_of(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What the `forward` of a non-linearity calls in the end, where that is one operator; else the function itself."""
    module = getattr(function, "__self__", None)
    if isinstance(module, GELUActivation):
        return functional.gelu if module.act is functional.gelu else function
    return _OPERATORS.get(type(module), function)


_OPERATORS: dict[type, Callable[[Tensor], Tensor]] = {
    nn.ReLU: torch.relu,
    nn.Tanh: torch.tanh,
    nn.Sigmoid: torch.sigmoid,
    SiLUActivation: torch._C._nn.silu,
}
