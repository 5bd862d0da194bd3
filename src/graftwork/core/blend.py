"""One adapter's worth of numbers out of several: averages of weights. Tensor in, tensor out.

    linear            θ = Σ wᵢ·θᵢ
    magnitude_prune   θ = θ₀ + Σ wᵢ·trim(τᵢ)                       τᵢ = θᵢ - θ₀;  trim keeps the largest numbers of τᵢ
    ties              θ = θ₀ + Σw · Σ_A wᵢ·trim(τᵢ) / Σ_A wᵢ       for each number, A are the members whose sign is that
                                                                  of Σ wᵢ·trim(τᵢ)   (Yadav et al. 2023, 2306.01708)
    dare              θ = θ₀ + Σ wᵢ·mᵢ⊙τᵢ/d,  mᵢ ~ Bernoulli(d)    (Yu et al. 2024, 2311.03099; drop rate p = 1 - d)
    dare_ties         ties on dare's mᵢ⊙τᵢ/d, nothing trimmed

d, the density, is the share of numbers that is kept. θ₀ is where training began, and trimming and dropping go back to
it, not to zero. With equal weights ties is the paper's disjoint mean, and Σw its λ. |wᵢ| divides where weights may be
negative. None of this averages what the adapters *say*: a product or a non-linearity of averaged weights is no average.

Two LoRAs' changes can be averaged exactly, for B·A is linear in what is concatenated:

    cat               A = (A₁; A₂ …),  B = (w₁s₁B₁, w₂s₂B₂ …) / s:  s·B·A = Σ wᵢsᵢ·BᵢAᵢ, rank Σ rᵢ
    svd               the best approximation of that of a given rank (Eckart & Young 1936)

Knows no adapter, name or site.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Vectors = Sequence[Tensor]  # one (P,) a member


def linear(vectors: Vectors, weights: Sequence[float]) -> Tensor:
    """Σ wᵢ·τᵢ, (P,)."""
    total = torch.zeros_like(vectors[0])
    for vector, weight in zip(vectors, weights, strict=True):
        total += weight * vector
    return total


def trim(vector: Tensor, density: float) -> Tensor:
    """The `density` share of numbers that are largest in magnitude, the others zero: (P,) -> (P,)."""
    kept = torch.zeros_like(vector)
    largest = vector.abs().topk(round(density * vector.numel())).indices
    kept[largest] = vector[largest]
    return kept


def drop(vector: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Each number kept with probability `density`, and divided by it: (P,) -> (P,), the same in the mean."""
    kept = torch.rand(vector.shape, generator=generator, dtype=torch.float64) < density
    return torch.where(kept, vector / density, 0.0)


def disjoint_mean(vectors: Vectors, weights: Sequence[float]) -> Tensor:
    """For each number the weighted mean of those members that have the elected sign, times Σ|w|: (P,)."""
    elected = linear(vectors, weights).sign()
    total, counted = torch.zeros_like(elected), torch.zeros_like(elected)
    for vector, weight in zip(vectors, weights, strict=True):
        agrees = ((weight * vector).sign() == elected) & (vector != 0)
        total += torch.where(agrees, weight * vector, 0.0)
        counted += abs(weight) * agrees.to(counted.dtype)
    return sum(map(abs, weights)) * total / counted.clamp(min=torch.finfo(counted.dtype).tiny)


def magnitude_prune(vectors: Vectors, weights: Sequence[float], density: float, seed: int) -> Tensor:
    """Σ wᵢ·trim(τᵢ), (P,)."""
    return linear([trim(vector, density) for vector in vectors], weights)


def ties(vectors: Vectors, weights: Sequence[float], density: float, seed: int) -> Tensor:
    """TIES: trim, elect signs, disjoint mean, (P,)."""
    return disjoint_mean([trim(vector, density) for vector in vectors], weights)


def dare(vectors: Vectors, weights: Sequence[float], density: float, seed: int) -> Tensor:
    """DARE: drop and rescale, then the weighted sum, (P,)."""
    return linear(_dropped(vectors, density, seed), weights)


def dare_ties(vectors: Vectors, weights: Sequence[float], density: float, seed: int) -> Tensor:
    """DARE, then the signs and the disjoint mean of TIES, (P,)."""
    return disjoint_mean(_dropped(vectors, density, seed), weights)


def _dropped(vectors: Vectors, density: float, seed: int) -> list[Tensor]:
    generator = torch.Generator("cpu").manual_seed(seed)
    return [drop(vector, density, generator) for vector in vectors]


# strategy -> Σ over task vectors; each keeps a share of the numbers
SPARSE: dict[str, Callable[[Vectors, Sequence[float], float, int], Tensor]] = {
    "magnitude_prune": magnitude_prune,
    "ties": ties,
    "dare": dare,
    "dare_ties": dare_ties,
}


def concatenate(factors: Sequence[tuple[Tensor, Tensor]], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """A (Σr, inputs) and B (width, Σr) with B·A = Σ wᵢ·BᵢAᵢ, from pairs Aᵢ (rᵢ, inputs), Bᵢ (width, rᵢ)."""
    a = torch.cat([a for a, _ in factors])
    b = torch.cat([weight * b for (_, b), weight in zip(factors, weights, strict=True)], dim=1)
    return a, b


def truncate(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best A (rank, inputs) and B (width, rank) for B·A, A with orthonormal rows; zeros where there is no more."""
    left, outer = torch.linalg.qr(b)  # the product is never made: its rank is small
    right, inner = torch.linalg.qr(a.T)
    u, values, vh = torch.linalg.svd(outer @ inner.T, full_matrices=False)
    count = min(rank, values.numel())
    best_a, best_b = a.new_zeros(rank, a.shape[1]), b.new_zeros(b.shape[0], rank)
    best_a[:count] = vh[:count] @ right.T
    best_b[:, :count] = left @ (u[:, :count] * values[:count])
    return best_a, best_b
