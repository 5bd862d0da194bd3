"""Prompts that begin as a text: the embeddings of the base's own tokens, or refused before anything is added."""

from pathlib import Path
from typing import Any

import pytest
import torch

from graftwork.core.prompt import PromptTuningConfig
from graftwork.errors import AdapterError
from graftwork.model import AdapterModel, AutoAdapterModel
from tests import tiny, zoo

TEXT = "what is the mood of this review"


def asked(length: int, text: str = TEXT) -> PromptTuningConfig:
    return PromptTuningConfig(prompt_length=length, prompt_init="from_string", prompt_init_text=text)


def test_a_prompt_begins_as_the_embeddings_of_its_text(tmp_path: Path) -> None:
    model = AutoAdapterModel.from_pretrained("minilm")
    lines = Path(model.config.name_or_path, "vocab.txt").read_text(encoding="utf-8").splitlines()
    ids = [lines.index(word) for word in ["[CLS]", *TEXT.split(), "[SEP]"]]
    rows = model.base.embeddings.word_embeddings.weight[ids]
    for length in (4, 12):
        model.add_adapter("p", asked(length), overwrite_ok=True)
        prompt: Any = model.parts.modules_of("adapters", "p")["prompt"]
        expected = torch.stack([rows[number % len(rows)] for number in range(length)])
        assert torch.equal(prompt.embedding.detach(), expected)
    with torch.no_grad():
        prompt.embedding.add_(1)
    model.save_adapter(tmp_path / "p", "p")
    model.load_adapter(tmp_path / "p", load_as="again")
    again: Any = model.parts.modules_of("adapters", "again")["prompt"]
    assert torch.equal(again.embedding, prompt.embedding)  # a trained prompt does not begin again


def test_without_a_tokenizer_or_a_table_nothing_is_added() -> None:
    model = AdapterModel(tiny.model("bert"))
    with pytest.raises(AdapterError, match=r"from_string' needs the tokenizer of the base .* without a name or folder"):
        model.add_adapter("p", asked(4))
    model.base.config.name_or_path = "/nowhere/at-all"
    with pytest.raises(AdapterError, match=r"cannot load '/nowhere/at-all'"):
        model.add_adapter("p", asked(4))
    other = AdapterModel(zoo.model("vit"))
    with pytest.raises(AdapterError, match="vit has no table of tokens of width 32"):
        other.add_adapter("p", asked(4))
    assert not model.parts.adapter_configs
    assert not other.parts.adapter_configs
