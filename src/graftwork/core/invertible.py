"""Invertible adapters (MAD-X, Pfeiffer et al. 2020, §2): e' = f(e) below the first layer, f⁻¹ before the vocabulary.

A language is mapped to where the frozen model is at home, and back.

x₁ are the first D//2 channels, x₂ the rest; F and G are Linear, non-linearity, Linear, reduced by a factor.

NICE (Dinh et al. 2015, §3: additive coupling)

    y₁ = x₁ + F(x₂)        y₂ = x₂ + G(y₁)              x₂ = y₂ - G(y₁)        x₁ = y₁ - F(x₂)

GLOW (Kingma & Dhariwal 2018, one step of flow, on the channels of a token)

    actnorm     v = x ⊙ eˢ + b
    mixing      w = L·U·v                 L unit lower, U upper triangular with diagonal eᵈ (their eq. 10, P = I)
    coupling    y₁ = w₁ ⊙ e^tanh(a) + c,  (a, c) = F(w₂)          y₂ = w₂ ⊙ e^tanh(a') + c',  (a', c') = G(y₁)

Each part is undone in turn; two triangular solves undo the mixing. The paper starts with a random rotation and with an
actnorm fitted to the first batch, since it has nothing to preserve. Here the model above is frozen, so that f begins as
the identity, to the last bit: s, b and the mixing at zero, the last layers of F and G at zero (as in the paper). The
scales of the coupling stay within [1/e, e], so that a round trip cannot blow up there. No likelihood is trained, hence
no log-determinants.

Composes as any change: in a Stack the later member maps what the earlier one made of e, and inverses are applied last
member first. Knows nothing of where the vocabulary is.
"""

from typing import cast

import torch
from torch import Tensor, nn

from graftwork.core.activations import activation
from graftwork.core.distributions import begin_linear
from graftwork.core.embeddings import EmbeddingAdapter
from graftwork.core.initial import blank_linear

INVERTIBLE = ("nice", "glow")


class Nice(EmbeddingAdapter):
    """Additive coupling of the two halves; near the identity at birth, as weights N(0, 0.02) make it."""

    def __init__(self, width: int, factor: float, non_linearity: str, source: torch.Generator | None = None) -> None:
        super().__init__()
        self.cut = width // 2
        rest = width - self.cut
        self.F = _subnet((rest, self.cut), factor, non_linearity, source)
        self.G = _subnet((self.cut, rest), factor, non_linearity, source)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the module."""
        return cast(Tensor, self.F[0].weight).dtype

    def moved(self, embeddings: Tensor) -> Tensor:
        """(F(x₂), G(y₁)), (B, T, D)."""
        first, second = embeddings[..., : self.cut], embeddings[..., self.cut :]
        change = self.F(second)
        return torch.cat([change, self.G(first + change)], dim=-1)

    def inverse(self, hidden: Tensor) -> Tensor:
        """x from y, (B, T, D)."""
        y = hidden.to(self.dtype)
        first, second = y[..., : self.cut], y[..., self.cut :]
        second = second - self.G(first)
        return torch.cat([first - self.F(second), second], dim=-1).to(hidden.dtype)


class Glow(EmbeddingAdapter):
    """One step of flow: actnorm, an invertible mixing of the channels, affine coupling; the identity at birth."""

    def __init__(self, width: int, factor: float, non_linearity: str, source: torch.Generator | None = None) -> None:
        super().__init__()
        self.cut = width // 2
        rest = width - self.cut
        self.scale = nn.Parameter(torch.zeros(width))  # s
        self.shift = nn.Parameter(torch.zeros(width))  # b
        self.mixing = nn.Parameter(torch.zeros(width, width))  # L below the diagonal, U above, log diagonal of U on it
        self.F = _subnet((rest, 2 * self.cut), factor, non_linearity, source)
        self.G = _subnet((self.cut, 2 * rest), factor, non_linearity, source)
        nn.init.zeros_(cast(Tensor, self.F[2].weight))
        nn.init.zeros_(cast(Tensor, self.G[2].weight))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the module."""
        return self.mixing.dtype

    def moved(self, embeddings: Tensor) -> Tensor:
        """f(e) - e, (B, T, D)."""
        x = embeddings * self.scale.exp() + self.shift
        x = x * self.mixing.diagonal().exp() + x @ self.mixing.triu(1).T
        x = x + x @ self.mixing.tril(-1).T
        first, second = x[..., : self.cut], x[..., self.cut :]
        factor, summand = _affine(self.F(second))
        first = first * factor + summand
        factor, summand = _affine(self.G(first))
        return torch.cat([first, second * factor + summand], dim=-1) - embeddings

    def inverse(self, hidden: Tensor) -> Tensor:
        """f⁻¹, (B, T, D)."""
        y = hidden.to(self.dtype)
        first, second = y[..., : self.cut], y[..., self.cut :]
        factor, summand = _affine(self.G(first))
        second = (second - summand) / factor
        factor, summand = _affine(self.F(second))
        x = torch.cat([(first - summand) / factor, second], dim=-1)
        exact = torch.promote_types(x.dtype, torch.float32)  # no solver in half precision
        mixing = self.mixing.to(exact)
        upper = mixing.triu(1) + mixing.diagonal().exp().diag()
        flat = x.reshape(-1, x.shape[-1]).to(exact)
        flat = torch.linalg.solve_triangular(mixing.tril(-1).T, flat, upper=True, left=False, unitriangular=True)
        flat = torch.linalg.solve_triangular(upper.T, flat, upper=False, left=False)
        restored: Tensor = (flat - self.shift) * (-self.scale).exp()
        return restored.reshape(hidden.shape).to(hidden.dtype)


def _affine(said: Tensor) -> tuple[Tensor, Tensor]:
    """The factor, within [1/e, e], and the summand of a coupling: (B, T, 2·d) -> twice (B, T, d)."""
    scale, shift = said.chunk(2, dim=-1)
    return scale.tanh().exp(), shift


def _subnet(size: tuple[int, int], factor: float, non_linearity: str, source: torch.Generator | None) -> nn.Sequential:
    inner = max(1, int(size[0] // factor))
    return nn.Sequential(
        begin_linear(blank_linear(size[0], inner), "bert", source),
        activation(non_linearity),
        begin_linear(blank_linear(inner, size[1]), "bert", source),
    )
