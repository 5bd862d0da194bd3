"""Language-modelling heads: layout, loss, the inverse, and an embedding that is the base's own and no copy of it."""

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from graftwork.core.heads import Beside, Head, HeadConfig
from graftwork.core.heads_language import shifted_right
from graftwork.core.heads_table import build_head
from graftwork.errors import AdapterError
from graftwork.model import AdapterModel
from tests import tiny
from tests.adapted import last
from tests.rig import randomise

B, T, D, V = 2, 5, 8, 11


def hidden() -> Tensor:
    return torch.randn(B, T, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def head(kind: str = "masked_lm", embedding: nn.Embedding | None = None, **choices: Any) -> Head:
    plain = {"pooling": "none", "activation": "gelu", "layer_norm": True}
    config = HeadConfig(kind=kind, num_outputs=V, **{**plain, **choices})
    module = build_head(config, D, lambda: embedding).double().eval()  # type: ignore[arg-type, return-value]
    randomise(module.parameters())
    return module


def transformed(module: Any, x: Tensor) -> Tensor:
    x = functional.gelu(x @ module.layers[0].weight.T + module.layers[0].bias)
    norm = module.layers[2]
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-12).sqrt()
    return x * norm.weight + norm.bias


@pytest.mark.parametrize("kind", ["masked_lm", "causal_lm", "seq2seq_lm"])
def test_dense_activation_norm_projection(kind: str) -> None:
    module: Any = head(kind)
    assert list(module.state_dict()) == [
        *("layers.0.weight", "layers.0.bias", "layers.2.weight", "layers.2.bias", "layers.3.weight", "layers.3.bias")
    ]
    expected = transformed(module, hidden()) @ module.layers[3].weight.T + module.layers[3].bias
    torch.testing.assert_close(module(hidden()), expected)


def test_the_inverse_comes_just_before_the_projection() -> None:
    module: Any = head()
    expected = (3 * transformed(module, hidden()) - 1) @ module.layers[3].weight.T + module.layers[3].bias
    torch.testing.assert_close(module(hidden(), inverse=lambda x: 3 * x - 1), expected)
    bare: Any = head("seq2seq_lm", layers=1, scale=0.25, bias=False, layer_norm=False)
    torch.testing.assert_close(bare(hidden(), inverse=lambda x: x + 1), (0.25 * hidden() + 1) @ bare.layers[0].weight.T)


def test_the_loss_is_the_mean_over_words_shifted_where_asked() -> None:
    labels = torch.tensor([[3, -100, 2, 10, 0], [-100, -100, 1, 1, -100]])
    for kind, shift in (("masked_lm", False), ("causal_lm", True), ("seq2seq_lm", False)):
        module = head(kind, shift=shift)
        logits = module(hidden()).detach()
        chances = logits.log_softmax(-1)
        places = [(b, t) for b in range(B) for t in range(T) if labels[b, t] >= 0 and t >= shift]
        expected = -sum(float(chances[b, t - shift, labels[b, t]]) for b, t in places) / len(places)
        assert float(module.loss(logits, labels)) == pytest.approx(expected, rel=1e-6)
        assert math.isfinite(float(module.loss(logits, torch.full((B, T), -100))))
    with pytest.raises(AdapterError, match=r"causal_lm labels of shape \(2, 4\) for logits \(2, 5, 11\)"):
        head("causal_lm", shift=True).loss(logits, labels[:, 1:])


def test_a_tied_projection_is_the_embedding_itself() -> None:
    embedding = nn.Embedding(V, D).double()
    module: Any = head(embedding=embedding, tied=True)
    assert "layers.3.weight" not in module.state_dict()
    assert all(parameter is not embedding.weight for parameter in module.parameters())
    before = module(hidden())
    torch.testing.assert_close(before, transformed(module, hidden()) @ embedding.weight.T + module.layers[3].bias)
    with torch.no_grad():
        embedding.weight.mul_(2)
    torch.testing.assert_close(module(hidden()) - module.layers[3].bias, 2 * (before - module.layers[3].bias))


def test_a_narrow_embedding_is_reached_by_the_first_layer() -> None:
    embedding = nn.Embedding(V, 3).double()
    module: Any = head(embedding=embedding, tied=True, width=3)
    assert module.layers[0].weight.shape == (3, D)
    assert module(hidden()).shape == (B, T, V)
    with pytest.raises(AdapterError, match="one layer cannot lead from width 8 to 3; take layers=2"):
        head(embedding=embedding, tied=True, width=3, layers=1)
    with pytest.raises(AdapterError, match=r"tied head of 11 words and width 8 needs an input embedding of that shape"):
        head(embedding=embedding, tied=True)
    with pytest.raises(AdapterError, match="the base's is none"):
        head(tied=True)


