"""transformers' own heads, as files of AdapterHub hold them, in the layout of ours: which module is which layer.

A head saved from `BertForSequenceClassification` has no configuration; its class says what it is. One row per layout,
with the classes that share it. Facts, not code: modules are named from the input to the output.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class StaticHead:
    """A head of transformers: `modules` are its linears in order, `norm` the norm before the last one.

    pooling: what it reads of a row, empty where it answers every token.
    """

    kind: str
    modules: tuple[str, ...]
    activation: str = "none"
    pooling: str = ""
    norm: str = ""
    bias: bool = True
    copies: tuple[str, ...] = ()  # names that the bias of the last module is stored under once more
    scaled: bool = False  # T5: hidden states times D ** -0.5 where embeddings are tied


_BERT_LM = StaticHead(
    "masked_lm",
    ("cls.predictions.transform.dense", "cls.predictions.decoder"),
    "gelu",
    norm="cls.predictions.transform.LayerNorm",
    copies=("cls.predictions.bias",),
)
_ROBERTA_LM = StaticHead(
    "masked_lm", ("lm_head.dense", "lm_head.decoder"), "gelu", norm="lm_head.layer_norm", copies=("lm_head.bias",)
)
_ELECTRA_LM = StaticHead(
    "masked_lm",
    ("generator_predictions.dense", "generator_lm_head"),
    "gelu",
    norm="generator_predictions.LayerNorm",
)


def _causal(head: StaticHead) -> StaticHead:
    return StaticHead("causal_lm", head.modules, head.activation, norm=head.norm, copies=head.copies)


# (head, the names before "For...", the classes' endings)
_ROWS: tuple[tuple[StaticHead, str, str], ...] = (
    (StaticHead("classification", ("classifier",), pooling="pooler"), "Albert Bert", "ForSequenceClassification"),
    (
        StaticHead("multiple_choice", ("classifier",), pooling="pooler"),
        "Albert Bert Roberta XLMRoberta Xmod",
        "ForMultipleChoice",
    ),
    (
        StaticHead("tagging", ("classifier",)),
        "Albert Bert Roberta XLMRoberta Xmod DistilBert GPT2 Electra DebertaV2 Deberta",
        "ForTokenClassification",
    ),
    (
        StaticHead("question_answering", ("qa_outputs",)),
        "Albert Bert Roberta XLMRoberta Xmod Bart MBart DistilBert GPT2 GPTJ DebertaV2 Deberta Llama Mistral Electra "
        "MT5 T5",
        "ForQuestionAnswering",
    ),
    (
        StaticHead(
            "masked_lm",
            ("predictions.dense", "predictions.decoder"),
            "gelu_new",
            norm="predictions.LayerNorm",
            copies=("predictions.bias",),
        ),
        "Albert",
        "ForMaskedLM",
    ),
    (StaticHead("image_classification", ("classifier",), pooling="pooler"), "Beit", "ForImageClassification"),
    (StaticHead("image_classification", ("classifier",), pooling="first"), "ViT", "ForImageClassification"),
    (_BERT_LM, "Bert DebertaV2 Deberta", "ForMaskedLM"),
    (_causal(_BERT_LM), "Bert", "LMHeadModel"),
    (
        StaticHead("causal_lm", ("lm_head.decoder",), copies=("lm_head.bias",)),
        "BertGeneration",
        "Decoder",
    ),
    (
        StaticHead("classification", ("classifier.dense", "classifier.out_proj"), "tanh", "first"),
        "Roberta XLMRoberta Xmod",
        "ForSequenceClassification",
    ),
    (_ROBERTA_LM, "Roberta XLMRoberta Xmod", "ForMaskedLM"),
    (_causal(_ROBERTA_LM), "Roberta XLMRoberta Xmod", "ForCausalLM"),
    (
        StaticHead("classification", ("classification_head.dense", "classification_head.out_proj"), "tanh", "eos"),
        "Bart MBart PLBart MT5 T5",
        "ForSequenceClassification",
    ),
    (
        StaticHead("seq2seq_lm", ("lm_head",), bias=False, scaled=True),
        "MT5 T5",
        "ForConditionalGeneration",
    ),
    (StaticHead("seq2seq_lm", ("lm_head",), bias=False), "Bart MBart PLBart", "ForConditionalGeneration"),
    (StaticHead("seq2seq_lm", ("proj_out",), bias=False), "Whisper", "ForConditionalGeneration"),
    (
        StaticHead("classification", ("pre_classifier", "classifier"), "relu", "first"),
        "DistilBert",
        "ForSequenceClassification",
    ),
    (
        StaticHead("multiple_choice", ("pre_classifier", "classifier"), "relu", "first"),
        "DistilBert",
        "ForMultipleChoice",
    ),
    (
        StaticHead("masked_lm", ("vocab_transform", "vocab_projector"), "gelu", norm="vocab_layer_norm"),
        "DistilBert",
        "ForMaskedLM",
    ),
    (
        StaticHead("classification", ("score",), pooling="last", bias=False),
        "GPT2 GPTJ Llama Mistral",
        "ForSequenceClassification",
    ),
    (StaticHead("tagging", ("score",)), "Llama Mistral", "ForTokenClassification"),
    (StaticHead("causal_lm", ("lm_head",), bias=False), "Llama Mistral", "ForCausalLM"),
    (StaticHead("causal_lm", ("lm_head",), bias=False), "GPT2", "LMHeadModel"),
    (StaticHead("causal_lm", ("lm_head",)), "GPTJ", "ForCausalLM"),
    (
        StaticHead("classification", ("pooler.dense", "classifier"), "gelu", "first"),
        "DebertaV2 Deberta",
        "ForSequenceClassification",
    ),
    (
        StaticHead("multiple_choice", ("pooler.dense", "classifier"), "gelu", "first"),
        "DebertaV2",
        "ForMultipleChoice",
    ),
    (
        StaticHead("classification", ("classifier.dense", "classifier.out_proj"), "gelu", "first"),
        "Electra",
        "ForSequenceClassification",
    ),
    (
        StaticHead("multiple_choice", ("sequence_summary.summary", "classifier"), "gelu", "first"),
        "Electra",
        "ForMultipleChoice",
    ),
    (_ELECTRA_LM, "Electra", "ForMaskedLM"),
    (_causal(_ELECTRA_LM), "Electra", "ForCausalLM"),
)

STATIC: Mapping[str, StaticHead] = {f"{one}{ending}": head for head, names, ending in _ROWS for one in names.split()}
