"""Keys and values put in front of attentions that do not call transformers' attention interface.

    attention(Q, [K_p; K], [V_p; V])        as in `core/attention.py`, by what such a module does ask for

CacheTap, for attentions that join keys and values to those of a cache, an argument `layer_past` (GPT-J, Bloom, Falcon):
for one call the cache is ours, which gives what the real one gives with the positions in front. What a module adds to
its scores by position (`alibi`) is zero for them: they stand where the first token stands, as keys without a rotary
embedding do.

RelativeTap, for DeBERTa's disentangled attention: for one call two methods of the module are ours, its cut into heads
and its bias. The cut puts the positions in front of keys and values, the bias is worked out without them and is zero
for them. In the first DeBERTa one linear makes query, key and value, so queries get longer with the others, and what
comes out is cut again.

Weights, state dict and module tree are as before; after a call, also one that failed, nothing of ours is left in it.
"""

from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from graftwork.core.attention import asked, check_able, in_front, lengthened
from graftwork.core.hooks import Runtime
from graftwork.core.locate import Located
from graftwork.core.site import Positions
from graftwork.errors import BackboneError

_BIASES = ("disentangled_att_bias", "disentangled_attention_bias")  # of the first DeBERTa, of the second


class CacheTap:
    """The hooks of one attention that has a cache: they give it one with the positions in front."""

    def __init__(self, located: Located, runtime: Runtime) -> None:
        self.index = located.site.index
        self.name = located.site.name
        self.runtime = runtime
        self.module = located.modules["attention"]
        self.arguments = tuple(signature(type(self.module).forward).parameters)[1:]
        self._lent: _Front | None = None

    def place(self) -> None:
        """Register the hooks."""
        self.module.register_forward_pre_hook(self.begin, with_kwargs=True)
        self.module.register_forward_hook(self.end, always_call=True)

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Forward pre-hook: the call with our cache, a longer mask and a longer bias."""
        found = asked(self.runtime, self.index, args, kwargs)
        if found is None:
            return None
        if hasattr(module, "config"):
            check_able(module.config)
        given = {**dict(zip(self.arguments, args, strict=False)), **kwargs}
        own, mask = given.get("layer_past"), given.get("attention_mask")
        queries = given["hidden_states"].shape[1]
        keys = mask.shape[-1] if mask is not None else queries + _past(own, module)
        self._lent = given["layer_past"] = _Front(found, own)
        given["attention_mask"] = lengthened(mask, found, (queries, keys), bool(getattr(module, "is_causal", False)))
        if given.get("alibi") is not None:
            given["alibi"] = functional.pad(given["alibi"], (found.keys.shape[2], 0))
        return (), given

    def end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Forward hook, also after an error: what was lent must have been used."""
        lent, self._lent = self._lent, None
        if lent is not None and not lent.asked and output is not None:
            raise BackboneError(
                f"site {self.name}: a {type(module).__name__} did not ask its cache for keys and values"
            )


class _Front:
    """A cache for one call of one attention."""

    def __init__(self, found: Positions, own: Any) -> None:
        self.found, self.own = found, own
        self.asked = False

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """What the real cache gives, (B, H, K, W) each, with the positions in front: (B, H, P + K, W)."""
        self.asked = True
        if self.own is not None:
            keys, values = self.own.update(keys, values, layer)
        return in_front(self.found.keys, keys), in_front(self.found.values, values)


def _past(cache: Any, module: nn.Module) -> int:
    return 0 if cache is None else int(cache.get_seq_length(module.layer_idx))


