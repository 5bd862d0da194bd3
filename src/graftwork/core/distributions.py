"""How the matrices of bottlenecks begin: distributions by AdapterHub's names.

    bert          N(0, 0.02)
    mam_adapter   down: Kaiming uniform with a = √5, which is U(-1/√D, 1/√D); up: zero
    houlsby       N(0, 0.01) cut at 2σ
    adapter_bert  N(0, 0.001) cut at 2σ

Those that have a deviation can be given another one (Houlsby et al. 2019, section 3.6, vary it from 1e-7 to 1).

Knows nothing of the modules that the weights are for.
"""

import math

import torch
from torch import Tensor, nn

INITS = ("bert", "mam_adapter", "houlsby", "adapter_bert")
DEVIATIONS = {"bert": 0.02, "houlsby": 1e-2, "adapter_bert": 1e-3}


def begin(
    weight: Tensor, init: str, source: torch.Generator | None, *, up: bool = False, std: float | None = None
) -> None:
    """Fill a matrix in place as the named initialisation begins it; up: it writes the stream instead of reading it.

    std: another deviation than the named one's; of no meaning where that has none.
    """
    deviation = DEVIATIONS.get(init, 0.0) if std is None else std
    if init == "bert":
        nn.init.normal_(weight, std=deviation, generator=source)
    elif init in DEVIATIONS:
        nn.init.trunc_normal_(weight, std=deviation, a=-2 * deviation, b=2 * deviation, generator=source)
    elif up:
        nn.init.zeros_(weight)
    else:
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=source)


def begin_linear(
    layer: nn.Linear, init: str, source: torch.Generator | None, *, up: bool = False, std: float | None = None
) -> nn.Linear:
    """The layer itself, with its weight begun, as `begin` has it, and its bias at zero."""
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    begin(layer.weight, init, source, up=up, std=std)
    return layer
