"""Reparameterised prefixes made flat: the small network is run once, and its keys and values are what is left of it.

The numbers are the same, in the adapter, in its members where it is a union, and in packages made afterwards.
"""

from dataclasses import replace

from torch import nn

from graftwork.compose.parts import SHARED, Parts
from graftwork.core.adapter import MethodConfig
from graftwork.core.backbone import Backbone
from graftwork.core.prefix import MadePrefix, PrefixTuningConfig
from graftwork.core.union import UnionConfig
from graftwork.errors import AdapterError


def eject_prefixes(parts: Parts, backbone: Backbone, name: str) -> None:
    """Make the prefixes of an adapter flat. Raises AdapterError where it has none that a network makes."""
    parts.need_adapter(name)
    config = parts.adapter_configs[name]
    flat = _flat(config)
    if flat == config:
        raise AdapterError(f"adapter {name!r} has no prefixes that a network makes: its configuration is {config!r}")
    semantics = parts.semantics.get(("adapters", name))
    modules = parts.modules_of("adapters", name)
    shared = _left(modules.pop(SHARED, None), config)
    sites = {site.name: site for site in backbone.sites}
    parts.store("adapters", name, {sites[key]: _flattened(module) for key, module in modules.items()}, shared)
    parts.adapter_configs[name] = flat
    if semantics is not None:
        parts.semantics["adapters", name] = semantics


def _flat(config: MethodConfig) -> MethodConfig:
    if isinstance(config, UnionConfig):
        return replace(config, members=tuple(_flat(member) for member in config.members))
    return replace(config, flat=True) if isinstance(config, PrefixTuningConfig) else config


def _flattened(module: nn.Module) -> nn.Module:
    """A site's module with every made prefix in it flat; a union keeps its other members."""
    if isinstance(module, MadePrefix):
        return module.flattened().requires_grad_(module.project.weight.requires_grad)
    if hasattr(module, "members"):
        for index, member in list(module.named_children()):
            module.add_module(index, _flattened(member))
    return module


def _left(shared: nn.Module | None, config: MethodConfig) -> nn.Module | None:
    """What the sites still have in common: that of a union's other members."""
    if not isinstance(config, UnionConfig) or not isinstance(shared, nn.ModuleDict):
        return None
    own = {str(index): member for index, member in enumerate(config.members)}
    left = {
        index: kept
        for index, module in shared.items()
        if (kept := module if own[index].kind not in ("prefix_tuning", "union") else _left(module, own[index]))
        is not None
    }
    return nn.ModuleDict(left) if left else None
