"""The hooks that connect a frozen model to its sites, and the one object that carries a route through one forward.

Hooks are placed once, when the backbone is made, on submodules *inside* the layers: torch.compile does not guard hooks
(one added later is silently ignored), and transformers records hidden states by hooks on the layers themselves, which a
hook on a layer could miss. Hooks are bound methods, so `deepcopy` of a model gets hooks of its own, not the original's.

Hooks cannot see the arguments of the outer forward. So a `Runtime` holds the route for the length of exactly one
forward: set on entry, cleared in `finally`. A second thread waits; a re-entered forward is an error. No thread-locals:
autograd may recompute a checkpointed layer on another thread, and gets the route back through `checkpoint_contexts`.
A call of the base itself, past the runtime, must not run beside a routed one: it would run under that one's route.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from graftwork.core.locate import Located
from graftwork.core.site import Positions, Reading, Route
from graftwork.errors import BackboneError, RoutingError


class Runtime:
    """What one model holds during one forward: the route, captured residuals, and changes waiting for their norm."""

    def __init__(self) -> None:
        self.route: Route | None = None
        self.residuals: dict[int, Tensor] = {}
        self.pending: dict[int, Tensor] = {}
        self.prefixes: dict[int, Positions] = {}
        self.mask: Tensor | None = None  # the tokens of this forward that are real, (B, T)
        self.words: Tensor | None = None  # rows (V', D) that are looked up in the place of the base's own
        self.rows = 1  # B at the last sub-layer that kept rows and tokens apart
        self.outer: list[Tensor | None] = []  # the masks of the callers of what runs
        # which sites have hooks that were placed later; asked in every forward, for torch.compile guards what is asked
        # and not hooks: what it compiled without one would serve for a model of the same class that has it
        self.opened = "-"
        self._turn = threading.Lock()
        self._owner: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        # a copy starts at rest: locks do not copy, and a route belongs to one forward of one model
        return {"opened": self.opened}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
        self.opened = state["opened"]

    @contextmanager
    def running(self, route: Route | None, mask: Tensor | None = None, words: Tensor | None = None) -> Iterator[None]:
        """Hold `route` for one forward; mask: its real tokens, (B, T), or None for all; words: its embeddings, (V', D).

        Raises RoutingError when this thread is already inside one.
        """
        if self._owner == threading.get_ident():
            raise RoutingError(
                "this model is already running a forward in this thread; its routes cannot nest. "
                "Call it again after the outer forward has returned"
            )
        with self._turn:
            self._owner = threading.get_ident()
            try:
                with self._holding(route, mask, words):
                    yield
            finally:
                self._owner = None

    @contextmanager
    def _holding(self, route: Route | None, mask: Tensor | None, words: Tensor | None) -> Iterator[None]:
        before = self.route, self.mask, self.residuals, self.pending, self.prefixes, self.outer
        spoken, self.words = self.words, words
        self.route, self.mask, self.residuals, self.pending, self.prefixes, self.outer = route, mask, {}, {}, {}, []
        try:
            yield
        finally:
            self.route, self.mask, self.residuals, self.pending, self.prefixes, self.outer = before
            self.words = spoken

    def see(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Forward pre-hook on the trunk and on what holds a stack: which tokens are real there, (B, T).

        A decoder has a mask of its own, a vision tower none, and each step of `generate` one that speaks of the tokens
        in the cache too. What is called with a mask that is worked out already (B, 1, T, T) keeps that of its caller.
        """
        if not self.opened or self.route is None:
            return
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        told = mask if mask is None or (isinstance(mask, Tensor) and mask.dim() == 2) else self.mask
        self.outer.append(self.mask)
        self.mask = _all_real(args, kwargs) if told is None else told

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Forward hook on the same modules, also after an error: the caller's tokens are the ones that count again."""
        if self.outer:
            self.mask = self.outer.pop()

    def checkpoint_contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """`context_fn` of torch.utils.checkpoint: recompute a layer under the route that its forward had."""
        return nullcontext(), self._again(self.route, self.mask, self.words)

    @contextmanager
    def _again(self, route: Route | None, mask: Tensor | None, words: Tensor | None) -> Iterator[None]:
        inside = self._owner == threading.get_ident()  # a backward that runs inside a forward, under its own route
        with self._holding(route, mask, words) if inside else self.running(route, mask, words):
            yield


def _all_real(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The mask of tokens behind others that a cache holds, (B, earlier + T); None where there are no others."""
    past = kwargs.get("past_key_values")
    earlier = 0 if past is None else int(past.get_seq_length())
    given = [*args[:1], kwargs.get("input_ids"), kwargs.get("inputs_embeds")]
    entering = next((one for one in given if isinstance(one, Tensor)), None)
    if not earlier or entering is None:
        return None
    rows, tokens = entering.shape[:2]
    return torch.ones(rows, earlier + tokens, dtype=torch.long, device=entering.device)


class SiteHook:
    """The hooks of one sub-layer site: catch the residual, change the output, change what leaves the norm.

    feeds: the site beside it, whose residual is the stream after this one.
    """

    def __init__(self, located: Located, runtime: Runtime, feeds: int | None = None) -> None:
        self.site = located.site
        self.index = located.site.index
        self.runtime = runtime
        self.norm = located.modules.get("norm")
        self.inner = located.modules.get("inner")
        self.position, self.keyword = located.argument
        self.shared = located.row is not None and located.row.shared
        self.flat = located.row is not None and located.row.flat
        self.feeds = feeds
        self.located = located

    def place(self) -> list[RemovableHandle]:
        """Register the hooks; what is returned takes them off again."""
        modules, row = self.located.modules, self.located.row
        placed = [modules["output"].register_forward_hook(self.change)]
        if row is None or row.beside is None:
            placed.append(modules["residual"].register_forward_pre_hook(self.catch, with_kwargs=True))
        last = modules.get("norm", modules.get("inner"))
        if last is not None:
            placed.append(last.register_forward_hook(self.finish))
        return placed

    def catch(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Forward pre-hook on the module that receives the residual r."""
        if self.runtime.route is not None and self.runtime.opened:
            residual = args[self.position] if self.position < len(args) else kwargs.get(self.keyword)
            if not isinstance(residual, Tensor):
                raise BackboneError(
                    f"site {self.site.name}: a {type(module).__name__} was called without the residual as argument "
                    f"{self.position} or {self.keyword!r}; its family row names the wrong module or argument"
                )
            self.runtime.residuals[self.index] = residual

    def change(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Forward hook on the last module before the residual add; its output is h₀, (B, T, D)."""
        runtime = self.runtime
        if runtime.route is None:
            return None
        residual = runtime.residuals.pop(self.index, None)
        if residual is None and self.shared:
            return None  # another sub-layer's turn
        if residual is None or not isinstance(output, Tensor):
            raise BackboneError(
                f"site {self.site.name}: a {type(module).__name__} "
                + ("ran before its residual was seen" if residual is None else "returned more than one tensor")
                + "; its family row must name the last module before the residual add, and the module that receives "
                "the residual before that"
            )
        if self.flat:
            changed = self._changed(*(one.view(runtime.rows, -1, one.shape[-1]) for one in (output, residual)))
            return None if changed is None else changed.flatten(0, 1)
        runtime.rows = output.shape[0]
        changed = self._changed(output, residual)
        if self.feeds is not None:
            runtime.residuals[self.feeds] = (output if changed is None else changed) + residual
        return changed

    def _changed(self, output: Tensor, residual: Tensor) -> Tensor | None:
        """h₀ + Δ, (B, T, D), or None where nothing changes before the norm."""
        runtime = self.runtime
        assert runtime.route is not None
        delta = runtime.route.delta(self.index, Reading(output, residual, self.norm, self.inner, mask=runtime.mask))
        if delta is None:
            return None
        before, after = delta.before, delta.after
        if after is not None and (self.norm is not None or self.inner is not None):
            runtime.pending[self.index] = after
        elif after is not None:  # no norm on the way: both places are one
            before = after if before is None else before + after
        return None if before is None else output + before

    def finish(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Forward hook on the norm after the residual add (post-LN models), or on that of the branch before it."""
        after = self.runtime.pending.pop(self.index, None) if self.runtime.pending else None
        return None if after is None else output + after
