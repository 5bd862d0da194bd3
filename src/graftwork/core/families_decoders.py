"""Rows of the families table: decoders of text, most of them pre-LN."""

from dataclasses import replace

from graftwork.core.family import (
    Attention,
    Family,
    LayerStack,
    Linear,
    Sublayer,
    Variant,
    feed_forward,
    linears,
    merged,
)

_ATTN = (Attention("attn", "self_attn"),)
_QKVO = linears("self_attn", ("q_proj", "k_proj", "v_proj", "o_proj"))
_GATED = feed_forward("mlp.up_proj", "mlp.down_proj", "mlp.gate_proj")

_LLAMA = LayerStack(
    "",
    "layers",
    (
        Sublayer("attn", "self_attn.o_proj", "input_layernorm"),
        Sublayer("ffn", "mlp.down_proj", "post_attention_layernorm"),
    ),
    linears=(*_QKVO, *_GATED),
    attentions=_ATTN,
    embed="embed_tokens",
)

_EXPERTS = replace(  # a mixture of experts is adapted as a whole: what it adds to the stream
    _LLAMA,
    sites=(_LLAMA.sites[0], Sublayer("ffn", "mlp", "post_attention_layernorm")),
    linears=(*_QKVO, *(replace(linear, optional=True) for linear in _GATED)),
)

_GEMMA2 = replace(
    _LLAMA,
    sites=(
        Sublayer("attn", "self_attn.o_proj", "input_layernorm", inner="post_attention_layernorm"),
        Sublayer("ffn", "mlp.down_proj", "pre_feedforward_layernorm", inner="post_feedforward_layernorm"),
    ),
)

_OLMO2 = replace(
    _LLAMA,
    sites=(
        Sublayer("attn", "self_attn.o_proj", "self_attn", inner="post_attention_layernorm"),
        Sublayer("ffn", "mlp.down_proj", "mlp", argument=(0, "x"), inner="post_feedforward_layernorm"),
    ),
)

_PHI3 = replace(
    _LLAMA,
    sites=(
        Sublayer("attn", "resid_attn_dropout", "input_layernorm"),
        Sublayer("ffn", "resid_mlp_dropout", "post_attention_layernorm"),
    ),
    linears=(
        *merged("self_attn.qkv_proj", "blocks", "self_attn.o_proj"),
        Linear("ffn.gate", "mlp.gate_up_proj", 0, "halves"),
        Linear("ffn.up", "mlp.gate_up_proj", 1, "halves"),
        Linear("ffn.down", "mlp.down_proj"),
    ),
)

_PHI = replace(
    _LLAMA,
    sites=(  # one dropout serves both sub-layers in turn, so h₀ is before it
        Sublayer("attn", "self_attn.dense", "input_layernorm"),
        Sublayer("ffn", "mlp.fc2", "input_layernorm", beside="attn"),
    ),
    linears=(*linears("self_attn", ("q_proj", "k_proj", "v_proj", "dense")), *feed_forward("mlp.fc1", "mlp.fc2")),
)

_GPT2 = LayerStack(
    "",
    "h",
    (
        Sublayer("attn", "attn.resid_dropout", "ln_1"),
        Sublayer("cross", "crossattention.resid_dropout", "ln_cross_attn", optional=True),
        Sublayer("ffn", "mlp.dropout", "ln_2"),
    ),
    linears=(
        *merged("attn.c_attn", "blocks", "attn.c_proj"),
        Linear("cross.query", "crossattention.q_attn", optional=True),
        Linear("cross.key", "crossattention.c_attn", 0, "halves", optional=True),
        Linear("cross.value", "crossattention.c_attn", 1, "halves", optional=True),
        Linear("cross.out", "crossattention.c_proj", optional=True),
        *feed_forward("mlp.c_fc", "mlp.c_proj"),
    ),
    attentions=(Attention("attn", "attn"), Attention("cross", "crossattention", optional=True)),
    embed="drop",
    prompt="wte",
    lengthens="entry",
)

_GPTJ = LayerStack(
    "",
    "h",
    (
        Sublayer("attn", "attn.resid_dropout", "ln_1"),
        Sublayer("ffn", "mlp.dropout", "ln_1", beside="attn"),
    ),
    linears=(*linears("attn", ("q_proj", "k_proj", "v_proj", "out_proj")), *feed_forward("mlp.fc_in", "mlp.fc_out")),
    attentions=(Attention("attn", "attn", way="cache"),),
    embed="drop",
    prompt="wte",
)


