"""What other libraries' routing let through: leaks between calls and threads, recomputation, unchecked names."""

import threading
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

from graftwork.compose.tree import Stack
from graftwork.errors import AdapterError, CompositionError
from graftwork.model import AdapterModel
from tests import tiny
from tests.adapted import adapted, last, shaken

GIVEN = tiny.inputs("bert")


class Broken(nn.Module):
    """A layer's part that fails when told to."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.fails = inner, True

    def forward(self, *args: Any) -> Any:
        if self.fails:
            raise RuntimeError("out of memory")
        return self.inner(*args)


@pytest.mark.parametrize("adapters", ["a", ["a", "b"]])
def test_an_exception_in_a_forward_never_leaks_its_routing(adapters: Any) -> None:
    model = adapted()
    plain = last(model(**GIVEN, adapters=None))
    layer = model.base.encoder.layer[2]
    layer.output.dense = broken = Broken(layer.output.dense)
    with pytest.raises(RuntimeError, match="out of memory"):
        model(**GIVEN, adapters=adapters)
    broken.fails = False
    assert torch.equal(last(model.base(**GIVEN)), plain)
    assert torch.equal(last(model(**GIVEN)), plain)
    assert last(model(**tiny.inputs("bert", rows=5))).shape[0] == 5


def test_a_plain_call_never_gets_the_adapter_of_the_call_before() -> None:
    model = adapted()
    plain = last(tiny.model("bert")(**GIVEN))
    for adapters in ("a", ["b", None], Stack("a", "b")):
        model(**GIVEN, adapters=adapters)
        assert torch.equal(last(model(**GIVEN)), plain)


def test_two_threads_never_get_each_others_adapter() -> None:
    model = adapted()
    expected = {name: last(model(**GIVEN, adapters=name)) for name in ("a", "b")}
    wrong: list[str] = []

    def ask(name: str) -> None:
        for _ in range(20):
            if not torch.equal(last(model(**GIVEN, adapters=name)), expected[name]):
                wrong.append(name)

    threads = [threading.Thread(target=ask, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("config", ["seq_bn[reduction_factor=4]", "lora", "prefix_tuning_flat", "loreft", "ia3"])
def test_recomputation_never_runs_another_route(config: str) -> None:
    def gradients(recomputed: bool) -> list[torch.Tensor]:
        model = AdapterModel(tiny.model("bert"))
        for name in ("a", "b"):
            model.add_adapter(name, config)
        model.add_classification_head("a", 2)
        shaken(model.parts, seed=1)
        model.train_adapter("a")
        model.eval()  # no dropout; the layers recompute in training alone
        if recomputed:
            model.gradient_checkpointing_enable()
            model.base.train()
            for module in model.base.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
        loss = model(**GIVEN, labels=torch.tensor([0, 1])).loss
        model(**GIVEN, adapters="b", head="a")  # another tenant's call before the backward
        loss.backward()
        return [one.grad for one in model.parameters() if one.grad is not None]

    expected = gradients(recomputed=False)
    assert expected
    torch.testing.assert_close(gradients(recomputed=True), expected, rtol=1e-4, atol=1e-6)


def test_an_unknown_keyword_is_never_ignored() -> None:
    model = adapted(heads=["a"])
    with pytest.raises(TypeError, match="adapter_names"):
        model(**GIVEN, adapter_names=["a", "b"])
    with pytest.raises(AdapterError, match="takes no adapter_names"):
        model(**GIVEN, adapters="a", extra={"adapter_names": ["a", "b"]}, head="none")
    sizes = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    speaking = AdapterModel(LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=64)))
    with pytest.raises(ValueError, match="adapter_names"):
        speaking.generate(GIVEN["input_ids"], adapter_names=["a", "b"], max_new_tokens=1)
    with pytest.raises(AdapterError, match="unknown flag 'redution_factor'; did you mean 'reduction_factor'"):
        model.add_adapter("c", "seq_bn[redution_factor=4]")


def test_an_unknown_adapter_never_runs_as_the_base() -> None:
    model = adapted()
    for asked in ("z", ["a", "z"], Stack("a", "z"), "Average(a, z)"):
        with pytest.raises(AdapterError, match="no adapter 'z'"):
            model(**GIVEN, adapters=asked)
    with pytest.raises(CompositionError):
        model(**GIVEN, adapters=["a"])  # one composition for two rows


def test_switching_adapters_off_and_on_never_loses_a_head() -> None:
    model = adapted(heads=["a"])
    model.set_active_adapters("a")
    expected = model(**GIVEN).logits
    model.set_active_adapters(None)
    model(**GIVEN)
    model.set_active_adapters("a")
    assert torch.equal(model(**GIVEN).logits, expected)


def test_several_adapters_in_a_list_are_never_an_error_and_their_order_is_never_lost() -> None:
    model = adapted()
    model.set_active_adapters(["a", "b"])
    one = last(model(**GIVEN))
    model.set_active_adapters(["b", "a"])
    assert not torch.equal(one, last(model(**GIVEN)))


def test_the_inverse_at_a_language_model_is_never_forgotten() -> None:
    """Not at a static head, not in a mixed batch, not in a call that names its adapter."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    base = BertForMaskedLM(BertConfig(**sizes, intermediate_size=64)).eval()
    model = AdapterModel(base)
    model.add_adapter("en", "seq_bn_inv")
    model.add_adapter("plain", "seq_bn")
    shaken(model.parts, seed=2)
    model.eval()
    seen: list[torch.Tensor] = []
    base.cls.predictions.transform.register_forward_hook(lambda _, __, output: seen.append(output))
    found = model(**GIVEN, adapters="en").logits
    inverse = model.parts.modules_of("adapters", "en")["embed"].inverse
    assert callable(inverse)
    torch.testing.assert_close(found, base.cls.predictions.decoder(inverse(seen[0])))
    model.set_active_adapters("en")
    torch.testing.assert_close(model(**GIVEN).logits, found)
    mixed = model(**GIVEN, adapters=["en", "plain"]).logits
    torch.testing.assert_close(mixed[:1], found[:1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed[1:], model(**GIVEN, adapters="plain").logits[1:], rtol=1e-4, atol=1e-5)
