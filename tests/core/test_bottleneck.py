"""The bottleneck adapter: every placement against its closed form, computed by hand from the model's own submodules."""

import math
import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig

from graftwork.core.activations import ACTIVATIONS, activation
from graftwork.core.backbone import Backbone, load_skeleton
from graftwork.core.bottleneck import Bottleneck, BottleneckConfig
from graftwork.core.distributions import INITS
from graftwork.core.families import OF_MODEL_TYPE
from graftwork.core.fusion import FUSIONS, Fusion
from graftwork.core.kinds import read_config
from graftwork.core.site import NO_DELTA, Delta, Reading, Site
from graftwork.errors import AdapterError
from tests import tiny
from tests.rig import ADAPTER_PLUS, Rig, randomise

Norm = Callable[[Tensor], Tensor]
Form = Callable[[Bottleneck, Tensor, Tensor, Norm], Tensor]


def up(module: Bottleneck, x: Tensor, scale: Any = 1.0) -> Tensor:
    """scale · up(f(down(x))), written out."""
    function = {"relu": torch.relu, "swish": functional.silu, "gelu": functional.gelu}[module.config.non_linearity]
    inner = function(x @ module.down.weight.T + module.down.bias)
    return (inner @ module.up.weight.T + module.up.bias) * scale


def own_norm(norm: nn.LayerNorm | None, x: Tensor) -> Tensor:
    assert norm is not None
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / torch.sqrt(variance + norm.eps) * norm.weight + norm.bias


def gate(module: Bottleneck, x: Tensor) -> Tensor:
    assert module.gate is not None
    return torch.sigmoid(x @ module.gate.weight.T + module.gate.bias).mean(1, keepdim=True)


# config -> the stream after the site, from h, r and the model's norm (the identity where there is none)
FORMS: dict[str, Form] = {
    "seq_bn": lambda a, h, r, ln: ln(h + up(a, ln(h + r)) + r),
    "double_seq_bn": lambda a, h, r, ln: ln(h + up(a, h) + r),
    "par_bn": lambda a, h, r, ln: ln(h + up(a, r, 4.0) + r),
    "scaled_par_bn": lambda a, h, r, ln: ln(h + up(a, r, a.scale) + r),
    "seq_bn[mh_adapter=True]": lambda a, h, r, ln: ln(h + up(a, ln(h + r)) + r),
    "seq_bn[scaling=3]": lambda a, h, r, ln: ln(h + up(a, ln(h + r), 3) + r),
    "seq_bn[scaling=0.5]": lambda a, h, r, ln: ln(h + up(a, ln(h + r), 0.5) + r),
    "seq_bn[scaling=learned]": lambda a, h, r, ln: ln(h + up(a, ln(h + r), a.scale) + r),
    "seq_bn[scaling=channel,non_linearity=gelu]": lambda a, h, r, ln: ln(h + up(a, ln(h + r), a.scale) + r),
    ADAPTER_PLUS: lambda a, h, r, ln: ln(h + r) + up(a, ln(h + r), a.scale),
    "adapter_plus[reduction_factor=4]": lambda a, h, r, ln: ln(h + r) + up(a, ln(h + r), a.scale),
    "bapna_firat": lambda a, h, r, ln: ln(h + r) + up(a, own_norm(a.norm_before, ln(h + r))),
    "compacter[reduction_factor=4]": lambda a, h, r, ln: ln(h + up(a, h) + r),
    "compacter++[reduction_factor=4,phm_rank=3]": lambda a, h, r, ln: ln(h + up(a, ln(h + r)) + r),
    "seq_bn[original_ln_after=False]": lambda a, h, r, ln: h + up(a, ln(h + r)),
    "double_seq_bn[original_ln_after=False]": lambda a, h, r, ln: h + up(a, h),
    "seq_bn[residual_before_ln=False]": lambda a, h, r, ln: ln(ln(h + r) + up(a, ln(h + r)) + r),
    "double_seq_bn[residual_before_ln=False]": lambda a, h, r, ln: ln(h + up(a, h) + r),
    "seq_bn[residual_before_ln=post_add]": lambda a, h, r, ln: ln((h + r) + up(a, ln(h + r)) + r),
    "seq_bn[ln_before=True]": lambda a, h, r, ln: ln(h + up(a, own_norm(a.norm_before, ln(h + r))) + r),
    "seq_bn[ln_after=True]": lambda a, h, r, ln: ln(h + own_norm(a.norm_after, up(a, ln(h + r))) + r),
    "seq_bn[ln_after=True,adapter_residual_before_ln=True]": (
        lambda a, h, r, ln: ln(own_norm(a.norm_after, up(a, ln(h + r)) + h) + r)
    ),
    "seq_bn[adapter_residual_before_ln=True]": lambda a, h, r, ln: ln(h + up(a, ln(h + r)) + r),
    "seq_bn[residual_before_ln=False,ln_after=True,adapter_residual_before_ln=True]": (
        lambda a, h, r, ln: ln(own_norm(a.norm_after, up(a, ln(h + r)) + ln(h + r)) + r)
    ),
    "seq_bn[use_gating=True]": lambda a, h, r, ln: ln(h + gate(a, ln(h + r)) * up(a, ln(h + r)) + r),
    "seq_bn[use_gating=True,ln_before=True]": (
        lambda a, h, r, ln: ln(h + gate(a, ln(h + r)) * up(a, own_norm(a.norm_before, ln(h + r))) + r)
    ),
    "par_bn[use_gating=True,ln_after=True,adapter_residual_before_ln=True]": (
        lambda a, h, r, ln: ln(h + own_norm(a.norm_after, gate(a, r) * up(a, r, 4.0)) + r)
    ),
}