def _neox(ffn: Sublayer) -> tuple[LayerStack, ...]:
    return (
        LayerStack(
            "",
            "layers",
            (Sublayer("attn", "post_attention_dropout", "input_layernorm"), ffn),
            linears=(
                *merged("attention.query_key_value", "heads", "attention.dense"),
                *feed_forward("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
            ),
            attentions=(Attention("attn", "attention"),),
            embed="emb_dropout",
            prompt="embed_in",
        ),
    )


_BLOOM = LayerStack(
    "",
    "h",
    (
        Sublayer("attn", "self_attention.dense", "self_attention", argument=(1, "residual")),
        Sublayer("ffn", "mlp.dense_4h_to_h", "mlp", argument=(1, "residual")),
    ),
    linears=(
        *merged("self_attention.query_key_value", "heads", "self_attention.dense"),
        *feed_forward("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    ),
    attentions=(Attention("attn", "self_attention", way="cache"),),
    embed="word_embeddings_layernorm",
    prompt="word_embeddings",
)


def _falcon(norm: str, layout: str, after: str | None = None) -> tuple[LayerStack, ...]:
    """Falcon: `norm` receives the residual; both sub-layers stand side by side, or the second comes `after` a norm."""
    beside = Sublayer("ffn", "mlp.dense_4h_to_h", norm, beside="attn")
    ffn = beside if after is None else Sublayer("ffn", "mlp.dense_4h_to_h", after)
    return (
        LayerStack(
            "",
            "h",
            (Sublayer("attn", "self_attention.dense", norm), ffn),
            linears=(
                *merged("self_attention.query_key_value", layout, "self_attention.dense"),
                *feed_forward("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
            ),
            attentions=(Attention("attn", "self_attention", way="cache"),),
            embed="word_embeddings",
        ),
    )


def _opt(attn: Sublayer, ffn: Sublayer) -> tuple[LayerStack, ...]:
    return (
        LayerStack(
            "",
            "decoder.layers",
            (attn, replace(ffn, flat=True)),
            linears=(*linears("self_attn", ("q_proj", "k_proj", "v_proj", "out_proj")), *feed_forward("fc1", "fc2")),
            attentions=_ATTN,
            embed="decoder.embed_tokens",
        ),
    )


_INPUT_NORM, _POST_NORM = "input_layernorm", "post_attention_layernorm"

DECODERS: tuple[Family, ...] = (
    Family(("llama", "mistral", "qwen2", "qwen3", "gemma", "olmo"), (_LLAMA,), causal=True),
    Family(("mixtral", "qwen3_moe"), (_EXPERTS,), causal=True),
    Family(("gemma2", "gemma3_text"), (_GEMMA2,), causal=True),
    Family(("olmo2",), (_OLMO2,), causal=True),
    Family(("phi",), (_PHI,), causal=True),
    Family(("phi3",), (_PHI3,), causal=True),
    Family(("gpt2",), (_GPT2,), causal=True),
    Family(("gptj",), (_GPTJ,), causal=True),
    Family(
        ("gpt_neox",),
        _neox(Sublayer("ffn", "post_mlp_dropout", _INPUT_NORM, beside="attn")),
        causal=True,
        variants=(
            Variant((("use_parallel_residual", False),), _neox(Sublayer("ffn", "post_mlp_dropout", _POST_NORM))),
        ),
    ),
    Family(("bloom",), (_BLOOM,), causal=True),
    Family(
        ("falcon",),
        _falcon(_INPUT_NORM, "blocks"),
        causal=True,
        variants=(
            Variant(
                (("new_decoder_architecture", True), ("num_ln_in_parallel_attn", 1)), _falcon(_INPUT_NORM, "groups")
            ),
            Variant((("new_decoder_architecture", True),), _falcon("ln_attn", "groups")),
            Variant((("parallel_attn", True), ("multi_query", False)), _falcon(_INPUT_NORM, "heads")),
            Variant((("parallel_attn", False), ("multi_query", True)), _falcon(_INPUT_NORM, "blocks", _POST_NORM)),
            Variant((("parallel_attn", False),), _falcon(_INPUT_NORM, "heads", _POST_NORM)),
        ),
    ),
    Family(
        ("opt",),
        _opt(
            Sublayer("attn", "self_attn.out_proj", "self_attn_layer_norm"),
            Sublayer("ffn", "fc2", "final_layer_norm"),
        ),
        causal=True,
        variants=(
            Variant(
                (("do_layer_norm_before", False),),
                _opt(
                    Sublayer("attn", "self_attn.out_proj", "self_attn", "self_attn_layer_norm"),
                    Sublayer("ffn", "fc2", "fc1", "final_layer_norm"),
                ),
            ),
        ),
    ),
)
