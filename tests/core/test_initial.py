"""Weights at birth: streams that no site shares, parameters without a draw, and the gate."""

import torch

from graftwork.core.initial import blank, blank_linear, generator_of, new_gate, opened


def test_a_seed_and_a_number_make_a_stream() -> None:
    draws = {
        (seed, number): torch.randn(3, generator=generator_of(seed, number)).tolist()
        for seed in (0, 1, 2**32 - 1)
        for number in (0, 1, 500)
    }
    assert len({tuple(draw) for draw in draws.values()}) == len(draws)
    assert torch.randn(3, generator=generator_of(0, 1)).tolist() == draws[0, 1]
    assert generator_of(None, 1) is None


def test_nothing_is_drawn_and_the_device_of_a_context_is_not_taken() -> None:
    state = torch.get_rng_state()
    with torch.device("meta"):
        assert blank(2, 3).device.type == "cpu"
        assert blank_linear(2, 3).weight.shape == (3, 2)
    assert blank_linear(2, 3).bias.device.type == "cpu"
    assert blank_linear(2, 3, bias=False).bias is None
    assert torch.equal(torch.get_rng_state(), state)


def test_the_gate_is_one_number_a_row() -> None:
    gate = new_gate(4, generator_of(0, 0), outputs=2)
    x = torch.randn(3, 5, 4)
    expected = 1 / (1 + torch.exp(-(x @ gate.weight.T + gate.bias)))
    torch.testing.assert_close(opened(gate, x), expected.mean(1)[:, None])
    assert torch.allclose(opened(gate, torch.zeros(1, 1, 4)), torch.tensor(0.5))
