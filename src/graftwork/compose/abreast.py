"""Several batches through one trunk at once, each under its own plan and with its own heads.

The rows of all batches run side by side, those of one batch together: what reaches a site is cut into the batches, each
goes through the program of its own plan, and the changes are put together again. Every row is computed as it is in a
forward of its batch alone, but for the padding to the longest row of all and the rounding of larger products, and what
trains in one batch gets no gradient from another. The batches may belong to different models over one backbone.

Does not know tasks, losses' sums or optimisers; not rows that Parallel repeats, tokens that Split assigns, or a
decoder's own input, which are refused.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from graftwork.compose.answer import AdapterOutput
from graftwork.compose.execute import Routed
from graftwork.compose.forward import Asks, Entered, Ran, enter, leave, run
from graftwork.compose.parts import Parts
from graftwork.compose.plan import Plan
from graftwork.compose.route import BatchRoute, Group
from graftwork.core.backbone import Backbone
from graftwork.core.site import NO_DELTA, Delta, Reading
from graftwork.errors import CompositionError


@dataclass(frozen=True)
class Call:
    """One batch: the parts it runs, its plan, and its inputs (rows, ...), `labels` and `word_starts` among them."""

    parts: Parts
    plan: Plan
    inputs: Mapping[str, Tensor]
    asks: Asks


@dataclass(frozen=True)
class Abreast(BatchRoute):
    """The route of several batches, side by side. parts: the route of each, None for the bare base, and its rows."""

    parts: tuple[tuple[BatchRoute | None, int], ...] = ()

    def delta(self, site: int, reading: Reading) -> Delta | None:
        """The change at a site, (B, T, D). One cut and one joining for all batches, so that a backward costs no more
        with many than with few."""
        if not any(route is not None and route.runs_at(site) for route, _ in self.parts):
            return None
        self._copies(reading.like.shape[0])
        readings = reading.split([rows for _, rows in self.parts])
        changes = []
        for (route, _), own in zip(self.parts, readings, strict=True):
            changes.append((route.delta(site, own) if route is not None else None) or NO_DELTA)
        likes = [own.like for own in readings]
        return Delta(
            _joined([change.before for change in changes], likes),
            _joined([change.after for change in changes], likes),
        )


def abreast(plans: Sequence[Plan]) -> Plan:
    """One plan for the rows of several batches, in order. Raises CompositionError where their rows cannot share one."""
    groups: list[Group] = []
    rows = 0
    for plan in plans:
        route = plan.route
        if plan.sources is not None or plan.words is not None or (route is not None and route.tokens is not None):
            raise CompositionError(
                "batches with Parallel, Split or embeddings of another vocabulary cannot run side by side; call once "
                "for each"
            )
        for group in () if route is None else route.groups:
            own = torch.arange(plan.rows) if group.rows is None else group.rows
            groups.append(Group(own + rows, None, group.program))
        rows += plan.rows
    lengths = sorted({length for plan in plans for length in prompt_lengths(plan)})
    if len(lengths) > 1:
        raise CompositionError(
            f"batches with prompts of {', '.join(map(str, lengths))} tokens cannot run side by side: what is put in "
            "front of some rows moves the tokens of others, and not every model takes them there for the same"
        )
    prompts = {plan.route.prompt for plan in plans if plan.route is not None and plan.route.prompt is not None}
    parts = tuple((plan.route, plan.rows) for plan in plans)
    runs = any(route is not None for route, _ in parts)
    made = Abreast(tuple(groups), rows, None, None, next(iter(prompts), None), parts=parts) if runs else None
    heads = tuple(name for plan in plans for name in plan.heads or ())
    return Plan(
        None if made is None else Routed(made), heads, tuple(tree for plan in plans for tree in plan.trees), rows
    )


def prompt_lengths(plan: Plan) -> tuple[int, ...]:
    """How many tokens prompts put in front of the rows of a plan: each number once, 0 where there are none."""
    return (0,) if plan.route is None else plan.route.prompt_lengths


def run_abreast(
    backbone: Backbone, calls: Sequence[Call], fills: Mapping[str, int]
) -> list[Callable[[], AdapterOutput]]:
    """Run the trunk once for all batches; what is returned answers each of them, as `forward` does for one alone.

    fills: input -> what its rows are filled up with, 0 where it is not named. Raises CompositionError as `abreast`.
    """
    entered = [enter(backbone, call.parts, call.plan, call.inputs, call.asks) for call in calls]
    ran = run(backbone, abreast([call.plan for call in calls]), side_by_side(entered, fills), {})
    answers: list[Callable[[], AdapterOutput]] = []
    start = 0
    for call, own in zip(calls, entered, strict=True):
        part = _cut(ran, own, slice(start, start + call.plan.rows))
        answers.append(partial(leave, backbone, call.parts, call.plan, own, part, call.asks))
        start += call.plan.rows
    return answers


def side_by_side(batches: Sequence[Entered], fills: Mapping[str, int]) -> dict[str, Tensor]:
    """The inputs of several batches as one, (rows of all, longest, ...). Raises CompositionError for unlike inputs."""
    names = [sorted(batch.inputs) for batch in batches]
    if any(own != names[0] for own in names) or any(name.startswith("decoder") for name in names[0]):
        listed = "; ".join(dict.fromkeys(", ".join(own) for own in names))
        raise CompositionError(f"batches with other inputs, or a decoder's, cannot run side by side: {listed}")
    joined: dict[str, Tensor] = {}
    for name in batches[0].inputs:
        tensors = [batch.inputs[name] for batch in batches]
        size = max(tensor.shape[1] for tensor in tensors)
        joined[name] = torch.cat([_longer(tensor, size, fills.get(name, 0)) for tensor in tensors])
    return joined


def _longer(tensor: Tensor, size: int, fill: int) -> Tensor:
    """(B, T, ...) filled up to (B, size, ...)."""
    missing = size - tensor.shape[1]
    return functional.pad(tensor, (*[0, 0] * (tensor.dim() - 2), 0, missing), value=fill) if missing else tensor


def _cut(ran: Ran, own: Entered, rows: slice) -> Ran:
    """What the trunk gave to the rows of one batch, no longer than they are alone where prompts did not move them."""
    hidden: Tensor = ran.output["last_hidden_state"]
    lead = own.inputs.get("input_ids")
    size = None if lead is None or ran.places is not None else slice(lead.shape[1])
    tokens = size or slice(None)
    output: dict[str, Any] = {"last_hidden_state": hidden[rows, tokens]}
    if ran.output.get("pooler_output") is not None:
        output["pooler_output"] = ran.output["pooler_output"][rows]
    mask = None if ran.mask is None else ran.mask[rows, tokens]
    places = None if ran.places is None else ran.places[rows, : None if lead is None else lead.shape[1]]
    return Ran(output, mask, places)


def _joined(parts: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensor | None:
    """Changes of one batch after another, (B, T, D), zeros where there are none; None where there are none at all."""
    if all(part is None for part in parts):
        return None
    return torch.cat([torch.zeros_like(own) if part is None else part for part, own in zip(parts, like, strict=True)])
