"""torch.compile for the frozen trunk: one graph for every routing of a batch.

A graph is traced for a *program shape*: the levels of the rows, the banks that they are in (kinds of units, members,
width classes), rows and tokens. Which adapter a row runs is a number in a tensor, and its weights lie in a slab; both
are data. So another routing, another adapter in a slot, or rows without one run the same graph. What has no slot is
traced with its weights as they are, once for each such composition.
"""

from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import nn

from graftwork.compose.plan import Planner
from graftwork.core.backbone import Backbone


def reserve(planner: Planner, backbone: Backbone, slots: int) -> None:
    """Make room for that many adapters of each kind in what mixed batches run from, which else grows by doubling."""
    planner.reserve(slots)


def compile_trunk(
    planner: Planner,
    backbone: Backbone,
    *,
    slots: int = 64,
    backend: str | Callable[..., Any] = "inductor",
    mode: str | None = None,
    dynamic: bool | None = None,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Compile the frozen trunk, without breaks in its graph; planning and heads stay as they are.

    With `execution` "banked" a graph serves every batch of its program shape; with "auto" batches of one composition
    have graphs of their own. slots: how many adapters a bank has room for; one that must grow later is traced again.
    The others are those of torch.compile; `mode="reduce-overhead"` asks for CUDA graphs. Call it when the adapters of
    every *kind* have been added: hooks that an adapter of a new kind needs are traced once more.
    """
    planner.reserve(slots)
    given = None if options is None else dict(options)
    trunk = backbone.trunk
    trunk._compiled_call_impl = torch.compile(
        _own_call(trunk), fullgraph=True, backend=backend, mode=mode, dynamic=dynamic, options=given
    )


def _own_call(trunk: nn.Module) -> Callable[..., Any]:
    """A trunk's call, uncompiled, in a function with a code object that no other has.

    torch keeps graphs by code object, which all models of a class share, and does not look at hooks when it picks one:
    the graph of a bare frozen model, compiled before, would be taken for this trunk and leave the adapters out.
    """
    plain: Callable[..., Any] = trunk._call_impl  # not the trunk itself: that is what is compiled

    def call(*args: Any, **kwargs: Any) -> Any:
        return plain(*args, **kwargs)

    return FunctionType(call.__code__.replace(), call.__globals__, call.__name__, None, call.__closure__)
