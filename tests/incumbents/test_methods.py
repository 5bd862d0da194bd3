"""What other libraries' methods get wrong: sizes, restores, inits that crash, placements that do nothing."""

import pytest
import torch

from graftwork.core.certify import certify
from graftwork.core.site import NO_DELTA, Reading
from graftwork.model import AdapterModel
from tests import tiny, zoo
from tests.adapted import last, same, shaken, snapshot
from tests.rig import relative

GIVEN = tiny.inputs("bert")


def made(config: str, family: str = "bert") -> AdapterModel:
    model = AdapterModel(tiny.model(family))
    model.add_adapter("a", config)
    shaken(model.parts, seed=3)
    return model.eval()


def test_vera_never_trains_matrices() -> None:
    tensors = made("vera[r=4]").parts.tensors("adapters", "a")
    assert {value.dim() for value in tensors.values()} == {1}
    assert sum(value.numel() for value in tensors.values()) == 3 * 2 * (4 + tiny.WIDTH)


@pytest.mark.parametrize("config", ["dora[r=2,alpha=7]", "lora[r=2,alpha=7]", "dora[r=2,alpha=7,variant=adapters]"])
def test_a_merge_is_never_another_function_and_never_stays_behind(config: str) -> None:
    model = made(config)
    before, expected = snapshot(model.base), last(model(**GIVEN, adapters="a"))
    model.merge_adapter("a")
    assert relative(last(model(**GIVEN)), expected) < 1e-5
    model.reset_adapter()
    assert same(before, snapshot(model.base))


def test_glow_never_fails_to_run_and_is_undone_exactly() -> None:
    model = made("seq_bn_glow")
    assert last(model(**GIVEN, adapters="a")).isfinite().all()
    module = model.parts.modules_of("adapters", "a")["embed"].double()
    x = torch.randn(2, 5, tiny.WIDTH, dtype=torch.float64)
    changed = module(Reading(x, x, None), NO_DELTA).before
    assert changed is not None
    torch.testing.assert_close(module.inverse(x + changed), x, rtol=1e-8, atol=1e-8)  # type: ignore[operator]


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2", "t5"])
@pytest.mark.parametrize(
    "config",
    [
        "seq_bn[residual_before_ln=post_add]",
        "seq_bn[original_ln_after=False]",
        "compacter[phm_dim=2,reduction_factor=8,init_weights=mam_adapter]",
        "compacter[phm_dim=2,reduction_factor=8,init_weights=houlsby]",
        "adapter_plus",
        "mam[0.bottleneck_size=8]",
        "lora[attn_matrices=['q','k','v']]",
        "par_bn",
    ],
)
def test_a_choice_never_crashes_on_a_model_without_the_norm_or_the_projection_it_was_written_for(
    config: str, family: str
) -> None:
    model, given = made(config, family), tiny.inputs(family)
    assert relative(last(model(**given, adapters="a")), last(model(**given))) > 1e-3


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_the_attentions_output_is_never_a_place_without_effect(family: str) -> None:
    model, given = made("lora[attn_matrices=['o']]", family), tiny.inputs(family)
    assert relative(last(model(**given, adapters="a")), last(model(**given))) > 1e-3


@pytest.mark.parametrize(
    "config",
    ["seq_bn", "lora", "prefix_tuning[bottleneck_size=8]", "loreft", "ia3", "compacter[phm_dim=2,reduction_factor=8]"],
)
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_bfloat16_base_never_meets_a_float32_adapter(family: str, config: str) -> None:
    model = AdapterModel(tiny.model(family).to(torch.bfloat16))
    model.add_adapter("a", config)
    assert {value.dtype for value in model.parts.tensors("adapters", "a").values()} == {torch.bfloat16}
    assert last(model.eval()(**tiny.inputs(family), adapters="a")).dtype == torch.bfloat16


@pytest.mark.parametrize("family", ["phi", "modernbert", "gemma2", "gemma3_text", "albert"])
def test_every_layer_is_read_with_its_own_norm_and_residual(family: str) -> None:
    """Hooks of the last layer's norm, lost residuals, swapped inputs: each layer against its closed form."""
    known = [name for name in zoo.MAKERS if name.startswith(family)]
    if not known:
        pytest.skip(f"no tiny {family}")
    model = zoo.model(known[0])
    certify(model, zoo.inputs(known[0]))
    wrapped = AdapterModel(model)
    wrapped.add_adapter("a", "par_bn")
    shaken(wrapped.parts, seed=3)
    assert last(wrapped.eval()(**zoo.inputs(known[0]), adapters="a")).isfinite().all()


def test_a_layer_that_is_left_out_never_gets_a_module() -> None:
    sites = made("double_seq_bn[leave_out=[0,2]]").parts.sites_of("adapters", "a")
    assert sites == ("layer.1/attn", "layer.1/ffn")


def test_keys_and_values_that_heads_share_are_never_the_wrong_size() -> None:
    """MAM on a model with grouped queries: 32 against 8 heads."""
    model, given = made("mam[0.bottleneck_size=8]", "mistral"), tiny.inputs("mistral")
    assert last(model(**given, adapters="a")).isfinite().all()
