"""Hypercomplex layers against torch.kron in float64, for every option of sharing and factoring."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from graftwork.core.adapter import Ground
from graftwork.core.bottleneck import Bottleneck, BottleneckConfig
from graftwork.core.kinds import read_config
from graftwork.core.phm import PHM, SharedPHM
from graftwork.core.site import NO_DELTA, Reading, Site
from graftwork.errors import AdapterError
from tests.rig import randomise

SITES = [Site(0, "", 0, 0, "attn", 48), Site(1, "", 0, 0, "ffn", 48)]
SWITCHES = ("factorized_phm_W", "shared_W_phm", "shared_phm_rule", "factorized_phm_rule")


def config(**choices: Any) -> BottleneckConfig:
    return BottleneckConfig(phm_layer=True, **{"bottleneck_size": 8, **choices})


def made(choices: BottleneckConfig) -> tuple[list[Bottleneck], SharedPHM | None]:
    """An adapter of two sites, random, in float64."""
    shared = choices.share(SITES)
    modules = [choices.build(site, Ground(shared=shared)) for site in SITES]
    for seed, module in enumerate([*modules, shared]):
        if module is not None:
            module.double()
            randomise(module.parameters(), seed)
    return modules, shared  # type: ignore[return-value]


def tensor(module: PHM, shared: SharedPHM | None, side: str, name: str) -> Tensor:
    """A parameter by its canonical name, from where the packages have it."""
    own = dict(module.named_parameters())
    both = dict(shared.named_parameters()) if shared is not None else {}
    found = [table[key] for table, key in ((own, name), (both, name), (both, f"{side}.{name}")) if key in table]
    assert len(found) == 1, name
    return found[0].detach()


def kronecker(module: PHM, shared: SharedPHM | None, side: str) -> Tensor:
    """H, summand by summand."""
    choices = module.config
    rule = [tensor(module, shared, side, name) for name in
            (("rule_left", "rule_right") if choices.factorized_phm_rule else ("rule",))]  # fmt: skip
    matrices = [tensor(module, shared, side, name) for name in
                (("W_left", "W_right") if choices.factorized_phm_W else ("W",))]  # fmt: skip
    total = torch.zeros(module.in_features, module.out_features, dtype=torch.float64)
    for i in range(choices.phm_dim):
        r = rule[0][i] if len(rule) == 1 else rule[0][i] @ rule[1][i]
        w = matrices[0][i] if len(matrices) == 1 else matrices[0][i] @ matrices[1][i]
        total += torch.kron(r, w)
    return total


@pytest.mark.parametrize("switches", list(itertools.product([False, True], repeat=4)))
@pytest.mark.parametrize("sizes", [{}, {"phm_dim": 2, "phm_rank": 2}, {"phm_rank": 5}, {"phm_bias": False}])
def test_a_layer_is_a_sum_of_kronecker_products(switches: tuple[bool, ...], sizes: dict[str, Any]) -> None:
    modules, shared = made(config(mh_adapter=True, **dict(zip(SWITCHES, switches, strict=True)), **sizes))
    generator = torch.Generator().manual_seed(3)
    for module in modules:
        for side in ("down", "up"):
            layer = getattr(module, side)
            x = torch.randn(2, 5, layer.in_features, generator=generator, dtype=torch.float64)
            expected = x @ kronecker(layer, shared, side)
            if sizes.get("phm_bias", True):
                expected = expected + layer.bias
            else:
                assert layer.bias is None
            torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(layer.weight, kronecker(layer, shared, side).T, rtol=1e-12, atol=1e-12)


def test_both_ways_of_computing_are_taken_where_they_are_cheaper() -> None:
    (module, _), _ = made(config(mh_adapter=True))
    assert module.down._thin
    assert module.up._thin
    assert module.down.multiplications == 4 * 48 + 16 * 8 < 48 * 8
    (module, _), _ = made(config(mh_adapter=True, phm_rank=5))
    assert not module.down._thin
    assert module.down.multiplications == 48 * 8
    compacter = PHM((768, 24), config(shared_phm_rule=False), "down")
    assert compacter.multiplications == 3456


def test_the_bottleneck_is_that_of_its_dense_weights() -> None:
    (_, module), shared = made(config(mh_adapter=True, non_linearity="tanh"))
    h, r = torch.randn(2, 3, 48, dtype=torch.float64), torch.zeros(2, 3, 48, dtype=torch.float64)
    down, up = kronecker(module.down, shared, "down"), kronecker(module.up, shared, "up")
    expected = torch.tanh(h @ down + module.down.bias) @ up + module.up.bias
    torch.testing.assert_close(module.change(Reading(h, r, None), NO_DELTA), expected, rtol=1e-12, atol=1e-12)


# -- what is shared --


def test_what_is_shared_is_stored_once_and_learns_from_every_site() -> None:
    modules, shared = made(config(mh_adapter=True, shared_W_phm=True))
    assert shared is not None
    assert {*dict(shared.named_parameters())} == {"rule", "down.W_left", "down.W_right", "up.W_left", "up.W_right"}
    for module in modules:
        assert {*dict(module.named_parameters())} == {"down.bias", "up.bias"}
        assert module.down.shared is module.up.shared is shared
    reading = Reading(torch.randn(2, 3, 48, dtype=torch.float64), torch.zeros(2, 3, 48, dtype=torch.float64), None)
    one, other = (torch.autograd.grad(m.change(reading, NO_DELTA).square().sum(), shared.rule)[0] for m in modules)
    sum(m.change(reading, NO_DELTA).square().sum() for m in modules).backward()  # type: ignore[union-attr]
    torch.testing.assert_close(shared.rule.grad, one + other)  # type: ignore[arg-type]


def test_compacter_has_the_names_and_numbers_of_its_table() -> None:
    choices = read_config("compacter")
    sites = [Site(2 * n + k, "", n, n, kind, 768) for n in range(12) for k, kind in enumerate(("attn", "ffn"))]
    shared = choices.share(sites)
    modules = [choices.build(site, Ground(shared=shared)) for site in sites]
    names = {*dict(modules[0].named_parameters())}
    assert names == {f"{side}.{part}" for side in ("down", "up") for part in ("W_left", "W_right", "bias")}
    assert shared.rule.shape == (4, 4, 4)
    one = 2 * (4 * 192 + 4 * 6) + 24 + 768  # both layers' factors of rank 1, both biases
    assert sum(p.numel() for m in [*modules, shared] for p in m.parameters()) == 24 * one + 64
    assert read_config("compacter++").share([Site(0, "", 0, 0, "attn", 768)]) is None


def test_a_rule_that_is_not_learned_gets_no_gradient() -> None:
    for choices in ({"shared_phm_rule": False}, {"factorized_phm_rule": True}):
        (module, _), shared = made(config(mh_adapter=True, learn_phm=False, **choices))
        rules = [
            p for owner in (module, shared) if owner is not None for n, p in owner.named_parameters() if "rule" in n
        ]
        assert rules
        assert not any(rule.requires_grad for rule in rules)
        for rule in rules:
            rule.requires_grad_(True)  # as whoever trains all of an adapter would
        reading = Reading(torch.ones(1, 2, 48, dtype=torch.float64), torch.zeros(1, 2, 48, dtype=torch.float64), None)
        module.change(reading, NO_DELTA).sum().backward()
        assert all(rule.grad is None for rule in rules)
        assert module.down.W_left.grad is not None


def test_matrices_are_shared_only_among_sites_of_one_size() -> None:
    choices = config(mh_adapter=True, shared_W_phm=True)
    with pytest.raises(AdapterError, match=r"shared_W_phm needs sites of one size.*layer.0/attn: 48 -> 8 -> 48; "
                       r"layer.1/ffn: 32 -> 8 -> 32; set shared_W_phm=False"):  # fmt: skip
        choices.share([SITES[0], Site(1, "", 1, 1, "ffn", 32)])
    assert choices.share([Site(0, "", 0, 0, "cross", 48)]) is None
    assert config(shared_phm_rule=False).share(SITES) is None
    with pytest.raises(AdapterError, match="shared parameters needs what `share` made"):
        choices.build(SITES[0])


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(AdapterError, match="48 -> 6: the bottleneck 6 is not a multiple of phm_dim 4"):
        config(bottleneck_size=6, shared_phm_rule=False).build(SITES[1])
    with pytest.raises(AdapterError, match="the width 26 is not a multiple of phm_dim 4"):
        config(shared_phm_rule=False).build(Site(0, "", 0, 0, "ffn", 26))


# -- at birth --


def big(**choices: Any) -> Bottleneck:
    choices = {"shared_phm_rule": False, "bottleneck_size": 200, **choices}
    module = config(**choices).build(Site(1, "", 0, 0, "ffn", 800))
    assert isinstance(module, Bottleneck)
    return module


@pytest.mark.parametrize(
    ("start", "std"),
    [("glorot-uniform", math.sqrt(2 / 250)), ("glorot-normal", math.sqrt(2 / 250)), ("normal", 0.08)],
)
def test_matrices_begin_as_asked(start: str, std: float) -> None:
    module = big(factorized_phm_W=False, hypercomplex_nonlinearity=start, phm_init_range=0.08)
    for layer in (module.down, module.up):
        values = layer.W.detach()
        assert float(values.std()) == pytest.approx(std, rel=0.03)
        bound = math.sqrt(6 / 250)
        assert (float(values.abs().max()) <= bound + 1e-6) == (start == "glorot-uniform")
        assert not layer.bias.any()


def test_rules_begin_as_asked() -> None:
    def rule(shared: bool, **choices: Any) -> Tensor:
        module = config(phm_dim=8, bottleneck_size=8, shared_phm_rule=shared, phm_init_range=0.5, **choices)
        owner = module.share(SITES) if shared else module.build(SITES[1]).down  # type: ignore[union-attr]
        return owner.rule.detach()  # type: ignore[union-attr,return-value]

    assert float(rule(True).std()) == pytest.approx(0.5, rel=0.1)
    assert float(rule(False).std()) == pytest.approx(0.01, rel=0.1)
    assert 0.9 < float(rule(True, phm_c_init="uniform").abs().max()) <= 1
    assert 0.009 < float(rule(False, phm_c_init="uniform").abs().max()) <= 0.01


@pytest.mark.parametrize("factorized", [False, True])
def test_the_initialisations_of_dense_layers_have_a_meaning(factorized: bool) -> None:
    module = big(init_weights="mam_adapter", factorized_phm_W=factorized)
    assert not module.up.weight.any()
    assert module.down.weight.any()
    if factorized:
        assert module.up.W_left.any()  # so that W_right has a gradient
    module = big(init_weights="houlsby", factorized_phm_W=factorized)
    for values in [p for name, p in module.named_parameters() if ".W" in name]:
        assert float(values.detach().abs().max()) <= 0.02 + 1e-6
        assert float(values.detach().std()) == pytest.approx(0.0088, rel=0.1)


def test_a_seed_gives_each_site_its_own_weights_and_the_shared_ones_again() -> None:
    choices = config(mh_adapter=True, init_weights_seed=0)
    (one, two), (again, _) = (
        [choices.build(site, Ground(shared=choices.share(SITES))) for site in SITES] for _ in "ab"
    )
    assert torch.equal(one.down.W_left, again.down.W_left)
    assert torch.equal(one.down.shared.rule, again.down.shared.rule)
    assert not torch.equal(one.down.W_left, two.down.W_left)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"phm_dim": 0}, "phm_dim 0 must be a positive whole number"),
        ({"phm_rank": 1.5}, "phm_rank 1.5 must be a positive whole number"),
        ({"phm_c_init": "zero"}, "phm_c_init 'zero' must be 'normal' or 'uniform'"),
        ({"phm_init_range": 0}, "phm_init_range 0 must be a positive number"),
        ({"hypercomplex_nonlinearity": "phm"}, r"'phm' is not one of glorot-uniform.*never defined it"),
        ({"learn_phm": 1}, "learn_phm 1 must be true or false"),
        ({"bias": False}, "bias is that of dense layers; hypercomplex layers have phm_bias"),
    ],
)
def test_choices_without_a_meaning_are_refused(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        config(**choices)


def test_it_compiles_as_one_graph() -> None:
    (module, _), _ = made(config(mh_adapter=True))
    x = torch.randn(2, 3, 48, dtype=torch.float64)
    compiled = torch.compile(lambda t: module.up(module.down(t)), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), module.up(module.down(x)))