def by_hand(family: str, rig: Rig, form: Form, inputs: dict[str, Tensor]) -> Tensor:
    """The whole forward of a tiny BERT or Llama with adapter `a`, from its submodules and a closed form."""
    trunk: Any = rig.backbone.trunk

    def after(index: int, h: Tensor, r: Tensor, norm: Norm) -> Tensor:
        module = rig.parts.adapter("a", index)
        return norm(h + r) if module is None else form(module, h, r, norm)

    x = trunk.embeddings(inputs["input_ids"]) if family == "bert" else trunk.embed_tokens(inputs["input_ids"])
    if family == "bert":
        for number, layer in enumerate(trunk.encoder.layer):
            attention = layer.attention.output.dense(layer.attention.self(x)[0])
            x = after(2 * number, attention, x, layer.attention.output.LayerNorm)
            inner = layer.output.dense(layer.intermediate(x))
            x = after(2 * number + 1, inner, x, layer.output.LayerNorm)
        return x
    places = torch.arange(x.shape[1])[None]
    for number, layer in enumerate(trunk.layers):
        turns = trunk.rotary_emb(x, places)
        attention = layer.self_attn(layer.input_layernorm(x), position_embeddings=turns, attention_mask=None)[0]
        x = after(2 * number, attention, x, lambda stream: stream)
        inner = layer.mlp(layer.post_attention_layernorm(x))
        x = after(2 * number + 1, inner, x, lambda stream: stream)
    return trunk.norm(x)


@pytest.mark.parametrize("config", FORMS)
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_each_placement_is_its_closed_form(family: str, config: str) -> None:
    rig = Rig(family, {"a": config})
    rig.backbone.model.double()
    rig.parts.double()
    inputs = tiny.inputs(family)
    with torch.no_grad():
        found = rig.run("a", inputs)
        expected = by_hand(family, rig, FORMS[config], inputs)
        plain = rig.run(None, inputs)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert float((found - plain).norm() / plain.norm()) > 0.01


def test_no_norm_in_the_model_means_that_after_and_before_are_one_place() -> None:
    h, r = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    module = read_config(ADAPTER_PLUS).build(Site(0, "", 0, 0, "ffn", 8))
    assert module is not None
    randomise(module.parameters())
    change = module(Reading(h, r, None), NO_DELTA)
    assert change.after is None
    change = module(Reading(h, r, nn.LayerNorm(8)), NO_DELTA)
    assert change.before is None


