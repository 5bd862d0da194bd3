"""Every layout of AdapterHub's files, as data: model types -> module paths of transformers 4, and what they stand for.

One row per layout; what a row means is said in `places.py`. Paths are those that files hold, whatever transformers
calls the modules today.
"""

from collections.abc import Mapping

from graftwork.errors import PackageError
from graftwork.registry.foreign.places import LAYER, Layout, Stack

_ADAPTERS = {"attention_adapters": "attn", "output_adapters": "ffn", LAYER: "ffn"}


def _under(path: str, names: Mapping[str, str], kind: str = "attn") -> dict[str, str]:
    """q_proj -> attn.query, under a path: self_attn.q_proj; of another attention: cross.query."""
    return {f"{path}.{name}": site.replace("attn.", f"{kind}.") for name, site in names.items()}


def _projections(*names: str) -> dict[str, str]:
    return dict(zip(names, ("attn.query", "attn.key", "attn.value", "attn.out"), strict=False))


_SELF = _projections("query", "key", "value")
_BERT = {
    LAYER: "ffn",
    "attention.output": "attn",
    "output": "ffn",
    "crossattention.output": "cross",
    "attention.self": "attn.kv",
    "crossattention.self": "cross.kv",
    **_under("attention.self", _SELF),
    **_under("crossattention.self", _SELF, "cross"),
    "attention.output.dense": "attn.out",
    "crossattention.output.dense": "cross.out",
    "intermediate.dense": "ffn.up",
    "output.dense": "ffn.down",
}
_BERT_PREFIXES = {"self_prefix": "attn", "cross_prefix": "cross"}
_BERT_STACK = (Stack("", "encoder.layer.#", _BERT, _BERT_PREFIXES),)
_DEBERTA_V2 = {**_BERT, **_under("attention.self", _projections("query_proj", "key_proj", "value_proj"))}
_DEBERTA = {**_BERT, "attention.self.in_proj": "attn.qkv"}

_PROJ = _projections("q_proj", "k_proj", "v_proj", "out_proj")
_BART = {
    **_ADAPTERS,
    "cross_attention_adapters": "cross",
    "self_attn": "attn.kv",
    "encoder_attn": "cross.kv",
    **_under("self_attn", _PROJ),
    **_under("encoder_attn", _PROJ, "cross"),
    "fc1": "ffn.up",
    "fc2": "ffn.down",
}
_BART_STACKS = (
    Stack("encoder", "encoder.layers.#", _BART, {"encoder_prefix": "attn"}),
    Stack("decoder", "decoder.layers.#", _BART, {"self_prefix": "attn", "cross_prefix": "cross"}),
)

_T5_LINEARS = _projections("q", "k", "v", "o")


def _t5(feed_forward: int) -> dict[str, str]:
    dense = f"layer.{feed_forward}.DenseReluDense"
    sites = {
        LAYER: "ffn",
        "layer.0": "attn",
        f"layer.{feed_forward}": "ffn",
        "layer.0.SelfAttention": "attn.kv",
        **_under("layer.0.SelfAttention", _T5_LINEARS),
        f"{dense}.wi": "ffn.up",
        f"{dense}.wi_0": "ffn.gate",
        f"{dense}.wi_1": "ffn.up",
        f"{dense}.wo": "ffn.down",
    }
    if feed_forward == 2:
        sites |= {"layer.1": "cross", "layer.1.EncDecAttention": "cross.kv"}
        sites |= _under("layer.1.EncDecAttention", _T5_LINEARS, "cross")
    return sites


_LLAMA = {
    **_ADAPTERS,
    "self_attn": "attn.kv",
    **_under("self_attn", _projections("q_proj", "k_proj", "v_proj", "o_proj")),
    "mlp.gate_proj": "ffn.gate",
    "mlp.up_proj": "ffn.up",
    "mlp.down_proj": "ffn.down",
}
_PHI = {**_LLAMA, "self_attn.dense": "attn.out", "mlp.fc1": "ffn.up", "mlp.fc2": "ffn.down"}
_MODERNBERT = {**_ADAPTERS, "attn.Wqkv": "attn.qkv", "attn.Wo": "attn.out", "mlp.Wi": "ffn.up", "mlp.Wo": "ffn.down"}
_GPT2 = {
    **_ADAPTERS,
    "attn": "attn.kv",
    "crossattention": "cross.kv",
    "attn.c_attn": "attn.qkv",
    "attn.c_proj": "attn.out",
    "mlp.c_fc": "ffn.up",
    "mlp.c_proj": "ffn.down",
}
_GPTJ = {**_ADAPTERS, "attn": "attn.kv", **_under("attn", _PROJ), "mlp.fc_in": "ffn.up", "mlp.fc_out": "ffn.down"}
_CLIP = {
    **_ADAPTERS,
    "self_attn": "attn.kv",
    **_under("self_attn", _PROJ),
    "mlp.fc1": "ffn.up",
    "mlp.fc2": "ffn.down",
}
_VIT = {
    LAYER: "ffn",
    "attention_adapters": "attn",
    "output.output_adapters": "ffn",
    "attention.attention": "attn.kv",
    **_under("attention.attention", _SELF),
    "attention.output.dense": "attn.out",
    "intermediate.dense": "ffn.up",
    "output.dense": "ffn.down",
}
_BEIT = {("output_adapters" if path == "output.output_adapters" else path): kind for path, kind in _VIT.items()}
_DISTILBERT = {
    **_ADAPTERS,
    "attention": "attn.kv",
    **_under("attention", _projections("q_lin", "k_lin", "v_lin", "out_lin")),
    "ffn.lin1": "ffn.up",
    "ffn.lin2": "ffn.down",
}
_ALBERT = {
    "attention.attention_adapters": "attn",
    "output_adapters": "ffn",
    LAYER: "ffn",
    "attention": "attn.kv",
    **_under("attention", {**_SELF, "dense": "attn.out"}),
    "ffn": "ffn.up",
    "ffn_output": "ffn.down",
}
_LAYERS = "encoder.layers.#"
_CLIP_TEXT, _CLIP_VISION = {"clip_text_model_self_prefix": "attn"}, {"clip_vision_model_self_prefix": "attn"}
_ALBERT_LAYERS = "encoder.albert_layer_groups.#.albert_layers.#"
_MERGED = {"attn.qkv": ("attn.query", "attn.key", "attn.value")}

