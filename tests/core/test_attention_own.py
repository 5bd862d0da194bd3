"""Prefixes of attentions that do not ask transformers' interface: against a cache that holds them, and by hand."""

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BloomForCausalLM, DynamicCache, GPTJForCausalLM
from transformers.models.falcon import modeling_falcon

from graftwork.model import AdapterModel
from tests import tiny, zoo
from tests.rig import randomise

P = 3
CACHED = ["gptj", "bloom", "falcon", "falcon-new", "falcon-new-1", "falcon-heads", "falcon-serial"]
RELATIVE = ["deberta", "deberta-v2", "deberta-v3"]
CLOSE: dict[str, float] = {"rtol": 1e-5, "atol": 1e-6}  # GPT-J weighs, and DeBERTa scales, in float32


def adapted(family: str) -> AdapterModel:
    model = AdapterModel(zoo.model(family).double())
    model.add_adapter("a", f"prefix_tuning_flat[prefix_length={P}]")
    randomise(model.parts.parameters())
    return model.double().eval()


def given(family: str) -> dict[str, Tensor]:
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, 6:] = 0
    return zoo.inputs(family) | {"attention_mask": mask}


def hidden(model: AdapterModel, inputs: dict[str, Tensor], adapters: Any) -> Tensor:
    with torch.no_grad():
        return model(**inputs, adapters=adapters, head="none")[0]  # type: ignore[no-any-return]


def alibi(mask: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    """The bias of Bloom and Falcon by position, (B·H, 1, P + T), the first P positions where the first token is."""
    slopes = 2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads)
    positions = (mask[:, P:].cumsum(1) - 1) * mask[:, P:]
    positions = torch.cat([torch.zeros(len(mask), P, dtype=torch.long), positions], dim=1)
    return (slopes[None, :, None] * positions[:, None]).flatten(0, 1)[:, None].to(dtype)


