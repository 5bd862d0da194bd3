"""Non-linearities by the names people write: transformers' table and two of AdapterHub's own spellings.

Knows nothing of the modules that use them.
"""

from torch import nn
from transformers.activations import ACT2FN

ACTIVATIONS = tuple(sorted({*ACT2FN, "leakyrelu", "swish"}))


def activation(name: str) -> nn.Module:
    """A non-linearity by its name in transformers' table; `swish` is SiLU, `leakyrelu` has torch's slope of 0.01."""
    name = name.lower()
    if name == "leakyrelu":
        return nn.LeakyReLU()
    return ACT2FN["silu" if name == "swish" else name]  # type: ignore[no-any-return]
