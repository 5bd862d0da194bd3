"""Norms that are trained with an adapter (Houlsby et al. 2019, §2: "new layer normalization parameters per task").

An adapter owns a copy (w', b') of the weights (w, b) of the frozen norm of its site. As changes, with s = h₀ + Δ + r,

    after the add       LN'(s) - LN(s)  =  LayerNorm(s; w' - w, b' - b)
    at the embeddings   y' - y = (y - b) ⊙ (w'/w - 1) + (b' - b)        y: what the frozen norm of the embeddings made

Both are zero to the last bit while the copy equals the original, and exact for an adapter on its own. Changes add: in
an Average each adapter contributes its share of the difference; in a Stack an earlier member's difference is taken at
the s that it saw, and a later member that reads the stream reads LN'(s). Where the base drops out embeddings in
training, the second form acts on what is left of them.

Knows nothing of bottlenecks, names or compositions.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from graftwork.core.embeddings import EmbeddingAdapter
from graftwork.errors import AdapterError


class TrainedNorm(nn.Module):
    """A trained copy of the norm after a residual add, read as the difference from it. Raises AdapterError."""

    def __init__(self, frozen: nn.Module | None, site: str) -> None:
        super().__init__()
        self._frozen = (_plain(frozen, site),)  # in a tuple: it is the base's, not a part of this module
        self.weight = nn.Parameter(_copy(self._frozen[0].weight))
        self.bias = nn.Parameter(_copy(self._frozen[0].bias))

    def forward(self, stream: Tensor) -> Tensor:
        """LN'(s) - LN(s) for the sum s that the norm reads, (B, T, D) -> (B, T, D)."""
        frozen = self._frozen[0]
        weight, bias = (self.weight - frozen.weight).to(stream.dtype), (self.bias - frozen.bias).to(stream.dtype)
        return functional.layer_norm(stream, frozen.normalized_shape, weight, bias, frozen.eps)


class TrainedEmbeddingNorm(EmbeddingAdapter):
    """A trained copy of the norm of the embeddings, as the affine map between the two. Raises AdapterError."""

    def __init__(self, frozen: nn.Module | None, site: str) -> None:
        super().__init__()
        self._frozen = (_plain(frozen, site),)
        weight = self._frozen[0].weight
        if not weight.is_meta and not bool(weight.all()):
            raise AdapterError(
                f"train_norms at {site}: the frozen norm has {int((weight == 0).sum())} channels of weight zero, which "
                "no other norm can be computed from; set train_norms=False"
            )
        self.weight = nn.Parameter(_copy(weight))
        self.bias = nn.Parameter(_copy(self._frozen[0].bias))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the module."""
        return self.weight.dtype

    def moved(self, embeddings: Tensor) -> Tensor:
        """y' - y, (B, T, D)."""
        frozen = self._frozen[0]
        weight, bias = frozen.weight.to(self.weight.dtype), frozen.bias.to(self.bias.dtype)
        return (embeddings - bias) * (self.weight / weight - 1) + (self.bias - bias)


def _plain(frozen: nn.Module | None, site: str) -> nn.LayerNorm:
    if not isinstance(frozen, nn.LayerNorm) or frozen.bias is None:
        found = "no norm after the residual add" if frozen is None else f"a {type(frozen).__name__} there"
        raise AdapterError(
            f"train_norms at {site}: the model has {found}; only a LayerNorm with weight and bias that follows the add "
            "(post-LN models such as BERT) can be trained with an adapter; set train_norms=False"
        )
    return frozen


def _copy(parameter: Tensor) -> Tensor:
    return parameter.detach().to(torch.float32, copy=True)
