"""A frozen base with packed linears: 4-bit NF4 (Dettmers et al. 2023, QLoRA) or LLM.int8 (Dettmers et al. 2022).

bitsandbytes packs the linears while a model is loaded, on a GPU or a CPU; embeddings, norms and biases stay as they
are, and so do adapters and heads, which read the outputs of packed linears like those of others. It saves memory, not
time.
Which packed weights can still be read as numbers (DoRA, merging) is said in `core/taps.py`.
"""

import logging
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from graftwork.errors import BackboneError

MISSING = "bitsandbytes is not installed (pip install 'graftwork[quantised]')"


def packing(bits: str, dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` is told to pack linears as "4bit" or "8bit"; dtype: that they compute in.

    Raises BackboneError where bitsandbytes is missing.
    """
    if find_spec("bitsandbytes") is None:
        raise BackboneError(f"a {bits} base: {MISSING}; or load the model without quantisation")
    # int8 products are of halves: told once a call and linear, it would fill every log
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    if bits == "8bit":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return {"quantization_config": four}


def keep_layout(model: nn.Module) -> None:
    """Keep 4-bit weights as they were packed: on some CPUs bitsandbytes packs them anew when a model in eval mode first
    runs, into a form that it cannot train on top of, and every run of ours scores a few rows before it trains."""
    repack = "support_avx512bf16_for_cpu"
    for module in model.modules():
        if hasattr(module, repack):
            setattr(module, repack, False)