def language_model() -> AdapterModel:
    model = AdapterModel(tiny.model("bert"))
    model.add_adapter("a")
    model.add_masked_lm_head("a")
    randomise(model.parts.parameters())
    return model.eval()


def says(model: AdapterModel) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(**tiny.inputs("bert"), adapters="a").logits
    return logits


def test_copies_read_the_embedding_of_their_own_base() -> None:
    model = language_model()
    expected, inputs = says(model), tiny.inputs("bert")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(says(other), expected)
        projection: Any = other.parts.head("a").layers[3]  # type: ignore[index, union-attr]
        assert projection.embeddings() is other.base.get_input_embeddings()
        with torch.no_grad():
            other.base.get_input_embeddings().weight.zero_()
            bare = torch.zeros_like(expected) + projection.bias
            torch.testing.assert_close(other.parts.head("a")(last(other(**inputs, adapters="a", head="none"))), bare)
    torch.testing.assert_close(says(model), expected)
    moved = copy.deepcopy(model).to(torch.float64)
    assert says(moved).dtype == torch.float64
    torch.testing.assert_close(says(moved).float(), expected, rtol=1e-4, atol=1e-4)


def test_no_package_holds_the_embedding_and_another_base_answers_the_same() -> None:
    model = language_model()
    package = model.package("a")
    assert not any(tensor.shape == (tiny.VOCABULARY, tiny.WIDTH) for tensor in package.tensors.values())
    assert package.manifest.head is not None
    assert package.manifest.head.options["tied"] is True
    other = AdapterModel(tiny.model("bert"))
    other.install(package)
    torch.testing.assert_close(says(other.eval()), says(model))


def test_what_a_decoder_reads() -> None:
    labels = torch.tensor([[5, 6, 7], [8, -100, -100]])
    assert shifted_right(labels, start=2, pad=1).tolist() == [[2, 5, 6], [2, 8, 1]]


@pytest.mark.parametrize("kind", ["masked_lm", "causal_lm", "seq2seq_lm"])
def test_logits_of_labelled_tokens_alone_are_those_that_the_loss_reads(kind: str) -> None:
    shift, labels = kind == "causal_lm", torch.tensor([[3, -100, 2, 10, 0], [-100, -100, 1, 1, -100]])
    module = head(kind, shift=shift)
    whole, asked = module(hidden(), inverse=lambda x: 2 * x), module.asked(labels)
    assert asked is not None
    some = module(hidden(), beside=Beside(asked=asked), inverse=lambda x: 2 * x)
    places = [(b, t - shift) for b in range(B) for t in range(T) if labels[b, t] >= 0 and t >= shift]
    assert some.shape == (len(places), V)
    torch.testing.assert_close(some, torch.stack([whole[place] for place in places]))
    torch.testing.assert_close(module.loss(some, labels), module.loss(whole, labels))
    none = torch.full((B, T), -100)
    assert module.loss(module(hidden(), beside=Beside(asked=module.asked(none))), none).item() == 0.0


@pytest.mark.parametrize("adapters", ["a", ["a", None, "a"]])
def test_a_model_answers_at_labelled_tokens_alone_where_it_is_asked_to(adapters: Any) -> None:
    model = AdapterModel(tiny.model("bert"))
    model.add_adapter("a", "seq_bn_inv")
    model.add_masked_lm_head("a")
    model.add_classification_head("b", num_labels=2)
    randomise(model.parts.parameters())
    model.eval().double()
    ids = torch.randint(5, 40, (3, 6), generator=torch.Generator().manual_seed(1))
    labels = torch.where(ids % 3 == 0, ids, -100)
    given: dict[str, Any] = {"input_ids": ids, "labels": labels, "adapters": adapters, "head": "a"}
    whole, some = model(**given), model(**given, scored_only=True)
    torch.testing.assert_close(some.loss, whole.loss)
    torch.testing.assert_close(some.logits, whole.logits[labels >= 0])
    assert some.groups[0].rows.tolist() == [0, 1, 2]
    wanted = [weight for weight in model.parts.parameters() if weight.requires_grad]
    slopes = [torch.autograd.grad(one.loss, wanted, allow_unused=True) for one in (whole, some)]
    assert any(one is not None and bool(one.any()) for one in slopes[0])
    for one, other in zip(*slopes, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other)
    del given["labels"]
    assert torch.equal(model(**given, scored_only=True).logits, model(**given).logits)  # nothing is labelled
    mixed = {**given, "head": ["a", "b", "a"], "labels": {"a": labels[::2], "b": torch.tensor([1])}}
    torch.testing.assert_close(model(**mixed, scored_only=True).loss, model(**mixed).loss)
