"""Dependency parsing by two biaffine layers (Dozat & Manning 2017, in the form of Glavaš & Vulić 2021).

    w_j = mean of the tokens of word j        h = [first token; w]        the first real token stands for the root
    arc(j, i)    = [w_j; 1]ᵀ U  h_i           rel(j, i, l) = [w_j; 1]ᵀ V_l [h_i; 1]

Word j begins at token word_starts[j] and ends before word_starts[j + 1]; the list ends where it stops growing. The keys
`biaffine_arcs.weight` (1, D + 1, D) and `biaffine_rels.weight` (L, D + 1, D + 1) are AdapterHub's. Knows no trees: the
best head of each word is taken by whoever decodes.
"""

import torch
from torch import Tensor, nn

from graftwork.core.heads import IGNORED, NOTHING, Beside, Head, HeadConfig, Inverse, check_shape, class_loss, pool
from graftwork.errors import AdapterError


class Biaffine(nn.Module):
    """xᵀ W y for every pair of places, one number for each output; a 1 is appended to x, and to y where asked."""

    def __init__(self, width: int, outputs: int, bias_y: bool) -> None:
        super().__init__()
        self.bias_y = bias_y
        self.weight = nn.Parameter(torch.zeros(outputs, width + 1, width + bias_y))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x (n, X, D), y (n, Y, D) -> (n, X, Y, outputs)."""
        x = torch.cat((x, torch.ones_like(x[..., :1])), dim=-1)
        y = torch.cat((y, torch.ones_like(y[..., :1])), dim=-1) if self.bias_y else y
        return torch.einsum("nxi,oij,nyj->nxyo", x, self.weight, y)


class ParsingHead(Head):
    """Logits (n, T, T + 1, L + 1): for word j and head i, the L relations and, last, the arc. i = 0 is the root."""

    def __init__(self, width: int, config: HeadConfig) -> None:
        super().__init__(config)
        self.dropout = nn.Dropout(config.dropout)
        self.biaffine_arcs = Biaffine(width, 1, bias_y=False)
        self.biaffine_rels = Biaffine(width, config.num_outputs, bias_y=True)

    def forward(
        self, hidden: Tensor, mask: Tensor | None = None, beside: Beside = NOTHING, inverse: Inverse | None = None
    ) -> Tensor:
        """hidden (n, T, D) and beside.word_starts (n, W) -> logits; words that are not there are vectors of zeros."""
        if beside.word_starts is None:
            raise AdapterError("dependency_parsing needs word_starts: for each row, the token each word begins with")
        hidden = self.dropout(self.rows(hidden, mask, beside).to(self.biaffine_arcs.weight.dtype))
        words = words_of(hidden, beside.word_starts, self.config.word_pad)
        heads = torch.cat((pool(hidden, mask, "first").unsqueeze(1), words), dim=1)
        return torch.cat((self.biaffine_rels(words, heads), self.biaffine_arcs(words, heads)), dim=-1)

    def views(self, logits: Tensor) -> dict[str, Tensor]:
        """rel_preds (n, T, T + 1, L), arc_preds (n, T, T + 1)."""
        return {"rel_preds": logits[..., :-1], "arc_preds": logits[..., -1]}

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy of the arcs and, at the true heads, of the relations; labels (n, W, 2), -100 left out."""
        words = labels.shape[1] if labels.dim() == 3 else 0
        check_shape(self.config.kind, logits, labels, (len(logits), min(words, logits.shape[1]), 2))
        arcs, relations = labels[..., 0], labels[..., 1]
        seen = self.views(logits[:, :words])
        chosen = arcs.clamp(min=0)[:, :, None, None].expand(-1, -1, 1, self.config.num_outputs)
        at_heads = seen["rel_preds"].gather(2, chosen).squeeze(2)  # (n, W, L)
        relations = relations.masked_fill(arcs == IGNORED, IGNORED)
        return class_loss("dependency_parsing", seen["arc_preds"], arcs) + class_loss(
            "dependency_parsing", at_heads, relations
        )


def words_of(hidden: Tensor, starts: Tensor, pad: int = -1) -> Tensor:
    """The mean of the tokens of every word, (n, T, D): hidden (n, T, D), starts (n, W); zeros after the last word.

    Entries equal to `pad` are taken out first. No loop over words: word j is a row of weights over the tokens.
    """
    rows, length, _ = hidden.shape
    starts = starts.to(hidden.device)
    order = (starts == pad).to(torch.int8).argsort(dim=1, stable=True)
    kept = torch.where(starts == pad, -1, starts).gather(1, order)[:, : length + 1]
    first, after = kept[:, :-1], kept[:, 1:]  # (n, W - 1)
    real = (after > first).long().cumprod(dim=1).bool()
    tokens = torch.arange(length, device=hidden.device)
    inside = (tokens >= first.unsqueeze(-1)) & (tokens < after.unsqueeze(-1)) & real.unsqueeze(-1)  # (n, W - 1, T)
    weights = inside.to(hidden.dtype)
    words = (weights / weights.sum(dim=-1, keepdim=True).clamp(min=1)) @ hidden
    return torch.cat((words, hidden.new_zeros(rows, length - words.shape[1], words.shape[2])), dim=1)
