"""Tiny random models of every family with a row, and inputs for them: hidden size 32, 2 or 3 layers, no network."""

from typing import Any

import torch
from transformers import (
    BartConfig,
    BartModel,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedModel,
    Qwen3Config,
    Qwen3Model,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5Model,
    ViTConfig,
    ViTModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

WIDTH, VOCABULARY = 32, 99

_ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
_DECODER = {**_ENCODER, "num_key_value_heads": 2, "head_dim": 8}

MAKERS: dict[str, tuple[type[Any], type[Any], dict[str, Any]]] = {
    "bert": (BertModel, BertConfig, _ENCODER),
    "bert-decoder": (BertModel, BertConfig, {**_ENCODER, "is_decoder": True, "add_cross_attention": True}),
    "roberta": (RobertaModel, RobertaConfig, {**_ENCODER, "pad_token_id": 1}),
    "xlm-roberta": (XLMRobertaModel, XLMRobertaConfig, {**_ENCODER, "pad_token_id": 1}),
    "electra": (ElectraModel, ElectraConfig, {**_ENCODER, "embedding_size": 16}),
    "distilbert": (
        DistilBertModel,
        DistilBertConfig,
        {"vocab_size": VOCABULARY, "dim": WIDTH, "n_layers": 3, "n_heads": 4, "hidden_dim": 64},
    ),
    "modernbert": (ModernBertModel, ModernBertConfig, {**_ENCODER, "pad_token_id": 0, "global_attn_every_n_layers": 2}),
    "llama": (LlamaModel, LlamaConfig, _DECODER),
    "mistral": (MistralModel, MistralConfig, _DECODER),
    "qwen3": (Qwen3Model, Qwen3Config, _DECODER),
    "gpt2": (GPT2Model, GPT2Config, {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 3, "n_head": 4}),
    "t5": (
        T5Model,
        T5Config,
        {
            "vocab_size": VOCABULARY,
            "d_model": WIDTH,
            "d_kv": 8,
            "d_ff": 64,
            "num_layers": 2,
            "num_heads": 4,
            "decoder_start_token_id": 0,
        },
    ),
    "bart": (
        BartModel,
        BartConfig,
        {
            "vocab_size": VOCABULARY,
            "d_model": WIDTH,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "max_position_embeddings": 64,
        },
    ),
    "vit": (
        ViTModel,
        ViTConfig,
        {
            "hidden_size": WIDTH,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "image_size": 16,
            "patch_size": 8,
        },
    ),
}


def model(family: str, seed: int = 0) -> PreTrainedModel:
    """A tiny random model in eval mode, with weights large enough that every sub-layer matters."""
    maker, config, options = MAKERS[family]
    torch.manual_seed(seed)
    made: PreTrainedModel = maker(config(**options))
    return stirred(made)


def stirred(made: PreTrainedModel) -> PreTrainedModel:
    """A model in eval mode with random weights, large enough that every sub-layer matters."""
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.15)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


def inputs(family: str, rows: int = 2, tokens: int = 7, seed: int = 1) -> dict[str, torch.Tensor]:
    """Inputs that reach every site of the family."""
    generator = torch.Generator().manual_seed(seed)
    if family == "vit":
        return {"pixel_values": torch.randn(rows, 3, 16, 16, generator=generator)}
    given = {"input_ids": torch.randint(3, VOCABULARY, (rows, tokens), generator=generator)}
    if family in ("t5", "bart"):
        given["decoder_input_ids"] = torch.randint(3, VOCABULARY, (rows, tokens - 2), generator=generator)
    if family == "bert-decoder":
        given["encoder_hidden_states"] = torch.randn(rows, 5, WIDTH, generator=generator)
    return given
