"""Sentence embeddings (Reimers & Gurevych 2019): a vector a text, trained on pairs by in-batch negatives or by scores.

    contrastive   -log exp(cos(aᵢ, bᵢ)/τ) / Σⱼ exp(cos(aᵢ, bⱼ)/τ), and the same from b to a; their mean
    scores        (cos(aᵢ, bᵢ) - yᵢ)²

Contrastive labels are whole numbers that say which pair is the same: pairs with an equal number are no negatives of
each other (all different: the plain loss of Henderson et al. 2017). Layers are optional; without any, the head has no
parameters.
"""

import torch
from torch import Tensor
from torch.nn import functional

from graftwork.core.heads import NOTHING, Beside, Inverse
from graftwork.core.heads_linear import LinearHead
from graftwork.errors import AdapterError


class EmbeddingHead(LinearHead):
    """Embeddings (n, E); (n, C, E) where the input has C texts a row."""

    def forward(
        self, hidden: Tensor, mask: Tensor | None = None, beside: Beside = NOTHING, inverse: Inverse | None = None
    ) -> Tensor:
        """hidden (n, T, D), or (n·C, T, D) with beside.choices C."""
        made = super().forward(hidden, mask, beside)
        made = functional.normalize(made.float(), dim=-1).to(made) if self.config.normalise else made
        return made if beside.choices is None else made.view(-1, beside.choices, made.shape[-1])

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """logits (n, 2, E); labels (n,), or (2n,) where both texts repeat them. Raises AdapterError for no pairs."""
        if logits.dim() != 3 or logits.shape[1] != 2:
            raise AdapterError(
                f"sentence_embedding learns from pairs: input_ids of shape (pairs, 2, tokens); its embeddings have "
                f"shape {tuple(logits.shape)}"
            )
        labels = labels.view(len(logits), -1)[:, 0] if labels.numel() == 2 * len(logits) else labels.flatten()
        if len(labels) != len(logits):
            raise AdapterError(f"sentence_embedding: {len(labels)} labels for {len(logits)} pairs")
        left, right = functional.normalize(logits.float(), dim=-1).unbind(dim=1)
        if labels.is_floating_point():
            return functional.mse_loss((left * right).sum(dim=-1), labels.float())
        cosines = left @ right.T / self.config.temperature
        same = labels[:, None] == labels[None, :]
        same = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        cosines = cosines.masked_fill(same, float("-inf"))
        target = torch.arange(len(labels), device=logits.device)
        return (functional.cross_entropy(cosines, target) + functional.cross_entropy(cosines.T, target)) / 2
