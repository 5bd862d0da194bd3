"""ReFT: the paper's three edits in closed form, at the first and last real tokens, where the block's output is."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graftwork.core.kinds import read_config
from graftwork.core.reft import Reft, ReftConfig, Unit, orthonormal
from graftwork.core.site import NO_DELTA, Delta, Reading
from graftwork.errors import AdapterError
from tests.linears import site
from tests.rig import randomise

B, T, D = 3, 7, 8


def built(config: ReftConfig) -> Reft:
    module = config.build(site("ffn", D, D))
    assert module is not None
    randomise(module.parameters())
    return module.double().eval()


def reading(mask: Tensor | None = None, norm: bool = False) -> Reading:
    h, r = torch.randn(2, B, T, D, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return Reading(h, r, nn.LayerNorm(D, dtype=torch.float64) if norm else None, mask=mask)


def rows_of(unit: Unit) -> Tensor:
    """R: what Gram and Schmidt make of the saved rows, one after another."""
    if not unit.config.orthogonality:
        return unit.projection
    made: list[Tensor] = []
    for row in unit.projection:
        left = row - sum((row @ other) * other for other in made)
        made.append(left / left.norm())
    return torch.stack(made)


def loreft(unit: Unit, x: Tensor) -> Tensor:
    rows = rows_of(unit)
    return x + (unit.source.weight @ x + unit.source.bias - rows @ x) @ rows


def direft(unit: Unit, x: Tensor) -> Tensor:
    return x + (unit.source.weight @ x + unit.source.bias) @ unit.projection


@pytest.mark.parametrize(
    ("name", "form"), [("loreft", loreft), ("noreft", loreft), ("direft", direft)], ids=["loreft", "noreft", "direft"]
)
@pytest.mark.parametrize("norm", [False, True])
def test_each_edit_is_its_closed_form(name: str, form: Callable[[Unit, Tensor], Tensor], norm: bool) -> None:
    module = built(read_config(f"{name}[r=3,prefix_positions=2,suffix_positions=1]"))  # type: ignore[arg-type]
    given = reading(norm=norm)
    x = given.stream(NO_DELTA)
    expected = x.clone()
    for row in range(B):
        for token, unit in ((0, module.prefix), (1, module.prefix), (T - 1, module.suffix)):
            assert unit is not None
            expected[row, token] = form(unit, x[row, token])
    delta = module(given, NO_DELTA)
    assert (delta.after is not None, delta.before is not None) == (norm, not norm)
    torch.testing.assert_close(given.stream(delta), expected, rtol=1e-10, atol=1e-10)


def test_a_norm_on_the_branch_does_not_norm_the_edit() -> None:
    module = built(ReftConfig(r=2))
    plain = reading()
    given = Reading(plain.output, plain.residual, None, inner=nn.LayerNorm(D, dtype=torch.float64))
    x = given.stream(NO_DELTA)
    assert module.prefix is not None
    torch.testing.assert_close(given.stream(module(given, NO_DELTA))[:, :3], module.prefix(x[:, :3]))


def test_positions_are_counted_among_the_real_tokens() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0], [0, 1, 0, 0, 0, 0, 0]])
    module = built(ReftConfig(r=2, prefix_positions=2, suffix_positions=1))
    given = reading(mask)
    x, edited = given.stream(NO_DELTA), given.stream(module(given, NO_DELTA))
    changed = (edited - x).abs().sum(-1) > 1e-12
    expected = torch.tensor([[0, 0, 1, 1, 0, 0, 1], [1, 1, 0, 0, 1, 0, 0], [0, 1, 0, 0, 0, 0, 0]]).bool()
    assert torch.equal(changed, expected)
    assert module.suffix is not None
    torch.testing.assert_close(edited[2, 1], module.suffix(x[2, 1]))  # the one token is first and last: the last wins


def test_tied_weights_edit_both_ends_with_one_unit() -> None:
    module = built(ReftConfig(r=2, prefix_positions=0, suffix_positions=2, tied_weights=True))
    assert {name.partition(".")[0] for name, _ in module.named_parameters()} == {"prefix"}
    given = reading()
    x, edited = given.stream(NO_DELTA), given.stream(module(given, NO_DELTA))
    assert module.prefix is not None
    torch.testing.assert_close(edited[:, -2:], module.prefix(x[:, -2:]))
    torch.testing.assert_close(edited[:, :-2], x[:, :-2])


def test_parameters_are_plain_matrices_of_the_units_in_use() -> None:
    assert {name: tuple(p.shape) for name, p in built(ReftConfig(r=3)).named_parameters()} == {
        "prefix.source.weight": (3, D), "prefix.source.bias": (3,), "prefix.projection": (3, D)
    }  # fmt: skip
    both = built(ReftConfig(suffix_positions=1))
    assert {name.partition(".")[0] for name, _ in both.named_parameters()} == {"prefix", "suffix"}


def test_orthonormal_rows_stay_as_they_are_and_others_become_so() -> None:
    rows, _ = torch.linalg.qr(torch.randn(D, 4, dtype=torch.float64))
    torch.testing.assert_close(orthonormal(rows.T), rows.T, rtol=1e-13, atol=1e-13)
    made = orthonormal(torch.randn(4, D, dtype=torch.float64))
    torch.testing.assert_close(made @ made.T, torch.eye(4, dtype=torch.float64))
    half = orthonormal(torch.randn(4, D).bfloat16())
    assert half.dtype == torch.bfloat16
    fresh = ReftConfig(r=4).build(site("ffn", D, D))
    assert fresh is not None
    assert fresh.prefix is not None
    torch.testing.assert_close(fresh.prefix.projection @ fresh.prefix.projection.T, torch.eye(4))


def test_dropout_is_on_the_edited_state() -> None:
    module = built(ReftConfig(r=2, dropout=0.5, prefix_positions=T)).train()
    given = reading()
    torch.manual_seed(0)
    edited = given.stream(module(given, NO_DELTA))
    share = float((edited.abs() < 1e-12).double().mean())
    assert 0.3 < share < 0.7


def test_it_reads_what_others_wrote_and_in_a_union_it_comes_after() -> None:
    union: Any = read_config("loreft[r=2]|seq_bn[reduction_factor=2]").build(site("ffn", D, D))
    randomise(union.double().eval().parameters())
    reft, bottleneck = union.children()
    for norm in (False, True):
        given = reading(norm=norm)
        inside = bottleneck(given, NO_DELTA)
        expected = reft.prefix(given.stream(inside)[:, :3])
        torch.testing.assert_close(given.stream(union(given, NO_DELTA))[:, :3], expected)
        delta = Delta(before=torch.ones_like(given.output))
        assert torch.equal(reft.read(given, delta), given.stream(delta))
        assert torch.equal(reft.carried(given, delta), given.stream(delta))
        assert torch.equal(reft.read(given, delta, before_norm=True), given.output + 1)


def test_gradients_reach_every_parameter_and_nothing_else() -> None:
    module = built(ReftConfig(r=2, suffix_positions=1, non_linearity="relu"))
    given = reading(norm=True)
    given.norm.requires_grad_(False)  # type: ignore[union-attr]
    given.stream(module(given, NO_DELTA)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in module.parameters())


def test_where_it_goes() -> None:
    every = ["attn", "cross", "ffn", "ffn.down", "embed", "attn.kv"]
    assert [kind for kind in every if ReftConfig().build(site(kind)) is not None] == ["ffn"]
    assert ReftConfig(layers=[0, 2]).build(site("ffn", layer=1)) is None
    assert ReftConfig(layers=[0, 1]).build(site("ffn", layer=1)) is not None
    assert ReftConfig(leave_out=[1]).build(site("ffn", layer=1)) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prefix_positions": 0}, "needs one of prefix_positions, suffix_positions"),
        ({"r": 0}, "r 0 must be a whole number from 1"),
        ({"layers": "some"}, "layers 'some' must be 'all' or a list of layer numbers"),
        ({"non_linearity": "x"}, "non_linearity 'x' is unknown; there are"),
        ({"orthogonality": 1}, "orthogonality 1 must be true or false"),
    ],
)
def test_values_out_of_range_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError, match=f"reft adapter: .*{message}"):
        ReftConfig(**fields)


def test_a_rank_above_the_width_is_refused() -> None:
    with pytest.raises(AdapterError, match=r"r 9 is more than the 8 directions of layer.1/ffn"):
        ReftConfig(r=9).build(site("ffn", D, D))
