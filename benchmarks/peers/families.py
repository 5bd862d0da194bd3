"""Tiny random models of every family that `adapters` 1.3.0 knows, and one batch of inputs for each.

A row names the classes of transformers, the fields of its configuration that differ from the common ones and what its
inputs are. Imported by the scripts beside it, in the virtual environment of `adapters` or of `peft`.
"""

import importlib
import zlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

ROWS, TOKENS, TARGETS, WORDS = 4, 10, 7, 128


@dataclass(frozen=True)
class Tiny:
    """One tiny model: its configuration and model class in transformers, fields, and the kind of its inputs."""

    config: str
    model: str
    fields: dict[str, Any] = field(default_factory=dict)
    inputs: str = "text"
    states: bool = True  # whether hidden states are comparable between versions of transformers


_BERT = {
    "vocab_size": WORDS,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 66,
}
_ROBERTA = {**_BERT, "pad_token_id": 1, "type_vocab_size": 1}
_LLAMA = {**_BERT, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "head_dim": 16}
_BART = {
    "vocab_size": WORDS,
    "d_model": 64,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "max_position_embeddings": 64,
}
_T5 = {
    "vocab_size": WORDS,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "decoder_start_token_id": 0,
}
_IMAGE = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "image_size": 16,
    "patch_size": 4,
}
_GPT = {"vocab_size": WORDS, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 64, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
_DEBERTA = {**_BERT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "pooler_hidden_size": 64}
_WINDOWS = {"sliding_window": 32}

FAMILIES = {
    "bert": Tiny("BertConfig", "BertModel", _BERT),
    "roberta": Tiny("RobertaConfig", "RobertaModel", _ROBERTA),
    "xlm-roberta": Tiny("XLMRobertaConfig", "XLMRobertaModel", _ROBERTA),
    "electra": Tiny("ElectraConfig", "ElectraModel", {**_BERT, "embedding_size": 32}),
    "bert-generation": Tiny("BertGenerationConfig", "BertGenerationEncoder", {**_BERT, "pad_token_id": 0}),
    "distilbert": Tiny(
        "DistilBertConfig",
        "DistilBertModel",
        {"vocab_size": WORDS, "dim": 64, "n_layers": 3, "n_heads": 4, "hidden_dim": 128, "max_position_embeddings": 64},
    ),
    "albert": Tiny("AlbertConfig", "AlbertModel", {**_BERT, "embedding_size": 32}),
    "albert-groups": Tiny("AlbertConfig", "AlbertModel", {**_BERT, "embedding_size": 32, "num_hidden_groups": 3}),
    "deberta": Tiny("DebertaConfig", "DebertaModel", {**_DEBERTA, "type_vocab_size": 0}),
    "deberta-v2": Tiny(
        "DebertaV2Config",
        "DebertaV2Model",
        {
            **_DEBERTA,
            "position_buckets": 16,
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "position_biased_input": False,
        },
    ),
    "deberta-v2-plain": Tiny("DebertaV2Config", "DebertaV2Model", {**_DEBERTA, "conv_kernel_size": 3}),
    "xmod": Tiny(
        "XmodConfig",
        "XmodModel",
        {**_ROBERTA, "languages": ["en_XX", "de_DE"], "default_language": "en_XX", "adapter_reduction_factor": 4},
    ),
    "xmod-pre-norm": Tiny(
        "XmodConfig",
        "XmodModel",
        {
            **_ROBERTA,
            "languages": ["en_XX"],
            "default_language": "en_XX",
            "pre_norm": True,
            "adapter_layer_norm": True,
            "adapter_reuse_layer_norm": False,
        },
    ),
    "bart": Tiny("BartConfig", "BartModel", _BART, "pair", states=False),
    "plbart": Tiny("PLBartConfig", "PLBartModel", _BART, "pair", states=False),
    "mbart": Tiny("MBartConfig", "MBartModel", {**_BART, "scale_embedding": True}, "pair", states=False),
    "t5": Tiny("T5Config", "T5Model", _T5, "pair", states=False),
    "t5-gated": Tiny("T5Config", "T5Model", {**_T5, "feed_forward_proj": "gated-gelu"}, "pair", states=False),
    "mt5": Tiny("MT5Config", "MT5Model", {**_T5, "tie_word_embeddings": False}, "pair", states=False),
    "whisper": Tiny(
        "WhisperConfig",
        "WhisperModel",
        {
            **_BART,
            "num_mel_bins": 8,
            "max_source_positions": 12,
            "max_target_positions": 32,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        },
        "sound",
        states=False,
    ),
    "gpt2": Tiny("GPT2Config", "GPT2Model", _GPT),
    "gptj": Tiny("GPTJConfig", "GPTJModel", {**_GPT, "rotary_dim": 8}),
    "llama": Tiny("LlamaConfig", "LlamaModel", _LLAMA),
    "mistral": Tiny("MistralConfig", "MistralModel", {**_LLAMA, "sliding_window": None}),
    "vit": Tiny("ViTConfig", "ViTModel", _IMAGE, "image"),
    "beit": Tiny(
        "BeitConfig",
        "BeitModel",
        {**_IMAGE, "use_relative_position_bias": True, "layer_scale_init_value": 0.5},
        "image",
    ),
    "clip-text": Tiny(
        "CLIPTextConfig", "CLIPTextModel", {**_BERT, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
    ),
    "clip-vision": Tiny("CLIPVisionConfig", "CLIPVisionModel", _IMAGE, "image"),
    "modernbert": Tiny(
        "ModernBertConfig",
        "ModernBertModel",
        {
            **_BERT,
            "local_attention": 24,
            "pad_token_id": 0,
            "cls_token_id": 1,
            "sep_token_id": 2,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        states=False,
    ),
    "gemma2": Tiny(
        "Gemma2Config",
        "Gemma2Model",
        {**_LLAMA, **_WINDOWS, "query_pre_attn_scalar": 16, "attn_logit_softcapping": None},
    ),
    "gemma3_text": Tiny("Gemma3TextConfig", "Gemma3TextModel", {**_LLAMA, **_WINDOWS, "query_pre_attn_scalar": 16}),
    "qwen2": Tiny("Qwen2Config", "Qwen2Model", {k: v for k, v in _LLAMA.items() if k != "head_dim"}),
    "qwen3": Tiny("Qwen3Config", "Qwen3Model", _LLAMA),
    "phi": Tiny(
        "PhiConfig", "PhiModel", {k: v for k, v in _LLAMA.items() if k not in ("head_dim", "num_key_value_heads")}
    ),
}
PLUGINS = ("modernbert", "gemma2", "gemma3_text", "qwen2", "qwen3", "phi")
CAUSAL = ("gpt2", "gptj", "llama", "mistral", "gemma2", "gemma3_text", "qwen2", "qwen3", "phi")
PAIRS = ("bart", "plbart", "mbart", "t5", "t5-gated", "mt5", "whisper")


def seed_of(text: str) -> int:
    """A seed that depends on a name alone."""
    return zlib.crc32(text.encode()) % 100_000


def build(family: str) -> Any:
    """The tiny model of a family with random weights, norms and biases among them."""
    tiny = FAMILIES[family]
    transformers = importlib.import_module("transformers")
    torch.manual_seed(seed_of(family))
    model = getattr(transformers, tiny.model)(getattr(transformers, tiny.config)(**tiny.fields))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3 if float(parameter.std()) < 0.03 else 1)
            else:
                parameter.add_(torch.randn_like(parameter), alpha=0.15)
        for name, parameter in model.named_parameters():
            if "adapter_modules" in name and ".dense2." in name:
                parameter.zero_()  # X-MOD's own adapters, which `adapters` takes out of the model
    return model.eval()


def batch(family: str, tokens: int = TOKENS) -> dict[str, Tensor]:
    """Keyword arguments of a forward: text has padding on the right of two rows."""
    tiny = FAMILIES[family]
    generator = torch.Generator().manual_seed(seed_of(family) + 1)

    def words(length: int) -> Tensor:
        return torch.randint(5, WORDS, (ROWS, length), generator=generator)

    if tiny.inputs == "image":
        return {"pixel_values": torch.randn(ROWS, 3, 16, 16, generator=generator)}
    if tiny.inputs == "sound":
        return {
            "input_features": torch.randn(ROWS, 8, 24, generator=generator),
            "decoder_input_ids": words(TARGETS),
        }
    mask = torch.ones(ROWS, tokens, dtype=torch.long)
    mask[1, tokens - 3 :] = 0
    mask[3, tokens - 6 :] = 0
    padding = tiny.fields.get("pad_token_id", 1 if "decoder_layers" in tiny.fields else 0)
    ids = torch.where(mask == 1, words(tokens), padding)
    found = {"input_ids": ids, "attention_mask": mask}
    if family == "clip-text":  # pooled where the end stands
        ids[torch.arange(ROWS), mask.sum(1) - 1] = 2
    return found | ({"decoder_input_ids": words(TARGETS)} if tiny.inputs == "pair" else {})
