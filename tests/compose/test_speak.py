"""`generate` through a head of ours on a bare trunk says what transformers' own class says with the same weights."""

from typing import Any

import pytest
import torch

from graftwork.compose.tree import Stack
from graftwork.core.heads_static import static_head
from graftwork.errors import AdapterError
from graftwork.model import AdapterModel
from tests import tiny
from tests.adapted import adapted, shaken
from tests.test_model_generate import GENERATORS, ROWS, WAYS, generator, said


def spoken(family: str) -> tuple[AdapterModel, AdapterModel]:
    """A language model with adapters, and its bare trunk with the same adapters and its head as one of ours."""
    whole = generator(family)
    config, tensors = static_head(whole.base)
    trunk: Any = whole.base.base_model
    if family == "t5":  # T5's own class holds the trunk's parts, not the trunk
        trunk = type(tiny.model("t5"))(whole.base.config)
        trunk.load_state_dict(whole.base.state_dict(), strict=False)
    bare = AdapterModel(type(trunk)(trunk.config).eval())
    bare.base.load_state_dict(trunk.state_dict())
    for name in ("a", "b"):
        bare.add_adapter(name, whole.parts.adapter_configs[name])
        for mine, theirs in zip(
            bare.parts.tensors("adapters", name).values(), whole.parts.tensors("adapters", name).values(), strict=True
        ):
            mine.copy_(theirs)
    bare.add_head("words", config)
    bare.parts.head("words").load_state_dict(tensors)
    return whole, bare.eval()


@pytest.mark.parametrize("family", GENERATORS)
@pytest.mark.parametrize("way", WAYS)
def test_it_says_the_same(family: str, way: str) -> None:
    whole, bare = spoken(family)
    ids = tiny.inputs(family, rows=4)["input_ids"]
    options = {**WAYS[way], "pad_token_id": 0, "eos_token_id": None, "decoder_start_token_id": 0}
    expected = said(whole, ids, ROWS, **options)
    made = bare.generate(
        ids, adapters=ROWS, head="words", do_sample=False, max_new_tokens=6, min_new_tokens=6, **options
    )
    assert torch.equal(made, expected)
    assert bare.backbone.runtime.route is None


@pytest.mark.parametrize("family", GENERATORS)
def test_it_is_as_sure_as_the_class_itself(family: str) -> None:
    whole, bare = spoken(family)
    ids = tiny.inputs(family, rows=2)["input_ids"]
    options: dict[str, Any] = {"pad_token_id": 0, "eos_token_id": None, "decoder_start_token_id": 0}
    options |= {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    expected = whole.generate(ids, adapters="a", **options).logits
    found = bare.generate(ids, adapters="a", head="words", **options).logits
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-4, atol=1e-4)


def test_the_active_head_speaks_on_a_bare_trunk() -> None:
    _, bare = spoken("llama")
    ids = tiny.inputs("llama", rows=2)["input_ids"]
    bare.active_head = "words"
    bare.set_active_adapters(Stack("b", "a"))
    plain = {"do_sample": False, "max_new_tokens": 4, "pad_token_id": 0, "eos_token_id": None}
    assert torch.equal(bare.generate(ids, **plain), bare.generate(ids, adapters=Stack("b", "a"), head="words", **plain))


def test_what_cannot_speak_is_refused() -> None:
    _, bare = spoken("gpt2")
    ids = tiny.inputs("gpt2", rows=2)["input_ids"]
    bare.add_classification_head("classes")
    bare.add_causal_lm_head("other")
    with pytest.raises(
        AdapterError, match=r"needs a head of kind causal_lm on this base.*the head is of kind classific"
    ):
        bare.generate(ids, adapters="a", head="classes")
    bare.add_causal_lm_head("a")
    bare.add_causal_lm_head("b")
    with pytest.raises(AdapterError, match="generate speaks by one head, and these rows have a, b; ask for them apart"):
        bare.generate(ids, adapters=["a", "b"])
    encoder = adapted("vit")
    encoder.add_image_classification_head("a")
    shaken(encoder.parts, 3)
    with pytest.raises(AdapterError, match="the base a ViTModel"):
        encoder.generate(tiny.inputs("vit")["pixel_values"], adapters="a")
