"""Which head answers which row, and what a model returns.

The head of a row is the one named by `head=`, else the one named like the top of its Stack, else the fusion's own; a
model without heads answers with the base's own output. Rows with different heads come back as groups; the loss is their
sum.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from graftwork.compose.places import labels_at, of_text
from graftwork.compose.tree import Composition, show, top
from graftwork.core.heads import NOTHING, Beside, Head, Inverse
from graftwork.errors import AdapterError


@dataclass(frozen=True)
class HeadGroup:
    """The rows that one head answered: rows (n,) indices into the output batch, logits (n, …), loss or None.

    outputs: the logits under the names they have for that kind of head: logits; start_logits, end_logits (n, T);
    rel_preds (n, T, T + 1, L), arc_preds (n, T, T + 1). Where a question has several rows (multiple choice, pairs),
    `rows` has the first of each. text_logits: the logits, without those of prompts among the tokens of a text.
    """

    head: str
    rows: Tensor
    logits: Tensor
    loss: Tensor | None
    text_logits: Tensor
    outputs: Mapping[str, Tensor] = field(default_factory=dict)


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
    encoder_last_hidden_state: Tensor | None = None

    groups: ClassVar[tuple[HeadGroup, ...]] = ()

    @property
    def outputs(self) -> Mapping[str, Tensor]:
        """What the one head that answered says, by name; empty where several heads answered."""
        return self.groups[0].outputs if len(self.groups) == 1 else {}

    @property
    def start_logits(self) -> Tensor | None:
        """(B, T) of a question-answering head."""
        return self.outputs.get("start_logits")

    @property
    def end_logits(self) -> Tensor | None:
        """(B, T) of a question-answering head."""
        return self.outputs.get("end_logits")

    @property
    def rel_preds(self) -> Tensor | None:
        """(B, T, T + 1, L) of a parsing head: relation of word j to head i, 0 the root."""
        return self.outputs.get("rel_preds")

    @property
    def arc_preds(self) -> Tensor | None:
        """(B, T, T + 1) of a parsing head."""
        return self.outputs.get("arc_preds")


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


InverseOf = Callable[[Sequence[int]], Inverse | None]  # rows that one head answers -> what inverts their embeddings


def answer(
    heads: Sequence[str],
    head: Callable[[str], Head],
    hidden: Tensor,
    mask: Tensor | None,
    labels: Tensor | Mapping[str, Tensor] | None,
    beside: Beside = NOTHING,
    inverse_of: InverseOf | None = None,
    scored_only: bool = False,
) -> AdapterOutput:
    """Run each row's head: one name in `heads` per row of hidden (B, T, D); mask (B or 1, T).

    labels: (B, ...), or for each head those of its own rows. inverse_of: asked once for each head with a vocabulary.
    scored_only: such a head gives logits of the tokens that its loss looks at, (m, V), where it has labels. Raises
    AdapterError.
    """
    mask = None if mask is None else mask.expand(len(heads), -1)
    by_head: dict[str, list[int]] = {}
    for row, name in enumerate(heads):
        by_head.setdefault(name, []).append(row)
    if isinstance(labels, Mapping) and (unknown := sorted(labels.keys() - by_head.keys())):
        raise AdapterError(f"labels for {', '.join(unknown)}: the heads that answer are {', '.join(by_head)}")
    groups: list[HeadGroup] = []
    for name, members in by_head.items():
        module, rows = head(name), torch.tensor(members, device=hidden.device)
        if len(by_head) > 1:
            own_mask = None if mask is None else mask[rows.to(mask.device)]
            own, seen = hidden[rows], beside.of(rows)
        else:
            own_mask, own, seen = mask, hidden, beside
        inverse = inverse_of(members) if inverse_of is not None and module.reads_inverse else None
        chosen = _labels_of(name, rows, labels, len(by_head) > 1)
        kind = module.config.kind
        if chosen is not None:
            chosen = labels_at(kind, chosen, seen.places, own.shape[1])
            if scored_only and chosen.shape == own.shape[:2]:
                seen = replace(seen, asked=module.asked(chosen))
        logits = module(own, own_mask, seen, inverse)
        loss = None if chosen is None else module.loss(logits, chosen.to(logits.device))
        text = logits if seen.asked is not None else of_text(kind, logits, seen.places)
        if seen.asked is None and len(logits) < len(rows):
            rows = rows[:: len(rows) // len(logits)]
        groups.append(HeadGroup(name, rows, logits, loss, text, module.views(logits)))
    losses = [group.loss for group in groups if group.loss is not None]
    output = AdapterOutput(
        loss=torch.stack(losses).sum() if losses else None,
        logits=groups[0].logits if len(groups) == 1 else None,
    )
    output.__dict__["groups"] = tuple(groups)
    return output


def _labels_of(name: str, rows: Tensor, labels: Tensor | Mapping[str, Tensor] | None, some: bool) -> Tensor | None:
    if labels is None or isinstance(labels, Mapping):
        return None if labels is None else labels.get(name)
    return labels[rows.to(labels.device)] if some else labels
