"""The loss of an optimiser step is one mean: every item weighs the same, however a step is cut into batches.

A head's loss is a mean over what it looks at in its batch: rows, or the tokens that have a label. The batches of one
step (those accumulated, and those of other processes) hold different numbers nᵢ of them, so that the mean of their
means is not the mean of all. A batch's share makes it so:

    L = Σᵢ (nᵢ / N) · Lᵢ,   N = Σᵢ nᵢ

Gradients of processes are averaged, so that N is counted as the mean over processes. A loss that looks at its batch as
a whole (the pairs of a contrastive loss are each other's negatives) is not made of items: there L is a mean of means.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from graftwork.compose.inputs import shape_of
from graftwork.model import AdapterModel, Default
from graftwork.train.full import FullModel


def items(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """How many items the loss of a batch is a mean over, (): its head counts them; rows, where none alone answers.

    0 for a spare batch (devices.py).
    """
    labels, rows = batch.get("labels"), shape_of(batch).rows
    if "spare" in batch:
        return torch.tensor(0)
    if not isinstance(labels, Tensor):
        return torch.tensor(rows)
    inner, head = (model.model, model.head) if isinstance(model, FullModel) else (model, None)
    if not isinstance(inner, AdapterModel):
        return torch.tensor(len(labels))
    plan = inner.plan(Default.ACTIVE if head is None else None, head, rows)
    heads = set(plan.heads or ())
    return inner.parts.head(heads.pop()).items(labels, plan.prompted) if len(heads) == 1 else torch.tensor(len(labels))


def share(model: nn.Module, batch: Mapping[str, Tensor], total: Tensor) -> Tensor:
    """The share of a batch in a step of `total` items, (); 0 where it holds none."""
    own = items(model, batch).to(total)
    return own / total.clamp(min=torch.finfo(total.dtype).tiny)
