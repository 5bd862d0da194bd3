"""Embeddings that AdapterHub saved: `embedding.pt`, one tensor (V, D), and beside it the folder `tokenizer`.

The tensor is unpickled with nothing but tensors allowed; the tokenizer is only pointed to, whoever builds it reads it.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from graftwork.errors import PackageError
from graftwork.registry.foreign.files import read_tensor

FILE, TOKENIZER = "embedding.pt", "tokenizer"


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Input embeddings (V, D) for another vocabulary, and the folder of its tokenizer where there is one."""

    weight: torch.Tensor
    tokenizer: Path | None


def read_embeddings(folder: Path | str) -> Embeddings:
    """The embeddings in a folder. Raises NotFound, PackageError."""
    folder = Path(folder)
    weight = read_tensor(folder, FILE)
    if weight.ndim != 2:
        raise PackageError(f"{folder / FILE}: has shape {tuple(weight.shape)}; expected (vocabulary, width)")
    tokenizer = folder / TOKENIZER
    return Embeddings(weight, tokenizer if tokenizer.is_dir() else None)
