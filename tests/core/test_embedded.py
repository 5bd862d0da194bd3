"""Prompts where a model goes by what it is given: against longer embeddings given to the model itself."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from graftwork.errors import AdapterError, CompositionError
from graftwork.model import AdapterModel
from tests import tiny, zoo
from tests.rig import randomise

P = 3
TEXTS = ["gpt2", "gptj", "gpt_neox", "bloom", "opt", "llama", "gemma", "gemma3_text", "qwen2", "phi"]


def adapted(family: str, combine: str = "prefix") -> AdapterModel:
    model = AdapterModel(zoo.model(family).double())
    model.add_adapter("a", f"prompt_tuning[prompt_length={P},combine={combine}]")
    randomise(model.parts.parameters())
    return model.eval()


def padded(inputs: dict[str, Tensor], left: bool = False) -> dict[str, Tensor]:
    mask = torch.ones_like(inputs["input_ids"])
    mask[1, slice(0, 2) if left else slice(-2, None)] = 0
    return inputs | {"attention_mask": mask}


def hidden(model: Any, inputs: dict[str, Any], **how: Any) -> Tensor:
    with torch.no_grad():
        return model(**inputs, **how)[0]  # type: ignore[no-any-return]


def with_prompt(model: AdapterModel, e: Tensor, skip: int = 0) -> Tensor:
    module: Any = model.parts.modules_of("adapters", "a")["prompt"]
    prompt = module.embedding.detach().expand(len(e), -1, -1)
    return torch.cat((e[:, :skip], prompt, e[:, skip:]), dim=1)


def longer_mask(inputs: dict[str, Tensor], skip: int = 0) -> Tensor:
    mask = inputs["attention_mask"]
    return torch.cat((mask[:, :skip], mask.new_ones(len(mask), P), mask[:, skip:]), dim=1)


@pytest.mark.parametrize(("combine", "skip"), [("prefix", 0), ("prefix_after_bos", 1)])
@pytest.mark.parametrize("family", TEXTS)
def test_a_decoders_prompt_is_longer_inputs_embeds(family: str, combine: str, skip: int) -> None:
    model, inputs = adapted(family, combine), padded(zoo.inputs(family))
    with torch.no_grad():
        e = with_prompt(model, model.base.get_input_embeddings()(inputs["input_ids"]), skip)
    mask = longer_mask(inputs, skip)
    expected = hidden(model.base, {"inputs_embeds": e, "attention_mask": mask})
    found = hidden(model, inputs, adapters="a", head="none")
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", ["m2m_100", "bart", "mbart", "plbart"])
def test_an_encoders_prompt_is_longer_inputs_embeds(family: str) -> None:
    model, inputs = adapted(family), padded(zoo.inputs(family))
    module: Any = model.parts.modules_of("adapters", "a")["encoder.prompt"]
    with torch.no_grad():
        e = model.base.encoder.embed_tokens(inputs["input_ids"])
    given = {"inputs_embeds": torch.cat((module.embedding.detach().expand(2, -1, -1), e), dim=1)}
    given |= {"attention_mask": longer_mask(inputs), "decoder_input_ids": inputs["decoder_input_ids"]}
    found = hidden(model, inputs, adapters="a", head="none")
    torch.testing.assert_close(found, hidden(model.base, given), rtol=1e-9, atol=1e-9)
    with pytest.raises(CompositionError, match="rows of one batch need prompts of one length"):
        hidden(model, inputs, adapters=["a", None], head="none")


@pytest.mark.parametrize("family", ["modernbert", "deberta", "deberta-v2", "deberta-v3"])
def test_a_prompt_behind_normed_embeddings_is_what_longer_ids_with_it_in_their_place_are(family: str) -> None:
    """The same model over longer ids, whose embeddings, as they leave the module, are overwritten by hand."""
    model, inputs = adapted(family), padded(zoo.inputs(family))
    other = zoo.model(family).double().eval()
    made: dict[str, Tensor] = {}
    with torch.no_grad():
        given = {"mask": inputs["attention_mask"]} if family.startswith("deberta") else {}
        made["e"] = with_prompt(model, other.embeddings(inputs["input_ids"], **given))
    other.embeddings.register_forward_hook(lambda *_: made["e"])
    ids = torch.cat((torch.full((2, P), 5), inputs["input_ids"]), dim=1)
    mask = longer_mask(inputs)
    expected = hidden(other, {"input_ids": ids, "attention_mask": mask})
    found = hidden(model, inputs, adapters="a", head="none")
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", ["vit", "dinov2", "clip-vision", "siglip-vision"])
def test_a_prompt_of_images_is_in_front_of_what_the_layers_read(family: str) -> None:
    model, inputs = adapted(family), {key: value.double() for key, value in zoo.inputs(family).items()}
    other = copy.deepcopy(model.base)
    got: dict[str, Tensor] = {}
    model.base.get_submodule(_first_layer(family)).register_forward_pre_hook(
        lambda _, args, kwargs: got.__setitem__("x", args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    found = hidden(model, inputs, adapters="a", head="none")
    with torch.no_grad():
        e = other.embeddings(inputs["pixel_values"])
        e = with_prompt(model, e if isinstance(e, Tensor) else e[0])
        if family == "clip-vision":
            e = other.pre_layrnorm(e)
    torch.testing.assert_close(got["x"], e, rtol=1e-9, atol=1e-9)
    assert found.shape[1] == e.shape[1]


def _first_layer(family: str) -> str:
    return {"vit": "layers.0", "dinov2": "encoder.layer.0"}.get(family, "encoder.layers.0")


def test_a_prompt_of_llava_is_in_front_of_text_and_image() -> None:
    model, inputs = adapted("llava"), padded(zoo.inputs("llava"))
    inputs["pixel_values"] = inputs["pixel_values"].double()
    base = zoo.model("llava").double().eval()
    got: dict[str, Any] = {}

    def keep(_: nn.Module, args: Any, kwargs: Any) -> None:
        got.update(kwargs)

    base.language_model.register_forward_pre_hook(keep, with_kwargs=True)
    hidden(base, inputs)
    module: Any = model.parts.modules_of("adapters", "a")["text.prompt"]
    e = torch.cat((module.embedding.detach().expand(2, -1, -1), got["inputs_embeds"]), dim=1)
    mask = longer_mask(inputs)
    expected = hidden(base.language_model, {"inputs_embeds": e, "attention_mask": mask})
    found = hidden(model, inputs, adapters="a", head="none")
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", ["gpt2", "m2m_100", "modernbert", "deberta", "llava"])
def test_without_a_prompt_in_the_route_the_base_is_itself_to_the_last_bit(family: str) -> None:
    model, inputs = adapted(family), padded(zoo.inputs(family))
    inputs = {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}
    model.add_adapter("lora", "lora[r=2]")
    expected = hidden(zoo.model(family).double().eval(), inputs)
    for adapters in (None, "lora"):  # a LoRA at birth changes nothing
        assert torch.equal(hidden(model, inputs, adapters=adapters, head="none"), expected)


@pytest.mark.parametrize("family", ["gpt2", "llama", "modernbert", "deberta-v2", "gpt_neox", "opt"])
def test_rows_with_prompts_of_their_own_are_what_they_are_alone(family: str) -> None:
    model, inputs = adapted(family), padded(zoo.inputs(family))
    model.add_adapter("b", "prompt_tuning[prompt_length=5]")
    model.double()
    for setup in (["b", "a"], [None, "b"], ["a", None]):
        mixed = hidden(model, inputs, adapters=setup, head="none")
        for row, name in enumerate(setup):
            one = {key: value[row : row + 1] for key, value in inputs.items()}
            alone = hidden(model, one, adapters=name, head="none")[0]
            length = {"a": P, "b": 5, None: 0}[name] + int(inputs["attention_mask"][row].sum())
            start = mixed.shape[1] - len(alone)
            torch.testing.assert_close(mixed[row, start : start + length], alone[:length], rtol=1e-5, atol=1e-6)


def test_a_language_model_learns_behind_its_prompt() -> None:
    model = AdapterModel(tiny.stirred(GPT2LMHeadModel(zoo.model("gpt2").config)))
    model.add_adapter("a", f"prompt_tuning[prompt_length={P}]")
    model.train_adapter("a")
    ids = zoo.inputs("gpt2")["input_ids"]
    output = model(input_ids=ids, head="none")
    assert output.logits.shape[1] == ids.shape[1] + P
    output.logits.square().mean().backward()
    module: Any = model.parts.modules_of("adapters", "a")["prompt"]
    assert float(module.embedding.grad.abs().sum()) > 0
    with pytest.raises(AdapterError, match="token_type_ids were given for rows that a prompt makes longer"):
        model(input_ids=ids, token_type_ids=ids * 0, head="none")


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("beit", "it has a bias for each pair of patches"),
        ("clip", "it has two towers, whose rows would not get longer together"),
        ("clip-text", "it looks for the end of a text at the place where it was given"),
        ("gemma3", "it makes the masks of its images and tokens before these reach the layers"),
        ("whisper", "its encoder takes sound of one length"),
        ("wav2vec2", "what it hears is convolved over time once more"),
    ],
)
def test_where_rows_cannot_get_longer_a_prompt_is_refused_when_it_is_added(family: str, reason: str) -> None:
    model = AdapterModel(zoo.model(family))
    with pytest.raises(
        AdapterError, match=f"adapter 'a': prompt_tuning needs embeddings that may get longer.*{reason}"
    ):
        model.add_adapter("a", "prompt_tuning")
    with pytest.raises(AdapterError, match="prompt_tuning needs embeddings that may get longer"):
        model.add_adapter("a", "seq_bn|prompt_tuning")
    assert not model.parts.adapter_configs