def test_what_others_wrote_before_is_read_and_carried() -> None:
    generator = torch.Generator().manual_seed(2)
    h, r, before, after = (torch.randn(2, 3, 8, generator=generator, dtype=torch.float64) for _ in range(4))
    ln = nn.LayerNorm(8, dtype=torch.float64)
    reading, delta = Reading(h, r, ln), Delta(before, after)
    for text, expected in {
        "seq_bn": lambda a: up(a, ln(h + before + r) + after),
        "double_seq_bn": lambda a: up(a, h + before),
        "par_bn": lambda a: up(a, r, 4.0),
        # carries the norm's output instead of h + before, so the difference is a part of the change
        "seq_bn[residual_before_ln=False]": lambda a: (
            up(a, ln(h + before + r) + after) + ln(h + before + r) + after - (h + before)
        ),
    }.items():
        module = read_config(text).build(Site(0, "", 0, 0, "ffn", 8))
        assert module is not None
        module.double()
        randomise(module.parameters())
        found = module(reading, delta)
        assert found.after is None
        torch.testing.assert_close(found.before, expected(module))


# -- neutral at birth, sizes and places --


@pytest.mark.parametrize("config", ["seq_bn", "double_seq_bn", "par_bn", ADAPTER_PLUS, "adapter_plus", "bapna_firat"])
@pytest.mark.parametrize("family", tiny.MAKERS)
def test_with_up_at_zero_the_model_is_the_base_to_the_last_bit(family: str, config: str) -> None:
    rig = Rig(family, {"a": config})
    sites = [index for index in range(len(rig.backbone.sites)) if rig.parts.adapter("a", index)]
    inputs = tiny.inputs(family)
    with torch.no_grad():
        for index in sites:
            module = rig.parts.adapter("a", index)
            assert module is not None
            module.up.weight.zero_()
            module.up.bias.zero_()
        assert torch.equal(rig.run("a", inputs), rig.run(None, inputs))
    assert len(sites) == sum(site.kind == "ffn" or (site.kind == "attn" and "double" in config) for site in
                             rig.backbone.sites)  # fmt: skip


@pytest.mark.parametrize(("width", "factor", "bottleneck"), [(768, 16, 48), (768, 100, 7), (32, 33, 1), (32, 2.5, 12),
                                                              (32, 0.5, 64), (8, 1e9, 1)])  # fmt: skip
def test_width_and_number_of_parameters(width: int, factor: float, bottleneck: int) -> None:
    config = BottleneckConfig(reduction_factor=factor)
    module = config.build(Site(0, "", 0, 0, "ffn", width))
    assert module is not None
    assert module.down.weight.shape == (bottleneck, width)
    assert sum(p.numel() for p in module.parameters()) == 2 * width * bottleneck + bottleneck + width


def test_factors_by_layer() -> None:
    config = BottleneckConfig(reduction_factor={0: 4, "2": 8, "default": 16})
    assert config.reduction_factor == {"0": 4, "2": 8, "default": 16}
    widths = [config.width(Site(0, "decoder", layer, depth, "ffn", 32)) for layer, depth in [(0, 0), (0, 1), (1, 2)]]
    assert widths == [8, 2, 4]
    partial = BottleneckConfig(reduction_factor={"0": 4})
    with pytest.raises(AdapterError, match=r"\{'0': 4\} has neither an entry for layer 5 nor a 'default'"):
        partial.build(Site(0, "", 5, 5, "ffn", 32))


def test_layers_and_kinds_that_are_left_out() -> None:
    config = BottleneckConfig(leave_out=[0, 4], cross_adapter=True)
    assert config.leave_out == (0, 4)
    backbone = Backbone(tiny.model("bart"))
    built = [site.name for site in backbone.sites if config.build(site)]
    assert built == ["encoder.layer.1/ffn", "decoder.layer.0/cross", "decoder.layer.0/ffn", "decoder.layer.1/cross",
                     "decoder.layer.1/ffn"]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seq_bn", 894_528),
        ("double_seq_bn", 1_789_056),
        ("double_seq_bn[reduction_factor=12]", 2_379_264),  # Houlsby et al. 2019: 64 wide
        ("par_bn", 7_091_712),
        ("seq_bn[reduction_factor=2]", 7_091_712),
        ("seq_bn[leave_out=[0,1,2,3,4,5]]", 447_264),
    ],
)
def test_counts_on_bert_base(text: str, expected: int) -> None:
    config = read_config(text)
    modules = [config.build(site) for site in Backbone(load_skeleton("bert-base-uncased")).sites]
    assert sum(p.numel() for module in modules if module for p in module.parameters()) == expected


