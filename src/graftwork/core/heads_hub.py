"""Heads by AdapterHub's names and arguments: what `model.add_..._head(name, ...)` takes, as configurations.

Every function gets the facts of the base first; an argument that is left out follows the base. Positions and defaults
are those of adapters 1.3.0, further arguments are by keyword. Builds nothing.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from graftwork.core.heads import NO_ACTIVATION, HeadConfig, labels_of
from graftwork.core.heads_facts import Asked, HeadFacts


def classification(
    base: HeadFacts,
    num_labels: int = 2,
    layers: int = 2,
    activation_function: str | None = "tanh",
    overwrite_ok: bool = False,
    multilabel: bool = False,
    id2label: Mapping[int, str] | None = None,
    use_pooler: bool | None = None,
    *,
    pooling: str | None = None,
    dropout: float | None = None,
) -> Asked:
    """Add a head with one answer a row: logits (B, num_labels); one number where num_labels is 1.

    multilabel: any of the labels may hold, with binary cross entropy. pooling: what stands for a row.
    """
    one = "multilabel_classification" if multilabel else "regression" if num_labels == 1 else "classification"
    labels = () if one == "regression" else labels_of(id2label)
    config = _layered(
        one, base, num_labels, layers, activation_function, base.pooled_by(pooling, use_pooler), dropout, labels
    )
    return Asked(config, overwrite_ok)


def image_classification(
    base: HeadFacts,
    num_labels: int = 2,
    layers: int = 1,
    activation_function: str | None = "tanh",
    overwrite_ok: bool = False,
    multilabel: bool = False,
    id2label: Mapping[int, str] | None = None,
    use_pooler: bool | None = None,
    *,
    pooling: str | None = None,
    dropout: float | None = None,
) -> Asked:
    """Add a head with one answer an image: logits (B, num_labels)."""
    labels = labels_of(id2label)
    config = _layered(
        "image_classification",
        base,
        num_labels,
        layers,
        activation_function,
        base.pooled_by(pooling, use_pooler),
        dropout,
        labels,
    )
    return Asked(replace(config, multilabel=multilabel), overwrite_ok)


def regression(
    base: HeadFacts,
    layers: int = 2,
    *,
    pooling: str | None = None,
    dropout: float | None = None,
    overwrite_ok: bool = False,
) -> Asked:
    """Add a head with one number a row: logits (B, 1)."""
    config = HeadConfig(
        kind="regression",
        num_outputs=1,
        layers=layers,
        pooling=base.pooled_by(pooling, None),
        dropout=base.dropout if dropout is None else dropout,
    )
    return Asked(config, overwrite_ok)


def multiple_choice(
    base: HeadFacts,
    num_choices: int = 2,
    layers: int = 2,
    activation_function: str | None = "tanh",
    overwrite_ok: bool = False,
    id2label: Mapping[int, str] | None = None,
    use_pooler: bool | None = None,
    *,
    pooling: str | None = None,
    dropout: float | None = None,
) -> Asked:
    """Add a head that picks one of num_choices texts: input_ids (B, num_choices, T), logits (B, num_choices)."""
    labels = labels_of(id2label)
    config = _layered(
        "multiple_choice",
        base,
        num_choices,
        layers,
        activation_function,
        base.pooled_by(pooling, use_pooler),
        dropout,
        labels,
    )
    return Asked(config, overwrite_ok)


def tagging(
    base: HeadFacts,
    num_labels: int = 2,
    layers: int = 1,
    activation_function: str | None = "tanh",
    overwrite_ok: bool = False,
    id2label: Mapping[int, str] | None = None,
    *,
    dropout: float | None = None,
) -> Asked:
    """Add a head with one answer a token: logits (B, T, num_labels)."""
    return _tokens("tagging", base, num_labels, layers, activation_function, overwrite_ok, id2label, dropout)


def question_answering(
    base: HeadFacts,
    num_labels: int = 2,
    layers: int = 1,
    activation_function: str | None = "tanh",
    overwrite_ok: bool = False,
    id2label: Mapping[int, str] | None = None,
    *,
    dropout: float | None = None,
) -> Asked:
    """Add a head for the start and the end of an answer: start_logits and end_logits (B, T); num_labels is 2."""
    return _tokens("question_answering", base, num_labels, layers, activation_function, overwrite_ok, id2label, dropout)


def _layered(
    kind: str,
    base: HeadFacts,
    outputs: int,
    layers: int,
    activation_function: str | None,
    pooling: str,
    dropout: float | None,
    labels: tuple[str, ...],
) -> HeadConfig:
    """A head of linear layers; without an activation there is none between them, dropout follows the base."""
    return HeadConfig(
        kind=kind,
        num_outputs=outputs,
        layers=layers,
        activation=activation_function or NO_ACTIVATION,
        pooling=pooling,
        dropout=base.dropout if dropout is None else dropout,
        labels=labels,
    )


def _tokens(
    kind: str,
    base: HeadFacts,
    num_labels: int,
    layers: int,
    activation_function: str | None,
    overwrite_ok: bool,
    id2label: Mapping[int, str] | None,
    dropout: float | None,
) -> Asked:
    labels = labels_of(id2label)
    return Asked(_layered(kind, base, num_labels, layers, activation_function, "none", dropout, labels), overwrite_ok)


def dependency_parsing(
    base: HeadFacts,
    num_labels: int = 2,
    overwrite_ok: bool = False,
    id2label: Mapping[int, str] | None = None,
    *,
    dropout: float | None = None,
) -> Asked:
    """Add a biaffine parser: rel_preds (B, T, T + 1, num_labels), arc_preds (B, T, T + 1); it needs word_starts."""
    return _tokens("dependency_parsing", base, num_labels, 1, "tanh", overwrite_ok, id2label, dropout)


def masked_lm(
    base: HeadFacts,
    activation_function: str | None = "gelu",
    layers: int = 2,
    overwrite_ok: bool = False,
    *,
    tied: bool | None = None,
) -> Asked:
    """Add a masked language-modelling head: logits (B, T, V), projected by the base's own embedding where tied."""
    return _language("masked_lm", base, activation_function, layers, overwrite_ok, tied)


