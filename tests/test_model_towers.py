"""Models of several towers and senses: adapters go to the stacks that their configuration names."""

import pytest
import torch

from graftwork import AdapterModel, SeqBnConfig
from graftwork.core.lora import LoRAConfig
from graftwork.errors import BackboneError
from tests import zoo


def places(model: AdapterModel, name: str) -> set[tuple[str, int]]:
    """The stack and width of every site where an adapter has a module."""
    sites = [site for site in model.backbone.sites if model.parts.adapter(name, site.index) is not None]
    return {(site.stack, site.width) for site in sites}


@pytest.mark.parametrize("family", ["clip", "siglip", "llava", "paligemma", "gemma3"])
@pytest.mark.parametrize(("stack", "width"), [("text", zoo.WIDTH), ("vision", zoo.SEEN)])
def test_an_adapter_goes_to_one_tower(family: str, stack: str, width: int) -> None:
    model = AdapterModel(zoo.model(family)).eval()
    model.add_adapter("one", config=SeqBnConfig(stacks=(stack,), reduction_factor=4))
    model.add_adapter("both", config=SeqBnConfig(reduction_factor=4))
    assert places(model, "one") == {(stack, width)}
    assert places(model, "both") == {("text", zoo.WIDTH), ("vision", zoo.SEEN)}
    with torch.no_grad():
        for parameter in model.parts.parameters():
            parameter.normal_(std=0.3)
        inputs = zoo.inputs(family)
        plain, one, both = (model(**inputs, adapters=name, head="none")[0] for name in (None, "one", "both"))
    assert not torch.allclose(plain, one, atol=1e-3)
    assert not torch.allclose(one, both, atol=1e-3)


def test_low_rank_adapters_in_one_tower() -> None:
    model = AdapterModel(zoo.model("llava")).eval()
    model.add_adapter("one", config=LoRAConfig(stacks=("vision",)))
    assert places(model, "one") == {("vision", zoo.SEEN)}


@pytest.mark.parametrize("family", zoo.MAKERS)
def test_rows_of_every_family_have_adapters_of_their_own(family: str) -> None:
    """A batch of two compositions is its rows, each as if its composition had been the batch's."""
    model, inputs = AdapterModel(zoo.model(family)).eval(), zoo.inputs(family)
    model.add_adapter("a", config="double_seq_bn")
    model.add_adapter("b", config="seq_bn")
    with torch.no_grad():
        for parameter in model.parts.parameters():
            parameter.normal_(std=0.2)
        extra = {key: inputs.pop(key) for key in ("encoder_hidden_states",) if key in inputs}
        found = {
            key: model(**inputs, adapters=setup, head="none", extra=extra)[0]
            for key, setup in {"mixed": ["a", "b"], "a": "a", "b": "b", "plain": None}.items()
        }
    assert not torch.allclose(found["a"], found["plain"], atol=1e-3)
    if family in ("clip", "siglip"):  # scores of every image with every text
        expected = torch.stack([found["a"][0, 0], found["b"][1, 1]])
        found["mixed"] = found["mixed"].diagonal()
    else:
        expected = torch.stack([found["a"][0], found["b"][1]])
    torch.testing.assert_close(found["mixed"], expected, atol=1e-4, rtol=1e-3)


def test_what_a_model_hears_is_an_input_by_name() -> None:
    for family in ("whisper", "wav2vec2", "hubert"):
        model = AdapterModel(zoo.model(family)).eval()
        model.add_adapter("a", config="seq_bn")
        output = model(**zoo.inputs(family), adapters="a", head="none")
        assert torch.isfinite(output[0]).all(), family


@pytest.mark.parametrize("family", zoo.MAKERS)
def test_a_head_of_ours_stands_on_every_family_that_gives_hidden_states(family: str) -> None:
    model, inputs = AdapterModel(zoo.model(family)).eval(), zoo.inputs(family)
    model.add_adapter("a", config="seq_bn")
    model.add_classification_head("a", num_labels=3)
    extra = {key: inputs.pop(key) for key in ("encoder_hidden_states",) if key in inputs}
    if family in ("clip", "siglip", "encoder-decoder"):  # scores or logits, no hidden states of one model
        with pytest.raises(BackboneError, match="gives no hidden states to a head of ours"):
            model(**inputs, adapters="a", head="a", extra=extra)
        return
    with torch.no_grad():
        assert model(**inputs, adapters="a", head="a", extra=extra).logits.shape == (2, 3)
