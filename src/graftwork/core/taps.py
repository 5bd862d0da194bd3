"""The hooks of sites that are no sub-layer: frozen linears, their inputs, embeddings, prompts, the vocabulary.

    linear   forward hook      y + Δ, on the columns that are meant
    input    forward pre-hook  x + Δ, before the linear reads it
    embed    forward hook      e + Δ
    head     forward pre-hook  the inverse of what happened at the embed site, before the vocabulary projection

They are placed when the first adapter that needs one is added, for an unused hook costs what a dispatch costs: compile
a model after that. Hooks are bound methods: `deepcopy` gives a copy hooks of its own. Those of prompts are in
`core/embedded.py`, those of keys and values in `core/attention*.py`.
"""

from collections.abc import Callable
from typing import Any, Protocol, cast

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from graftwork.core.attention import KvTap
from graftwork.core.attention_own import CacheTap, RelativeTap
from graftwork.core.embedded import Embeddings, PromptTap, replaced
from graftwork.core.hooks import Runtime
from graftwork.core.locate import Located
from graftwork.core.site import Reading
from graftwork.errors import BackboneError


class Tap(Protocol):
    """The hooks of one site."""

    def place(self) -> None:
        """Register the hooks."""
        ...


class LinearTap:
    """Changes the output of a frozen linear, or the part of it that is one of query, key and value."""

    def __init__(self, located: Located, runtime: Runtime) -> None:
        self.index = located.site.index
        self.name = located.site.name
        self.runtime = runtime
        self.module = located.modules["linear"]
        self.columns = located.columns

    def place(self) -> None:
        """Register the hook, before that of a sub-layer which ends in this linear and reads what it gives."""
        self.module.register_forward_hook(self.change, prepend=True)

    def weight(self) -> Tensor:
        """The frozen weight of these columns, (width, inputs), in floating point."""
        return weight_of(self.module, self.columns)

    def change(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Forward hook: (…, D) of the linear's output with the change in its columns."""
        runtime = self.runtime
        if runtime.route is None:
            return None
        part = output if self.columns is None else output[..., self.columns]
        reading = Reading(
            _in_rows(part, runtime), _in_rows(args[0], runtime), None, weight=self.weight, mask=runtime.mask
        )
        delta = runtime.route.delta(self.index, reading)
        if delta is None or delta.before is None:
            return None
        part = part + delta.before.view_as(part)
        if self.columns is None:
            return part
        changed = output.clone()
        changed[..., self.columns] = part
        return changed


class InputTap:
    """Changes what a frozen linear reads."""

    def __init__(self, located: Located, runtime: Runtime) -> None:
        self.index = located.site.index
        self.runtime = runtime
        self.module = located.modules["linear"]

    def place(self) -> None:
        """Register the hook."""
        self.module.register_forward_pre_hook(self.change)

    def change(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Forward pre-hook: the linear's input (B, T, inputs) with the change."""
        runtime = self.runtime
        if runtime.route is None:
            return None
        entering = _in_rows(args[0], runtime)
        delta = runtime.route.delta(self.index, Reading(entering, entering, None, mask=runtime.mask))
        if delta is None or delta.before is None:
            return None
        return (args[0] + delta.before.view_as(args[0]), *args[1:])


class EmbedTap:
    """Changes the embeddings (B, T, D)."""

    def __init__(self, located: Located, runtime: Runtime) -> None:
        self.at = Embeddings(located, runtime)

    def place(self) -> None:
        """Register the hooks."""
        self.at.place_with(self.change)

    def change(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Forward hook: e + Δ."""
        found = self.at.taken(output)
        if found is None:
            return None
        runtime = self.at.runtime
        assert runtime.route is not None
        delta = runtime.route.delta(self.at.index, Reading(found, found, None, mask=runtime.mask))
        if delta is None or delta.before is None:
            return None
        return replaced(output, found + delta.before)


_TAPS: dict[str, Callable[[Located, Runtime], Tap]] = {
    "linear": LinearTap,
    "input": InputTap,
    "embed": EmbedTap,
    "prompt": PromptTap,
}
_KV_TAPS: dict[str, Callable[[Located, Runtime], Tap]] = {
    "interface": KvTap,
    "cache": CacheTap,
    "relative": RelativeTap,
}


def tap_of(located: Located, runtime: Runtime) -> Tap:
    """The hooks of a site that is no sub-layer, not placed yet."""
    made = _KV_TAPS[located.way] if located.site.place == "kv" else _TAPS[located.site.place]
    return made(located, runtime)


class HeadTap:
    """Undoes the change of an embed site before the model's own vocabulary projection."""

    def __init__(self, site: int, runtime: Runtime, head: nn.Module) -> None:
        self.site = site
        self.runtime = runtime
        self.head = head

    def place(self) -> None:
        """Register the hook."""
        self.head.register_forward_pre_hook(self.change)

    def change(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Forward pre-hook: the inverse of the hidden states (B, T, D)."""
        if self.runtime.route is None:
            return None
        undone = self.runtime.route.inverse(self.site, args[0])
        return None if undone is None else (undone, *args[1:])


def _in_rows(tensor: Tensor, runtime: Runtime) -> Tensor:
    """(B, T, D), also where a block has joined rows and tokens: (B·T, D)."""
    return tensor if tensor.dim() != 2 else tensor.view(runtime.rows, -1, tensor.shape[-1])


def weight_of(module: nn.Module, columns: slice | Tensor | None = None) -> Tensor:
    """A frozen linear's weight, (width, inputs), whatever way it is stored.

    Raises BackboneError for a packed weight that cannot be opened.
    """
    state = getattr(module.weight, "quant_state", None)
    weight = cast(Tensor, module.weight)
    if state is not None:
        from transformers.integrations.bitsandbytes import dequantize_bnb_weight  # imports bitsandbytes, which is slow

        weight = dequantize_bnb_weight(weight, state)
    elif not weight.is_floating_point():
        raise BackboneError(
            f"a {type(module).__name__} holds a packed weight ({weight.dtype}); what needs the frozen weight itself "
            "(DoRA, merging) works on 4-bit bitsandbytes and on floating-point models"
        )
    weight = weight.T if isinstance(module, Conv1D) else weight
    return weight if columns is None else weight[columns]
