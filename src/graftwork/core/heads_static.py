"""The heads of transformers' own classes (BertForSequenceClassification, T5ForConditionalGeneration, ...) as ours.

A class is a row of data: what kind of head it is, and where its dense layer, its norm and its last layer are. The
configuration says the rest (labels, activation, dropout), and weights keep their numbers: logits are equal. A layer
without a bias there gets one of zeros where ours has one. Reads a state dict; `static_head` takes it from a model.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from graftwork.core.heads import NO_ACTIVATION, HeadConfig
from graftwork.core.heads_table import build_head
from graftwork.errors import AdapterError

_FROM_CONFIG = "="  # an activation or a pooling "=key" is what the configuration says under the key


@dataclass(frozen=True)
class Layout:
    """One class's head. last, dense, norm: names of its modules. bias: the last layer's, where it has another name."""

    kind: str
    last: str
    pooling: str = "none"
    dense: str | None = None
    activation: str = NO_ACTIVATION
    norm: str | None = None
    bias: str | None = None


def _layouts(names: Iterable[str], rows: Mapping[str, Layout]) -> dict[str, Layout]:
    return {f"{name}{task}": layout for name in names for task, layout in rows.items()}


_TAGS, _SPAN = Layout("tagging", "classifier"), Layout("question_answering", "qa_outputs")
_POOLED = Layout("classification", "classifier", "pooler")
_DENSE = Layout("classification", "classifier.out_proj", "first", "classifier.dense", "tanh")
_ENDS = Layout("classification", "classification_head.out_proj", "eos", "classification_head.dense", "tanh")
_SCORE = Layout("classification", "score", "last")
_SAYS = Layout("causal_lm", "lm_head")
_BERT_LM = Layout(
    *("masked_lm", "cls.predictions.decoder", "none", "cls.predictions.transform.dense", "=hidden_act"),
    *("cls.predictions.transform.LayerNorm", "cls.predictions.bias"),
)
_ROBERTA_LM = Layout(
    "masked_lm", "lm_head.decoder", "none", "lm_head.dense", "gelu", "lm_head.layer_norm", "lm_head.bias"
)
_ELECTRA_LM = Layout(
    *("masked_lm", "generator_lm_head", "none", "generator_predictions.dense", "gelu"),
    "generator_predictions.LayerNorm",
)
_ENCODER = {"ForTokenClassification": _TAGS, "ForQuestionAnswering": _SPAN}
_CHOICE = {"ForMultipleChoice": replace(_POOLED, kind="multiple_choice")}
_DISTIL = Layout("classification", "classifier", "first", "pre_classifier", "relu")
_DEBERTA = Layout("classification", "classifier", "first", "pooler.dense", "=pooler_hidden_act")
_MODERN = Layout("classification", "classifier", "=classifier_pooling", "head.dense", "=classifier_activation",
                 "head.norm")  # fmt: skip
_DECODERS = ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Phi3")

# class of transformers -> where its head is
LAYOUTS: dict[str, Layout] = {
    **_layouts(("Bert", "Roberta", "XLMRoberta", "Electra", "DistilBert", "Albert", "DebertaV2"), _ENCODER),
    **_layouts(("Bert", "Albert"), {"ForSequenceClassification": _POOLED, **_CHOICE}),
    **_layouts(("Bert",), {"ForMaskedLM": _BERT_LM, "LMHeadModel": replace(_BERT_LM, kind="causal_lm")}),
    **_layouts(("Roberta", "XLMRoberta"), {
        "ForSequenceClassification": _DENSE, **_CHOICE,
        "ForMaskedLM": _ROBERTA_LM, "ForCausalLM": replace(_ROBERTA_LM, kind="causal_lm"),
    }),
    **_layouts(("Electra",), {
        "ForSequenceClassification": replace(_DENSE, activation="gelu"),
        "ForMultipleChoice": Layout("multiple_choice", "classifier", "first", "sequence_summary.summary", "gelu"),
        "ForMaskedLM": _ELECTRA_LM, "ForCausalLM": replace(_ELECTRA_LM, kind="causal_lm"),
    }),
    **_layouts(("Albert",), {"ForMaskedLM": Layout(
        "masked_lm", "predictions.decoder", "none", "predictions.dense", "=hidden_act", "predictions.LayerNorm",
        "predictions.bias",
    )}),
    **_layouts(("DistilBert",), {
        "ForSequenceClassification": _DISTIL, "ForMultipleChoice": replace(_DISTIL, kind="multiple_choice"),
        "ForMaskedLM": Layout("masked_lm", "vocab_projector", "none", "vocab_transform", "=activation",
                              "vocab_layer_norm"),
    }),
    **_layouts(("DebertaV2",), {
        "ForSequenceClassification": _DEBERTA, "ForMultipleChoice": replace(_DEBERTA, kind="multiple_choice"),
    }),
    **_layouts(("ModernBert",), {
        "ForSequenceClassification": _MODERN,
        "ForMultipleChoice": replace(_MODERN, kind="multiple_choice"),
        "ForTokenClassification": replace(_MODERN, kind="tagging", pooling="none"),
        "ForQuestionAnswering": replace(_MODERN, kind="question_answering", pooling="none"),
        "ForMaskedLM": Layout("masked_lm", "decoder", "none", "head.dense", "=classifier_activation", "head.norm"),
    }),
    **_layouts(("GPT2",), {
        "LMHeadModel": _SAYS, "ForSequenceClassification": _SCORE, "ForTokenClassification": _TAGS,
        "ForQuestionAnswering": _SPAN,
    }),
    **_layouts(_DECODERS, {
        "ForCausalLM": _SAYS, "ForSequenceClassification": _SCORE,
        "ForTokenClassification": replace(_TAGS, last="score"),
    }),
    **_layouts(("Llama", "Mistral", "Qwen2", "Qwen3"), {"ForQuestionAnswering": _SPAN}),
    **_layouts(("T5", "MT5", "Bart", "MBart"), {
        "ForSequenceClassification": _ENDS, "ForQuestionAnswering": _SPAN,
        "ForConditionalGeneration": Layout("seq2seq_lm", "lm_head", bias="final_logits_bias"),
    }),
    "ViTForImageClassification": Layout("image_classification", "classifier", "first"),
    "BeitForImageClassification": Layout("image_classification", "classifier", "pooler"),
}  # fmt: skip


def static_head(model: PreTrainedModel) -> tuple[HeadConfig, dict[str, Tensor]]:
    """The head of a model of one of the classes in `LAYOUTS`, and its tensors under our names. Raises AdapterError."""
    output = model.get_output_embeddings()
    tied = output is not None and output.weight is model.get_input_embeddings().weight
    return read_static_head(type(model).__name__, model.config, model.state_dict(), tied)


def read_static_head(
    model_class: str, config: Any, state: Mapping[str, Tensor], tied: bool
) -> tuple[HeadConfig, dict[str, Tensor]]:
    """The same from a class's name, its configuration and a state dict that holds the head.

    tied: whether the vocabulary is projected by the input embedding. Raises AdapterError for a class without a layout,
    or tensors that are not there.
    """
    if model_class not in LAYOUTS:
        raise AdapterError(
            f"no layout is known for the head of {model_class}; there are layouts for {', '.join(sorted(LAYOUTS))}"
        )
    layout, text = LAYOUTS[model_class], config.get_text_config()
    weight = _tensor(state, f"{layout.last}.weight", model_class)
    last_bias = state.get(f"{layout.last}.bias", state.get(layout.bias or ""))
    dense = None if layout.dense is None else _tensor(state, f"{layout.dense}.weight", model_class)
    width = weight.shape[1] if dense is None else dense.shape[1]
    language = layout.kind.endswith("_lm")
    kind = _kind(layout.kind, weight.shape[0], config)
    options: dict[str, Any] = {"bias": last_bias is not None, "layer_norm": layout.norm is not None}
    if layout.norm is not None:
        options["norm_eps"] = float(getattr(text, "norm_eps", None) or getattr(text, "layer_norm_eps", None) or 1e-12)
    if language:
        options |= {
            "tied": tied,
            "shift": kind == "causal_lm",
            "width": weight.shape[1] if weight.shape[1] != width else 0,
        }
        options["scale"] = width**-0.5 if getattr(text, "scale_decoder_outputs", False) else 1.0
    pooling = _said(layout.pooling, config)
    made = HeadConfig(
        kind=kind,
        num_outputs=weight.shape[0],
        layers=1 if layout.dense is None else 2,
        activation=_said(layout.activation, config),
        dropout=0.0 if language or kind == "question_answering" else _dropout(text),
        pooling="first" if pooling == "cls" else pooling,
        labels=_labels(config, weight.shape[0])
        if kind not in ("regression", "multiple_choice") and not language
        else (),
        **options,
    )
    return made, _named(made, width, layout, state, last_bias)


def _named(
    config: HeadConfig, width: int, layout: Layout, state: Mapping[str, Tensor], last_bias: Tensor | None
) -> dict[str, Tensor]:
    """The tensors of a layout under our names, found by building the head without weights."""
    with torch.device("meta"):
        shell = build_head(replace(config, tied=False) if config.tied else config, width)
    layers = [(name, layer) for name, layer in shell.named_modules() if isinstance(layer, nn.Linear | nn.LayerNorm)]
    sources = [source for source in (layout.dense, layout.norm, layout.last) if source is not None]
    tensors: dict[str, Tensor] = {}
    for (name, layer), source in zip(layers, sources, strict=True):
        final = source == layout.last
        if not (final and config.tied):
            tensors[f"{name}.weight"] = state[f"{source}.weight"]
        if layer.bias is not None:
            bias = last_bias if final else state.get(f"{source}.bias")
            tensors[f"{name}.bias"] = state[f"{source}.weight"].new_zeros(layer.bias.shape) if bias is None else (
                bias.reshape(layer.bias.shape)
            )  # fmt: skip
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _tensor(state: Mapping[str, Tensor], key: str, model_class: str) -> Tensor:
    if key not in state:
        raise AdapterError(f"{model_class}: tensor {key!r} is missing; found {', '.join(sorted(state)[-3:])}")
    return state[key]


def _said(value: str, config: Any) -> str:
    return str(getattr(config, value[1:])) if value.startswith(_FROM_CONFIG) else value


def _kind(kind: str, outputs: int, config: Any) -> str:
    problem = getattr(config, "problem_type", None)
    if kind != "classification":
        return kind
    if problem == "multi_label_classification":
        return "multilabel_classification"
    return "regression" if outputs == 1 else kind


def _labels(config: Any, outputs: int) -> tuple[str, ...]:
    """The configuration's labels by number, unless they are transformers' own LABEL_0, LABEL_1."""
    named = {int(number): str(label) for number, label in (getattr(config, "id2label", None) or {}).items()}
    labels = tuple(named.get(number, f"LABEL_{number}") for number in range(outputs))
    own = len(set(labels)) == outputs and any(label != f"LABEL_{number}" for number, label in enumerate(labels))
    return labels if own else ()


def _dropout(config: Any) -> float:
    names = ("classifier_dropout", "hidden_dropout_prob", "dropout")
    values = (getattr(config, name, None) for name in names)
    return next((float(value) for value in values if isinstance(value, int | float)), 0.0)
