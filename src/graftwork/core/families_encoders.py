"""Rows of the families table: encoders of text, most of them post-LN."""

from graftwork.core.family import (
    Attention,
    Family,
    LayerStack,
    Sublayer,
    Variant,
    feed_forward,
    linears,
    merged,
)

_IN_TENSOR = (1, "input_tensor")  # BertSelfOutput.forward(hidden_states, input_tensor)
_QKVO = ("self.query", "self.key", "self.value", "output.dense")

_BERT_ATTN = Sublayer("attn", "attention.output.dropout", "attention.output", "attention.output.LayerNorm", _IN_TENSOR)
_BERT_FFN = Sublayer("ffn", "output.dropout", "output", "output.LayerNorm", _IN_TENSOR)
_BERT_FEED_FORWARD = feed_forward("intermediate.dense", "output.dense")

_BERT = LayerStack(
    "",
    "encoder.layer",
    (
        _BERT_ATTN,
        Sublayer(
            "cross",
            "crossattention.output.dropout",
            "crossattention.output",
            "crossattention.output.LayerNorm",
            _IN_TENSOR,
            optional=True,
        ),
        _BERT_FFN,
    ),
    linears=(
        *linears("attention", _QKVO),
        *linears("crossattention", _QKVO, "cross", optional=True),
        *_BERT_FEED_FORWARD,
    ),
    attentions=(Attention("attn", "attention.self"), Attention("cross", "crossattention.self", optional=True)),
    embed="embeddings",
)

_ALBERT = LayerStack(
    "",
    "encoder.albert_layer_groups.*.albert_layers",  # a layer is run again and again: its adapter with it
    (
        Sublayer("attn", "attention.output_dropout", "attention", "attention.LayerNorm"),
        Sublayer("ffn", "ffn_output", "ffn", "full_layer_layer_norm", (0, "input")),
    ),
    linears=(*linears("attention", ("query", "key", "value", "dense")), *feed_forward("ffn", "ffn_output")),
    attentions=(Attention("attn", "attention"),),
    embed="embeddings",  # of embedding_size, before they are mapped to the width of the layers
)

_DISTILBERT = LayerStack(
    "",
    "transformer.layer",
    (
        Sublayer("attn", "attention.out_lin", "attention", "sa_layer_norm"),
        Sublayer("ffn", "ffn.dropout", "ffn", "output_layer_norm", (0, "input")),
    ),
    linears=(*linears("attention", ("q_lin", "k_lin", "v_lin", "out_lin")), *feed_forward("ffn.lin1", "ffn.lin2")),
    attentions=(Attention("attn", "attention"),),
    embed="embeddings",
)

_MODERNBERT = LayerStack(
    "",
    "layers",
    (Sublayer("attn", "attn.out_drop", "attn_norm"), Sublayer("ffn", "mlp.Wo", "mlp_norm")),
    # Wi makes gate and up at once; AdapterHub adapts it whole, and so is it here
    linears=(*merged("attn.Wqkv", "blocks", "attn.Wo"), *feed_forward("mlp.Wi", "mlp.Wo")),
    attentions=(Attention("attn", "attn"),),
    embed="embeddings",
    lengthens="counted",
)

_DEBERTA = LayerStack(
    "",
    "encoder.layer",
    (_BERT_ATTN, _BERT_FFN),
    linears=(*merged("attention.self.in_proj", "heads", "attention.output.dense"), *_BERT_FEED_FORWARD),
    attentions=(Attention("attn", "attention.self", way="relative"),),
    embed="embeddings",
    lengthens="masked",
)

_DEBERTA_V2 = LayerStack(
    "",
    "encoder.layer",
    (_BERT_ATTN, _BERT_FFN),
    # query and key run a second time where they are shared with the relative positions: those have one row
    linears=(
        *linears("attention", ("self.query_proj", "self.key_proj", "self.value_proj", "output.dense")),
        *_BERT_FEED_FORWARD,
    ),
    attentions=(Attention("attn", "attention.self", way="relative"),),
    embed="embeddings",
    lengthens="masked",
)


def _xmod(norm: str, pre_norm: bool = False) -> tuple[LayerStack, ...]:
    """X-MOD: the norm after the attention is outside of what is adapted, that of the language adapters is inside."""
    after = None if pre_norm else "attention.output.LayerNorm"
    attention = Sublayer("attn", "attention.output.dropout", "attention.output", None, _IN_TENSOR, onward=after)
    # the dropout serves the language adapters once more, after the add
    ffn = Sublayer("ffn", "output.dropout", "output", norm, _IN_TENSOR, shared=True, onward=norm)
    return (
        LayerStack(
            "",
            "encoder.layer",
            (attention, ffn),
            linears=(*linears("attention", _QKVO), *_BERT_FEED_FORWARD),
            attentions=(Attention("attn", "attention.self"),),
            embed="embeddings",
        ),
    )


_OWN_NORM = ("adapter_layer_norm", True)

ENCODERS: tuple[Family, ...] = (
    Family(("bert", "roberta", "xlm-roberta", "electra", "bert-generation"), (_BERT,)),
    Family(("albert",), (_ALBERT,)),
    Family(("distilbert",), (_DISTILBERT,)),
    Family(("modernbert",), (_MODERNBERT,)),
    Family(("deberta",), (_DEBERTA,)),
    Family(("deberta-v2",), (_DEBERTA_V2,)),
    Family(
        ("xmod",),
        _xmod("output.LayerNorm"),
        variants=(
            Variant((_OWN_NORM, ("pre_norm", True)), _xmod("output.adapter_layer_norm", pre_norm=True)),
            Variant((_OWN_NORM,), _xmod("output.adapter_layer_norm")),
            Variant((("adapter_reuse_layer_norm", False),), ()),  # no norm there: nothing trained has this form
            Variant((("pre_norm", True),), _xmod("output.LayerNorm", pre_norm=True)),
        ),
    ),
)
