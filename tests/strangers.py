"""Tiny random models of families that have no row: what structural discovery has to find out by itself."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

from tests.plain import shaken

_WORDS = {"vocab_size": 99, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_ENCODER = {**_WORDS, **_SIZES, "max_position_embeddings": 64}
_DECODER = {**_ENCODER, "num_key_value_heads": 2, "head_dim": 8}
_IMAGES = {**_SIZES, "image_size": 16, "patch_size": 8}
_GPT = {**_WORDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_PAIR = {
    "vocab_size": 99,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 98,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
}

OPTIONS: dict[str, dict[str, Any]] = {
    "glm": _DECODER,
    "glm4": _DECODER,
    "cohere": _DECODER,
    "starcoder2": _DECODER,
    "nemotron": _DECODER,
    "smollm3": _DECODER,
    "stablelm": _DECODER,
    "deepseek_v3": {
        **_ENCODER,
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
    },
    "ernie": _ENCODER,
    "roformer": _ENCODER,
    "mpnet": _ENCODER,
    "esm": {**_ENCODER, "mask_token_id": 4, "position_embedding_type": "rotary"},
    "nystromformer": {**_ENCODER, "num_landmarks": 8, "segment_means_seq_len": 8},
    "biogpt": _ENCODER,
    "gpt_neo": {
        **_WORDS,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "attention_types": [[["global", "local"], 1]],
    },
    "gpt_bigcode": _GPT,
    "codegen": {**_GPT, "rotary_dim": 4},
    "yolos": {**_IMAGES, "image_size": [16, 16], "num_detection_tokens": 3},
    "videomae": {**_IMAGES, "num_frames": 4, "tubelet_size": 2},
    "swin": {
        "image_size": 16,
        "patch_size": 2,
        "embed_dim": 16,
        "depths": [2, 2],
        "num_heads": [2, 2],
        "window_size": 2,
    },
    "audio-spectrogram-transformer": {
        **_SIZES,
        "max_length": 24,
        "num_mel_bins": 16,
        "patch_size": 8,
        "frequency_stride": 8,
        "time_stride": 8,
    },
    "marian": _PAIR,
    "pegasus": _PAIR,
}
# scores or values are not those of plain attention, so what certifies queries and values does not hold
OTHER_ATTENTION = {"nystromformer": "landmarks stand for keys and values"}
REFUSED: dict[str, dict[str, Any]] = {
    "xlnet": {"vocab_size": 99, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64},
    "fnet": _ENCODER,
    "granite": _DECODER,
}


def model(model_type: str) -> PreTrainedModel:
    """A tiny random model of the type, in eval mode."""
    torch.manual_seed(0)
    options = {**OPTIONS, **REFUSED}[model_type]
    return shaken(AutoModel.from_config(AutoConfig.for_model(model_type, **options)))
