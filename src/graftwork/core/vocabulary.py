"""Another vocabulary for a frozen base: rows (V', D) that are looked up in the place of the base's own (V, D).

    e = W'[ids] · s          W': the new rows, s: the scale of models that have one there (BART, M2M-100, Gemma 3)

The base's table stays where it is and as it was. While a forward carries rows of its own, a hook hands the table zeros
in the place of the ids, which may lie beyond its own, and gives what the rows say. Every module that shares the table's
weight does so (encoder and decoder of BART and T5). A projection to the vocabulary is not looked up and stays the
base's. Artetxe et al. 2020 train such rows for a new language. Knows no tokenizer, only token -> id.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from graftwork.core.hooks import Runtime
from graftwork.errors import AdapterError

SPREAD = 0.02  # of rows that nothing is known of, as transformers begins embeddings
_OPENED = "words-"


class WordEmbeddings(nn.Module):
    """Rows (V', D) of a vocabulary, frozen until somebody trains them."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)


def rows_for(vocabulary: Mapping[str, int], width: int) -> Tensor:
    """Rows N(0, 0.02) for a vocabulary (token -> id), (1 + its highest id, width). Raises AdapterError for none."""
    if not vocabulary or min(vocabulary.values()) < 0:
        raise AdapterError(f"a vocabulary needs tokens with ids from 0; this one has {len(vocabulary)} tokens")
    return torch.empty(1 + max(vocabulary.values()), width).normal_(0.0, SPREAD)


def copy_shared(rows: Tensor, vocabulary: Mapping[str, int], known: Mapping[str, int], reference: Tensor) -> int:
    """Give every token of `vocabulary` that is in `known` its row of `reference`, (V, D); return how many there are.

    rows: (V', D), changed. Raises AdapterError where `known` is not the vocabulary of `reference`.
    """
    shared = [token for token in vocabulary if token in known]
    highest = max((known[token] for token in shared), default=-1)
    if highest >= reference.shape[0]:
        raise AdapterError(
            f"the reference tokenizer has a token of id {highest} and the reference embedding {reference.shape[0]} "
            "rows; give the tokenizer that the embedding was made for"
        )
    places = torch.tensor([vocabulary[token] for token in shared], dtype=torch.long, device=rows.device)
    sources = torch.tensor([known[token] for token in shared], dtype=torch.long, device=reference.device)
    rows[places] = reference.detach()[sources].to(rows)
    return len(shared)


def table_of(model: PreTrainedModel) -> nn.Embedding:
    """The base's own input embeddings. Raises AdapterError for a model that looks up no tokens."""
    try:
        table: Any = model.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        table = None
    known = isinstance(table, nn.Embedding)
    if not known or (type(table).forward is not nn.Embedding.forward and not hasattr(table, "embed_scale")):
        raise AdapterError(
            f"a {type(model).__name__} has no table of input embeddings (it has a {type(table).__name__}), so it can "
            "speak no other vocabulary"
        )
    return table  # type: ignore[no-any-return]


class WordTap:
    """The hooks at one module that looks up tokens."""

    def __init__(self, module: nn.Embedding, runtime: Runtime) -> None:
        self.module = module
        self.runtime = runtime
        self.ids: Tensor | None = None

    def place(self) -> None:
        """Register the hooks; what else changes embeddings comes after."""
        self.module.register_forward_pre_hook(self.keep, with_kwargs=True)
        self.module.register_forward_hook(self.look_up, prepend=True)

    def keep(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Forward pre-hook: zeros for the ids (B, T), which are kept."""
        self.ids = None
        if self.runtime.words is None:
            return None
        self.ids = args[0] if args else next(iter(kwargs.values()))
        return (torch.zeros_like(self.ids),), {}

    def look_up(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Forward hook: the rows of the ids, (B, T, D), scaled as the module scales."""
        ids, words = self.ids, self.runtime.words
        self.ids = None
        if ids is None or words is None:
            return None
        found = functional.embedding(ids.to(words.device), words)
        scale = getattr(module, "embed_scale", None)
        if scale is not None:
            found = found * (scale.to(words) if isinstance(scale, Tensor) else scale)
        return found.to(output)


def open_words(model: PreTrainedModel, runtime: Runtime) -> None:
    """Place the hooks of other vocabularies, once. Raises AdapterError for a model that can have none."""
    if _OPENED in runtime.opened:
        return
    table = table_of(model)
    found = [one for one in model.modules() if isinstance(one, nn.Embedding) and one.weight is table.weight]
    encoder = getattr(model.base_model, "encoder", None)
    if hasattr(model.base_model, "shared") and getattr(encoder, "embed_tokens", table) not in found:
        raise AdapterError(
            f"the encoder of this {type(model).__name__} does not share the table that the model calls its input "
            "embeddings; tie them (model.tie_weights()) before another vocabulary is added"
        )
    for module in found:
        WordTap(module, runtime).place()
    runtime.opened += _OPENED
