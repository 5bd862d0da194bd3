"""A backbone with every hook of every sub-layer, for tests that send a route of their own through it."""

from typing import Any

from torch import nn

from graftwork.core.backbone import Backbone
from graftwork.core.families import Family
from graftwork.core.probe import open_sublayers


def hooked(model: nn.Module, family: Family | None = None, probe: Any = None) -> Backbone:
    """What `Backbone` makes, with hooks as if something that uses everything were attached at each sub-layer."""
    backbone = Backbone(model, family, probe)
    open_sublayers(backbone)
    return backbone
