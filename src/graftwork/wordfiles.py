"""Between the embeddings of a model and folders: what is written down, and what is checked before anything is added."""

from pathlib import Path
from typing import Any

from graftwork.compose.parts import Parts
from graftwork.compose.vocabulary import check_unused, digest_of, embeddings_of, put_embeddings
from graftwork.core.backbone import Backbone, load_tokenizer
from graftwork.core.vocabulary import table_of
from graftwork.errors import AdapterError, Conflict, PackageError
from graftwork.registry.vocabulary import Facts, read_words, write_words


def save_embeddings(parts: Parts, backbone: Backbone, path: str | Path, name: str, tokenizer: Any = None) -> None:
    """Write embeddings into a folder, with their tokenizer if it is given. "default" are the base's own.

    Raises AdapterError for a name that is not there or a tokenizer of another vocabulary, Conflict for a folder with
    other files, UserError where the disk refuses.
    """
    rows, digest = embeddings_of(parts, backbone, name), parts.vocabularies.get(name)
    if tokenizer is not None:
        given = digest_of(tokenizer.get_vocab())
        if digest not in (None, given):
            raise AdapterError(f"embeddings {name!r} were made for another vocabulary than that of this tokenizer")
        digest = given
    saves = None if tokenizer is None else tokenizer.save_pretrained
    write_words(Path(path), rows, Facts(backbone.fingerprint, backbone.name, digest), saves)


def load_embeddings(parts: Parts, backbone: Backbone, path: str | Path, name: str) -> Any:
    """Add the embeddings in a folder, ours or AdapterHub's, make them active, and return the tokenizer saved with them.

    Without one, None. Raises NotFound, PackageError (a damaged file), Conflict (another base or width; AdapterHub's
    say nothing of a base but the width), AdapterError (a name in use). All of it or nothing.
    """
    check_unused(parts, name)
    read, width = read_words(Path(path)), table_of(backbone.model).embedding_dim
    if read.facts is not None and read.facts.fingerprint != backbone.fingerprint:
        raise Conflict(
            f"{path}: embeddings of another base: {read.facts.base or 'unnamed'} ({read.facts.fingerprint[:12]}); this "
            f"one is {backbone.name or 'unnamed'} ({backbone.fingerprint[:12]}). Load the base they were trained on"
        )
    if read.rows.shape[1] != width:
        raise Conflict(f"{path}: embeddings of width {read.rows.shape[1]}; this base reads width {width}")
    tokenizer = None if read.tokenizer is None else load_tokenizer(read.tokenizer)
    digest = read.facts.vocabulary if read.facts else None
    if tokenizer is not None:
        found = digest_of(tokenizer.get_vocab())
        if digest not in (None, found):
            raise PackageError(
                f"{read.tokenizer}: is the tokenizer of another vocabulary than the embeddings beside it"
            )
        digest = found
    put_embeddings(parts, backbone, name, read.rows, digest)
    return tokenizer
