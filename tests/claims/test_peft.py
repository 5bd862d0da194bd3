"""PEFT beside us: its methods hold no bottleneck adapter, and its LoRA is as large as ours."""

import pytest
import torch
from transformers import BertConfig, BertModel

from graftwork.core.backbone import Backbone, load_skeleton
from graftwork.sizes import of_method

peft = pytest.importorskip("peft", reason="NOT CHECKED: peft is not installed here")

# Read one by one: none is a bottleneck behind or beside a sub-layer. SHADOW has a projection of that form inside a
# network of its own beside a decoder.
READ = """
    ADALORA ADAMSS ADAPTION_PROMPT BEFT BOFT C3A CARTRIDGE CPT DEFT DELORA FOURIERFT FROD GLORA GRALORA HIRA HRA IA3
    LILY LN_TUNING LOHA LOKR LORA MISS MULTITASK_PROMPT_TUNING OFT OSF PEANUT POLY PREFIX_TUNING PROMPT_TUNING PSOFT
    PVERA P_TUNING RANDLORA ROAD SHADOW SHIRA SUPERTUNING TINYLORA TRAINABLE_TOKENS UNILORA VBLORA VERA WAVEFT XLORA
"""


def test_it_has_no_bottleneck_adapter() -> None:
    new = {kind.value for kind in peft.PeftType} - {*READ.split()}
    assert not new, f"new methods of peft: {sorted(new)}; if one is a bottleneck adapter, correct docs/claims.md"


def test_its_lora_has_as_many_parameters() -> None:
    with torch.device("meta"):
        model = peft.get_peft_model(
            BertModel(BertConfig()), peft.LoraConfig(r=8, target_modules=["query", "value"]), low_cpu_mem_usage=True
        )
    trained, _ = model.get_nb_trainable_parameters()
    assert trained == of_method(Backbone(load_skeleton("bert-base-uncased")), "lora[r=8]")["parameters"] == 294_912
