"""Where the sites are: one row of data per architecture, no copied model code.

A row names, for each stack of layers and each sub-layer in it: the module whose *output* is h₀ (the last one before the
residual add, after dropout where that is a module), the module that *receives* the residual r (as which argument), and
the norm after the add (post-LN) or none (pre-LN). It also names the frozen linears, the attention modules and the
module that makes the embeddings. Paths are relative to the layer; stacks and embeddings are relative to the trunk.
To support another architecture, add a row; `core/certify.py` proves it on a random input.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sublayer:
    """One sub-layer site of a layer. `residual` names a module and which argument of its call is r.

    norm: after the add. inner: a norm on the branch, between h₀ and the add. beside: the block adds this sub-layer and
    the one of that kind to one residual (GPT-J): r is then the stream after the other. optional: some layers of the
    family lack it (cross-attention).
    """

    kind: str  # attn | ffn | cross
    output: str
    residual: str
    norm: str | None = None
    argument: tuple[int, str] = (0, "hidden_states")
    optional: bool = False
    inner: str | None = None
    beside: str | None = None


@dataclass(frozen=True)
class Linear:
    """One frozen linear of a layer: `attn.query`, `cross.key`, `attn.out`, `ffn.up`, `ffn.gate`, `ffn.down`.

    part: which columns of the output are meant where one linear makes query, key and value: 0, 1 or 2. layout: how they
    lie there; "blocks": all queries, all keys, all values · "heads": query, key, value of head 0, of head 1, … ·
    "groups": the queries of a group of heads, its one key, its one value, those of the next group
    """

    kind: str
    path: str
    part: int | None = None
    layout: str = "blocks"
    optional: bool = False


@dataclass(frozen=True)
class Attention:
    """One attention of a layer that calls transformers' attention interface: kind attn or cross."""

    kind: str
    path: str
    optional: bool = False


@dataclass(frozen=True)
class LayerStack:
    """One list of layers. `optional`: absent in some classes of the family (an encoder without its decoder).

    embed: the module whose output are the embeddings that enter the first layer. prompt: the one whose output may get
    longer, where that is another (before positions are added).
    """

    name: str
    layers: str
    sites: tuple[Sublayer, ...]
    optional: bool = False
    linears: tuple[Linear, ...] = ()
    attentions: tuple[Attention, ...] = ()
    embed: str | None = None
    prompt: str | None = None


@dataclass(frozen=True)
class Family:
    """One architecture: the model types (config.model_type) that share its layout, and its stacks."""

    model_types: tuple[str, ...]
    stacks: tuple[LayerStack, ...]
    causal: bool = False  # the last stack's tokens see only what is before them


def _single(layers: str, *sites: Sublayer) -> tuple[LayerStack, ...]:
    return (LayerStack("", layers, sites),)


_IN_TENSOR = (1, "input_tensor")  # BertSelfOutput.forward(hidden_states, input_tensor)

_BERT = (
    Sublayer("attn", "attention.output.dropout", "attention.output", "attention.output.LayerNorm", _IN_TENSOR),
    Sublayer(
        "cross",
        "crossattention.output.dropout",
        "crossattention.output",
        "crossattention.output.LayerNorm",
        _IN_TENSOR,
        optional=True,
    ),
    Sublayer("ffn", "output.dropout", "output", "output.LayerNorm", _IN_TENSOR),
)

_LLAMA = (
    Sublayer("attn", "self_attn.o_proj", "input_layernorm"),
    Sublayer("ffn", "mlp.down_proj", "post_attention_layernorm"),
)

_BART_ATTN = Sublayer("attn", "self_attn.out_proj", "self_attn", "self_attn_layer_norm")
_BART_CROSS = Sublayer("cross", "encoder_attn.out_proj", "encoder_attn", "encoder_attn_layer_norm")
_BART_FFN = Sublayer("ffn", "fc2", "fc1", "final_layer_norm", (0, "input"))

_T5_ATTN = Sublayer("attn", "layer.0.dropout", "layer.0.layer_norm")
_T5_CROSS = Sublayer("cross", "layer.1.dropout", "layer.1.layer_norm")

FAMILIES: tuple[Family, ...] = (
    Family(("bert", "roberta", "xlm-roberta", "electra"), _single("encoder.layer", *_BERT)),
    Family(
        ("distilbert",),
        _single(
            "transformer.layer",
            Sublayer("attn", "attention.out_lin", "attention", "sa_layer_norm"),
            Sublayer("ffn", "ffn.dropout", "ffn", "output_layer_norm", (0, "input")),
        ),
    ),
    Family(
        ("modernbert",),
        _single("layers", Sublayer("attn", "attn.out_drop", "attn_norm"), Sublayer("ffn", "mlp.Wo", "mlp_norm")),
    ),
    Family(("llama", "mistral", "qwen3"), _single("layers", *_LLAMA), causal=True),
    Family(
        ("gpt2",),
        _single(
            "h",
            Sublayer("attn", "attn.resid_dropout", "ln_1"),
            Sublayer("cross", "crossattention.resid_dropout", "ln_cross_attn", optional=True),
            Sublayer("ffn", "mlp.dropout", "ln_2"),
        ),
        causal=True,
    ),
    Family(
        ("t5",),
        (
            LayerStack(
                "encoder", "encoder.block", (_T5_ATTN, Sublayer("ffn", "layer.1.dropout", "layer.1.layer_norm"))
            ),
            LayerStack(
                "decoder",
                "decoder.block",
                (_T5_ATTN, _T5_CROSS, Sublayer("ffn", "layer.2.dropout", "layer.2.layer_norm")),
                optional=True,
            ),
        ),
        causal=True,
    ),
    Family(
        ("bart",),
        (
            LayerStack("encoder", "encoder.layers", (_BART_ATTN, _BART_FFN), optional=True),
            LayerStack("decoder", "decoder.layers", (_BART_ATTN, _BART_CROSS, _BART_FFN), optional=True),
        ),
        causal=True,
    ),
    Family(
        ("vit",),
        _single(
            "layers",
            Sublayer("attn", "attention.o_proj", "layernorm_before"),
            Sublayer("ffn", "mlp.fc2", "layernorm_after"),
        ),
    ),
)

OF_MODEL_TYPE: dict[str, Family] = {name: family for family in FAMILIES for name in family.model_types}