def test_count_of_a_dynamic_fusion_on_bert_base() -> None:
    config = BertConfig()
    with torch.device("meta"):
        one = sum(p.numel() for p in Fusion(config.hidden_size, FUSIONS["dynamic"]).parameters())
    assert one * config.num_hidden_layers == 21_252_096
    assert OF_MODEL_TYPE["bert"].stacks[0].sites[-1].kind == "ffn"


# -- initialisation --


def built(**choices: Any) -> Bottleneck:
    return Bottleneck((400, 100, 0), BottleneckConfig(**choices))


@pytest.mark.parametrize("other", [None, 1e-7, 1.0])
@pytest.mark.parametrize(("init", "std"), [("bert", 0.02), ("houlsby", 0.01), ("adapter_bert", 0.001)])
def test_initial_weights_follow_their_distribution(init: str, std: float, other: float | None) -> None:
    std = other or std
    module = built(init_weights=init, init_std=other, use_gating=True, ln_before=True, ln_after=True, scaling="channel")
    assert module.gate is not None
    for weight in (module.down.weight, module.up.weight):
        assert float(weight.detach().abs().max()) < (math.inf if init == "bert" else 2 * std * (1 + 1e-6))
        shrink = 1.0 if init == "bert" else 0.8796  # the deviation of a normal cut at two deviations
        assert float(weight.detach().std()) == pytest.approx(std * shrink, rel=0.03)
        assert abs(float(weight.detach().mean())) < 0.02 * std
    if init == "bert":
        assert float(module.up.weight.detach().abs().max()) > 3 * std
    assert float(module.gate.weight.detach().std()) == pytest.approx(0.02, rel=0.2)
    for linear in (module.down, module.up, module.gate):
        assert not linear.bias.any()
    for norm in (module.norm_before, module.norm_after):
        assert norm is not None
        assert torch.equal(norm.weight, torch.ones(400))
        assert not norm.bias.any()
    assert torch.equal(module.scale, torch.ones(400))


def test_initial_weights_of_a_parallel_adapter() -> None:
    module = built(init_weights="mam_adapter")
    bound = 1 / math.sqrt(400)  # kaiming_uniform with a = sqrt(5): sqrt(6 / (6 * fan_in))
    assert not module.up.weight.any()
    assert float(module.down.weight.detach().abs().max()) == pytest.approx(bound, rel=0.01)
    assert float(module.down.weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert torch.equal(built(scaling="learned").scale, torch.ones(1))


def weights(seed: int | None, stream: int, init: str = "bert") -> Tensor:
    config = BottleneckConfig(init_weights=init, init_weights_seed=seed, use_gating=True, ln_after=True)
    module = Bottleneck((16, 4, 0), config, stream)
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


@pytest.mark.parametrize("init", INITS)
def test_a_seed_fixes_the_weights_of_each_site_and_touches_no_global_generator(init: str) -> None:
    torch.manual_seed(7)
    state, python, array = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].copy()
    for seed in (0, 1, 2**32 - 1):
        assert torch.equal(weights(seed, 3, init), weights(seed, 3, init))
        assert not torch.equal(weights(seed, 3, init), weights(seed, 4, init))
    assert not torch.equal(weights(0, 3, init), weights(1, 3, init))
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python
    assert (numpy.random.get_state()[1] == array).all()
    assert not torch.equal(weights(None, 3, init), weights(None, 3, init))
    assert not torch.equal(torch.get_rng_state(), state)


