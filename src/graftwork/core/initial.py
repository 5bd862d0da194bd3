"""Weights at birth: one stream of random numbers per site, linears that draw from nothing, and the gate.

A seed neither touches the global generator nor gives every site the same weights. Without a seed the global generator
draws, as in torch. The gate is AdapterHub's (UniPELT, Mao et al. 2022): g = mean over tokens of sigmoid(W·x + b), one
number a row. Knows no method.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


def generator_of(seed: int | None, number: int) -> torch.Generator | None:
    """The generator of site `number` under a seed, or None for the global one."""
    return None if seed is None else torch.Generator("cpu").manual_seed((seed << 16) + number)


def blank(*shape: int) -> nn.Parameter:
    """A float32 parameter without values, on the CPU: torch's own initialisation would draw whatever the seed."""
    return nn.Parameter(torch.empty(shape, device="cpu", dtype=torch.float32))


def blank_linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """A linear without values, in float32 on the CPU."""
    return nn.Linear(inputs, outputs, bias=bias, device="meta", dtype=torch.float32).to_empty(device="cpu")


def new_gate(inputs: int, generator: torch.Generator | None, outputs: int = 1) -> nn.Linear:
    """A gate that is half open at birth."""
    gate = blank_linear(inputs, outputs)
    nn.init.normal_(gate.weight, std=0.02, generator=generator)
    nn.init.zeros_(gate.bias)
    return gate


def opened(gate: nn.Linear, x: Tensor) -> Tensor:
    """How far a gate is open for each row: (B, T, D) -> (B, 1, outputs)."""
    x = x.to(gate.weight.dtype)
    return torch.sigmoid(functional.linear(x, gate.weight, gate.bias)).mean(dim=1, keepdim=True)
