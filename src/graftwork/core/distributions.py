"""How the matrices of bottlenecks begin: distributions by AdapterHub's names.

    bert          N(0, 0.02)
    mam_adapter   down: Kaiming uniform with a = √5, which is U(-1/√D, 1/√D); up: zero
    houlsby       N(0, 0.01) cut at 2σ
    adapter_bert  N(0, 0.001) cut at 2σ

Knows nothing of the modules that the weights are for.
"""

import math

import torch
from torch import Tensor, nn

INITS = ("bert", "mam_adapter", "houlsby", "adapter_bert")
_CUT = {"houlsby": 1e-2, "adapter_bert": 1e-3}


def begin(weight: Tensor, init: str, source: torch.Generator | None, *, up: bool = False) -> None:
    """Fill a matrix in place as the named initialisation begins it; up: it writes the stream instead of reading it."""
    if init == "bert":
        nn.init.normal_(weight, std=0.02, generator=source)
    elif init in _CUT:
        std = _CUT[init]
        nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std, generator=source)
    elif up:
        nn.init.zeros_(weight)
    else:
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=source)


def begin_linear(layer: nn.Linear, init: str, source: torch.Generator | None, *, up: bool = False) -> nn.Linear:
    """The layer itself, with its weight begun and its bias at zero."""
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    begin(layer.weight, init, source, up=up)
    return layer
