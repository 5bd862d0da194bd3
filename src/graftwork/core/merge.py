"""Writing what an adapter does at a frozen linear into the linear's own weights, and taking it out again.

    y = W'·x + b'        W', b' = adapter.merged(W, b)          at the input of a linear: W'ᵀ = adapter.merged(Wᵀ)

This is the one place that changes weights of the base. What they were is kept, not computed back, so `restore` is
exact to the last bit. Only weights that are plain floating-point tensors of one linear each are changed: a packed
(quantised), split or offloaded weight, or one that several modules share, is refused. Knows no name and no method.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from graftwork.core.locate import Columns
from graftwork.errors import AdapterError, BackboneError


@runtime_checkable
class Mergeable(Protocol):
    """A module at a linear whose change is one of the linear's weight and bias."""

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weight (D, inputs) and bias (D,) of the linear that computes what the frozen one and this module do."""
        ...


def merged(module: nn.Module, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """As `Mergeable.merged`. Raises AdapterError for a module that has no such form."""
    if not isinstance(module, Mergeable):
        raise AdapterError(f"what a {type(module).__name__} changes is no change of a weight")
    return module.merged(weight, bias)


@dataclass(frozen=True)
class Spot:
    """Where a module writes: a frozen linear, the columns of its output or all, or what it reads."""

    linear: nn.Module
    columns: Columns | None
    at_input: bool
    adapter: nn.Module


@dataclass(frozen=True)
class Kept:
    """The parameters that were changed, and what they were: (module, its attribute, a copy)."""

    originals: list[tuple[nn.Module, str, Tensor]] = field(default_factory=list)

    def restore(self) -> None:
        """Put every bit back."""
        with torch.no_grad():
            for module, attribute, original in self.originals:
                getattr(module, attribute).copy_(original)


def check(model: nn.Module, spots: Iterable[Spot]) -> None:
    """Raise BackboneError for a linear whose weight is not its own plain tensor."""
    spots = list(spots)
    seen: set[tuple[int, str, bool]] = set()
    owners: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    for spot in spots:
        what, weight = type(spot.linear).__name__, getattr(spot.linear, "weight", None)
        plain = isinstance(weight, nn.Parameter) and type(weight.data) is Tensor and weight.is_floating_point()
        if not isinstance(spot.linear, nn.Linear | Conv1D) or not plain or getattr(weight, "quant_state", None):
            raise BackboneError(
                f"a {what} holds a packed or split weight ({getattr(weight, 'dtype', None)}), which cannot take up a "
                "change and give it back exactly; merge into a base that is loaded in floating point"
            )
        assert isinstance(weight, nn.Parameter)
        if weight.is_meta:
            raise BackboneError(f"the weight of a {what} is not in memory (offloaded); merge into a base that is")
        place = (id(weight), str(spot.columns), spot.at_input)
        if owners.get(id(weight), 1) > 1 or place in seen:
            raise BackboneError(
                f"a {what} is shared by several layers, and one weight cannot hold what differs between them; run the "
                "adapter unmerged"
            )
        seen.add(place)


def write(spots: Iterable[Spot]) -> Kept:
    """Change every linear, each as its adapter says, in turn; all of them or none. Returns what they were."""
    kept = Kept()
    done: set[int] = set()
    try:
        with torch.no_grad():
            for spot in spots:
                if id(spot.linear) not in done:
                    done.add(id(spot.linear))
                    named = [(name, getattr(spot.linear, name)) for name in ("weight", "bias")]
                    kept.originals.extend((spot.linear, name, p.clone()) for name, p in named if p is not None)
                _write(spot)
    except BaseException:
        kept.restore()
        raise
    return kept


def _write(spot: Spot) -> None:
    linear = spot.linear
    weight, bias = linear.weight, linear.bias
    assert isinstance(weight, Tensor)
    rows = weight.T if isinstance(linear, Conv1D) else weight  # (D, inputs), a view
    exact = torch.float32 if weight.device.type == "mps" else torch.float64
    if spot.at_input:
        made, _ = merged(spot.adapter, rows.T.to(exact), None)
        rows.copy_(made.T)
        return
    columns = slice(None) if spot.columns is None else spot.columns
    own = bias[columns].to(exact) if isinstance(bias, Tensor) else None
    made, shifted = merged(spot.adapter, rows[columns].to(exact), own)
    rows[columns] = made.to(rows.dtype)
    if isinstance(bias, Tensor) and shifted is not None:
        bias[columns] = shifted.to(bias.dtype)