def test_a_seed_gives_every_site_of_a_model_its_own_weights() -> None:
    one, two = (Rig("bert", {}) for _ in range(2))
    for rig in (one, two):
        rig.parts.add_adapter("a", read_config("double_seq_bn[init_weights_seed=0]"), rig.backbone)
    first, second = (rig.parts.tensors("adapters", "a") for rig in (one, two))
    assert all(torch.equal(first[key], second[key]) for key in first)
    downs = [tensor for key, tensor in first.items() if key.endswith("down.weight")]
    assert len(downs) == 6
    assert not any(torch.equal(downs[i], downs[j]) for i in range(6) for j in range(i))


# -- what happens in training only --


def test_dropout_only_in_training() -> None:
    reading = Reading(torch.randn(2, 3, 400), torch.randn(2, 3, 400), None)
    module = built(dropout=0.25, scaling=2.0)
    module.eval()
    plain = module.change(reading, NO_DELTA)
    assert torch.equal(module.change(reading, NO_DELTA), plain)
    module.train()
    dropped = module.change(reading, NO_DELTA)
    kept = dropped != 0
    assert float(kept.float().mean()) == pytest.approx(0.75, abs=0.05)
    torch.testing.assert_close(dropped[kept], plain[kept] / 0.75)


def test_stochastic_depth_drops_whole_rows_in_training() -> None:
    torch.manual_seed(0)
    reading = Reading(torch.randn(3000, 2, 400), torch.zeros(3000, 2, 400), None)
    module = built(stochastic_depth=0.3)
    module.eval()
    plain = module.change(reading, NO_DELTA)
    module.train()
    changed = module.change(reading, NO_DELTA)
    gone = (changed == 0).flatten(1).all(dim=1)
    assert float(gone.float().mean()) == pytest.approx(0.3, abs=0.03)
    torch.testing.assert_close(changed[~gone], plain[~gone] / 0.7)


# -- what is refused --


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"output_adapter": False}, "needs one of mh_adapter, output_adapter, cross_adapter, linears, inv_adapter"),
        ({"reduction_factor": 0}, "reduction_factor 0 must be a positive number, or a mapping of layer number"),
        ({"reduction_factor": "16"}, "reduction_factor '16' must be a positive number"),
        ({"reduction_factor": True}, "reduction_factor True must be a positive number"),
        ({"reduction_factor": {"0": -1}}, r"reduction_factor \{'0': -1\} must be"),
        ({"reduction_factor": {"fault": 2}}, r"reduction_factor \{'fault': 2\} must be .* \(or 'default'\)"),
        ({"non_linearity": "rellu"}, "non_linearity 'rellu' is unknown; there are .*relu, .*swish"),
        ({"init_weights": "zero"}, "init_weights 'zero' is not one of bert, mam_adapter, houlsby, adapter_bert"),
        ({"init_weights_seed": -1}, r"init_weights_seed -1 must be none or a whole number from 0 to 2\*\*32 - 1"),
        ({"init_weights_seed": 2**32}, "init_weights_seed 4294967296 must be"),
        ({"init_weights_seed": 1.5}, "init_weights_seed 1.5 must be"),
        ({"init_std": 0}, "init_std 0 must be a positive number, or none for the deviation of init_weights"),
        ({"init_std": math.nan}, "init_std nan must be"),
        ({"init_std": 0.1, "init_weights": "mam_adapter"}, "init_std has no meaning for init_weights 'mam_adapter'"),
        ({"init_std": 0.1, "phm_layer": True}, "nor for phm_layer, which has phm_init_range"),
        ({"scaling": "channels"}, "scaling 'channels' must be a finite number, 'learned' or 'channel'"),
        ({"scaling": math.nan}, "scaling nan must be"),
        ({"residual_before_ln": 1}, "residual_before_ln 1 must be true, false or 'post_add'"),
        ({"residual_before_ln": "post_add"}, "residual_before_ln 'post_add' needs original_ln_before"),
        ({"dropout": 1}, r"dropout 1 must be in \[0, 1\)"),
        ({"stochastic_depth": -0.1}, r"stochastic_depth -0.1 must be in \[0, 1\)"),
        ({"is_parallel": True, "stochastic_depth": 0.1}, "stochastic_depth has no meaning for a parallel adapter"),
        ({"leave_out": 3}, "leave_out 3 must be a list of layer numbers"),
        ({"leave_out": ["0"]}, r"leave_out \('0',\) must be a list of layer numbers"),
        ({"leave_out": [-1]}, "leave_out"),
        ({"use_gating": "yes"}, "use_gating 'yes' must be true or false"),
        ({"original_ln_after": 0}, "original_ln_after 0 must be true or false"),
    ],
)
def test_choices_without_a_meaning_are_refused(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError, match=message) as raised:
        BottleneckConfig(**choices)
    assert str(raised.value).startswith("bottleneck adapter: ")


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(AdapterError, match=r"ln_after 2 .*; dropout 2 .*"):
        BottleneckConfig(ln_after=2, dropout=2)


