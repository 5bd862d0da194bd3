"""Embeddings of other vocabularies beside the base's own: added, chosen and removed by name, in AdapterHub's spelling.

"default" are the base's own, which are never changed. A call has one vocabulary for all of its rows. Knows of files
nothing: see `wordfiles.py`.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from graftwork.compose.claims import check_part_name
from graftwork.compose.parts import Parts
from graftwork.core.backbone import Backbone
from graftwork.core.vocabulary import WordEmbeddings, copy_shared, open_words, rows_for, table_of
from graftwork.errors import AdapterError

DEFAULT = "default"


class HasVocabulary(Protocol):
    """What is needed of a tokenizer."""

    def get_vocab(self) -> dict[str, int]:
        """Every token with its id, added ones too."""
        ...


def digest_of(vocabulary: Mapping[str, int]) -> str:
    """The identity of a vocabulary: sha256 hex of its tokens and ids."""
    return hashlib.sha256(json.dumps(sorted(vocabulary.items())).encode()).hexdigest()


def add_embeddings(
    parts: Parts,
    backbone: Backbone,
    name: str,
    tokenizer: HasVocabulary,
    reference_embedding: str | None = None,
    reference_tokenizer: HasVocabulary | None = None,
    embedding_dim: int | None = None,
) -> None:
    """Add input embeddings for the vocabulary of a tokenizer, (V', D), frozen, and make them active.

    Tokens that the reference tokenizer has too begin as their rows of the reference embedding ("default": the base's),
    the others as N(0, 0.02). They hold for whole calls, not for single rows. What is looked up is all that changes:
    the base's configuration, its special ids and every projection to a vocabulary, also a head's tied to the base,
    stay the base's. Raises AdapterError for a name in use, another width, or half a reference.
    """
    check_unused(parts, name)
    table, vocabulary = table_of(backbone.model), tokenizer.get_vocab()
    if embedding_dim not in (None, table.embedding_dim):
        raise AdapterError(f"embedding_dim is {embedding_dim}; the frozen base reads width {table.embedding_dim}")
    if (reference_embedding is None) != (reference_tokenizer is None):
        raise AdapterError("reference_embedding and reference_tokenizer come together: give both, or none")
    rows = rows_for(vocabulary, table.embedding_dim).to(_like(table.weight, backbone))
    if reference_embedding is not None and reference_tokenizer is not None:
        known = reference_tokenizer.get_vocab()
        copy_shared(rows, vocabulary, known, embeddings_of(parts, backbone, reference_embedding))
    put_embeddings(parts, backbone, name, rows, digest_of(vocabulary))


def put_embeddings(parts: Parts, backbone: Backbone, name: str, rows: Tensor, digest: str | None) -> None:
    """Add rows (V', D) under a name that is free, frozen, and make them active. Raises AdapterError."""
    check_unused(parts, name)
    like = _like(table_of(backbone.model).weight, backbone)
    open_words(backbone.model, backbone.runtime)
    parts.store("embeddings", name, {None: WordEmbeddings(rows.detach().to(like))})
    parts.vocabularies[name] = digest
    parts.active_embeddings = name


def delete_embeddings(parts: Parts, backbone: Backbone, name: str) -> None:
    """Remove embeddings; the base's own are active where these were. Raises AdapterError for none of that name."""
    _need(parts, name)
    if parts.active_embeddings == name:
        parts.active_embeddings = DEFAULT
    parts.remove("embeddings", name)


def set_active_embeddings(parts: Parts, backbone: Backbone, name: str) -> None:
    """Set the embeddings of calls that name none; "default" are the base's own. Raises AdapterError."""
    if name != DEFAULT:
        _need(parts, name)
    parts.active_embeddings = name


def words_of(parts: Parts, name: str | None) -> Tensor | None:
    """The rows (V', D) of a call that names these embeddings, or the active ones with None; None for the base's own.

    Raises AdapterError for a name that is not there.
    """
    name = parts.active_embeddings if name is None else name
    if name == DEFAULT:
        return None
    _need(parts, name)
    (module,) = parts.modules_of("embeddings", name).values()
    weight: Any = module.weight
    return weight  # type: ignore[no-any-return]


def embeddings_of(parts: Parts, backbone: Backbone, name: str) -> Tensor:
    """The rows of embeddings by name, the base's own with "default". Raises AdapterError."""
    own = words_of(parts, name)
    return table_of(backbone.model).weight if own is None else own


def trained_words(parts: Parts) -> tuple[str, str]:
    """The active embeddings as a part that may be trained. Raises AdapterError for the base's own."""
    if parts.active_embeddings == DEFAULT:
        raise AdapterError(
            "train_embeddings: the base's own embeddings are active and stay frozen; add_embeddings first"
        )
    return "embeddings", parts.active_embeddings


def check_unused(parts: Parts, name: str) -> None:
    """Raise AdapterError unless embeddings of that name may be added."""
    check_part_name(name, "embeddings")
    if name == DEFAULT or name in parts.vocabularies:
        raise AdapterError(f"embeddings {name!r} are already there; choose another name, or delete_embeddings first")


def _need(parts: Parts, name: str) -> None:
    if name not in parts.vocabularies:
        listed = ", ".join([DEFAULT, *sorted(parts.vocabularies)])
        raise AdapterError(f"no embeddings {name!r}; the embeddings are: {listed}")


def _like(weight: Tensor, backbone: Backbone) -> Tensor:
    """A tensor where, and of the type of which, embeddings are made."""
    return torch.empty(0, device=backbone.model.device if weight.is_meta else weight.device, dtype=weight.dtype)
