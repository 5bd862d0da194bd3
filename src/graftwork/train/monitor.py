"""Whether an adapter learns, seen at its matrices: gradients at the down- and up-projections, and the loss.

    grad_down, grad_up   root mean square of a gradient's entries, before clipping, over the steps since the last point
    up                   root mean square of the up-projections themselves; 0: the adapter changes nothing

    stuck at identity    no gradient reaches the matrices (below STILL): both begin at zero, or all units are off
    not learning         gradients are there, and the loss has not fallen: a wrong rate, or labels that cannot be told

Sums stay on the device, and are read only where a point of the training curve is logged: no step waits for them.
Layers that a step drops are not in its mean.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from graftwork.core.bottleneck import Bottleneck
from graftwork.core.dora import DoRA
from graftwork.core.lora import LoRA
from graftwork.model import AdapterModel

STILL = 1e-8  # AdamW's epsilon: where gradients are smaller, its steps are less than half of the learning rate
DONE = 1e-3  # a loss below it has nothing left to give: gradients vanish there too
FALL = 0.01  # the share of itself that a loss must lose to have fallen
NOISE = 2.0  # and how many standard errors
POINTS = 6  # of a curve, before its fall is judged

ALARMS = ("stuck at identity", "not learning")
State = Literal["", "learning", "stuck at identity", "not learning"]


class Monitor:
    """Gradients at the projections of the adapters that train, a sum a step."""

    def __init__(self, down: Sequence[nn.Parameter], up: Sequence[nn.Parameter]) -> None:
        self._groups = {"grad_down": list(down), "grad_up": list(up)}
        self._sums: dict[str, Tensor | float] = dict.fromkeys(self._groups, 0.0)
        self._steps = 0

    @staticmethod
    def of(model: nn.Module) -> "Monitor | None":
        """For what trains in a model now; None where no adapter with two projections does."""
        if not isinstance(model, AdapterModel):
            return None
        down: dict[int, nn.Parameter] = {}
        up: dict[int, nn.Parameter] = {}
        for module in model.parts.adapters.modules():
            pair = _projections(module)
            for found, weights in zip((down, up), pair, strict=True):
                found |= {id(weight): weight for weight in weights if weight.requires_grad}
        return Monitor(list(down.values()), list(up.values())) if down and up else None

    def see(self) -> None:
        """Take in the gradients of a step: after its last backward, before they are clipped."""
        for name, weights in self._groups.items():
            gradients = [weight.grad for weight in weights if weight.grad is not None]
            if gradients:
                size = sum(gradient.numel() for gradient in gradients)
                self._sums[name] += get_total_norm(gradients).square() / size
        self._steps += 1

    def read(self) -> dict[str, float]:
        """The numbers since the last reading, by name; none where there was no step. Waits for the device."""
        steps, self._steps = self._steps, 0
        sums, self._sums = self._sums, dict.fromkeys(self._groups, 0.0)
        if not steps:
            return {}
        up = [weight.detach() for weight in self._groups["grad_up"]]
        itself = get_total_norm(up).square() / sum(weight.numel() for weight in up)
        return {name: math.sqrt(_number(total) / steps) for name, total in sums.items()} | {
            "up": math.sqrt(_number(itself))
        }


def _projections(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The matrices of a module of an adapter that read, and those that write; biases learn also where these cannot."""
    if isinstance(module, Bottleneck):
        return _matrices(module.down), _matrices(module.up)
    return ([module.a], [module.b]) if isinstance(module, LoRA | DoRA) else ([], [])


def _matrices(layer: nn.Module) -> list[nn.Parameter]:
    return [weight for weight in layer.parameters() if weight.dim() > 1]


def _number(value: Tensor | float) -> float:
    if isinstance(value, torch.distributed.tensor.DTensor):
        value = value.full_tensor()  # of gradients that lie in shards
    return float(value)


@dataclass(frozen=True)
class Verdict:
    """What a training curve says of an adapter so far; numbers are those of its latest point."""

    state: State
    numbers: Mapping[str, float]
    said: str = ""  # for people, with what to do

    @property
    def written(self) -> dict[str, Any]:
        """For result.json."""
        return {"state": self.state, **self.numbers}


def judge(points: Sequence[Mapping[str, Any]]) -> Verdict:
    """The verdict on those points of a curve that have a loss and the monitor's numbers; "" where none can be made."""
    seen = [point for point in points if "loss" in point and "grad_up" in point]
    if not seen:
        return Verdict("", {})
    numbers = {key: float(seen[-1][key]) for key in ("grad_down", "grad_up", "up")}
    losses = [float(point["loss"]) for point in seen]
    third = max(1, len(seen) // 3)
    still = all(point["grad_down"] < STILL and point["grad_up"] < STILL for point in seen[-third:])
    if still and fmean(losses[-third:]) >= DONE:
        return Verdict("stuck at identity", numbers, _stuck(numbers))
    if len(seen) < POINTS or losses[0] < DONE:
        return Verdict("", numbers)
    first, last = losses[:third], losses[-third:]
    numbers |= {"loss_first": fmean(first), "loss_last": fmean(last)}
    noise = math.sqrt((variance(first) + variance(last)) / third)
    if fmean(first) - fmean(last) > max(FALL * fmean(first), NOISE * noise):
        return Verdict("learning", numbers)
    return Verdict("not learning", numbers, _flat(numbers))


def told(learning: Mapping[str, Any]) -> str:
    """One line on a run: the state that its curve is in, and the numbers that it follows from."""
    if not learning:
        return "monitor: nothing to see: no bottleneck, LoRA or DoRA trained"
    seen = "gradients of rms {grad_down:.1e} at down, {grad_up:.1e} at up".format(**learning)
    if "loss_last" in learning:
        seen += "; loss {loss_first:.4f}, then {loss_last:.4f}".format(**learning)
    elif not learning["state"]:
        seen += f"; fewer than {POINTS} points, or a loss below {DONE} from the start"
    return f"monitor: {learning['state'] or 'no verdict'} ({seen})"


def _stuck(numbers: Mapping[str, float]) -> str:
    return (
        "the adapter is stuck at identity: no gradient reaches its matrices "
        "(rms {grad_down:.1e} at down, {grad_up:.1e} at up; up itself is {up:.1e}). Both projections begin at zero, or "
        "every unit is off: choose another init_weights, or a lower learning_rate".format(**numbers)
    )


def _flat(numbers: Mapping[str, float]) -> str:
    return (
        "the adapter is not learning: gradients are there (rms {grad_down:.1e} at down, {grad_up:.1e} at up), and the "
        "loss has not fallen beyond its noise ({loss_first:.4f} in the first third of the curve, {loss_last:.4f} in "
        "the last). Try another learning_rate, and see whether the labels belong to the rows".format(**numbers)
    )
