"""Tiny random models of every family of the table and of its variants, and inputs that reach all their sites."""

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf

from tests import tiny

WIDTH, SEEN, VOCABULARY, IMAGE = tiny.WIDTH, 48, tiny.VOCABULARY, 98  # SEEN: the width of vision towers

_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
_GROUPED = {**_TEXT, "num_key_value_heads": 2, "head_dim": 8}
_HEADS = {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 2, "n_head": 4}
_VISION = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 16,
    "patch_size": 8,
}
_TOWER = {**_VISION, "hidden_size": SEEN}
_PAIR = {
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
}
_T5 = {"vocab_size": VOCABULARY, "d_model": WIDTH, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
_RELATIVE = {**_TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
_XMOD = {**_TEXT, "languages": ["en", "de"], "default_language": "en", "pad_token_id": 1}
_OPT = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 64,
    "max_position_embeddings": 64,
    "word_embed_proj_dim": WIDTH,
}
_FALCON = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
_SOUND = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": (16, 16),
    "conv_stride": (2, 2),
    "conv_kernel": (3, 3),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "num_feat_extract_layers": 2,
}
_MIXED = {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}

Maker = Callable[[], hf.PreTrainedModel]


def _plain(model: type[Any], config: type[Any], options: dict[str, Any]) -> Maker:
    return lambda: model(config(**options))  # type: ignore[no-any-return]


def _encoder_decoder() -> hf.PreTrainedModel:
    decoder = hf.BertConfig(**_TEXT, is_decoder=True, add_cross_attention=True)
    config = hf.EncoderDecoderConfig.from_encoder_decoder_configs(hf.RobertaConfig(**_TEXT), decoder)
    return hf.EncoderDecoderModel(config)


def _llava() -> hf.PreTrainedModel:
    return hf.LlavaModel(
        hf.LlavaConfig(
            text_config=hf.LlamaConfig(**_GROUPED),
            vision_config=hf.CLIPVisionConfig(**_TOWER),
            image_token_id=IMAGE,
        )
    )


def _paligemma() -> hf.PreTrainedModel:
    return hf.PaliGemmaModel(
        hf.PaliGemmaConfig(
            text_config=hf.GemmaConfig(**_GROUPED),
            vision_config=hf.SiglipVisionConfig(**_TOWER, vision_use_head=False),
            projection_dim=WIDTH,
            image_token_id=IMAGE,
        )
    )


