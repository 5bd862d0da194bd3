"""Hooks where embeddings are made: when they act, and how prompts get among them.

An embedding module may serve twice in one forward (T5's dropout), so its hook acts once a call of the module that holds
it. A prompt makes rows longer, and what comes after must take that. A row of the families table says how:

    output    what the module at `prompt` gives gets longer, and what follows goes by it
    masked    so it does, and the module is also given the mask of its tokens, which is for the longer rows: it is kept
              from the module and put on what it gives (DeBERTa)
    counted   so it does, and what holds the layers counts positions by what it is given: it is given positions of the
              longer rows (ModernBERT)
    entry     what holds the layers goes by the length that it is given: it is given the longer embeddings, in place of
              ids (GPT-2, BART, M2M-100), or of those that images have got among (LLaVA)

A route without a prompt leaves every call as it is.
"""

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from graftwork.core.hooks import Runtime
from graftwork.core.locate import Located
from graftwork.errors import AdapterError, BackboneError, CompositionError


class Embeddings:
    """The hooks at a module that makes embeddings: armed by a call of its parent, they act once."""

    def __init__(self, located: Located, runtime: Runtime) -> None:
        self.index = located.site.index
        self.name = located.site.name
        self.runtime = runtime
        self.module, self.parent = located.modules["embed"], located.modules["parent"]
        self.armed = False

    def arm(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Forward pre-hook on the parent."""
        self.armed = True

    def taken(self, output: Any) -> Tensor | None:
        """The embeddings (B, T, D) where the hook shall act, else None. Raises BackboneError where there are none."""
        if self.runtime.route is None or not self.armed:
            return None
        self.armed = False
        found = output if isinstance(output, Tensor) else output[0] if isinstance(output, tuple) else None
        if not isinstance(found, Tensor):
            raise BackboneError(
                f"site {self.name}: a {type(self.module).__name__} gave no tensor; its family row must name the module "
                "whose output are the embeddings"
            )
        return found

    def place_with(self, hook: Callable[..., Any]) -> None:
        """Register the hooks."""
        self.parent.register_forward_pre_hook(self.arm, prepend=True)  # before what embeds in its place
        self.module.register_forward_hook(hook)


class PromptTap:
    """Puts tokens among the embeddings: (B, T, D) -> (B, P + T, D)."""

    def __init__(self, located: Located, runtime: Runtime) -> None:
        self.at = Embeddings(located, runtime)
        self.way = located.way
        self.holder = located.modules["holder"]
        self.arguments = tuple(signature(type(self.holder).forward).parameters)[1:]
        self._mask: Tensor | None = None

    def place(self) -> None:
        """Register the hooks."""
        if self.way == "entry":
            self.holder.register_forward_pre_hook(self.enter, with_kwargs=True)
            return
        self.at.place_with(self.change)
        if self.way == "masked":
            self.at.module.register_forward_pre_hook(self.keep_mask, with_kwargs=True)
        if self.way == "counted":
            self.holder.register_forward_pre_hook(self.count, with_kwargs=True)

    def change(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Forward hook on what embeds: the longer embeddings."""
        mask, self._mask = self._mask, None
        found = self.at.taken(output)
        longer = None if found is None else self._longer(found)
        if longer is None:
            return None
        return replaced(output, longer if mask is None else longer * mask.unsqueeze(2).to(longer.dtype))

    def keep_mask(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Forward pre-hook on what embeds: without the mask of the longer rows, (B, P + T)."""
        self._mask = None
        if self._fillings(kwargs) is None:
            return None
        self._mask = kwargs.get("mask")
        return args, {**kwargs, "mask": None}

    def count(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Forward pre-hook on what holds the layers: with the positions of the longer rows."""
        given = {**dict(zip(self.arguments, args, strict=False)), **kwargs}
        fillings = self._fillings(given)
        return (
            None if fillings is None else ((), {**given, "position_ids": self._positions(fillings).to(_device(given))})
        )

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Forward pre-hook on what holds the layers: with the longer embeddings for ids, or for those it is given."""
        given = {**dict(zip(self.arguments, args, strict=False)), **kwargs}
        fillings, embeddings = self._fillings(given), given.get("inputs_embeds")
        if fillings is None:
            return None
        if given.get("token_type_ids") is not None:
            raise AdapterError("token_type_ids were given for rows that a prompt makes longer; leave them out")
        embeddings = self.at.module(given["input_ids"]) if embeddings is None else embeddings
        if bool(fillings.any()):
            if "position_ids" not in self.arguments:
                raise CompositionError(
                    f"a {type(module).__name__} counts positions from the front, so rows of one batch need prompts of "
                    "one length; ask for these rows apart"
                )
            given["position_ids"] = self._positions(fillings).to(_device(given))
        return (), {**given, "input_ids": None, "inputs_embeds": self._longer(embeddings)}

    def _longer(self, embeddings: Tensor) -> Tensor | None:
        route = self.at.runtime.route
        return None if route is None else route.prompted(self.at.index, embeddings)

    def _fillings(self, given: Mapping[str, Any]) -> Tensor | None:
        """Where the rows of a call get longer, 1 where one is filled up in front, (B, P + T); None where none does."""
        route = self.at.runtime.route
        tokens = given.get("input_ids") if given.get("inputs_embeds") is None else given["inputs_embeds"]
        if route is None or tokens is None:
            return None
        own = torch.zeros(tokens.shape[:2], dtype=torch.long)
        longer = route.lengthened(own, fill=0, pad=1)
        return longer if longer.shape[1] > own.shape[1] else None

    def _positions(self, fillings: Tensor) -> Tensor:
        """Positions (B, P + T) that begin behind what a row is filled up with."""
        places = torch.arange(fillings.shape[1]) - fillings.sum(dim=1, keepdim=True)
        return places.clamp(min=0)


def _device(given: Mapping[str, Any]) -> torch.device:
    return next(given[key].device for key in ("input_ids", "inputs_embeds") if given.get(key) is not None)  # type: ignore[no-any-return]


def replaced(output: Any, first: Tensor) -> Any:
    """A module's output with another tensor in front."""
    return first if isinstance(output, Tensor) else (first, *output[1:])
