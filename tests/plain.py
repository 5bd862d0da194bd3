"""Transformers in plain torch, without a configuration or a family of their own: what a person may bring along."""

import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.tiny import VOCABULARY, WIDTH

M = TypeVar("M", bound=nn.Module)


class Norm(nn.Module):
    """A layer norm without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (WIDTH,), self.gain)


class Mixer(nn.Module):
    """Causal self-attention of four heads, written out."""

    def __init__(self) -> None:
        super().__init__()
        self.ask, self.offer, self.carry, self.join = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        rows, tokens, _ = x.shape
        q, k, v = (part(x).view(rows, tokens, 4, -1).transpose(1, 2) for part in (self.ask, self.offer, self.carry))
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(torch.ones(tokens, tokens).tril() == 0, -torch.inf)
        return self.join((scores.softmax(-1) @ v).transpose(1, 2).reshape(rows, tokens, -1))


class Expander(nn.Module):
    """The feed-forward layer; its GELU adds x to a power of x, which is no residual add."""

    def __init__(self, width: int = 2 * WIDTH) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(WIDTH, width), nn.Linear(width, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(x)
        x = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return self.narrow(x)


class Block(nn.Module):
    """x + mix(norm(x)), then x + expand(norm(x)): names that say nothing."""

    def __init__(self, expanded: int) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = Norm(), Mixer(), Norm(), Expander(expanded)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.b(self.a(x))
        return x + self.d(self.c(x))


class HandwrittenGPT(nn.Module):
    """A language model as people write it in one file: ids (B, T) -> logits (B, T, V)."""

    def __init__(self, expanded: int = 2 * WIDTH) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(64, WIDTH)
        self.blocks = nn.Sequential(*(Block(expanded) for _ in range(3)))
        self.final = Norm()
        self.vocabulary = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        return self.vocabulary(self.final(self.blocks(x)))


def encoder(
    norm_first: bool = False, batch_first: bool = True, activation: str = "relu", nested: bool = False
) -> nn.TransformerEncoder:
    """torch's own encoder, two layers, in eval mode; its weights are random."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        WIDTH, 4, 64, norm_first=norm_first, batch_first=batch_first, activation=activation
    )
    return shaken(nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested))


def gpt(expanded: int = 2 * WIDTH) -> HandwrittenGPT:
    """The hand-written language model with random weights, in eval mode."""
    torch.manual_seed(0)
    return shaken(HandwrittenGPT(expanded))


def shaken(model: M) -> M:
    """The model in eval mode, with weights large enough that every sub-layer matters."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.15 * noise if parameter.dim() > 1 else parameter + 0.1 * noise)
    return model.eval()