MAKERS: dict[str, Maker] = {
    **{name: _plain(*made) for name, made in tiny.MAKERS.items()},
    "albert": _plain(hf.AlbertModel, hf.AlbertConfig, {**_TEXT, "num_hidden_layers": 3, "embedding_size": 16}),
    "albert-groups": _plain(
        hf.AlbertModel,
        hf.AlbertConfig,
        {**_TEXT, "num_hidden_layers": 4, "embedding_size": 16, "num_hidden_groups": 2, "inner_group_num": 2},
    ),
    "bert-generation": _plain(hf.BertGenerationEncoder, hf.BertGenerationConfig, _TEXT),
    "deberta": _plain(hf.DebertaModel, hf.DebertaConfig, _RELATIVE),
    "deberta-v2": _plain(hf.DebertaV2Model, hf.DebertaV2Config, _RELATIVE),
    "deberta-v3": _plain(
        hf.DebertaV2Model,
        hf.DebertaV2Config,
        {**_RELATIVE, "share_att_key": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm"},
    ),
    "xmod": _plain(hf.XmodModel, hf.XmodConfig, _XMOD),
    "xmod-pre": _plain(hf.XmodModel, hf.XmodConfig, {**_XMOD, "pre_norm": True}),
    "xmod-own": _plain(hf.XmodModel, hf.XmodConfig, {**_XMOD, "adapter_layer_norm": True}),
    "xmod-pre-own": _plain(hf.XmodModel, hf.XmodConfig, {**_XMOD, "pre_norm": True, "adapter_layer_norm": True}),
    "gemma": _plain(hf.GemmaModel, hf.GemmaConfig, _GROUPED),
    "gemma2": _plain(hf.Gemma2Model, hf.Gemma2Config, _GROUPED),
    "gemma3_text": _plain(hf.Gemma3TextModel, hf.Gemma3TextConfig, _GROUPED),
    "qwen2": _plain(hf.Qwen2Model, hf.Qwen2Config, _GROUPED),
    "olmo": _plain(hf.OlmoModel, hf.OlmoConfig, _GROUPED),
    "olmo2": _plain(hf.Olmo2Model, hf.Olmo2Config, _GROUPED),
    "mixtral": _plain(hf.MixtralModel, hf.MixtralConfig, _MIXED),
    "qwen3_moe": _plain(
        hf.Qwen3MoeModel,
        hf.Qwen3MoeConfig,
        {**_GROUPED, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2, "mlp_only_layers": [0]},
    ),
    "phi": _plain(hf.PhiModel, hf.PhiConfig, _GROUPED),
    "phi3": _plain(hf.Phi3Model, hf.Phi3Config, {**_GROUPED, "pad_token_id": 0}),
    "gptj": _plain(hf.GPTJModel, hf.GPTJConfig, {**_HEADS, "rotary_dim": 4}),
    "gpt2-cross": _plain(hf.GPT2Model, hf.GPT2Config, {**_HEADS, "add_cross_attention": True}),
    "gpt_neox": _plain(hf.GPTNeoXModel, hf.GPTNeoXConfig, _TEXT),
    "gpt_neox-serial": _plain(hf.GPTNeoXModel, hf.GPTNeoXConfig, {**_TEXT, "use_parallel_residual": False}),
    "bloom": _plain(
        hf.BloomModel, hf.BloomConfig, {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "n_layer": 2, "n_head": 4}
    ),
    "falcon": _plain(hf.FalconModel, hf.FalconConfig, _FALCON),
    "falcon-new": _plain(
        hf.FalconModel, hf.FalconConfig, {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}
    ),
    "falcon-new-1": _plain(
        hf.FalconModel,
        hf.FalconConfig,
        {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
    "falcon-heads": _plain(hf.FalconModel, hf.FalconConfig, {**_FALCON, "multi_query": False}),
    "falcon-serial": _plain(
        hf.FalconModel, hf.FalconConfig, {**_FALCON, "multi_query": False, "parallel_attn": False, "alibi": True}
    ),
    "falcon-serial-query": _plain(hf.FalconModel, hf.FalconConfig, {**_FALCON, "parallel_attn": False}),
    "opt": _plain(hf.OPTModel, hf.OPTConfig, _OPT),
    "opt-post": _plain(hf.OPTModel, hf.OPTConfig, {**_OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    "mt5": _plain(hf.MT5Model, hf.MT5Config, _T5),
    "plbart": _plain(hf.PLBartModel, hf.PLBartConfig, _PAIR),
    "mbart": _plain(hf.MBartModel, hf.MBartConfig, _PAIR),
    "m2m_100": _plain(hf.M2M100Model, hf.M2M100Config, _PAIR),
    "whisper": _plain(
        hf.WhisperModel,
        hf.WhisperConfig,
        {**_PAIR, "num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 20, "pad_token_id": 0},
    ),
    "encoder-decoder": _encoder_decoder,
    "beit": _plain(hf.BeitModel, hf.BeitConfig, {**_VISION, "use_relative_position_bias": True}),
    "dinov2": _plain(hf.Dinov2Model, hf.Dinov2Config, _VISION),
    "dinov2-gated": _plain(hf.Dinov2Model, hf.Dinov2Config, {**_VISION, "use_swiglu_ffn": True}),
    "clip": _plain(hf.CLIPModel, hf.CLIPConfig, {"text_config": _TEXT, "vision_config": _TOWER, "projection_dim": 16}),
    "clip-text": _plain(hf.CLIPTextModel, hf.CLIPTextConfig, _TEXT),
    "clip-vision": _plain(hf.CLIPVisionModel, hf.CLIPVisionConfig, _VISION),
    "siglip": _plain(
        hf.SiglipModel, hf.SiglipConfig, {"text_config": {**_TEXT, "projection_size": SEEN}, "vision_config": _TOWER}
    ),
    "siglip-text": _plain(hf.SiglipTextModel, hf.SiglipTextConfig, _TEXT),
    "siglip-vision": _plain(hf.SiglipVisionModel, hf.SiglipVisionConfig, _VISION),
    "wav2vec2": _plain(hf.Wav2Vec2Model, hf.Wav2Vec2Config, _SOUND),
    "wav2vec2-stable": _plain(hf.Wav2Vec2Model, hf.Wav2Vec2Config, {**_SOUND, "do_stable_layer_norm": True}),
    "hubert": _plain(hf.HubertModel, hf.HubertConfig, _SOUND),
    "llava": _llava,
    "paligemma": _paligemma,
    "gemma3": _plain(
        hf.Gemma3Model,
        hf.Gemma3Config,
        {"text_config": _GROUPED, "vision_config": _TOWER, "mm_tokens_per_image": 4, "image_token_id": IMAGE},
    ),
}

_PAIRS = ("t5", "mt5", "bart", "plbart", "mbart", "m2m_100", "encoder-decoder")
_IMAGES = ("vit", "beit", "dinov2", "dinov2-gated", "clip-vision", "siglip-vision")
_BOTH = ("clip", "siglip")
_PLACED = ("llava", "paligemma", "gemma3")  # images among the tokens, at the places of image tokens
_SOUNDS = ("wav2vec2", "wav2vec2-stable", "hubert")


def model(family: str, seed: int = 0) -> hf.PreTrainedModel:
    """A tiny random model in eval mode, with weights large enough that every sub-layer matters."""
    torch.manual_seed(seed)
    return tiny.stirred(MAKERS[family]())


def inputs(family: str, rows: int = 2, tokens: int = 9, seed: int = 1) -> dict[str, torch.Tensor]:
    """Inputs that reach every site of the family."""
    generator = torch.Generator().manual_seed(seed)

    def ids(length: int) -> torch.Tensor:
        return torch.randint(3, IMAGE, (rows, length), generator=generator)

    images = {"pixel_values": torch.randn(rows, 3, 16, 16, generator=generator)}
    if family in _IMAGES:
        return images
    if family in _SOUNDS:
        return {"input_values": torch.randn(rows, 60, generator=generator)}
    if family == "whisper":
        return {
            "input_features": torch.randn(rows, 8, 20, generator=generator),
            "decoder_input_ids": ids(tokens - 2),
        }
    given = {"input_ids": ids(tokens)}
    if family in _PLACED:
        given["input_ids"][:, 1:5] = IMAGE
        return given | images
    if family in _BOTH:
        return given | images
    if family in _PAIRS:
        given["decoder_input_ids"] = ids(tokens - 2)
    if family in ("bert-decoder", "gpt2-cross"):
        given["encoder_hidden_states"] = torch.randn(rows, 5, WIDTH, generator=generator)
    return given
