"""Language-modelling heads: masked, causal and sequence to sequence (Devlin et al. 2019; Radford et al. 2018).

    x = s · hidden;   x = LN(act(W x + b)) for every layer but the last;   x = inverse(x);   logits = x Eᵀ (+ bias)

E is the base's input embedding where the head is `tied` (Press & Wolf 2017): the head asks the base for it in every
call and holds no copy, so that it is in no package, moves with the base and follows one that is replaced. `inverse` is
that of an invertible adapter (Pfeiffer et al. 2020), applied just before the projection. The keys are AdapterHub's:
`layers.0` (linear), `layers.2` (norm), `layers.3` (projection).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from graftwork.core.activations import activation
from graftwork.core.heads import IGNORED, NO_ACTIVATION, NOTHING, Beside, Head, HeadConfig, Inverse, class_loss
from graftwork.core.heads_linear import fresh_linear
from graftwork.errors import AdapterError

Embeddings = Callable[[], nn.Module]  # gives the module that embeds the base's input ids


class TiedProjection(nn.Module):
    """x (..., E) -> x Wᵀ + b (..., V), W (V, E) the weight of an embedding that belongs to another module."""

    def __init__(self, embeddings: Embeddings, vocabulary: int, bias: bool) -> None:
        super().__init__()
        self.embeddings = embeddings  # a method of the base: no module of ours, so in no state dict
        self.bias = nn.Parameter(torch.zeros(vocabulary)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x (..., E) -> (..., V), in the type of x."""
        weight = self.embeddings().weight
        assert isinstance(weight, Tensor)
        return functional.linear(x, weight.to(x), self.bias)


class LanguageHead(Head):
    """Logits (n, T, V) and the mean cross entropy over words, shifted by one where the head says so."""

    reads_inverse = True

    def __init__(self, width: int, config: HeadConfig, embeddings: Embeddings | None = None) -> None:
        super().__init__(config)
        inner = config.width or width
        if config.layers == 1 and inner != width:
            raise AdapterError(f"{config.kind}: one layer cannot lead from width {width} to {inner}; take layers=2")
        modules: list[nn.Module] = []
        for layer in range(config.layers - 1):
            modules.append(fresh_linear(inner if layer else width, inner))
            modules += [] if config.activation == NO_ACTIVATION else [activation(config.activation)]
            modules += [nn.LayerNorm(inner, eps=config.norm_eps)] if config.layer_norm else []
        self.layers = nn.ModuleList([*modules, self._projection(inner, embeddings)])

    def _projection(self, inner: int, embeddings: Embeddings | None) -> nn.Module:
        config = self.config
        if not config.tied:
            return fresh_linear(inner, config.num_outputs, config.bias)
        weight = getattr(embeddings() if embeddings else None, "weight", None)
        if not isinstance(weight, Tensor) or weight.shape != (config.num_outputs, inner) or embeddings is None:
            has = tuple(weight.shape) if isinstance(weight, Tensor) else "none"
            raise AdapterError(
                f"{config.kind}: a tied head of {config.num_outputs} words and width {inner} needs an input embedding "
                f"of that shape, and the base's is {has}; say tied=False, or give the base's own sizes"
            )
        return TiedProjection(embeddings, config.num_outputs, config.bias)

    def forward(
        self, hidden: Tensor, mask: Tensor | None = None, beside: Beside = NOTHING, inverse: Inverse | None = None
    ) -> Tensor:
        """hidden (n, T, D) -> logits (n, T, V); (m, V) of the m tokens that are asked, row after row."""
        x = self.rows(hidden, mask, beside)
        weight = next(self.layers.parameters(), None)
        x = x if weight is None else x.to(weight.dtype)
        *inner, projection = self.layers
        for layer in inner:
            x = layer(x)
        x = x if inverse is None else inverse(x)
        logits: Tensor = projection(x if beside.asked is None else x[beside.asked.to(x.device)])
        return logits

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy on the ids of words (n, T), -100 left out; with `shift`, token t is asked for t + 1.

        logits (n, T, V), or (m, V) of the tokens that `asked` tells.
        """
        kind, shift = self.config.kind, int(self.config.shift)
        if logits.dim() == 2:
            words = labels[:, shift:]
            return class_loss(kind, logits, words[words != IGNORED])
        if shift and labels.shape == logits.shape[:-1]:
            return class_loss(kind, logits[:, :-1], labels[:, 1:])
        return class_loss(kind, logits, labels)

    def asked(self, labels: Tensor) -> Tensor:
        """(n, T), true where a token is to say a word."""
        said = labels != IGNORED
        return said if not self.config.shift else torch.cat((said[:, 1:], torch.zeros_like(said[:, :1])), dim=1)

    def items(self, labels: Tensor, prompted: bool = False) -> Tensor:
        """Nothing says the first token of a text, unless prompts stand before it."""
        return super().items(labels[:, 1:] if self.config.shift and not prompted else labels)


def shifted_right(labels: Tensor, start: int, pad: int) -> Tensor:
    """What a decoder reads to say `labels` (n, T): the start id, then the labels but the last, -100 as padding."""
    first = labels.new_full((len(labels), 1), start)
    return torch.cat((first, labels[:, :-1].masked_fill(labels[:, :-1] == IGNORED, pad)), dim=1)
