"""Custom heads: a module of the user's own in the place of a head.

    module(hidden (n, T, D), mask (n, T) or None) -> logits        module.loss(logits, labels) -> loss, where it has one

A module has no description that another process could build it from, so it cannot be packaged; a factory that is
registered under a name can, wherever the same name is registered.
"""

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn

from graftwork.core.heads import NOTHING, Beside, Head, HeadConfig, Inverse
from graftwork.errors import AdapterError

Factory = Callable[..., nn.Module]  # factory(width, **arguments) -> module


class CustomHead(Head):
    """Wraps a module."""

    def __init__(self, module: nn.Module, config: HeadConfig) -> None:
        super().__init__(config)
        if not isinstance(module, nn.Module):
            raise AdapterError(f"a custom head is a torch module, not {type(module).__name__}")
        self.module = module

    def forward(
        self, hidden: Tensor, mask: Tensor | None = None, beside: Beside = NOTHING, inverse: Inverse | None = None
    ) -> Tensor:
        """Whatever the module makes of hidden (n, T, D) and mask (n, T): one tensor with n rows."""
        logits: Tensor = self.module(hidden, mask)
        return logits

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The module's own loss. Raises AdapterError where it has none."""
        own = getattr(self.module, "loss", None)
        if own is None:
            raise AdapterError(
                f"the custom head {type(self.module).__name__} has no method loss(logits, labels); give it one, or "
                "leave labels out"
            )
        return cast(Tensor, own(logits, labels))


def made_custom(config: HeadConfig, width: int, factories: dict[str, Factory]) -> CustomHead:
    """The custom head that a configuration names. Raises AdapterError for a name that is not registered."""
    if config.custom not in factories:
        raise AdapterError(
            f"no custom head is registered as {config.custom!r}; register it with register_custom_head(name, factory). "
            f"Registered are: {', '.join(sorted(factories)) or 'none yet'}"
        )
    arguments: dict[str, Any] = dict(config.arguments)
    return CustomHead(factories[config.custom](width, **arguments), config)
