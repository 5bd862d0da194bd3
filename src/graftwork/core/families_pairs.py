"""Rows of the families table: encoders with decoders. Invertible adapters stand at the encoder's embeddings only."""

from graftwork.core.family import Attention, Family, LayerStack, Linear, Sublayer, Tower, feed_forward, linears

_T5_NAMES = ("q", "k", "v", "o")


def _t5(name: str, ffn: int, cross: bool) -> LayerStack:
    """A T5 stack: layer.0 is self-attention, then cross-attention in the decoder, then the feed-forward layer."""
    dense = f"layer.{ffn}.DenseReluDense"
    kinds = ("attn", "cross", "ffn") if cross else ("attn", "ffn")
    return LayerStack(
        name,
        f"{name}.block",
        tuple(Sublayer(kind, f"layer.{i}.dropout", f"layer.{i}.layer_norm") for i, kind in enumerate(kinds)),
        optional=cross,
        linears=(
            *linears("layer.0.SelfAttention", _T5_NAMES),
            *(linears("layer.1.EncDecAttention", _T5_NAMES, "cross") if cross else ()),
            Linear("ffn.up", f"{dense}.wi", optional=True),
            Linear("ffn.gate", f"{dense}.wi_0", optional=True),
            Linear("ffn.up", f"{dense}.wi_1", optional=True),
            Linear("ffn.down", f"{dense}.wo"),
        ),
        attentions=(
            Attention("attn", "layer.0.SelfAttention"),
            *((Attention("cross", "layer.1.EncDecAttention"),) if cross else ()),
        ),
        embed=None if cross else "encoder.dropout",
        prompt=None if cross else "encoder.embed_tokens",
    )


_BART_NAMES = ("q_proj", "k_proj", "v_proj", "out_proj")
_POST_LN = (
    Sublayer("attn", "self_attn.out_proj", "self_attn", "self_attn_layer_norm"),
    Sublayer("cross", "encoder_attn.out_proj", "encoder_attn", "encoder_attn_layer_norm"),
    Sublayer("ffn", "fc2", "fc1", "final_layer_norm", (0, "input")),
)
_PRE_LN = (
    Sublayer("attn", "self_attn.out_proj", "self_attn_layer_norm"),
    Sublayer("cross", "encoder_attn.out_proj", "encoder_attn_layer_norm"),
    Sublayer("ffn", "fc2", "final_layer_norm"),
)


def _bart(sites: tuple[Sublayer, ...], embed: str, prompt: str | None) -> tuple[LayerStack, ...]:
    """Encoder and decoder with BART's names; dropout is a function there, so h₀ is before it."""
    encoder = (*linears("self_attn", _BART_NAMES), *feed_forward("fc1", "fc2"))
    return (
        LayerStack(
            "encoder",
            "encoder.layers",
            tuple(site for site in sites if site.kind != "cross"),
            optional=True,
            linears=encoder,
            attentions=(Attention("attn", "self_attn"),),
            embed=embed,
            prompt=prompt,
            lengthens="entry",
            unprompted="" if prompt else "its encoder takes sound of one length",
        ),
        LayerStack(
            "decoder",
            "decoder.layers",
            sites,
            optional=True,
            linears=(*encoder, *linears("encoder_attn", _BART_NAMES, "cross")),
            attentions=(Attention("attn", "self_attn"), Attention("cross", "encoder_attn")),
        ),
    )


_TOKENS, _NORMED = "encoder.embed_tokens", "encoder.layernorm_embedding"

PAIRS: tuple[Family, ...] = (
    Family(("t5", "mt5"), (_t5("encoder", 1, cross=False), _t5("decoder", 2, cross=True)), causal=True),
    Family(("bart", "plbart"), _bart(_POST_LN, _NORMED, _TOKENS), causal=True),
    Family(("mbart",), _bart(_PRE_LN, _NORMED, _TOKENS), causal=True),
    Family(("m2m_100",), _bart(_PRE_LN, _TOKENS, _TOKENS), causal=True),
    # AdapterHub puts Whisper's invertible adapters after the encoder's last norm: no module makes its embeddings
    Family(("whisper",), _bart(_PRE_LN, "encoder.layer_norm", None), causal=True),
    Family(
        ("encoder-decoder",),
        causal=True,
        towers=(Tower("encoder", "encoder", "encoder"), Tower("decoder", "decoder", "decoder", embeds=False)),
    ),
)