def test_activations_by_name() -> None:
    x = torch.linspace(-2, 2, 9)
    torch.testing.assert_close(activation("swish")(x), functional.silu(x))
    torch.testing.assert_close(activation("LeakyReLU")(x), functional.leaky_relu(x, 0.01))
    torch.testing.assert_close(activation("Tanh")(x), torch.tanh(x))
    for name in ACTIVATIONS:
        assert activation(name)(x).shape == x.shape


# -- further places: linears, what they read, sandwich norms --


def at(config: str, site: Site) -> Bottleneck | None:
    module = read_config(config).build(site)
    if module is not None:
        module.double()
        randomise(module.parameters())
    return module  # type: ignore[return-value]


def plain(module: Bottleneck, x: Tensor) -> Tensor:
    """up(tanh(down(x))) without biases."""
    assert module.down.bias is None
    assert module.up.bias is None
    return torch.tanh(x @ module.down.weight.T) @ module.up.weight.T


UP, DOWN = Site(5, "", 0, 0, "ffn.up", 40, 16), Site(6, "", 0, 0, "ffn.down", 16, 40)
UP_INPUT, GATE_INPUT = Site(7, "", 0, 0, "ffn.up.input", 16, 16), Site(8, "", 0, 0, "ffn.gate.input", 16, 16)


def test_series_adapters_of_llm_adapters() -> None:
    """x + A(x) into gate and up, each its own; y + A(y) out of down."""
    x = torch.randn(2, 3, 16, dtype=torch.float64)
    modules = [at("llm_series", site) for site in (UP_INPUT, GATE_INPUT)]
    for module in modules:
        assert module is not None
        assert module.down.weight.shape == (256, 16)
        change = module(Reading(x, x, None), NO_DELTA)
        assert change.after is None
        torch.testing.assert_close(change.before, plain(module, x))
    assert modules[0] is not modules[1]
    assert not any(at("llm_series", site) for site in (UP, DOWN, Site(0, "", 0, 0, "ffn", 16)))
    module, y, before = at("llm_series_down", DOWN), torch.randn_like(x), torch.randn_like(x)
    assert module is not None
    reading = Reading(y, torch.randn(2, 3, 40, dtype=torch.float64), None)
    torch.testing.assert_close(module(reading, Delta(before)).before, plain(module, y + before))


def test_parallel_adapters_of_llm_adapters() -> None:
    """From a linear's input to its output, which are of different widths."""
    for site in (UP, DOWN):
        module = at("llm_parallel", site)
        assert module is not None
        assert module.down.weight.shape == (256, site.inputs)
        assert module.up.weight.shape == (site.width, 256)
        x, y, before = (torch.randn(2, 3, w, dtype=torch.float64) for w in (site.inputs, site.width, site.width))
        reading = Reading(y, x, None)
        torch.testing.assert_close(module(reading, Delta(before)).before, plain(module, x))
        torch.testing.assert_close(module.read(reading, Delta(before)), y + before)  # for the query of a fusion
    assert at("llm_parallel[use_gating=True,ln_before=True]", UP).gate.weight.shape == (1, 16)  # type: ignore[union-attr]


