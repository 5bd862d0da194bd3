"""What adapters at an embed site have in common: e' = f(e), so that the change is f(e) - e.

Nothing follows the embeddings but the first layer, and nothing is carried beside them: what a module says is what it
changes. In a Stack the later member maps what the earlier one made of e. Knows no method.
"""

from abc import abstractmethod

from torch import Tensor, nn

from graftwork.core.site import Delta, Reading


class EmbeddingAdapter(nn.Module):
    """A map of embeddings, (B, T, D) -> (B, T, D), as an `Adapter`.

    undone_at_head: whether a language-modelling head undoes it, where it is invertible.
    """

    undone_at_head: bool = True

    @abstractmethod
    def moved(self, embeddings: Tensor) -> Tensor:
        """f(e) - e, (B, T, D), in the dtype of the module."""

    @property
    @abstractmethod
    def dtype(self) -> object:
        """The dtype of the module."""

    def read(self, reading: Reading, delta: Delta, *, before_norm: bool = False) -> Tensor:
        """The embeddings with what earlier members changed, (B, T, D)."""
        return reading.hidden(delta)

    def change(self, reading: Reading, delta: Delta) -> Tensor:
        """f(e) - e, (B, T, D)."""
        embeddings = self.read(reading, delta)
        return self.moved(embeddings.to(self.dtype)).to(reading.output.dtype)  # type: ignore[call-overload]

    def carried(self, reading: Reading, delta: Delta) -> Tensor:
        """The embeddings, (B, T, D)."""
        return reading.hidden(delta)

    def settle(self, reading: Reading, delta: Delta, change: Tensor) -> Delta:
        """The change as it is."""
        return Delta(before=change)

    def forward(self, reading: Reading, delta: Delta) -> Delta:
        """What this adapter changes, given what others changed before: reads (B, T, D) tensors, returns (B, T, D)."""
        return self.settle(reading, delta, self.change(reading, delta))