LAYOUTS: tuple[Layout, ...] = (
    Layout(("bert",), "bert", _BERT_STACK),
    Layout(("roberta", "xlm-roberta", "xmod"), "roberta", _BERT_STACK),
    Layout(("electra",), "electra", _BERT_STACK),
    Layout(("bert-generation",), "bert", _BERT_STACK),
    Layout(("deberta-v2",), "deberta", (Stack("", "encoder.layer.#", _DEBERTA_V2),)),
    Layout(("deberta",), "deberta", (Stack("", "encoder.layer.#", _DEBERTA),), merged=_MERGED, by_heads=True),
    Layout(
        ("distilbert",),
        "distilbert",
        (Stack("", "transformer.layer.#", _DISTILBERT, {"self": "attn", "self_prefix": "attn"}),),
    ),
    Layout(("albert",), "albert", (Stack("", _ALBERT_LAYERS, _ALBERT),)),
    Layout(("bart", "mbart", "plbart", "whisper"), "model", _BART_STACKS, "encoder"),
    Layout(
        ("t5", "mt5"),
        "transformer",
        (
            Stack("encoder", "encoder.block.#", _t5(1), {"encoder_prefix": "attn"}),
            Stack("decoder", "decoder.block.#", _t5(2), {"self_prefix": "attn", "cross_prefix": "cross"}),
        ),
        "encoder",
    ),
    Layout(("gpt2",), "transformer", (Stack("", "h.#", _GPT2, _BERT_PREFIXES),), merged=_MERGED),
    Layout(("gptj",), "transformer", (Stack("", "h.#", _GPTJ),)),
    Layout(("llama", "mistral"), "model", (Stack("", "layers.#", _LLAMA),), swapped=True),
    Layout(("gemma2", "gemma3_text", "qwen2", "qwen3"), "model", (Stack("", "layers.#", _LLAMA),)),
    Layout(("phi",), "model", (Stack("", "layers.#", _PHI),)),
    Layout(("modernbert",), "model", (Stack("", "layers.#", _MODERNBERT),), merged=_MERGED),
    Layout(("vit",), "vit", (Stack("", "encoder.layer.#", _VIT),)),
    Layout(("beit",), "beit", (Stack("", "encoder.layer.#", _BEIT),)),
    Layout(
        ("clip",),
        "clip",
        (
            Stack("text", f"text_model.{_LAYERS}", _CLIP, _CLIP_TEXT),
            Stack("vision", f"vision_model.{_LAYERS}", _CLIP, _CLIP_VISION),
        ),
        "text_model",
    ),
    Layout(("clip_text_model",), "", (Stack("", f"text_model.{_LAYERS}", _CLIP, _CLIP_TEXT),), "text_model"),
    Layout(("clip_vision_model",), "", (Stack("", f"vision_model.{_LAYERS}", _CLIP, _CLIP_VISION),)),
    Layout(
        ("encoder-decoder",),  # of two BERTs or RoBERTas; its prefixes are one group over both, which is not read
        "",
        (
            Stack("encoder", "encoder.encoder.layer.#", _BERT, {}),
            Stack("decoder", "decoder.bert.encoder.layer.#", _BERT, {}),
            Stack("decoder", "decoder.roberta.encoder.layer.#", _BERT, {}),
        ),
        "encoder",
    ),
)


def layout_of(model_type: str, where: str) -> Layout:
    """The layout of a model type. Raises PackageError for one that AdapterHub never had."""
    for layout in LAYOUTS:
        if model_type in layout.model_types:
            return layout
    known = ", ".join(sorted(name for layout in LAYOUTS for name in layout.model_types))
    raise PackageError(f"{where}: model_type {model_type!r} has no known layout; there are {known}")