def test_published_sizes_of_llm_adapters() -> None:
    """LLaMA-7B: 32 layers, 4096 wide, 11008 inside."""

    def count(config: str, sites: list[Site]) -> int:
        modules = [read_config(config).build(site) for site in sites]
        return 32 * sum(p.numel() for module in modules if module for p in module.parameters())

    down, up = Site(0, "", 0, 0, "ffn.down", 4096, 11008), Site(1, "", 0, 0, "ffn.up", 11008, 4096)
    inputs = [Site(2, "", 0, 0, f"ffn.{part}.input", 4096, 4096) for part in ("up", "gate")]
    assert count("llm_series_down", [down, up, *inputs]) == 67_108_864  # 32 · 2 · 4096 · 256
    assert count("llm_series", [down, up, *inputs]) == 2 * 67_108_864
    assert count("llm_parallel", [down, up, *inputs]) == 32 * 2 * 256 * (4096 + 11008)


def test_bapna_firat_is_a_norm_of_its_own_first_on_the_stream() -> None:
    h, r = torch.randn(2, 2, 3, 16, dtype=torch.float64)
    ln = nn.LayerNorm(16, dtype=torch.float64)
    module = at("bapna_firat", Site(0, "decoder", 0, 0, "ffn", 16))
    assert module is not None
    z = ln(h + r)
    change = module(Reading(h, r, ln), NO_DELTA)
    assert change.before is None
    torch.testing.assert_close(z + change.after, z + up(module, own_norm(module.norm_before, z)))
    z = h + r
    change = module(Reading(h, r, None), NO_DELTA)
    torch.testing.assert_close(h + change.before + r, z + up(module, own_norm(module.norm_before, z)))


def test_a_norm_on_the_branch_lies_between_what_is_written_and_the_stream() -> None:
    """Gemma: r + inner(h₀ + Δ); what is read as the stream, and what is written after, has passed it."""
    generator = torch.Generator().manual_seed(4)
    h, r, before = (torch.randn(2, 3, 16, generator=generator, dtype=torch.float64) for _ in range(3))
    inner = nn.LayerNorm(16, dtype=torch.float64)
    randomise(inner.parameters())
    reading, delta, site = Reading(h, r, None, inner), Delta(before), Site(0, "", 0, 0, "ffn", 16)

    def stream(change: Delta) -> Tensor:
        total = inner(h + before + (0 if change.before is None else change.before)) + r
        return total if change.after is None else total + change.after

    z = inner(h + before) + r
    for config, expected in {
        "seq_bn[reduction_factor=2]": lambda a: inner(h + before + up(a, z)) + r,
        "double_seq_bn[reduction_factor=2]": lambda a: inner(h + before + up(a, h + before)) + r,
        "par_bn": lambda a: inner(h + before + up(a, r, 4.0)) + r,
        "adapter_plus[reduction_factor=2,stochastic_depth=0]": lambda a: z + up(a, z, a.scale),
        "seq_bn[residual_before_ln=post_add]": lambda a: inner(z + up(a, z)) + r,
    }.items():
        module = at(config, site)
        assert module is not None
        torch.testing.assert_close(stream(module(reading, delta)), expected(module))


def test_a_width_of_its_own_goes_before_the_factor() -> None:
    module = at("seq_bn[bottleneck_size=5]", Site(0, "", 0, 0, "ffn", 16))
    assert module is not None
    assert module.down.weight.shape == (5, 16)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"linears": ["ffn.upp"]}, r"linears \('ffn.upp',\) must be a list of attn.query, .*ffn.down, each with"),
        ({"linears": "ffn.up"}, "linears 'ffn.up' must be a list of"),
        ({"linears": ["ffn.up"], "original_ln_before": True}, "original_ln_before has no meaning for linears"),
        ({"bottleneck_size": 0}, "bottleneck_size 0 must be a positive whole number, or none"),
        ({"bias": None}, "bias None must be true or false"),
        ({"train_norms": True, "original_ln_after": False}, "train_norms needs original_ln_after"),
    ],
)
def test_further_choices_without_a_meaning_are_refused(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        BottleneckConfig(**choices)
