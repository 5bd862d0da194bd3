"""Which tokens a sub-layer mixes, told by perturbation: does token i of r reach token j of h₀, with j before or after?

    forward    ∂h₀[j] / ∂r[i] ≠ 0 for some i < j
    backward   ∂h₀[j] / ∂r[i] ≠ 0 for some i > j

Attention reaches forward, and backward where it is not causal; a feed-forward layer reaches neither way. Where row 0 of
h₀ depends on another row of r, what looked like rows are tokens. The derivative
is an infinitely small perturbation of one place with everything else held, which no rerun of the model could do for a
residual inside a layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from graftwork.core.streams import Argument, Branch

_NOTHING = 1e-7  # of the largest derivative: what is smaller is rounding


@dataclass(frozen=True)
class Reach:
    """Whether tokens reach those behind them, those before them, and those of other rows."""

    forward: bool
    backward: bool
    rows: bool


@dataclass
class Seen:
    """What the first call of a layer showed: r and h₀ of each of its branches."""

    layer: nn.Module
    entry: Argument
    shape: tuple[int, ...]  # of its stream, (B, T, D)
    branches: Sequence[Branch]
    residuals: dict[int, Tensor] = field(default_factory=dict)
    hidden: dict[int, dict[int, Tensor]] = field(default_factory=dict)  # branch -> token -> h₀ there, (B, D)

    def watch(self) -> list[RemovableHandle]:
        """Hooks that cut the layer's input off from what made it, and catch r and h₀ of its first call."""
        handles = [self.layer.register_forward_pre_hook(self._cut, with_kwargs=True)]
        for number, branch in enumerate(self.branches):
            path, argument = branch.residuals[0]
            if path:
                module = self.layer.get_submodule(path)
                handles.append(module.register_forward_pre_hook(self._catcher(number, argument), with_kwargs=True))
            handles.append(self.layer.get_submodule(branch.outputs[0]).register_forward_hook(self._keeper(number)))
        return handles

    def _cut(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        cut_args, cut_kwargs = [_leaf(value) for value in args], {key: _leaf(value) for key, value in kwargs.items()}
        for number, branch in enumerate(self.branches):
            if not branch.residuals[0][0]:
                self.residuals.setdefault(number, _argument(cut_args, cut_kwargs, self.entry))
        return tuple(cut_args), cut_kwargs

    def _catcher(self, number: int, argument: Argument) -> Any:
        def catch(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            self.residuals.setdefault(number, _argument(args, kwargs, argument))

        return catch

    def _keeper(self, number: int) -> Any:
        def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            # one module may serve several branches in turn; copied at once, for a layer may add in place
            if number not in self.hidden and self._waiting(number):
                tokens = output.view(self.shape)
                self.hidden[number] = {token: tokens[:, token].clone() for token in _some_tokens(self.shape[1])}

        return keep

    def _waiting(self, number: int) -> bool:
        beside = self.branches[number].beside
        return (number if beside is None else beside) in self.residuals

    def reach(self, number: int) -> Reach:
        """Which tokens of r reach which tokens of h₀ in the branch of that number."""
        forward = backward = rows = False
        for token in self.hidden[number]:
            derivative = self._derivative(number, token)
            forward = forward or _some(derivative[0, :token])
            backward = backward or _some(derivative[0, token + 1 :])
            rows = rows or _some(derivative[1:])
        return Reach(forward, backward, rows)

    def _derivative(self, number: int, token: int) -> Tensor:
        made, residual = self.hidden[number][token][0], self.residuals[number]
        weights = torch.linspace(-1.0, 1.3, made.numel(), device=made.device, dtype=made.dtype).view(made.shape)
        (found,) = torch.autograd.grad((made * weights).sum(), residual, retain_graph=True)
        return (found / found.abs().max()).view(self.shape)


def _some(derivative: Tensor) -> bool:
    return derivative.numel() > 0 and float(derivative.abs().max()) > _NOTHING


def _some_tokens(tokens: int) -> list[int]:
    """The first, the last and some between: where attention looks through windows, a corner may see only itself."""
    return sorted({0, tokens // 3, tokens // 2, tokens - 1})


def reaches(trunk: nn.Module, inputs: Mapping[str, Any], seen: Sequence[Seen]) -> list[list[Reach]]:
    """For every layer, how far tokens reach in each of its branches: one forward, whose hooks are gone afterwards."""
    handles: list[RemovableHandle] = []
    try:
        for one in seen:
            handles += one.watch()
        with torch.enable_grad():
            trunk(**inputs)
            return [[one.reach(number) for number in range(len(one.branches))] for one in seen]
    finally:
        for handle in handles:
            handle.remove()


def _floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _leaf(value: Any) -> Any:
    # cloned after the cut: a leaf could not be changed in place, which some layers do with their stream
    return value.detach().requires_grad_().clone() if _floating(value) else value


def _argument(args: Sequence[Any], kwargs: Mapping[str, Any], argument: Argument) -> Any:
    position, keyword = argument
    return args[position] if position < len(args) else kwargs.get(keyword)
