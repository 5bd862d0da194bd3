"""Methods on whole models, against the same model with other weights, other inputs, or attention written out by hand.

Float64, every parameter random. The paths of modules are written down here again, beside those of `core/families*.py`.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from graftwork.compose.tree import BatchSplit, Stack
from graftwork.core.kinds import NAMED, ConfigUnion, read_config
from graftwork.model import AdapterModel
from tests import tiny, zoo
from tests.matrix.methods import refusal
from tests.rig import randomise

FAMILIES = ["bert", "llama", "gpt2", "t5"]
_BERT = {
    "attn.query": "attention.self.query",
    "attn.key": "attention.self.key",
    "attn.value": "attention.self.value",
    "attn.out": "attention.output.dense",
    "ffn.up": "intermediate.dense",
    "ffn.down": "output.dense",
}
_LLAMA = {
    "attn.query": "self_attn.q_proj",
    "attn.key": "self_attn.k_proj",
    "attn.value": "self_attn.v_proj",
    "attn.out": "self_attn.o_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.gate": "mlp.gate_proj",
    "ffn.down": "mlp.down_proj",
}
_GPT2 = {"attn.out": "attn.c_proj", "ffn.up": "mlp.c_fc", "ffn.down": "mlp.c_proj"}
_QKV = {"attn.query": 0, "attn.key": 1, "attn.value": 2}
_T5 = {"attn.query": "0.SelfAttention.q", "attn.key": "0.SelfAttention.k", "attn.value": "0.SelfAttention.v"}
_T5 |= {"attn.out": "0.SelfAttention.o", "cross.query": "1.EncDecAttention.q", "cross.key": "1.EncDecAttention.k"}
_T5 |= {"cross.value": "1.EncDecAttention.v", "cross.out": "1.EncDecAttention.o"}
LAYERS = {"bert": "encoder.layer", "llama": "layers", "gpt2": "h", "t5": "{}.block"}


def linear_of(model: nn.Module, family: str, site: str) -> tuple[Tensor, Tensor | None]:
    """Views of the weight (width, inputs) and the bias (width,) of a linear site, to be changed in place."""
    place, _, kind = site.rpartition("/")
    stack, _, number = place.rpartition("layer.")
    layer: Any = model.get_submodule(f"{LAYERS[family].format(stack.strip('.'))}.{number}")
    if family == "gpt2" and kind in _QKV:
        module, part = layer.attn.c_attn, slice(_QKV[kind] * tiny.WIDTH, (_QKV[kind] + 1) * tiny.WIDTH)
        return module.weight.T[part], module.bias[part]
    if family == "t5" and kind.startswith("ffn"):
        dense = layer.layer[-1].DenseReluDense
        return {"ffn.up": dense.wi, "ffn.down": dense.wo}[kind].weight, None
    paths = {"bert": _BERT, "llama": _LLAMA, "gpt2": _GPT2, "t5": {k: f"layer.{path}" for k, path in _T5.items()}}
    module = layer.get_submodule(paths[family][kind])
    return (module.weight.T if family == "gpt2" else module.weight), getattr(module, "bias", None)


def adapted(family: str, *configs: Any, dtype: torch.dtype = torch.float64, random: bool = True) -> AdapterModel:
    """A tiny model with adapters `a`, `b`, …, the first one active."""
    model = AdapterModel((zoo if family == "gemma2" else tiny).model(family).to(dtype))
    for name, config in zip("abcd", configs, strict=False):
        model.add_adapter(name, config=config)
    if random:
        randomise(model.parts.parameters())
    model.set_active_adapters("a")
    return model.eval()


def hidden(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        output: Tensor = model(**inputs)[0]
    return output


def given(family: str) -> dict[str, Tensor]:
    """Inputs whose second row is padded, on the side where the family pads."""
    inputs = tiny.inputs("llama" if family == "gemma2" else family)
    mask = torch.ones_like(inputs["input_ids"])
    mask[1, slice(0, 2) if family in ("llama", "gpt2") else slice(-2, None)] = 0
    return {**inputs, "attention_mask": mask}


def seen(family: str, inputs: dict[str, Tensor], output: Tensor) -> Tensor:
    """The last hidden states of real tokens."""
    return output if family == "t5" else output[inputs["attention_mask"].bool()]


def norms(weight: Tensor) -> Tensor:
    return weight.square().sum(1, keepdim=True).sqrt()


EVERYWHERE = "attn_matrices=['q','k','v','o'],intermediate_lora=True,gate_lora=True,output_lora=True"
# config -> (weight, bias) of a linear as the paper changes it, from the module there
CHANGED: dict[str, Callable[[Any, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]] = {
    f"lora[r=3,alpha=2,{EVERYWHERE}]": lambda m, w, bias: (w + 2 / 3 * m.b @ m.a, bias),
    f"dora[r=2,alpha=3,{EVERYWHERE}]": lambda m, w, bias: (
        m.magnitude[:, None] * (w + 1.5 * m.b @ m.a) / norms(w + 1.5 * m.b @ m.a),
        bias,
    ),
    f"vera[r=4,{EVERYWHERE}]": lambda m, w, bias: (w + m.weight_change(), bias),
    f"ia3[{EVERYWHERE}]": lambda m, w, bias: (m.scale[:, None] * w, None if bias is None else m.scale * bias),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("config", CHANGED, ids=lambda config: config.partition("[")[0])
def test_methods_on_linears_are_the_model_with_other_weights(family: str, config: str) -> None:
    model, other, inputs = adapted(family, config), tiny.model(family).double(), given(family)
    plain = hidden(other, inputs)
    modules = {name: m for name, m in model.parts.modules_of("adapters", "a").items() if name != "shared"}
    assert len(modules) == {"bert": 3 * 6, "llama": 3 * 7, "gpt2": 3 * 6, "t5": 2 * 6 + 2 * 10}[family]
    with torch.no_grad():
        for name, module in modules.items():
            weight, bias = linear_of(other, family, name)
            new, moved = CHANGED[config](module, weight.clone(), None if bias is None else bias.clone())
            weight.copy_(new)
            if bias is not None and moved is not None:
                bias.copy_(moved)
    found, expected = hidden(model, inputs), hidden(other, inputs)
    torch.testing.assert_close(seen(family, inputs, found), seen(family, inputs, expected), rtol=1e-8, atol=1e-8)
    assert float((found - plain).norm() / plain.norm()) > 0.01
    model.set_active_adapters(None)
    assert torch.equal(hidden(model, inputs), plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_papers_ia3_scales_what_the_last_linear_reads(family: str) -> None:
    model = adapted(family, "ia3[selfattn_lora=False,crossattn_lora=False,intermediate_lora=False,inner_ffn=True]")
    other, inputs = tiny.model(family).double(), given(family)
    with torch.no_grad():
        for name, module in model.parts.modules_of("adapters", "a").items():
            weight, _ = linear_of(other, family, name.removesuffix(".input"))
            weight.mul_(module.scale)  # type: ignore[operator]
    found, expected = hidden(model, inputs), hidden(other, inputs)
    torch.testing.assert_close(seen(family, inputs, found), seen(family, inputs, expected), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("config", ["lora", "dora", "vera", "ia3", "dora[variant=adapters]", "lora[r=2]|ia3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_base_is_unchanged_at_birth_to_the_last_bit(family: str, config: str, dtype: torch.dtype) -> None:
    model = adapted(family, config, dtype=dtype, random=False)
    inputs = given(family)
    assert torch.equal(hidden(model, inputs), hidden(tiny.model(family).to(dtype), inputs))


def heads(x: Tensor, number: int) -> Tensor:
    """(B, T, H·W) -> (B, H, T, W)"""
    return x.unflatten(-1, (number, -1)).transpose(1, 2)


def attended(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, prefix: Any, scale: float, bias: Tensor | None
) -> Tensor:
    """softmax(q·[Pₖ; K]ᵀ)·[Pᵥ; V], written out: (B, T, H·W). `allowed` (B or 1, 1, T, S): which keys a query sees."""
    keys, values = (
        torch.cat((own.expand(len(q), -1, -1, -1), part), dim=2)
        for own, part in ((prefix.keys.transpose(0, 1)[None], k), (prefix.values.transpose(0, 1)[None], v))
    )
    share = q.shape[1] // k.shape[1]
    keys, values = (part.repeat_interleave(share, dim=1) for part in (keys, values))
    scores = q @ keys.transpose(-1, -2) * scale
    length = prefix.keys.shape[0]
    if bias is not None:
        scores[..., length:] += bias
    blocked = torch.cat((torch.zeros_like(allowed[..., :1]).expand(*allowed.shape[:-1], length), ~allowed), dim=-1)
    weights = scores.masked_fill(blocked, -torch.inf).softmax(-1)
    return (weights @ values).transpose(1, 2).flatten(2)


def allowed(mask: Tensor, queries: int, causal: bool) -> Tensor:
    see = mask.bool()[:, None, None].expand(-1, 1, queries, -1)
    return see & torch.ones(queries, mask.shape[1]).tril().bool() if causal else see


def by_hand(family: str, module: Any, x: Tensor, source: Tensor, mask: Tensor, prefix: Any) -> Tensor:
    """What an attention module makes of x (B, T, D) with a prefix in front; cross-attention reads `source`."""
    if family == "bert":
        q, k, v = (heads(f(x), 4) for f in (module.query, module.key, module.value))
        return attended(q, k, v, allowed(mask, x.shape[1], False), prefix, 8**-0.5, None)
    if family == "gpt2":
        q, k, v = (heads(part, 4) for part in module.c_attn(x).split(tiny.WIDTH, dim=-1))
        return module.c_proj(attended(q, k, v, allowed(mask, x.shape[1], True), prefix, 8**-0.5, None))
    if family == "llama":
        q, k, v = heads(module.q_proj(x), 4), heads(module.k_proj(x), 2), heads(module.v_proj(x), 2)
        q, k = apply_rotary_pos_emb(q, k, *tiny_rotary(x))
        return module.o_proj(attended(q, k, v, allowed(mask, x.shape[1], True), prefix, 8**-0.5, None))
    q, k, v = heads(module.q(x), 4), heads(module.k(source), 4), heads(module.v(source), 4)
    causal = module.is_decoder and source is x
    see = allowed(mask, x.shape[1], causal)
    return module.o(attended(q, k, v, see, prefix, 1.0, module.bias_by_hand))


def tiny_rotary(x: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of Llama's rotary embedding for width 8, base 10000, (1, T, 8)."""
    angles = torch.arange(x.shape[1])[:, None] * (10000.0 ** (-torch.arange(0, 8, 2).double() / 8))
    angles = torch.cat((angles, angles), dim=-1)[None]
    return angles.cos().to(x), angles.sin().to(x)


