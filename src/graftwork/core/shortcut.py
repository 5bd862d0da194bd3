"""A forward that does not run its first layers, because the states behind them are known.

Each layer to be left out gets a `forward` of its own for the length of one call, which returns the known states in the
form that the layer has. So everything outside of the layers runs as it always does: embeddings (whose result nobody
reads), masks and positions, the later layers, norms. A layer that serves at several depths (ALBERT) is left out at all.
That the states are all that later layers take from earlier ones is not known here: T5's first layer hands on relative
positions too. `train/prefix.py` proves it by trial.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from graftwork.errors import BackboneError


class _Reached(Exception):
    """The first layer that is not left out begins; caught where the forward was started."""


class Shortcut:
    """The first layers of a stack, `skipped`, and those behind them, `later`, none where all are left out."""

    def __init__(self, skipped: Sequence[nn.Module], later: Sequence[nn.Module]) -> None:
        self.skipped = list(dict.fromkeys(skipped))
        self._later = list(later)
        self._forms: dict[nn.Module, int] = {}  # layer -> how many things it returns; 0 is the states alone

    def state(self, run: Callable[[], Any]) -> Tensor:
        """The states behind the layers to be left out, (B, T, D), of one forward that `run` starts; it ends there.

        Raises BackboneError where they do not run.
        """
        found: list[Tensor] = []

        def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._forms[module] = 0 if isinstance(output, Tensor) else len(output)
            found[:] = [output if isinstance(output, Tensor) else output[0]]

        def stop(module: nn.Module, args: tuple[Any, ...]) -> None:
            raise _Reached

        handles = [layer.register_forward_hook(keep) for layer in self.skipped]
        handles += [layer.register_forward_pre_hook(stop) for layer in self._later[:1]]
        try:
            run()
        except _Reached:
            pass
        finally:
            for handle in handles:
                handle.remove()
        if not found:
            raise BackboneError("the layers whose states are to be kept did not run on this input")
        return found[0]

    @contextmanager
    def entered(self, state: Tensor) -> Iterator[None]:
        """For one forward: its first layers do not run, and what follows them reads `state`, (B, T, D).

        The forward raises BackboneError where what enters its layers has another shape.
        """
        with _instead({layer: _Known(state, self._forms.get(layer, 0)) for layer in self.skipped}):
            yield


@dataclass(frozen=True)
class _Known:
    """The forward of a layer that is left out."""

    state: Tensor
    form: int

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = args[0] if args else kwargs.get("hidden_states")
        if isinstance(given, Tensor) and given.shape != self.state.shape:
            raise BackboneError(
                f"the states behind the first layers have shape {tuple(self.state.shape)}, and what enters those "
                f"layers has {tuple(given.shape)}: they are of other rows"
            )
        return (self.state, *[None] * (self.form - 1)) if self.form else self.state


@contextmanager
def _instead(forwards: dict[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Modules with another forward; what an instance had of its own (offloading sets one) comes back."""
    own = {module: vars(module).get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            vars(module)["forward"] = forward
        yield
    finally:
        for module, before in own.items():
            if before is None:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = before