class RelativeTap:
    """The hooks of one disentangled attention: they lend it a cut into heads and a bias."""

    def __init__(self, located: Located, runtime: Runtime) -> None:
        self.index = located.site.index
        self.name = located.site.name
        self.runtime = runtime
        self.module: Any = located.modules["attention"]
        self.bias = next(name for name in _BIASES if hasattr(type(self.module), name))
        self.arguments = tuple(signature(type(self.module).forward).parameters)[1:]
        self.merged = hasattr(self.module, "in_proj")
        self._found: Positions | None = None
        self._cuts = 0  # how many times the module has asked for a cut in this call
        self._tokens = 0

    def place(self) -> None:
        """Register the hooks."""
        self.module.register_forward_pre_hook(self.begin, with_kwargs=True)
        self.module.register_forward_hook(self.end, always_call=True)

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Forward pre-hook: lend the methods, lengthen the mask."""
        found = asked(self.runtime, self.index, args, kwargs)
        if found is None:
            return None
        given = {**dict(zip(self.arguments, args, strict=False)), **kwargs}
        given["attention_mask"] = self._masked(given["attention_mask"], found)
        self._found, self._cuts = found, 0
        module.__dict__.update({"transpose_for_scores": self.cut, self.bias: self.biased})
        return (), given

    def end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Forward hook, also after an error: take the methods back, and what is too long."""
        found, self._found = self._found, None
        if found is None:
            return None
        for name in ("transpose_for_scores", self.bias):
            module.__dict__.pop(name, None)
        if output is None:
            return None
        if self._cuts < 3:
            raise BackboneError(f"site {self.name}: a {type(module).__name__} did not cut query, key and value in turn")
        if not self.merged:
            return None
        size, (context, weights) = found.keys.shape[2], output
        return context[:, size:], None if weights is None else weights[:, :, size:]

    def cut(self, x: Tensor, *heads: int) -> Tensor:
        """In place of `transpose_for_scores`: query, key and value in turn (first DeBERTa: all three, then the biases
        of query and value), the positions in front of those that they belong to; later ones as they are."""
        made: Tensor = type(self.module).transpose_for_scores(self.module, x, *heads)
        self._cuts += 1
        found = self._found
        assert found is not None
        if self.merged:
            return self._cut_merged(made, found)
        if self._cuts not in (2, 3):
            return made
        front = found.keys if self._cuts == 2 else found.values
        rows = made.view(-1, front.shape[1], *made.shape[1:])  # (B·H, T, W) here
        return in_front(front, rows).flatten(0, 1)

    def _cut_merged(self, made: Tensor, found: Positions) -> Tensor:
        """(B, H, P + T, 3·W) for query, key and value, where the queries in front are nobody's; the value's bias
        (1, H, 1, W) with none in front."""
        if self._cuts == 1:
            self._tokens = made.shape[2]
            return in_front(torch.cat([torch.zeros_like(found.keys), found.keys, found.values], dim=3), made)
        if self._cuts == 3:
            nothing = made.new_zeros(*made.shape[:2], found.keys.shape[2], made.shape[3])
            return torch.cat([nothing, made.expand(-1, -1, self._tokens, -1)], dim=2)
        return made

    def biased(self, query: Tensor, key: Tensor, *others: Any) -> Any:
        """In place of the module's bias: its own for what it knows, zero for the positions."""
        assert self._found is not None
        size = self._found.keys.shape[2]
        own = getattr(type(self.module), self.bias)
        if not self.merged:
            made = own(self.module, query, key[:, size:], *others)
            return functional.pad(made, (size, 0)) if isinstance(made, Tensor) else made
        made = own(self.module, query[:, :, size:], key[:, :, size:], *others)
        return functional.pad(made, (size, 0, size, 0)) if isinstance(made, Tensor) else made

    def _masked(self, mask: Tensor, found: Positions) -> Tensor:
        """The mask (B, 1, T, T), not zero where a query sees a key, over the positions and the old keys."""
        rows, size = mask.shape[0], found.keys.shape[2]
        real = mask.new_ones(rows, size) if found.real is None else found.real.to(mask).expand(rows, -1)
        mask = torch.cat([real[:, None, None].expand(-1, mask.shape[1], mask.shape[2], -1), mask], dim=3)
        return functional.pad(mask, (0, 0, size, 0), value=1) if self.merged else mask
