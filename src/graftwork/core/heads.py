"""Prediction heads: what a head is, how one is described, and what stands for a row.

A head turns the trunk's last hidden states (B, T, D) into one tensor of logits, and logits and labels into a loss. The
kinds of head are one table of data (`KINDS`: what each reads and which options have a meaning for it); their modules
are in `heads_linear.py`, `heads_language.py`, `heads_parsing.py`, `heads_embedding.py` and `heads_custom.py`, and
`heads_table.py` builds them. Layouts and the numbers of their layers are AdapterHub's, so that its files load key by
key. A head knows its shape and its loss, not its labels' meaning (tasks do that), nor where hidden states come from.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from graftwork.core.activations import ACTIVATIONS
from graftwork.core.options import is_number, is_share
from graftwork.errors import AdapterError

POOLINGS = ("first", "last", "mean", "pooler", "eos", "none")
NO_ACTIVATION = "none"  # no module at all between two linear layers
IGNORED = -100  # a label that no loss looks at

Inverse = Callable[[Tensor], Tensor]  # (B, T, E) -> (B, T, E): the inverse of an invertible adapter


@dataclass(frozen=True)
class Kind:
    """What one kind of head is: pools (one answer a row) or not (one a token), which options it has, if labels."""

    pools: bool
    options: tuple[str, ...]
    named: bool = True  # whether its outputs have names


_PLAIN = ("bias", "scale", "layer_norm", "norm_eps")
_LANGUAGE = (*_PLAIN, "width", "tied", "shift")

KINDS: dict[str, Kind] = {
    "classification": Kind(True, _PLAIN),
    "multilabel_classification": Kind(True, _PLAIN),
    "regression": Kind(True, _PLAIN, named=False),
    "image_classification": Kind(True, (*_PLAIN, "multilabel")),
    "multiple_choice": Kind(True, _PLAIN),
    "tagging": Kind(False, _PLAIN),
    "question_answering": Kind(False, _PLAIN),
    "dependency_parsing": Kind(False, ("scale", "word_pad")),
    "masked_lm": Kind(False, _LANGUAGE, named=False),
    "causal_lm": Kind(False, _LANGUAGE, named=False),
    "seq2seq_lm": Kind(False, _LANGUAGE, named=False),
    "sentence_embedding": Kind(True, (*_PLAIN, "normalise", "temperature"), named=False),
    "custom": Kind(False, ("custom", "arguments")),
}


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """One head. num_outputs: L labels, 1 number, choices a question, V words of a vocabulary, or E embedding numbers.

    pooling: which hidden state stands for a row: the first real token's, the last one's, the mean of the real tokens,
    the base's own pooler, the last end-of-sequence token's, or none (one answer a token). labels: names of the outputs,
    in order; empty where outputs have no names. activation "none": no module between the layers. The options below have
    a meaning for the kinds that `KINDS` lists them under, and keep their default for all others.

    bias: of the last layer. scale: factor on the hidden states (T5's heads: D ** -0.5). layer_norm: after each
    activation. multilabel: each label of an image is a yes or no. width: E, where the vocabulary is projected from
    (0: D). tied: the projection is the base's input embedding. shift: token t answers for t + 1. word_pad: entry of
    `word_starts` to leave out. normalise: to length 1. temperature: of the contrastive loss. custom: the registered
    name of a custom head, and its arguments.
    Raises AdapterError for a value out of range.
    """

    kind: str
    num_outputs: int
    layers: int = 2
    activation: str = "tanh"
    dropout: float = 0.1
    pooling: str = "first"
    labels: tuple[str, ...] = ()
    bias: bool = True
    scale: float = 1.0
    layer_norm: bool = False
    norm_eps: float = 1e-12
    multilabel: bool = False
    width: int = 0
    tied: bool = False
    shift: bool = False
    word_pad: int = -1
    normalise: bool = False
    temperature: float = 0.05
    custom: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if isinstance(self.labels, list):
            object.__setattr__(self, "labels", tuple(self.labels))
        if self.kind not in KINDS:
            raise AdapterError(f"head: kind {self.kind!r} is not one of {', '.join(KINDS)}")
        problems = [*self._shape_problems(), *self._option_problems()]
        if problems:
            raise AdapterError("head: " + "; ".join(problems))

    def _shape_problems(self) -> list[str]:
        kind, fixed = KINDS[self.kind], {"regression": 1, "question_answering": 2}
        least = 0 if self.kind in ("sentence_embedding", "custom") else 1
        fits = self.pooling in POOLINGS and (self.pooling == "none") != kind.pools
        count, named = len(self.labels), kind.named and self.kind != "custom"
        checks = (
            (self.num_outputs >= 1 and self.num_outputs == fixed.get(self.kind, self.num_outputs),
             f"num_outputs {self.num_outputs} is impossible for kind {self.kind!r}"),
            (self.layers >= least, f"layers {self.layers} must be at least {least}"),
            (self.activation == NO_ACTIVATION or str(self.activation).lower() in ACTIVATIONS,
             f"activation {self.activation!r} is unknown; there are {', '.join(ACTIVATIONS)}, or {NO_ACTIVATION!r}"),
            (is_share(self.dropout), f"dropout {self.dropout!r} must be in [0, 1)"),
            (fits, f"pooling {self.pooling!r} does not fit kind {self.kind!r}; poolings: {', '.join(POOLINGS)}"),
            (not count or (named and count == self.num_outputs == len(set(self.labels))),
             f"{count} labels {list(self.labels)[:9]} for {self.num_outputs} outputs" if named
             else f"labels {list(self.labels)[:9]}: the outputs of kind {self.kind!r} have no names"),
        )  # fmt: skip
        return [problem for fine, problem in checks if not fine]

    def _option_problems(self) -> list[str]:
        known = KINDS[self.kind].options
        foreign = [name for name in self.options() if name not in known]
        checks = (
            (not foreign, f"{', '.join(foreign)}: no meaning for kind {self.kind!r}, whose options are "
             f"{', '.join(known)}"),
            (is_number(self.scale) and self.scale > 0, f"scale {self.scale!r} must be a number above 0"),
            (is_number(self.temperature) and self.temperature > 0, f"temperature {self.temperature!r} must be above 0"),
            (is_number(self.norm_eps) and self.norm_eps > 0, f"norm_eps {self.norm_eps!r} must be a number above 0"),
            (self.width >= 0, f"width {self.width!r} must be a whole number from 0 up"),
        )  # fmt: skip
        return [problem for fine, problem in checks if not fine]

    def options(self) -> dict[str, Any]:
        """The options that are not at their default."""
        plain = {one.name: one.default for one in fields(HeadConfig) if one.name not in SHAPE}
        given = {name: getattr(self, name) for name in plain}
        return {name: value for name, value in given.items() if value != (plain[name] if name != "arguments" else {})}


SHAPE = ("kind", "num_outputs", "layers", "activation", "dropout", "pooling", "labels")  # what every head has


def write_head(config: HeadConfig) -> dict[str, Any]:
    """A configuration as plain data: what every head has, and under "options" what is not at its default."""
    return {name: getattr(config, name) for name in SHAPE} | {"options": config.options()}


def read_head(written: Mapping[str, Any]) -> HeadConfig:
    """The configuration that `write_head` wrote. Raises AdapterError for a key that is none, or a wrong value."""
    plain = dict(written)
    options = plain.pop("options", None) or {}
    allowed = {one.name for one in fields(HeadConfig)} - set(SHAPE)
    if unknown := [*sorted(options.keys() - allowed), *sorted(plain.keys() - set(SHAPE))]:
        raise AdapterError(f"head: unknown {', '.join(map(str, unknown))}; options are {', '.join(sorted(allowed))}")
    return HeadConfig(**plain, **options)


@dataclass(frozen=True)
class Beside:
    """What a head may see beside hidden states and mask, each for its n rows; None where there is none.

    pooled (n, D): the output of the base's own pooler. ends (n, T): true at end-of-sequence tokens. word_starts (n, W):
    the token that each word begins with. choices: how many rows in a row belong to one question or pair. places (n, T):
    where the tokens of the text are in rows that prompts made longer. asked (n, T): true at the tokens whose logits are
    wanted, of a head that has `asked`.
    """

    pooled: Tensor | None = None
    ends: Tensor | None = None
    word_starts: Tensor | None = None
    choices: int | None = None
    places: Tensor | None = None
    asked: Tensor | None = None

    def of(self, rows: Tensor) -> "Beside":
        """The same for some rows (m,) alone."""
        pooled, ends, starts, places = (
            None if t is None else t[rows.to(t.device)] for t in (self.pooled, self.ends, self.word_starts, self.places)
        )
        return Beside(pooled, ends, starts, self.choices, places)


NOTHING = Beside()


class Head(nn.Module):
    """A head: hidden states to one tensor of logits, and its loss. `views` names parts of the logits."""

    reads_inverse: ClassVar[bool] = False  # whether it projects to a vocabulary

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config

    def forward(
        self, hidden: Tensor, mask: Tensor | None = None, beside: Beside = NOTHING, inverse: Inverse | None = None
    ) -> Tensor:
        """hidden (n, T, D), mask (n, T) with 1 for real tokens or None -> logits. Raises AdapterError."""
        raise NotImplementedError

    def views(self, logits: Tensor) -> dict[str, Tensor]:
        """The logits under the names that AdapterHub's outputs have."""
        return {"logits": logits}

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of logits on labels. Raises AdapterError for labels that do not fit the logits."""
        raise NotImplementedError

    def asked(self, labels: Tensor) -> Tensor | None:
        """(n, T), true at the tokens whose logits `loss` looks at on these labels; None where it wants all."""
        return None

    def items(self, labels: Tensor, prompted: bool = False) -> Tensor:
        """How many of a batch's labels `loss` is a mean over, (). prompted: whether prompts stand before the text."""
        return torch.tensor(labels.numel()) if labels.is_floating_point() else (labels != IGNORED).sum()

    def rows(self, hidden: Tensor, mask: Tensor | None, beside: Beside) -> Tensor:
        """What stands for each row by the head's pooling: (n, D), or (n, T, D) for none. Raises AdapterError."""
        how, scale = self.config.pooling, self.config.scale
        if how == "pooler":
            if beside.pooled is None:
                raise AdapterError(
                    "head: pooling 'pooler' needs a base with a pooler of its own, and this one gives no pooled "
                    "output; load the base with its pooler, or take a head with pooling 'first'"
                )
            return beside.pooled
        if how == "eos":
            if beside.ends is None:
                raise AdapterError("head: pooling 'eos' needs input_ids and a base with an eos_token_id")
            mask = beside.ends
            if mask.shape != hidden.shape[:2]:
                raise AdapterError(
                    f"head: pooling 'eos' reads the hidden states (n, T) = {tuple(hidden.shape[:2])} where the input "
                    f"{tuple(mask.shape)} ends; give no decoder_input_ids, or as many as input_ids"
                )
        pooled = pool(hidden, mask, "last" if how == "eos" else how)
        return pooled if scale == 1.0 else pooled * scale


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


def class_loss(kind: str, logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of logits (..., L) on label numbers (...), where -100 is left out (0 when nothing else is).

    Raises AdapterError for labels of another shape or type.
    """
    check_shape(kind, logits, labels, logits.shape[:-1])
    if labels.is_floating_point():
        raise AdapterError(f"{kind} labels are label numbers, not {labels.dtype}")
    total = functional.cross_entropy(logits.float().flatten(0, -2), labels.flatten(), reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)


def check_shape(kind: str, logits: Tensor, labels: Tensor, expected: Sequence[int]) -> None:
    """Raise AdapterError unless labels have the shape that the logits ask for."""
    if tuple(labels.shape) != tuple(expected):
        raise AdapterError(
            f"{kind} labels of shape {tuple(labels.shape)} for logits {tuple(logits.shape)}; expected {tuple(expected)}"
        )


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
    problems = {"regression": "regression", "multilabel_classification": "multi_label_classification"}
    own.problem_type = "multi_label_classification" if head.multilabel else problems.get(head.kind)
    if KINDS[head.kind].named or head.kind == "regression":
        names = head.labels or [f"LABEL_{number}" for number in range(head.num_outputs)]
        own.id2label = dict(enumerate(names))
        own.label2id = {name: number for number, name in enumerate(names)}
    return own
