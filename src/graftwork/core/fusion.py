"""AdapterFusion (Pfeiffer et al. 2021, §3.2): attention over what K frozen adapters say, per token.

    αᵢ = softmaxᵢ( q(x)·k(uᵢ) )           uᵢ: what member i alone would change;   no 1/√D, in the paper and in its code
    Δ  = V · Σ αᵢ uᵢ

The paper's code multiplies every uᵢ by a key and by a value matrix, 2K·D² a token. Neither is needed, in training
either: both products pass over to the other side, and what is differentiated is the same function of every weight.

    q·k(uᵢ) = q·(Wk uᵢ + bk) = (qWk)·uᵢ + q·bk      one product for all i; q·bk is the same for all i and leaves the
    Σ αᵢ (V uᵢ) = V · Σ αᵢ uᵢ                       softmax, so bk has no effect, and no gradient but rounding

What is left is K·D for the scores, K·D for the sum, and at most three products D². With dropout on the scores some are
zero and q·bk is in the others alone, so there it counts.

V begins as the identity, so an untrained fusion is close to a plain average. During training its distance from the
identity is a part of the loss: 0.01 · ‖V - I‖²_F summed over the sites. Knows nothing of sites, names or compositions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from graftwork.core.options import is_share
from graftwork.errors import AdapterError


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """The choices of AdapterHub's AdapterFusionConfig that change numbers. `dynamic` is the default, `static` has no V.

    residual_before: V and the sum run over uᵢ + residual instead of uᵢ. dropout_prob: dropout on the scores.
    value_before_softmax: whether V is multiplied with what is summed or with the sum, which are the same number.
    AdapterHub's `temperature` is not offered: it depends on how often the model was called, and was never saved.
    Raises AdapterError for a value out of range.
    """

    key: bool = True
    query: bool = True
    value: bool = True
    query_before_ln: bool = False
    regularization: bool = True
    residual_before: bool = False
    value_before_softmax: bool = True
    value_initialized: bool = True
    dropout_prob: float = 0.0

    def __post_init__(self) -> None:
        problems = [
            f"{field.name} {getattr(self, field.name)!r} must be true or false"
            for field in fields(self)
            if field.name != "dropout_prob" and not isinstance(getattr(self, field.name), bool)
        ]
        if not is_share(self.dropout_prob):
            problems.append(f"dropout_prob {self.dropout_prob!r} must be in [0, 1)")
        if problems:
            raise AdapterError("fusion: " + "; ".join(problems))


FUSIONS: dict[str, FusionConfig] = {
    "dynamic": FusionConfig(),
    "static": FusionConfig(value=False, regularization=False, value_initialized=False),
}

_PENALTY = 0.01
_M = TypeVar("_M")


class Fusion(nn.Module):
    """The fusion layer of one site. kept: which of the members of its composition it attends to, None for all."""

    def __init__(self, width: int, config: FusionConfig, kept: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.config = config
        self.width = width
        self.kept = kept
        self.query = _projection(width) if config.query else None
        self.key = _projection(width) if config.key else None
        self.value = nn.Linear(width, width, bias=False) if config.value else None
        if self.value is not None:
            with torch.no_grad():
                if config.value_initialized:
                    self.value.weight.fill_(1e-6).fill_diagonal_(1.0)
                else:
                    self.value.weight.normal_(std=0.02)

    def attended(self, members: Sequence[_M]) -> list[_M]:
        """Those of the members of its composition, in its order, whose changes it is called with."""
        return list(members) if self.kept is None else [members[member] for member in self.kept]

    def weights(self, x: Tensor, changes: Tensor) -> Tensor:
        """Attention over members: x (B, T, D), changes (B, T, K, D) -> (B, T, K), sums to 1 over K."""
        query = x if self.query is None else self.query(x)
        sought = query if self.key is None else functional.linear(query, self.key.weight.T)
        scores = torch.einsum("btd,btkd->btk", sought, changes)
        if self.training and self.config.dropout_prob:
            if self.key is not None:
                scores = scores + (query @ self.key.bias).unsqueeze(-1)
            scores = functional.dropout(scores, self.config.dropout_prob)
        return scores.softmax(dim=-1)

    def forward(self, x: Tensor, changes: list[Tensor], residual: Tensor | None = None) -> Tensor:
        """x: the query's input (B, T, D); changes: K of (B, T, D) -> the fused change (B, T, D).

        residual (B, T, D): what the change is added to, for a fusion with `residual_before`.
        """
        dtype = changes[0].dtype
        own = next((parameter.dtype for parameter in self.parameters()), dtype)
        stacked = torch.stack(changes, dim=2).to(own)  # (B, T, K, D)
        weights = self.weights(x.to(own), stacked)
        fused = torch.einsum("btk,btkd->btd", weights, stacked)
        residual = None if residual is None else residual.to(own)
        if residual is not None:  # Σ αᵢ(uᵢ + r) = Σ αᵢuᵢ + r
            fused = fused + residual
        if self.value is not None:
            fused = self.value(fused)
        # with the residual inside, the sum is the new stream itself: the change is its distance from the old one
        return (fused if residual is None else fused - residual).to(dtype)

    def penalty(self) -> Tensor | None:
        """0.01 · ‖V - I‖²_F, or None where there is no V or no wish for it."""
        if self.value is None or not self.config.regularization:
            return None
        weight = self.value.weight
        eye = torch.eye(weight.shape[0], device=weight.device, dtype=weight.dtype)
        return _PENALTY * (eye - weight).square().sum()


def _projection(width: int) -> nn.Linear:
    linear = nn.Linear(width, width)
    nn.init.normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return linear
