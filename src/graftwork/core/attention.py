"""Keys and values put in front of an attention: the one place that knows transformers' attention interface.

    attention(Q, [K_p; K], [V_p; V])        the new positions are before all others and seen by every query

An attention module looks its function up by a word in its configuration. While a module with positions runs, that word
is `graftwork`: a function of ours, registered once under that name, which lengthens keys, values and mask and calls the
function that the model would have called. Positions come after rotary embeddings and after the cache: they move nothing
and are never cached. Attentions that do not ask it: `core/attention_own.py`, or refused.
"""

import copy
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from graftwork.core.hooks import Runtime
from graftwork.core.locate import Located
from graftwork.core.site import Positions, Reading
from graftwork.errors import AdapterError, BackboneError

_NAME = "graftwork"
_ABLE = ("sdpa", "eager")  # functions that take a mask of any form


class KvTap:
    """The hooks of one attention module: they ask the route for positions and lend the module another function."""

    def __init__(self, located: Located, runtime: Runtime) -> None:
        self.index = located.site.index
        self.name = located.site.name
        self.runtime = runtime
        self.module = located.modules["attention"]
        self.first = located.first.get("attention", self.module)
        self._own: Any = None  # the module's configuration while it is lent another
        self._lent: tuple[Any, Any] | None = None  # a configuration and its copy with our word in it

    def place(self) -> None:
        """Register the hooks."""
        if _NAME not in ALL_ATTENTION_FUNCTIONS:
            ALL_ATTENTION_FUNCTIONS.register(_NAME, _attend)
        self.module.register_forward_pre_hook(self.begin, with_kwargs=True)
        self.module.register_forward_hook(self.end, always_call=True)

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Forward pre-hook: keep the positions for our function, and have it called."""
        found = asked(self.runtime, self.index, args, kwargs)
        if found is None:
            return
        config: Any = getattr(module, "config", None)
        if config is None:
            raise self._deaf()
        check_able(config)
        if self._lent is None or self._lent[0] is not config:
            lent: Any = copy.copy(config)
            lent._attn_implementation_internal = _NAME  # not through the property: that would reach shared parts
            self._lent = (config, lent)
        self.runtime.prefixes[self.index] = found
        self._own, module.config = config, self._lent[1]

    def end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Forward hook, also after an error: give the module its configuration back."""
        if self._own is None:
            return
        module.config, self._own = self._own, None
        if self.runtime.prefixes.pop(self.index, None) is not None and output is not None:
            raise self._deaf()

    def _deaf(self) -> BackboneError:
        return BackboneError(
            f"site {self.name}: a {type(self.module).__name__} does not call transformers' attention interface, so "
            "nothing can be put in front of its keys and values; use another method on this model"
        )

    def original(self) -> Callable[..., Any]:
        """The function that the module would have called."""
        name = self._own._attn_implementation
        default = getattr(sys.modules[type(self.module).__module__], "eager_attention_forward", None)
        found = ALL_ATTENTION_FUNCTIONS.get_interface(name, default)
        if found is None:
            raise BackboneError(f"a {type(self.module).__name__} has no eager attention; load it with sdpa attention")
        return found  # type: ignore[no-any-return]


def asked(runtime: Runtime, site: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Positions | None:
    """What the route puts in front of keys and values at a site, for what enters its attention, or None."""
    if runtime.route is None:
        return None
    entering = args[0] if args else kwargs.get("hidden_states")
    assert isinstance(entering, Tensor)
    return runtime.route.positions(site, Reading(entering, entering, None, mask=runtime.mask))


def check_able(config: Any) -> None:
    """Raise AdapterError for a model whose attention takes no mask of any form."""
    if config._attn_implementation not in _ABLE:
        raise AdapterError(
            f"prefixes need attention by one of {', '.join(_ABLE)}, and this model runs "
            f"{config._attn_implementation!r}; load it with attn_implementation='sdpa'"
        )


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **options: Any,
) -> Any:
    tap = next(
        owner
        for hook in module._forward_pre_hooks.values()
        if isinstance(owner := getattr(hook, "__self__", None), KvTap)
    )
    found = tap.runtime.prefixes.pop(tap.index)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    mask = lengthened(attention_mask, found, (query.shape[2], key.shape[2]), causal)
    if position_bias is not None:
        options["position_bias"] = _biased(tap.first, position_bias, found, key)
    keys, values = in_front(found.keys, key), in_front(found.values, value)
    # causality is in the mask by now: the function must not work it out again from the longer keys
    return tap.original()(module, query, keys, values, mask, is_causal=False, **options)


def in_front(positions: Tensor, own: Tensor) -> Tensor:
    """Positions (B or 1, H, P, W) in front of keys or values (B, H or its multiple, T, W): (B, …, P + T, W)."""
    if own.shape[1] != positions.shape[1]:  # keys are repeated for their group of queries already
        positions = positions.repeat_interleave(own.shape[1] // positions.shape[1], dim=1)
    return torch.cat([positions.to(own).expand(own.shape[0], -1, -1, -1), own], dim=2)


def lengthened(mask: Tensor | None, found: Positions, sizes: tuple[int, int], causal: bool) -> Tensor | None:
    """The mask over the new positions and the old ones, (B or 1, H or 1, Q, P + K), or None where all is seen.

    sizes: how many queries and keys there are without them.
    """
    (queries, keys), size, device = sizes, found.keys.shape[2], found.keys.device
    if mask is None:
        if causal and queries > 1:
            seen = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
            mask = seen[None, None]
        elif found.real is None:
            return None
        else:
            mask = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=device)
    mask = mask[..., :keys]
    rows = found.keys.shape[0] if found.real is not None else mask.shape[0]
    real = torch.ones(rows, size, dtype=torch.bool, device=device) if found.real is None else found.real
    front = real[:, None, None, :].expand(rows, mask.shape[1], mask.shape[2], size)
    if mask.dtype != torch.bool:
        front = torch.zeros_like(front, dtype=mask.dtype).masked_fill(~front, torch.finfo(mask.dtype).min)
    return torch.cat([front, mask.expand(rows, -1, -1, -1)], dim=3)


def _biased(first: nn.Module, bias: Tensor, found: Positions, key: Tensor) -> Tensor:
    """A position bias (1, H, Q, K) with none for the new positions; where these are counted, the first layer of the
    stack, which has the table, works it out again over all of them."""
    size, queries, keys = found.keys.shape[2], bias.shape[2], key.shape[2]
    if found.counted and getattr(first, "has_relative_attention_bias", False):
        counted = first.compute_bias(queries, size + keys, device=key.device, past_seen_tokens=keys - queries)  # type: ignore[operator]
        return counted  # type: ignore[no-any-return]
    return torch.cat([bias.new_zeros(*bias.shape[:3], size), bias], dim=3)
