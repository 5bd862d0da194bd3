"""`generate` of the base under a route: greedy, beams, several sequences, one composition a row."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BartForConditionalGeneration,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from graftwork.compose.tree import BatchSplit, Parallel, Stack
from graftwork.errors import AdapterError, CompositionError
from graftwork.model import AdapterModel
from tests import tiny, zoo
from tests.adapted import adapted, shaken

GENERATORS: dict[str, type[Any]] = {
    "llama": LlamaForCausalLM,
    "gpt2": GPT2LMHeadModel,
    "t5": T5ForConditionalGeneration,
    "bart": BartForConditionalGeneration,
}
ROWS = ["a", Stack("b", "a"), None, "b"]
WAYS: dict[str, dict[str, int]] = {
    "greedy": {"num_beams": 1},
    "beams": {"num_beams": 3},
    "sequences": {"num_beams": 4, "num_return_sequences": 2},
}


def generator(family: str) -> AdapterModel:
    """A tiny language model with adapters a and b that change what it says."""
    torch.manual_seed(0)
    base = GENERATORS[family](tiny.model(family).config).eval()
    for seed in range(9):
        shaken(base.base_model, seed)  # layers that outweigh the tied embedding, which would repeat the last word
    with torch.no_grad():
        base.get_input_embeddings().weight.mul_(0.3)
    base.generation_config.pad_token_id, base.generation_config.eos_token_id = 0, None
    base.generation_config.decoder_start_token_id = 0
    model = AdapterModel(base)
    model.add_adapter("a", "seq_bn[reduction_factor=4]")
    model.add_adapter("b", "double_seq_bn[reduction_factor=4]")
    for seed in range(3):
        shaken(model.parts, seed)
    return model


def said(model: AdapterModel, ids: Tensor, adapters: Any, **options: int) -> Tensor:
    """The token ids (B, T) that a model generates."""
    made: Tensor = model.generate(
        ids, adapters=adapters, do_sample=False, max_new_tokens=6, min_new_tokens=6, **options
    )
    return made


@pytest.mark.parametrize("family", GENERATORS)
@pytest.mark.parametrize("way", WAYS)
def test_rows_generate_as_they_do_one_at_a_time(family: str, way: str) -> None:
    model = generator(family)
    ids = tiny.inputs(family, rows=4)["input_ids"]
    copies = WAYS[way].get("num_return_sequences", 1)
    mixed = said(model, ids, ROWS, **WAYS[way])
    assert mixed.shape[0] == 4 * copies
    alone = [said(model, ids[row : row + 1], tree, **WAYS[way]) for row, tree in enumerate(ROWS)]
    assert torch.equal(mixed, torch.cat(alone))
    assert len({tuple(said(model, ids[:1], tree)[0].tolist()) for tree in ("a", "b", None)}) == 3


@pytest.mark.parametrize("family", GENERATORS)
def test_without_adapters_the_base_generates(family: str) -> None:
    model = generator(family)
    ids = tiny.inputs(family)["input_ids"]
    plain = model.base.generate(ids, do_sample=False, max_new_tokens=6, min_new_tokens=6)
    assert torch.equal(said(model, ids, None), plain)
    model.set_active_adapters("a")
    active = model.generate(ids, do_sample=False, max_new_tokens=6, min_new_tokens=6)
    assert torch.equal(active, said(model, ids, "a"))
    assert not torch.equal(active, plain)
    assert torch.equal(model.base.generate(ids, do_sample=False, max_new_tokens=6, min_new_tokens=6), plain)


def test_rows_may_be_split_by_a_block_and_named_by_keyword() -> None:
    model = generator("llama")
    ids = tiny.inputs("llama", rows=4)["input_ids"]
    split = model.generate(
        input_ids=ids, adapters=BatchSplit("a", "b", batch_sizes=[1, 3]), do_sample=False, max_new_tokens=6, num_beams=2
    )
    assert torch.equal(split, said(model, ids, ["a", "b", "b", "b"], num_beams=2))


def test_what_cannot_generate_is_refused() -> None:
    ids = tiny.inputs("bert")["input_ids"]
    with pytest.raises(AdapterError, match="a base with a language-modelling head; this one is BertModel"):
        adapted().generate(ids, adapters="a")
    model = generator("llama")
    with pytest.raises(AdapterError, match="generate needs inputs"):
        model.generate(adapters="a")
    with pytest.raises(AdapterError, match="generate cannot repeat rows for Parallel; call it once per branch"):
        model.generate(ids, adapters=Parallel("a", "b"))
    with pytest.raises(CompositionError, match="adapters= names 3 compositions for a batch of 2 rows"):
        model.generate(ids, adapters=["a", "b", "a"])
    with pytest.raises(ValueError, match="not_an_option"):
        model.generate(ids, adapters="a", not_an_option=1)
    assert model.backbone.runtime.route is None


def test_what_is_heard_is_spoken_under_a_route() -> None:
    torch.manual_seed(0)
    config = {**zoo.model("whisper").config.to_dict(), "decoder_start_token_id": 1, "eos_token_id": 2}
    base = tiny.stirred(WhisperForConditionalGeneration(WhisperConfig(**config)))
    model = AdapterModel(base)
    model.add_adapter("a", "double_seq_bn[reduction_factor=4]")
    for seed in range(3):
        shaken(model.parts, seed)
    model.eval()
    heard = {"input_features": zoo.inputs("whisper")["input_features"]}
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    plain, both = model.generate(**heard, adapters=None, **options), model.generate(**heard, adapters="a", **options)
    assert not torch.equal(plain, both)
    mixed = model.generate(**heard, adapters=["a", None], **options)
    assert torch.equal(mixed, torch.stack([both[0], plain[1]]))
