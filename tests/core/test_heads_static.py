"""Heads of transformers' own classes: our head on the trunk's output gives the logits that the class gives."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from graftwork.core.heads import Beside
from graftwork.core.heads_static import LAYOUTS, read_static_head, static_head
from graftwork.core.heads_table import build_head
from graftwork.errors import AdapterError
from tests import tiny

_ALBERT = {
    "vocab_size": 99,
    "embedding_size": 16,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "classifier_dropout_prob": 0.0,
}
_DEBERTA = {k: v for k, v in _ALBERT.items() if k not in ("embedding_size", "classifier_dropout_prob")}
EXTRA = {
    "Albert": _ALBERT,
    "DebertaV2": {**_DEBERTA, "pooler_hidden_size": 32},
    "MT5": None,
    "MBart": None,
    "Qwen2": None,
    "Gemma": None,
    "Phi3": None,
    "Beit": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "image_size": 16,
        "patch_size": 8,
    },
}
FAMILIES = {
    "Bert": "bert",
    "Roberta": "roberta",
    "XLMRoberta": "xlm-roberta",
    "Electra": "electra",
    "DistilBert": "distilbert",
    "ModernBert": "modernbert",
    "GPT2": "gpt2",
    "Llama": "llama",
    "Mistral": "mistral",
    "Qwen3": "qwen3",
    "T5": "t5",
    "Bart": "bart",
    "ViT": "vit",
    "MT5": "t5",
    "MBart": "bart",
    "Qwen2": "llama",
    "Gemma": "llama",
    "Phi3": "llama",
}


def family_of(name: str) -> str:
    """Bert of BertForMaskedLM."""
    return next(family for family in sorted({*FAMILIES, *EXTRA}, key=len, reverse=True) if name.startswith(family))


def model_of(name: str) -> Any:
    """A tiny random model of a class, its weights large enough that every layer matters."""
    family = family_of(name)
    options = dict(EXTRA.get(family) or tiny.MAKERS[FAMILIES[family]][2])
    options |= {"pad_token_id": 0} if family not in ("Roberta", "XLMRoberta", "Bart", "MBart", "ViT", "Beit") else {}
    if name in ("BertLMHeadModel", "RobertaForCausalLM", "XLMRobertaForCausalLM", "ElectraForCausalLM"):
        options["is_decoder"] = True
    if "Classification" in name:
        options["id2label"] = {0: "low", 1: "middle", 2: "high"}
    config = getattr(transformers, f"{family}Config")(**options)
    torch.manual_seed(0)
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(0.15 * noise if parameter.dim() > 1 else parameter + 0.1 * noise)
        if getattr(model, "final_logits_bias", None) is not None:
            model.final_logits_bias.normal_()
    return model


def inputs_of(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Inputs of a class, and what its head sees beside hidden states."""
    if family_of(name) in ("ViT", "Beit"):
        return tiny.inputs("vit"), {}
    ids = torch.randint(3, 99, (4, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if name.startswith(("T5", "MT5", "Bart", "MBart")):
        eos = 1 if "T5" in name else 2
        ids[:, 5] = eos
        said = {"decoder_input_ids": ids.flip(0)} if "Generation" in name else {}
        return {"input_ids": ids, "attention_mask": mask, **said}, {"ends": ids == eos}
    ids[1, 5:], mask[1, 5:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}, {}


@pytest.mark.parametrize("name", LAYOUTS)
def test_our_head_says_what_the_class_says(name: str) -> None:
    model = model_of(name)
    config, tensors = static_head(model)
    given, seen = inputs_of(name)
    trunk: dict[str, Tensor] = {}

    def catch(module: Any, arguments: Any, output: Any) -> None:
        trunk["hidden"] = output[0] if isinstance(output, tuple) else output.last_hidden_state
        if not isinstance(output, tuple) and output.get("pooler_output") is not None:
            trunk["pooled"] = output.pooler_output

    decoder = getattr(model.base_model, "decoder", None) if hasattr(model, "get_decoder") else None
    (decoder if name.startswith(("T5", "MT5", "Bart", "MBart")) else model.base_model).register_forward_hook(catch)
    asked = {key: value.view(2, 2, 7) for key, value in given.items()} if "MultipleChoice" in name else given
    with torch.no_grad():
        expected = model(**asked)
    head = build_head(config, trunk["hidden"].shape[-1], model.get_input_embeddings).eval()
    head.load_state_dict(tensors, strict=True)
    beside = Beside(pooled=trunk.get("pooled"), choices=2 if "MultipleChoice" in name else None, **seen)
    with torch.no_grad():
        found = head.views(head(trunk["hidden"], given.get("attention_mask"), beside))
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-5)
    assert max(float(value.std()) for value in found.values()) > 0.01
    if "Classification" in name:
        assert config.labels == ("low", "middle", "high")
    if config.kind.endswith("_lm"):
        assert config.tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)
        assert not any(tensor.shape == (99, 32) for tensor in tensors.values()) or not config.tied


def test_one_output_is_a_number_and_several_problems_are_labels() -> None:
    config = transformers.BertConfig(**tiny.MAKERS["bert"][2], num_labels=1)
    assert static_head(transformers.BertForSequenceClassification(config))[0].kind == "regression"
    config = transformers.BertConfig(**tiny.MAKERS["bert"][2], num_labels=3, problem_type="multi_label_classification")
    head, _ = static_head(transformers.BertForSequenceClassification(config))
    assert (head.kind, head.labels) == ("multilabel_classification", ())


def test_a_class_without_a_layout_and_tensors_that_are_missing_are_refused() -> None:
    with pytest.raises(
        AdapterError, match="no layout is known for the head of BertModel; there are layouts for Albert"
    ):
        static_head(tiny.model("bert"))
    config = transformers.BertConfig(**tiny.MAKERS["bert"][2])
    with pytest.raises(AdapterError, match=r"BertForTokenClassification: tensor 'classifier.weight' is missing"):
        read_static_head("BertForTokenClassification", config, {}, False)
