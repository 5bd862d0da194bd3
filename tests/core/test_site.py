"""Sites: what is read, what a change adds up to, and canonical names."""

import torch
from torch import nn

from graftwork.core.site import NO_DELTA, Delta, Reading, Site, narrow


def reading(norm: bool) -> Reading:
    generator = torch.Generator().manual_seed(0)
    h, r = (torch.randn(3, 4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    return Reading(h, r, nn.LayerNorm(5, dtype=torch.float64) if norm else None)


def test_names_outlive_module_paths() -> None:
    assert Site(0, "", 3, 3, "ffn", 8).name == "layer.3/ffn"
    assert Site(9, "decoder", 1, 3, "cross", 8).name == "decoder.layer.1/cross"


def test_what_can_be_read() -> None:
    post, pre = reading(norm=True), reading(norm=False)
    h, r, norm = post.output, post.residual, post.norm
    assert norm is not None
    before, after = torch.ones_like(h), 2 * torch.ones_like(h)
    assert torch.equal(post.hidden(NO_DELTA), h)
    assert torch.equal(post.hidden(Delta(before=before, after=after)), h + 1)
    assert torch.equal(post.stream(NO_DELTA), norm(h + r))
    assert torch.equal(post.stream(Delta(before, after)), norm(h + before + r) + 2)
    assert torch.equal(pre.stream(Delta(before)), pre.output + 1 + pre.residual)


def test_changes_add_and_scale_and_none_is_zero() -> None:
    one = torch.ones(2)
    assert NO_DELTA.plus(NO_DELTA) == NO_DELTA
    left, right = Delta(before=one), Delta(before=one, after=3 * one)
    total = left.plus(right).plus(NO_DELTA)
    assert torch.equal(total.before, 2 * one)
    assert torch.equal(total.after, 3 * one)
    half = right.times(0.5)
    assert torch.equal(half.before, 0.5 * one)
    assert torch.equal(half.after, 1.5 * one)
    assert NO_DELTA.times(7.0) == NO_DELTA


def test_a_site_can_be_seen_by_some_rows_and_tokens() -> None:
    whole = reading(norm=True)
    part = whole.narrow(torch.tensor([2, 0]), slice(1, 3))
    assert torch.equal(part.output, whole.output[[2, 0], 1:3])
    assert torch.equal(part.residual, whole.residual[[2, 0], 1:3])
    assert part.norm is whole.norm
    assert narrow(whole.output, None, None) is whole.output
    assert torch.equal(narrow(whole.output, None, slice(0, 1)), whole.output[:, :1])
