"""The one object that carries a route through one forward, from the call to the hooks at the sites.

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

from graftwork.core.site import Positions, Route, ways_of
from graftwork.errors import RoutingError


class Runtime:
    """What one model holds during one forward: the route, captured residuals, and changes waiting for their norm."""

    def __init__(self) -> None:
        self.route: Route | None = None
        self.direct, self.widened = ways_of(None)  # of the route
        self.residuals: dict[int, Tensor] = {}
        self.outputs: dict[int, Tensor] = {}
        self.pending: dict[int, Tensor] = {}
        self.prefixes: dict[int, Positions] = {}
        self.mask: Tensor | None = None  # the tokens of this forward that are real, (B, T)
        self.words: Tensor | None = None  # rows (V', D) that are looked up in the place of the base's own
        self.rows = 1  # B at the last sub-layer that kept rows and tokens apart
        self.outer: list[Tensor | None] = []  # the masks of the callers of what runs
        self.opened = "-"  # which hooks there are, asked by every layer
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
        (spoken, held), self.words, self.outputs = (self.words, self.outputs), words, {}
        self.direct, self.widened = ways_of(route)
        self.route, self.mask, self.residuals, self.pending, self.prefixes, self.outer = route, mask, {}, {}, {}, []
        try:
            yield
        finally:
            self.route, self.mask, self.residuals, self.pending, self.prefixes, self.outer = before
            self.words, self.outputs = spoken, held
            self.direct, self.widened = ways_of(self.route)

    def ask(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Forward pre-hook inside of every layer: it asks which hooks there are.

        torch.compile guards what is asked and not hooks. What it compiled without one would serve on when the hook is
        there, and for another model of the class that has it.
        """
        if not self.opened:
            raise AssertionError("the text of what is open is never empty")

    def see(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Forward pre-hook on the trunk and on what holds a stack: which tokens are real there, (B, T).

        A decoder has a mask of its own, a vision tower none, and each step of `generate` one that speaks of the tokens
        in the cache too. What is called with a mask that is worked out already (B, 1, T, T) keeps that of its caller.
        """
        if self.route is None:
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