@pytest.mark.parametrize("family", CACHED)
def test_a_prefix_is_what_a_cache_that_holds_it_is(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = adapted(family), given(family)
    found = hidden(model, inputs, "a")
    base, cache = model.base, DynamicCache()
    for layer, (name, prefix) in enumerate(model.parts.modules_of("adapters", "a").items()):
        assert name == f"layer.{layer}/attn.kv"
        pair: Any = prefix
        keys, values = (part.detach().transpose(0, 1).expand(2, -1, -1, -1) for part in (pair.keys, pair.values))
        if getattr(base.config, "new_decoder_architecture", False):
            keys, values = keys.repeat_interleave(2, dim=1), values.repeat_interleave(2, dim=1)
        cache.update(keys, values, layer)
    longer = inputs | {"attention_mask": torch.cat([torch.ones(2, P, dtype=torch.long), inputs["attention_mask"]], 1)}
    if family == "bloom":
        base.build_alibi_tensor = alibi
    elif getattr(base.config, "alibi", False):
        monkeypatch.setattr(modeling_falcon, "build_alibi_tensor", alibi)
    else:
        longer["position_ids"] = torch.arange(9)[None].expand(2, -1)
    with torch.no_grad():
        expected = base(**longer, past_key_values=cache)[0]
    assert not torch.allclose(found, hidden(model, inputs, None))
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(found[real], expected[real], rtol=1e-9, atol=1e-9)


def by_hand(module: Any, x: Tensor, mask: Tensor, more: dict[str, Any], prefix: Any) -> Tensor:
    """Disentangled attention (B, T, D) with a prefix; what it adds for relative positions is the module's own."""
    heads, width = module.num_attention_heads, module.attention_head_size
    factor = 1 + len(module.pos_att_type)

    def cut(y: Tensor) -> Tensor:
        return y.view(*y.shape[:2], heads, width).transpose(1, 2)

    scale = math.sqrt(width * factor)
    if hasattr(module, "in_proj"):
        weight = module.in_proj.weight.view(heads, 3, width, -1)
        q, k, v = (cut(x @ weight[:, part].flatten(0, 1).T) for part in range(3))
        q = (q + module.q_bias.view(heads, 1, width)) / scale
        v = v + module.v_bias.view(heads, 1, width)
        bias = module.disentangled_att_bias(q, k, more["relative_pos"], more["rel_embeddings"], factor)
    else:
        q, k, v = (cut(linear(x)) for linear in (module.query_proj, module.key_proj, module.value_proj))
        bias = module.disentangled_attention_bias(
            q.flatten(0, 1), k.flatten(0, 1), more["relative_pos"], more["rel_embeddings"], factor
        ).view(len(x), heads, x.shape[1], -1)
        q = q / scale
    scores = (q @ k.transpose(2, 3) + bias).masked_fill(~mask.bool(), -1e300)
    scores = torch.cat([torch.einsum("bhtw,phw->bhtp", q, prefix.keys), scores], dim=3)
    weights = scores.softmax(dim=3)
    values = torch.cat([prefix.values.transpose(0, 1).expand(len(x), -1, -1, -1), v], dim=2)
    return (weights @ values).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("family", RELATIVE)
def test_a_prefix_of_disentangled_attention_is_what_the_equation_says(family: str) -> None:
    model, inputs = adapted(family), given(family)
    calls: list[tuple[Any, ...]] = []

    def keep(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls.append((module, kwargs if not args else {"hidden_states": args[0], **kwargs}, output[0]))

    masks: list[Tensor] = []
    for layer in model.base.encoder.layer:
        layer.register_forward_pre_hook(lambda _, args: masks.append(args[1]))
        layer.attention.self.register_forward_hook(keep, with_kwargs=True)
    assert not torch.allclose(hidden(model, inputs, "a"), hidden(model, inputs, None))
    prefixes = list(model.parts.modules_of("adapters", "a").values())
    assert len(prefixes) == 2
    real = inputs["attention_mask"].bool()
    for (module, got, output), mask, prefix in zip(calls[:2], masks, prefixes, strict=False):
        with torch.no_grad():
            expected = by_hand(module, got["hidden_states"], mask, got, prefix)
        assert output.shape == expected.shape
        torch.testing.assert_close(output[real], expected[real], **CLOSE)


@pytest.mark.parametrize("family", [*CACHED, *RELATIVE])
def test_rows_have_prefixes_of_their_own_and_nothing_is_left_behind(family: str) -> None:
    model, inputs = adapted(family), given(family)
    before = {name: set(module.__dict__) for name, module in model.base.named_modules()}
    idle = hidden(model, inputs, None)
    mixed = hidden(model, inputs, ["a", None])
    model.add_adapter("b", "prefix_tuning_flat[prefix_length=5]")
    model.double()
    both = hidden(model, inputs, ["b", "a"])
    real = inputs["attention_mask"].bool()
    whole = hidden(model, inputs, "a")
    for found, expected, row in ((mixed, whole, 0), (mixed, idle, 1), (both, whole, 1)):
        torch.testing.assert_close(found[row][real[row]], expected[row][real[row]], **CLOSE)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(hidden(copied, inputs, "a"), whole)
    assert torch.equal(hidden(model, inputs, None), idle)
    assert {name: set(module.__dict__) for name, module in model.base.named_modules()} == before


@pytest.mark.parametrize("family", ["gptj", "deberta", "deberta-v2"])
def test_an_error_in_the_call_leaves_nothing_behind(family: str) -> None:
    model, inputs = adapted(family), given(family)
    whole = hidden(model, inputs, "a")
    site = next(one for one in model.backbone.located if one.site.place == "kv")
    handle = next(iter(site.modules["attention"].children())).register_forward_pre_hook(_fail)
    with pytest.raises(ValueError, match="on purpose"):
        hidden(model, inputs, "a")
    handle.remove()
    assert not set(site.modules["attention"].__dict__) & {"transpose_for_scores", "disentangled_att_bias"}
    assert torch.equal(hidden(model, inputs, "a"), whole)


def _fail(*_: Any) -> None:
    raise ValueError("on purpose")


@pytest.mark.parametrize(("family", "kind"), [("gptj", GPTJForCausalLM), ("bloom", BloomForCausalLM)])
def test_with_a_cache_of_its_own_a_model_says_what_it_says_without(family: str, kind: Any) -> None:
    base = tiny.stirred(kind(zoo.model(family).config))
    model = AdapterModel(base)
    model.add_adapter("a", f"prefix_tuning_flat[prefix_length={P}]")
    randomise(model.parts.parameters())
    ids = zoo.inputs(family)["input_ids"]
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    options |= {"output_logits": True, "return_dict_in_generate": True}

    def said(adapters: str | None, cached: bool) -> Tensor:
        made = model.eval().generate(ids, adapters=adapters, use_cache=cached, **options)
        return torch.stack(made.logits)

    found = said("a", cached=True)
    torch.testing.assert_close(found, said("a", cached=False), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, said(None, cached=True), atol=1e-3)
