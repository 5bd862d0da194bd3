"""Which head answers which row, and what a model returns.

The head of a row is the one named by `head=`, else the one named like the top of its Stack, else the fusion's own; a
model without heads answers with the base's own output. Rows with different heads come back as groups; the loss is their
sum.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from graftwork.compose.tree import Composition, show, top
from graftwork.core.heads import Head
from graftwork.errors import AdapterError


@dataclass(frozen=True)
class HeadGroup:
    """The rows that one head answered: rows (n,) indices into the output batch, logits (n, …), loss or None."""

    head: str
    rows: Tensor
    logits: Tensor
    loss: Tensor | None


@dataclass
class AdapterOutput(ModelOutput):  # type: ignore[misc]
    """What a model with heads returns.

    loss: sum over groups. logits: those of all rows when one head answered, else None. hidden_states, attentions: as
    the base gives them. groups: one `HeadGroup` per head, in order of first row; an attribute, not one of the keys, so
    that Trainer sees only tensors.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None

    groups: ClassVar[tuple[HeadGroup, ...]] = ()


def head_of(tree: Composition, heads: Sequence[str], default: str | None) -> str | None:
    """The head that answers a row running `tree`: its top's, else `default`; None when there are no heads at all.

    Raises AdapterError that lists the heads when none of them is meant.
    """
    named = top(tree)
    if named in heads:
        return named
    if default is not None or not heads:
        return default
    raise AdapterError(
        f"which head answers {show(tree)}? None is named {repr(named) if named else 'like it'}; say head=... with one "
        f"of: {', '.join(sorted(heads))}, or head='none' for the base's own output"
    )


def answer(
    heads: Sequence[str],
    head: Callable[[str], Head],
    hidden: Tensor,
    mask: Tensor | None,
    labels: Tensor | None,
) -> AdapterOutput:
    """Run each row's head: one name in `heads` per row of hidden (B, T, D); mask (B or 1, T), labels (B,) or (B, T)."""
    mask = None if mask is None else mask.expand(len(heads), -1)
    by_head: dict[str, list[int]] = {}
    for row, name in enumerate(heads):
        by_head.setdefault(name, []).append(row)
    groups: list[HeadGroup] = []
    for name, members in by_head.items():
        rows = torch.tensor(members, device=hidden.device)
        some = len(by_head) > 1
        own_mask = mask[rows.to(mask.device)] if some and mask is not None else mask
        logits = head(name)(hidden[rows] if some else hidden, own_mask)
        loss = None
        if labels is not None:
            chosen = (labels[rows.to(labels.device)] if some else labels).to(logits.device)
            loss = head(name).loss(logits, chosen)
        groups.append(HeadGroup(name, rows, logits, loss))
    losses = [group.loss for group in groups if group.loss is not None]
    output = AdapterOutput(
        loss=torch.stack(losses).sum() if losses else None,
        logits=groups[0].logits if len(groups) == 1 else None,
    )
    output.__dict__["groups"] = tuple(groups)
    return output
