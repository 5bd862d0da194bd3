"""The block equations that are often printed, beside those of the papers: where they agree, and what they would change.

    printed, for both placements     z + A(z)                    z = LN(h₀ + r)
    Houlsby et al. 2019              LN(h₀ + A(h₀) + r)
    Pfeiffer et al. 2021             LN(h₀ + A(LN(h₀ + r)) + r)

h₀ is the sub-layer's output, r its residual input, LN the model's norm after the add, A = up∘f∘down.
"""

import pytest
import torch

from tests import tiny
from tests.core.test_bottleneck import by_hand, up
from tests.rig import Rig, relative

PLACEMENTS = ["seq_bn", "double_seq_bn"]
# ours for what is printed: the adapter reads the stream after the norm and is added to it there, as Adapter+ is
PRINTED = "{}[original_ln_before=True,original_ln_after=False,residual_before_ln=False]"
CLOSE = 1e-9


def printed(family: str, rig: Rig) -> torch.Tensor:
    """The whole forward with the equation that is often printed."""
    form = lambda a, h, r, ln: ln(h + r) + up(a, ln(h + r))  # noqa: E731
    return by_hand(family, rig, form, tiny.inputs(family))


def doubled(family: str, config: str) -> Rig:
    rig = Rig(family, {"a": config})
    rig.backbone.model.double()
    rig.parts.double()
    return rig


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_at_birth_nobody_sees_the_difference(placement: str) -> None:
    rig = doubled("bert", placement)
    with torch.no_grad():
        for module in rig.parts.modules_of("adapters", "a").values():
            module.up.weight.zero_()  # type: ignore[union-attr, operator]
            module.up.bias.zero_()  # type: ignore[union-attr, operator]
        base = rig.run(None, tiny.inputs("bert"))
        assert torch.equal(rig.run("a", tiny.inputs("bert")), base)
        assert torch.equal(printed("bert", rig), base)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_trained_weights_give_other_numbers_by_what_is_printed(placement: str) -> None:
    rig = doubled("bert", placement)
    with torch.no_grad():
        assert relative(printed("bert", rig), rig.run("a", tiny.inputs("bert"))) > 0.05


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_what_is_printed_is_the_placement_of_adapter_plus(family: str, placement: str) -> None:
    rig = doubled(family, PRINTED.format(placement))
    with torch.no_grad():
        assert relative(printed(family, rig), rig.run("a", tiny.inputs(family))) < CLOSE


def test_on_pre_norm_models_pfeiffers_is_what_is_printed_and_houlsbys_is_not() -> None:
    with torch.no_grad():
        pfeiffer, houlsby = (doubled("llama", placement) for placement in PLACEMENTS)
        assert relative(printed("llama", pfeiffer), pfeiffer.run("a", tiny.inputs("llama"))) < CLOSE
        assert relative(printed("llama", houlsby), houlsby.run("a", tiny.inputs("llama"))) > 0.05


def test_original_norms_are_the_models_and_add_no_parameter() -> None:
    def parameters(flags: str) -> int:
        return Rig("bert", {"a": f"seq_bn[{flags}]"}).parts.count("adapters", "a")

    plain = parameters("original_ln_before=False,original_ln_after=False")
    assert parameters("original_ln_before=True,original_ln_after=True") == plain
    assert parameters("ln_before=True") == parameters("ln_after=True") == plain + 3 * 2 * tiny.WIDTH