def attentions(model: Any, family: str) -> Iterator[tuple[str, nn.Module]]:
    """Name of the kv site -> attention module."""
    if family == "t5":
        for stack in ("encoder", "decoder"):
            for number, block in enumerate(getattr(model, stack).block):
                yield f"{stack}.layer.{number}/attn.kv", block.layer[0].SelfAttention
                if stack == "decoder":
                    yield f"{stack}.layer.{number}/cross.kv", block.layer[1].EncDecAttention
        return
    path = {"bert": "attention.self", "llama": "self_attn", "gpt2": "attn"}[family]
    for number, layer in enumerate(model.get_submodule(LAYERS[family])):
        yield f"layer.{number}/attn.kv", layer.get_submodule(path)


def keep(calls: dict[str, Any], name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
    """A hook: what an attention module was given and what it made of that."""
    calls[name] = module, args[0] if args else kwargs["hidden_states"], kwargs.get("key_value_states"), output[0]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_prefixes_are_in_front_of_keys_and_values(family: str, implementation: str) -> None:
    model = adapted(family, "prefix_tuning_flat[prefix_length=3]")
    trunk: Any = model.backbone.trunk
    trunk.set_attn_implementation(implementation)
    inputs = given(family)
    calls: dict[str, Any] = {}
    for name, module in attentions(trunk, family):
        module.register_forward_hook(partial(keep, calls, name), with_kwargs=True)
    hidden(model, inputs)
    prefixes = model.parts.modules_of("adapters", "a")
    assert set(calls) == set(prefixes)
    assert len(calls) == (6 if family == "t5" else 3)
    with torch.no_grad():
        for name, (module, x, source, found) in calls.items():
            mask = inputs["attention_mask"]
            if name.startswith("decoder") and source is None:
                mask = torch.ones_like(inputs["decoder_input_ids"])
            if family == "t5":
                first: Any = dict(attentions(trunk, family))[name.replace("layer.1", "layer.0")]
                has_bias = source is None
                module.bias_by_hand = first.compute_bias(x.shape[1], x.shape[1]) if has_bias else None
            expected = by_hand(family, module, x, x if source is None else source, mask, prefixes[name])
            real = mask.bool() if source is None else torch.ones(x.shape[:2]).bool()
            exact = 1e-6 if family == "llama" else 1e-8  # its rotary embedding is in float32
            torch.testing.assert_close(found[real], expected[real], rtol=exact, atol=exact)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_made_prefix_is_the_flat_one_it_flattens_to(family: str) -> None:
    model = adapted(
        family, "prefix_tuning[prefix_length=4,bottleneck_size=6,use_gating=True]",
        "prefix_tuning_flat[prefix_length=4,use_gating=True]",
    )  # fmt: skip
    inputs = given(family)
    flat = model.parts.modules_of("adapters", "b")
    for name, module in model.parts.modules_of("adapters", "a").items():
        if name != "shared":
            flat[name].load_state_dict(module.flattened().state_dict())  # type: ignore[operator]
    found = hidden(model, inputs)
    model.set_active_adapters("b")
    torch.testing.assert_close(found, hidden(model, inputs), rtol=1e-9, atol=1e-9)


def test_a_prompt_is_tokens_in_front_of_the_embeddings() -> None:
    model, other = adapted("llama", "prompt_tuning[prompt_length=3]"), tiny.model("llama").double()
    inputs = given("llama")
    prompt: Any = model.parts.modules_of("adapters", "a")["prompt"].embedding
    words = other.embed_tokens(inputs["input_ids"])
    longer = torch.cat((prompt.expand(2, -1, -1), words), dim=1)
    mask = torch.cat((torch.ones(2, 3, dtype=torch.long), inputs["attention_mask"]), dim=1)
    expected = hidden(other, {"inputs_embeds": longer, "attention_mask": mask})
    found = hidden(model, inputs)
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("combine", ["prefix", "prefix_after_bos"])
def test_a_prompt_of_bert_is_in_front_of_what_the_encoder_reads(combine: str) -> None:
    model, other = adapted("bert", f"prompt_tuning[prompt_length=3,combine={combine}]"), tiny.model("bert").double()
    inputs = given("bert")
    prompt: Any = model.parts.modules_of("adapters", "a")["prompt"].embedding
    e = other.embeddings(inputs["input_ids"])
    skip = 1 if combine == "prefix_after_bos" else 0
    x = torch.cat((e[:, :skip], prompt.expand(2, -1, -1), e[:, skip:]), dim=1)
    mask = torch.cat((torch.ones(2, 3, dtype=torch.long), inputs["attention_mask"]), dim=1)
    blocked = torch.where(mask.bool(), 0.0, -torch.inf).double()[:, None, None]
    with torch.no_grad():
        for layer in other.encoder.layer:
            x = layer(x, blocked.expand(-1, 1, x.shape[1], -1))
            x = x if isinstance(x, Tensor) else x[0]
    torch.testing.assert_close(hidden(model, inputs)[mask.bool()], x[mask.bool()], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("family", [*FAMILIES, "gemma2"])
@pytest.mark.parametrize("name", ["loreft", "noreft", "direft"])
def test_reft_edits_what_leaves_a_layer(family: str, name: str) -> None:
    model = adapted(family, f"{name}[r=2,prefix_positions=2,suffix_positions=1]")
    other, inputs = (zoo if family == "gemma2" else tiny).model(family).double(), given(family)
    for site, module in model.parts.modules_of("adapters", "a").items():
        stack, _, number = site.removesuffix("/ffn").rpartition("layer.")
        path = LAYERS.get(family, "layers").format(stack.strip("."))
        mask = torch.ones_like(inputs["decoder_input_ids"]) if stack == "decoder." else inputs["attention_mask"]
        other.get_submodule(f"{path}.{number}").register_forward_hook(editing(module, mask))
    found, expected = hidden(model, inputs), hidden(other, inputs)
    torch.testing.assert_close(seen(family, inputs, found), seen(family, inputs, expected), rtol=1e-8, atol=1e-8)
    model.set_active_adapters(None)
    assert not torch.allclose(hidden(model, inputs), found)


def editing(module: Any, mask: Tensor) -> Callable[..., Any]:
    """A hook on a layer: its output with two first and one last real token edited, token by token."""

    def edited(unit: Any, x: Tensor) -> Tensor:
        rows = unit.projection
        if unit.config.orthogonality:
            rows = torch.linalg.qr(rows.T)
            rows = (rows.Q * rows.R.diagonal().sign()).T
        says = functional.linear(x, unit.source.weight, unit.source.bias)
        return x + (says - (functional.linear(x, rows) if unit.config.subtract_projection else 0)) @ rows

    def hook(layer: nn.Module, args: Any, output: Any) -> Any:
        x = output if isinstance(output, Tensor) else output[0]
        x = x.clone()
        for row in range(len(x)):
            real = mask[row].nonzero()[:, 0]
            for token, unit in ((real[0], module.prefix), (real[1], module.prefix), (real[-1], module.suffix)):
                x[row, token] = edited(unit, x[row, token])
        return x if isinstance(output, Tensor) else (x, *output[1:])

    return hook


@pytest.mark.parametrize("family", FAMILIES)
def test_a_union_is_its_members_together(family: str) -> None:
    names = (
        "lora[r=2]",
        "ia3[attn_matrices=['k']]",
        "seq_bn[reduction_factor=4]",
        "prefix_tuning_flat[prefix_length=2]",
    )
    union, apart = adapted(family, ConfigUnion(*names)), adapted(family, *names)
    theirs = union.parts.tensors("adapters", "a")
    with torch.no_grad():
        for index, name in enumerate("abcd"):
            for key, tensor in apart.parts.tensors("adapters", name).items():
                site, _, parameter = key.rpartition("/")
                tensor.copy_(theirs.pop(f"{site}/{index}.{parameter}"))
    assert not theirs
    inputs = given(family)
    found = hidden(union, inputs)
    apart.set_active_adapters(Stack("a", "b", "c", "d"))
    torch.testing.assert_close(found, hidden(apart, inputs), rtol=1e-9, atol=1e-9)


def test_rows_of_one_batch_have_different_methods() -> None:
    configs = ("lora[r=2]", "ia3", "prefix_tuning_flat[prefix_length=2]", "loreft[r=2]|dora[r=2]")
    model = adapted("bert", *configs)
    inputs = {key: value.repeat(2, 1) for key, value in given("bert").items()}
    alone = []
    for row, name in enumerate("abcd"):
        model.set_active_adapters(name)
        alone.append(hidden(model, inputs)[row])
    model.set_active_adapters(BatchSplit("a", "b", "c", "d", batch_sizes=[1, 1, 1, 1]))
    found, real = hidden(model, inputs), inputs["attention_mask"].bool()
    torch.testing.assert_close(found[real], torch.stack(alone)[real], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("config", ["loreft[r=2]", "prefix_tuning_flat", "lora|ia3|dora", "loreft|lora"])
def test_padded_rows_with_a_cache_generate_what_a_row_alone_generates(config: str) -> None:
    torch.manual_seed(0)
    base = LlamaForCausalLM(tiny.model("llama").config)
    randomise(base.parameters(), 1)
    model = AdapterModel(base.double().eval())
    model.add_adapter("a", config=config)
    randomise(model.parts.parameters())
    model.set_active_adapters("a")
    model.eval()
    ids = torch.randint(3, tiny.VOCABULARY, (1, 6))
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": 98}
    alone = model.generate(ids, use_cache=False, **options)
    padded = torch.cat((torch.zeros(1, 3, dtype=torch.long), ids), dim=1)
    mask = (torch.arange(9) >= 3).long()[None]
    assert torch.equal(model.generate(padded, attention_mask=mask, **options)[:, 3:], alone)
    assert torch.equal(model.generate(ids, **options), alone)


TRAINED = ["lora", "dora", "vera[r=4]", "ia3", "prefix_tuning[bottleneck_size=4,prefix_length=2]", "prompt_tuning"]
TRAINED += ["loreft[r=2]", "lora[r=2]|loreft|seq_bn", "mam", "unipelt"]


@pytest.mark.parametrize("config", TRAINED)
def test_only_the_adapters_own_parameters_get_gradients(config: str) -> None:
    model = adapted("bert", config)
    model.train_adapter("a")
    model.eval()
    model(**given("bert"))[0].square().sum().backward()
    assert all(parameter.grad is None for parameter in model.backbone.model.parameters())
    dead = [
        key for key, p in model.parts.adapters.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)
    ]
    assert not dead


@pytest.mark.parametrize(
    ("name", "family"),
    [
        (name, family)
        for name in NAMED
        for family in ("bert", "llama")
        if read_config(name).kind != "bottleneck" and refusal(name, family) is None
    ],
)
def test_a_package_brings_every_method_back(name: str, family: str) -> None:
    config = read_config(name)
    model, other = adapted(family, config), AdapterModel(tiny.model(family).double())
    other.install(model.package("a"), "x")
    other.set_active_adapters("x")
    inputs = given(family)
    assert torch.equal(hidden(other.eval(), inputs), hidden(model, inputs))
    assert other.parts.adapter_configs["x"] == config