def causal_lm(
    base: HeadFacts,
    activation_function: str | None = "gelu",
    layers: int = 2,
    overwrite_ok: bool = False,
    *,
    tied: bool | None = None,
) -> Asked:
    """Add a causal language-modelling head: logits (B, T, V), token t answering for t + 1."""
    return _language("causal_lm", base, activation_function, layers, overwrite_ok, tied)


def seq2seq_lm(base: HeadFacts, layers: int = 1, overwrite_ok: bool = False, *, tied: bool | None = None) -> Asked:
    """Add the head of an encoder-decoder that says a text: logits (B, T, V) of the decoder's tokens."""
    return _language("seq2seq_lm", base, None, layers, overwrite_ok, tied)


def _language(
    kind: str, base: HeadFacts, activation_function: str | None, layers: int, overwrite_ok: bool, tied: bool | None
) -> Asked:
    plain = kind == "seq2seq_lm"
    options: dict[str, Any] = {} if base.embedding == base.width else {"width": base.embedding}
    options |= {} if plain else {"norm_eps": base.norm_eps}
    config = HeadConfig(
        kind=kind,
        num_outputs=base.words,
        layers=layers,
        activation=activation_function or NO_ACTIVATION,
        pooling="none",
        dropout=0.0,
        bias=not plain,
        layer_norm=not plain,
        tied=base.tied if tied is None else tied,
        shift=kind == "causal_lm",
        scale=base.scale,
        **options,
    )
    return Asked(config, overwrite_ok)


def sentence_embedding(
    base: HeadFacts,
    pooling: str = "mean",
    layers: int = 0,
    dim: int | None = None,
    overwrite_ok: bool = False,
    *,
    normalise: bool = True,
    temperature: float = 0.05,
) -> Asked:
    """Add a head that embeds a text: (B, dim), the pooled hidden state itself where layers is 0."""
    config = HeadConfig(
        kind="sentence_embedding",
        num_outputs=dim or base.width,
        layers=layers,
        pooling=pooling,
        dropout=0.0,
        normalise=normalise,
        temperature=temperature,
    )
    return Asked(config, overwrite_ok)
