"""Prediction heads: from the trunk's last hidden states (B, T, D) to logits and a loss.

The layout is AdapterHub's: dropout, linear, activation, ..., dropout, linear. A head knows its shape and its loss, not
its labels' meaning (tasks do that), nor where the hidden states come from.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from graftwork.core.bottleneck import ACTIVATIONS, activation
from graftwork.core.options import is_share
from graftwork.errors import AdapterError

POOLINGS = ("first", "last", "mean", "none")
_LOSS_OF = ("classification", "regression", "tagging")


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """One head. kind: classification (B, L), regression (B, 1) or tagging (B, T, L).

    pooling: which hidden state stands for a row: the first real token's, the last one's, the mean of the real tokens,
    or none (one answer a token). labels: names of the outputs, in order; empty where outputs have no names.
    Raises AdapterError for a value out of range.
    """

    kind: str
    num_outputs: int
    layers: int = 2
    activation: str = "tanh"
    dropout: float = 0.1
    pooling: str = "first"
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = []
        if self.kind not in _LOSS_OF:
            problems.append(f"kind {self.kind!r} is not one of {', '.join(_LOSS_OF)}")
        if self.num_outputs < 1 or (self.kind == "regression" and self.num_outputs != 1):
            problems.append(f"num_outputs {self.num_outputs} is impossible for kind {self.kind!r}")
        if self.layers < 1:
            problems.append(f"layers {self.layers} must be at least 1")
        if str(self.activation).lower() not in ACTIVATIONS:
            problems.append(f"activation {self.activation!r} is unknown; there are {', '.join(ACTIVATIONS)}")
        if not is_share(self.dropout):
            problems.append(f"dropout {self.dropout!r} must be in [0, 1)")
        if self.pooling not in POOLINGS or (self.pooling == "none") != (self.kind == "tagging"):
            problems.append(
                f"pooling {self.pooling!r} does not fit kind {self.kind!r}; poolings: {', '.join(POOLINGS)}"
            )
        if self.labels and (len(self.labels) != self.num_outputs or len(set(self.labels)) != len(self.labels)):
            problems.append(f"{len(self.labels)} labels {list(self.labels)} for {self.num_outputs} outputs")
        if problems:
            raise AdapterError("head: " + "; ".join(problems))


class Head(nn.Module):
    """A head of `layers` linear layers on width D."""

    def __init__(self, width: int, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        modules: list[nn.Module] = []
        for _ in range(config.layers - 1):
            modules += [nn.Dropout(config.dropout), _linear(width, width), activation(config.activation)]
        modules += [nn.Dropout(config.dropout), _linear(width, config.num_outputs)]
        self.layers = nn.Sequential(*modules)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """hidden (B, T, D), mask (B, T) with 1 for real tokens or None -> logits (B, L), or (B, T, L) for tagging."""
        pooled = pool(hidden, mask, self.config.pooling)
        dtype = next(self.layers.parameters()).dtype
        logits: Tensor = self.layers(pooled.to(dtype))
        return logits

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of logits (B, L) or (B, T, L) on labels (B,), (B, 1) or (B, T).

        Cross entropy on whole numbers, where -100 is left out (the loss is 0 when nothing else is there), squared error
        on numbers for regression. Raises AdapterError for labels that do not fit the logits.
        """
        kind = self.config.kind
        places = logits.shape[:-1]
        labels = labels.squeeze(-1) if kind != "tagging" and labels.shape == (*places, 1) else labels
        if labels.shape != places:
            raise AdapterError(
                f"{kind} labels of shape {tuple(labels.shape)} for logits {tuple(logits.shape)}; expected "
                f"{tuple(places)}"
            )
        if kind == "regression":
            return functional.mse_loss(logits.squeeze(-1).float(), labels.float())
        if labels.is_floating_point():
            raise AdapterError(f"{kind} labels are label numbers, not {labels.dtype}")
        total = functional.cross_entropy(logits.float().flatten(0, -2), labels.flatten(), reduction="sum")
        return total / (labels != -100).sum().clamp(min=1)


def pool(hidden: Tensor, mask: Tensor | None, pooling: str) -> Tensor:
    """(B, T, D) -> (B, D): the first, the last or the mean of the real tokens, wherever padding is; `none`: all."""
    if pooling == "none":
        return hidden
    if mask is None:
        mask = torch.ones(hidden.shape[:2], dtype=torch.long, device=hidden.device)
    if pooling == "mean":
        exact = torch.promote_types(hidden.dtype, torch.float32)  # half precision cannot count to 300
        weights = mask.ne(0).to(hidden.device, exact).unsqueeze(-1)  # (B, T, 1)
        return ((hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)).to(hidden.dtype)
    real = mask.ne(0).to(hidden.device, torch.long)
    positions = torch.arange(mask.shape[1], device=hidden.device)
    chosen = real.argmax(dim=1) if pooling == "first" else (real * positions).argmax(dim=1)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), chosen]


def labels_of(id2label: Mapping[int, str] | None) -> tuple[str, ...]:
    """Label names in the order of their ids. Raises AdapterError unless the ids are 0, 1, 2, ..."""
    if id2label is None:
        return ()
    by_id = {int(key): str(value) for key, value in id2label.items()}
    if sorted(by_id) != list(range(len(by_id))):
        raise AdapterError(f"id2label {dict(id2label)} must number its labels 0 to {len(by_id) - 1}")
    return tuple(by_id[number] for number in range(len(by_id)))


def labelled(config: Any, head: HeadConfig) -> Any:
    """A copy of a transformers configuration with the head's labels, where transformers' pipelines look for them."""
    own = copy.copy(config)
    names = head.labels or [f"LABEL_{number}" for number in range(head.num_outputs)]
    own.id2label = dict(enumerate(names))
    own.label2id = {name: number for number, name in enumerate(names)}
    own.problem_type = "regression" if head.kind == "regression" else None
    return own


def _linear(width: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(width, outputs)
    nn.init.normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return linear
