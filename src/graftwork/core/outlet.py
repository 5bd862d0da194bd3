"""Where the last hidden state of a module comes out, which heads read; a trace tells.

It is the last tensor of the stream's shape (B, T, D) that one module returned and from which the output was made; of
the modules that return it, the outermost. For a model without a head of its own that is the model itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from graftwork.core.example import example_of
from graftwork.core.families import Family
from graftwork.core.trace import Trace, trace
from graftwork.errors import BackboneError


@dataclass(frozen=True)
class Outlet:
    """path: of the module that returns the last hidden state, "" for the whole, None where there is none; width: D."""

    path: str | None
    width: int


def outlet(seen: Trace, shape: tuple[int, ...]) -> Outlet:
    """The outlet of a model whose stream has this shape, (B, T, D)."""
    whole = seen.calls[-1]
    reached = set() if whole.first is None else {seen.root(node) for node in seen.before(whole.first)}
    for root in sorted(reached & seen.outputs.keys(), reverse=True):
        calls = [call for call in seen.outputs[root] if sum(other.module is call.module for other in seen.calls) == 1]
        if calls and calls[-1].made is not None and seen.nodes[calls[-1].made].shape == shape:
            return Outlet(calls[-1].path, shape[-1])
    return Outlet(None, shape[-1])


def outlet_of(model: nn.Module, family: Family, probe: Mapping[str, Any] | None = None) -> Outlet:
    """The outlet of a module whose layers are known. Raises BackboneError where they do not run."""
    training = model.training
    model.eval()
    try:
        seen = traced(model, dict(example_of(model) if probe is None else probe))
    finally:
        model.train(training)
    layers = family.stacks[-1].layers
    calls = [call for call in seen.calls if call.path and call.path.rpartition(".")[0] == layers]
    if not calls or calls[-1].first is None:
        raise BackboneError(f"nothing ran at {layers!r}, where family= says that the layers of the last stack are")
    return outlet(seen, seen.nodes[calls[-1].first].shape)


def traced(model: nn.Module, inputs: Mapping[str, Any]) -> Trace:
    """The trace of one forward. Raises BackboneError where there are no weights, or the model refuses the probe."""
    lent = any(hasattr(module, "_hf_hook") for module in model.modules())  # offloaded weights come when they are needed
    if not lent and any(parameter.is_meta for parameter in model.parameters()):
        raise BackboneError(
            f"a {type(model).__name__} has no row, and its sites cannot be discovered without weights (they are on the "
            "meta device): load it, or describe its layers with family="
        )
    try:
        return trace(model, inputs)
    except (ValueError, TypeError, RuntimeError, IndexError, AttributeError) as error:
        shapes = {name: tuple(one.shape) if isinstance(one, Tensor) else one for name, one in inputs.items()}
        raise BackboneError(
            f"a {type(model).__name__} did not run on the probe {shapes}: {error}. Give one forward's arguments as "
            "probe={...}, two rows and a few tokens, or describe its layers with family="
        ) from error
