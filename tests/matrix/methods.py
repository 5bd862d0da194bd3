"""Every named method in a size for tiny models, and the pairs of method and family that have no meaning.

The pairs are derived from facts about the methods and the models, not from what the code under test says.
"""

from typing import Any

from graftwork.core.adapter import MethodConfig
from graftwork.core.kinds import NAMED, read_config
from tests import zoo

# flags that make a method small enough for models of width 32; a union's are written <index>.<flag>
SMALL: dict[str, dict[str, Any]] = {
    "seq_bn": {"reduction_factor": 4},
    "double_seq_bn": {"reduction_factor": 4},
    "seq_bn_inv": {"reduction_factor": 4},
    "double_seq_bn_inv": {"reduction_factor": 4},
    "seq_bn_glow": {"reduction_factor": 4},
    "double_seq_bn_glow": {"reduction_factor": 4},
    "bapna_firat": {"reduction_factor": 4},
    "compacter": {"reduction_factor": 4},
    "compacter++": {"reduction_factor": 4},
    "adapter_plus": {"reduction_factor": 4},
    "adapter_bert": {"bottleneck_size": 6},
    "llm_series": {"bottleneck_size": 6},
    "llm_series_down": {"bottleneck_size": 6},
    "llm_parallel": {"bottleneck_size": 6},
    "vera": {"r": 4},
    "prefix_tuning": {"prefix_length": 3, "bottleneck_size": 6},
    "prefix_tuning_flat": {"prefix_length": 3},
    "prompt_tuning": {"prompt_length": 3},
    "mam": {"0.prefix_length": 3, "0.bottleneck_size": 6},
    "unipelt": {"0.prefix_length": 3, "0.bottleneck_size": 6, "1.reduction_factor": 4},
}

FAMILIES = tuple(zoo.MAKERS)
METHODS = tuple(NAMED)

# post-LN models whose norm is an ordinary LayerNorm: what adapter-bert trains
_NORMS = {"bert", "bert-decoder", "roberta", "xlm-roberta", "electra", "bert-generation", "distilbert", "albert"}
_NORMS |= {"albert-groups", "deberta-v2", "deberta-v3", "bart", "plbart", "encoder-decoder", "opt-post"}
_NORMS |= {"wav2vec2", "hubert"}
# models that count the tokens or patches they were given, behind their embeddings
_COUNTED = {"whisper", "beit", "clip", "clip-text", "siglip", "wav2vec2", "wav2vec2-stable", "hubert"}
_COUNTED |= {"paligemma", "gemma3"}
# patches are not tokens: no vocabulary, no embeddings to be mapped and mapped back
_PATCHES = {"vit", "beit", "dinov2", "dinov2-gated", "clip-vision", "siglip-vision"}
_EXPERTS = {"mixtral"}  # their feed-forward layers are not linears of a layer

# no linear of theirs has a bias
_BIASLESS = {"llama", "mistral", "mixtral", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text", "olmo", "olmo2"}
_BIASLESS |= {"phi3", "t5", "mt5", "modernbert", "falcon", "falcon-heads", "falcon-new", "falcon-new-1"}
_BIASLESS |= {"falcon-serial", "falcon-serial-query"}

# methods -> families they are refused on, and a part of the reason
REFUSED: dict[tuple[str, ...], tuple[set[str], str]] = {
    ("adapter_bert",): (set(FAMILIES) - _NORMS, "only a LayerNorm with weight and bias that follows the add"),
    ("prompt_tuning",): (_COUNTED, "embeddings that may get longer"),
    ("seq_bn_inv", "double_seq_bn_inv", "seq_bn_glow", "double_seq_bn_glow"): (_PATCHES, "has no embeddings"),
    ("bitfit",): (_BIASLESS, "frozen linears that have a bias"),
    ("llm_series", "llm_series_down", "llm_parallel"): (_EXPERTS, "attn.out, attn.kv, embed"),
}


def small(method: str) -> MethodConfig:
    """A named configuration for a tiny model."""
    return read_config(method, SMALL.get(method))


def refusal(method: str, family: str) -> str | None:
    """A part of the reason why a method is refused on a family, or None where it is not."""
    for methods, (families, reason) in REFUSED.items():
        if method in methods and family in families:
            return reason
    return None
