"""Prompt tuning: tokens in front of a text or behind its first token, and how they begin."""

from typing import Any

import pytest
import torch

from graftwork.core.prompt import Prompt, PromptTuningConfig
from graftwork.errors import AdapterError
from tests.linears import site

P, D = 4, 6


def built(**fields: Any) -> Prompt:
    module = PromptTuningConfig(prompt_length=P, **fields).build(site("prompt", D, D))
    assert module is not None
    return module


@pytest.mark.parametrize(("combine", "skip"), [("prefix", 0), ("prefix_after_bos", 1)])
def test_the_prompt_is_among_the_embeddings(combine: str, skip: int) -> None:
    module = built(combine=combine)
    e = torch.randn(2, 3, D)
    found = module.put(e)
    for row in range(2):
        expected = [*e[row, :skip], *module.embedding, *e[row, skip:]]
        assert torch.equal(found[row], torch.stack(expected))
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    assert module.lengthened(mask, 1).tolist() == [[1] * 7, [1] * 6 + [0]]
    labels = torch.tensor([[7, 8, 9]])
    assert module.lengthened(labels, -100).tolist() == [[7][:skip] + [-100] * P + [7, 8, 9][skip:]]
    assert module.length == P
    assert {name: tuple(p.shape) for name, p in module.named_parameters()} == {"embedding": (P, D)}


def test_it_begins_uniform_or_as_the_embeddings_of_a_text() -> None:
    wide = PromptTuningConfig(prompt_length=500, random_uniform_scale=0.25).build(site("prompt", D, D))
    assert wide is not None
    assert 0.24 < float(wide.embedding.detach().abs().max()) <= 0.25
    module = built(prompt_init="from_string", prompt_init_text="What is it?")
    rows = torch.randn(3, D)
    module.begin_as(rows)
    assert torch.equal(module.embedding.detach(), rows[[0, 1, 2, 0]])
    module.begin_as(torch.cat((rows, rows)))
    assert torch.equal(module.embedding.detach(), rows[[0, 1, 2, 0]])
    for wrong in (torch.randn(3, D + 1), torch.randn(0, D), torch.randn(D)):
        with pytest.raises(AdapterError, match=r"rows of shape .* are no embeddings of a text; needed is \(n, 6\)"):
            module.begin_as(wrong)


def test_a_seed_and_the_dtype_of_the_text() -> None:
    one, again = built(init_weights_seed=0), built(init_weights_seed=0)
    assert torch.equal(one.embedding, again.embedding)
    assert one.put(torch.randn(1, 2, D, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_gradients_reach_the_prompt() -> None:
    module = built()
    module.put(torch.randn(2, 3, D)).square().sum().backward()
    torch.testing.assert_close(module.embedding.grad, 4 * module.embedding.detach())


def test_where_it_goes() -> None:
    every = ["prompt", "embed", "attn", "attn.kv", "ffn.up"]
    assert [kind for kind in every if PromptTuningConfig().build(site(kind, layer=-1)) is not None] == ["prompt"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt_length": 0}, "prompt_length 0 must be a whole number from 1"),
        ({"prompt_init": "text"}, "prompt_init 'text' is not one of random_uniform, from_string"),
        ({"prompt_init": "from_string"}, "prompt_init 'from_string' needs a prompt_init_text"),
        ({"combine": "suffix"}, "combine 'suffix' is not one of prefix, prefix_after_bos"),
        ({"random_uniform_scale": -1}, "random_uniform_scale -1 must be a number from 0"),
    ],
)
def test_values_out_of_range_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        PromptTuningConfig(**fields)
