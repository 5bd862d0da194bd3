"""Rows of the families table: models that see and hear, and those that read as well.

What is put in front of patches (visual prompts) stands at `prompt`; there are no invertible adapters of images.
"""

from dataclasses import replace

from graftwork.core.family import (
    Attention,
    Family,
    LayerStack,
    Sublayer,
    Tower,
    Variant,
    feed_forward,
    linears,
)

_MLP = feed_forward("mlp.fc1", "mlp.fc2")
_SWIGLU = feed_forward("mlp.up_proj", "mlp.down_proj", "mlp.gate_proj")
_QKVO = ("q_proj", "k_proj", "v_proj", "o_proj")

# one dropout, or one dropping of whole paths, serves both sub-layers in turn: h₀ is after it

_VIT = LayerStack(
    "",
    "layers",
    (
        Sublayer("attn", "dropout", "layernorm_before", shared=True),
        Sublayer("ffn", "dropout", "layernorm_after", shared=True),
    ),
    linears=(*linears("attention", _QKVO), *_MLP),
    attentions=(Attention("attn", "attention"),),
    prompt="embeddings",
)

_BEIT = replace(
    _VIT,
    sites=(
        Sublayer("attn", "drop_path", "layernorm_before", shared=True),
        Sublayer("ffn", "drop_path", "layernorm_after", shared=True),
    ),
)

_DINOV2 = replace(
    _VIT,
    layers="encoder.layer",
    sites=(
        Sublayer("attn", "drop_path", "norm1", shared=True),
        Sublayer("ffn", "drop_path", "norm2", shared=True),
    ),
    linears=(
        *linears("attention", _QKVO),
        *(replace(linear, optional=True) for linear in (*_MLP, *_SWIGLU)),
    ),
)

_CLIP_VISION = LayerStack(
    "",
    "encoder.layers",
    (Sublayer("attn", "self_attn.out_proj", "layer_norm1"), Sublayer("ffn", "mlp.fc2", "layer_norm2")),
    linears=(*linears("self_attn", ("q_proj", "k_proj", "v_proj", "out_proj")), *_MLP),
    attentions=(Attention("attn", "self_attn"),),
    prompt="embeddings",
)
_SIGLIP_TEXT = replace(_CLIP_VISION, embed="embeddings", prompt=None)
_CLIP_TEXT = replace(_SIGLIP_TEXT, unprompted="it looks for the end of a text at the place where it was given")


def _wav2vec2(attn: Sublayer, ffn: Sublayer) -> tuple[LayerStack, ...]:
    return (
        LayerStack(
            "",
            "encoder.layers",
            (attn, ffn),
            linears=(
                *linears("attention", ("q_proj", "k_proj", "v_proj", "out_proj")),
                *feed_forward("feed_forward.intermediate_dense", "feed_forward.output_dense"),
            ),
            attentions=(Attention("attn", "attention"),),
            embed="encoder.dropout",
            unprompted="what it hears is convolved over time once more before the layers",
        ),
    )


_TWO = "it has two towers, whose rows would not get longer together"
_TEXT = Tower("text", "text_config", "text_model", absent=True, unprompted=_TWO)
_VISION = Tower("vision", "vision_config", "vision_model", absent=True, unprompted=_TWO)
_SEEN = Tower(
    "vision", "vision_config", "vision_tower", unprompted="its patches go to places that are counted beforehand"
)
_READ = Tower("text", "text_config", "language_model", enters=True, outside=True)
_MASKED = replace(
    _READ, enters=False, unprompted="it makes the masks of its images and tokens before these reach the layers"
)

SENSES: tuple[Family, ...] = (
    Family(("vit",), (_VIT,)),
    Family(
        ("beit",),
        (_BEIT,),
        variants=tuple(  # a bias for each pair of patches
            Variant(((name, True),), (replace(_BEIT, unprompted="it has a bias for each pair of patches"),))
            for name in ("use_relative_position_bias", "use_shared_relative_position_bias")
        ),
    ),
    Family(("dinov2",), (_DINOV2,)),
    Family(("clip_vision_model", "siglip_vision_model"), (_CLIP_VISION,)),
    Family(("clip_text_model",), (_CLIP_TEXT,), causal=True),
    Family(("siglip_text_model",), (_SIGLIP_TEXT,)),
    Family(("clip", "siglip"), towers=(_TEXT, _VISION)),  # text first, as AdapterHub numbers the layers
    Family(
        ("wav2vec2", "hubert"),
        _wav2vec2(
            Sublayer("attn", "dropout", "attention", "layer_norm"),
            Sublayer("ffn", "feed_forward.output_dropout", "feed_forward", "final_layer_norm"),
        ),
        variants=(
            Variant(
                (("do_stable_layer_norm", True),),
                _wav2vec2(
                    Sublayer("attn", "dropout", "layer_norm"),
                    Sublayer("ffn", "feed_forward.output_dropout", "final_layer_norm"),
                ),
            ),
        ),
    ),
    Family(("llava",), causal=True, towers=(_SEEN, _READ)),
    Family(("gemma3", "paligemma"), causal=True, towers=(_SEEN, _MASKED)),
)
