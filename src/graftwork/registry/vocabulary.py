"""Input embeddings in a folder: `embeddings.json`, `embeddings.safetensors` and, where it was given, `tokenizer/`.

The folder is put in place whole or not at all. Reading checks the rows against their hash; a folder that AdapterHub
wrote (`embedding.pt`) is read too, and says nothing of its base. Knows names and tensors; not what a base is.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch

from graftwork.errors import Conflict, PackageError
from graftwork.registry.durable import exchange, named, place, sibling, write_folder
from graftwork.registry.foreign.embeddings import TOKENIZER, read_embeddings
from graftwork.registry.foreign.files import read_json, read_tensors

FACTS, ROWS = "embeddings.json", "embeddings.safetensors"
FORMAT = 1


@dataclass(frozen=True)
class Facts:
    """What is written of embeddings: the base they were trained on, and the digest of their vocabulary if known."""

    fingerprint: str
    base: str
    vocabulary: str | None


@dataclass(frozen=True, eq=False)
class Words:
    """Embeddings read from a folder: rows (V', D); facts: None where AdapterHub wrote them; the tokenizer's folder."""

    rows: torch.Tensor
    facts: Facts | None
    tokenizer: Path | None


def write_words(
    folder: Path, rows: torch.Tensor, facts: Facts, save_tokenizer: Callable[[Path], object] | None
) -> None:
    """Write rows (V', D) as `folder`, in the place of embeddings that stand there; never of other files.

    Raises Conflict for a folder with other files, UserError where the disk refuses.
    """
    folder = Path(os.path.realpath(folder))
    data = safetensors.torch.save({"weight": rows.detach().cpu().contiguous().clone()})
    told = {"format": FORMAT, **asdict(facts), "sha256": hashlib.sha256(data).hexdigest()}
    fresh = sibling(folder)
    try:
        with named(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            write_folder(fresh, {ROWS: data, FACTS: json.dumps(told, indent=2, sort_keys=True).encode()})
            if save_tokenizer is not None:
                save_tokenizer(fresh / TOKENIZER)
            if not place(fresh, folder):
                _check_ours(folder)
                exchange(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)  # is there only after a failure


def read_words(folder: Path) -> Words:
    """The embeddings in a folder, ours or AdapterHub's. Raises NotFound, PackageError."""
    if not os.path.lexists(folder / FACTS):
        theirs = read_embeddings(folder)
        return Words(theirs.weight, None, theirs.tokenizer)
    told, where = read_json(folder, FACTS), folder / FACTS
    if told.get("format") != FORMAT:
        raise PackageError(f"{where}: format is {told.get('format')!r}; this version reads {FORMAT}")
    for key in ("fingerprint", "base", "vocabulary", "sha256"):
        if not isinstance(told.get(key), str) and (key, told.get(key, "")) != ("vocabulary", None):
            raise PackageError(f"{where}: {key} is {told.get(key)!r:.80}; expected a text")
    tensors = read_tensors(folder, ROWS)
    found = hashlib.sha256((folder / ROWS).read_bytes()).hexdigest()
    if found != told["sha256"]:
        raise PackageError(f"{folder / ROWS}: was changed: sha256 is {found}, expected {told['sha256']}")
    rows = tensors.get("weight")
    if len(tensors) != 1 or rows is None or rows.ndim != 2:
        raise PackageError(
            f"{folder / ROWS}: expected one tensor 'weight' (vocabulary, width); found {sorted(tensors)}"
        )
    tokenizer = folder / TOKENIZER
    facts = Facts(told["fingerprint"], told["base"], told["vocabulary"])
    return Words(rows, facts, tokenizer if tokenizer.is_dir() else None)


def _check_ours(folder: Path) -> None:
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if FACTS not in there or there - {FACTS, ROWS, TOKENIZER}:
        raise Conflict(f"{folder}: is no folder of embeddings alone, so it is not replaced; choose another folder")
