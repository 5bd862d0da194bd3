"""Heads of linear layers: one answer a row (classes, labels, a number, a choice) or a token (tags, answer spans).

The layout is AdapterHub's: (dropout, linear, activation) for every layer but the last, then dropout, linear; the keys
are `layers.1.weight`, `layers.4.weight`, ... A head with `layer_norm` has the norm after each activation.
"""

from torch import Tensor, nn
from torch.nn import functional

from graftwork.core.activations import activation
from graftwork.core.heads import NO_ACTIVATION, NOTHING, Beside, Head, HeadConfig, Inverse, check_shape, class_loss
from graftwork.errors import AdapterError


class LinearHead(Head):
    """Logits (n, L), or (n, T, L) with pooling none. `outputs` is L unless told otherwise."""

    def __init__(self, width: int, config: HeadConfig, outputs: int | None = None) -> None:
        super().__init__(config)
        modules: list[nn.Module] = []
        for _ in range(config.layers - 1):
            modules += [nn.Dropout(config.dropout), fresh_linear(width, width)]
            modules += [] if config.activation == NO_ACTIVATION else [activation(config.activation)]
            modules += [nn.LayerNorm(width, eps=config.norm_eps)] if config.layer_norm else []
        if config.layers:
            modules += [nn.Dropout(config.dropout), fresh_linear(width, outputs or config.num_outputs, config.bias)]
        self.layers = nn.Sequential(*modules)

    def forward(
        self, hidden: Tensor, mask: Tensor | None = None, beside: Beside = NOTHING, inverse: Inverse | None = None
    ) -> Tensor:
        """hidden (n, T, D), mask (n, T) or None -> logits (n, L), or (n, T, L)."""
        pooled = self.rows(hidden, mask, beside)
        weight = next(self.layers.parameters(), None)
        logits: Tensor = self.layers(pooled if weight is None else pooled.to(weight.dtype))
        return logits


class ClassHead(LinearHead):
    """One class of L a row, or a token (tagging): cross entropy on (n,), (n, 1) or (n, T), -100 left out."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See `class_loss`."""
        return class_loss(self.config.kind, logits, flat_labels(logits, labels))


class NumberHead(LinearHead):
    """One number a row: squared error on (n,) or (n, 1)."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """mean (logits - labels)²."""
        labels = flat_labels(logits, labels)
        check_shape(self.config.kind, logits, labels, logits.shape[:-1])
        return functional.mse_loss(logits.squeeze(-1).float(), labels.float())


class LabelsHead(LinearHead):
    """Any of L labels a row: binary cross entropy of each, mean over rows and labels, on 0 and 1 of shape (n, L)."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """-mean[y·log σ(z) + (1 - y)·log(1 - σ(z))]."""
        check_shape(self.config.kind, logits, labels, logits.shape)
        return functional.binary_cross_entropy_with_logits(logits.float(), labels.float())


class ChoiceHead(LinearHead):
    """One of C texts a question: a number for each of the n·C rows, side by side as logits (n, C).

    `beside.choices` says how many rows a question has, else the configuration does, whose 1 means any number.
    """

    def __init__(self, width: int, config: HeadConfig) -> None:
        super().__init__(width, config, outputs=1)

    def forward(
        self, hidden: Tensor, mask: Tensor | None = None, beside: Beside = NOTHING, inverse: Inverse | None = None
    ) -> Tensor:
        """hidden (n·C, T, D) -> logits (n, C). Raises AdapterError for another number of choices than the head's."""
        wanted = self.config.num_outputs
        choices = beside.choices or wanted
        if wanted not in (1, choices) or len(hidden) % choices:
            raise AdapterError(
                f"multiple_choice: {len(hidden)} rows, {choices} a question, for a head of {wanted} choices; give "
                f"input_ids of shape (questions, {wanted}, tokens)"
            )
        return super().forward(hidden, mask, beside).view(-1, choices)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy over the choices; labels (n,), or (n·C,) where each row of a question repeats them."""
        if labels.shape[:1] != logits.shape[:1] and labels.dim() == 1 and len(labels) == logits.numel():
            labels = labels.view(-1, logits.shape[1])[:, 0]
        return class_loss(self.config.kind, logits, flat_labels(logits, labels))


class SpanHead(LinearHead):
    """Where an answer starts and ends: logits (n, T, 2), viewed as start_logits and end_logits (n, T)."""

    def views(self, logits: Tensor) -> dict[str, Tensor]:
        """start_logits (n, T), end_logits (n, T)."""
        return {"start_logits": logits[..., 0], "end_logits": logits[..., 1]}

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean of both cross entropies over T; labels (n, 2), a place outside 0 ... T - 1 is left out."""
        check_shape(self.config.kind, logits, labels, (len(logits), 2))
        outside = (labels < 0) | (labels >= logits.shape[1])
        places = labels.masked_fill(outside, -100)
        start, end = (class_loss(self.config.kind, logits[..., side], places[:, side]) for side in (0, 1))
        return (start + end) / 2

    def items(self, labels: Tensor, prompted: bool = False) -> Tensor:
        """The places that are in the text."""
        return (labels >= 0).sum()


def flat_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """Labels (n, 1) as (n,) where logits are (n, L)."""
    places = logits.shape[:-1]
    return labels.squeeze(-1) if len(places) == 1 and labels.shape == (*places, 1) else labels


def fresh_linear(width: int, outputs: int, bias: bool = True) -> nn.Linear:
    """A linear layer with weights from N(0, 0.02) and a bias of zero, as BERT's are."""
    linear = nn.Linear(width, outputs, bias=bias)
    nn.init.normal_(linear.weight, std=0.02)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear
