"""Texts to pieces: the one place where text is tokenised, for training and for serving alike.

A fast Hugging Face tokenizer makes the pieces; this file decides what is asked of it: single texts, pairs, words given
one by one (with the word of every piece), what a text meets that is too long, and padding. Shapes: B rows, T pieces.

Padding is on the right for every model, whatever `tokenizer.padding_side` says: absolute positions then start at 0 in
training and in serving, and a decoder that pools the last real piece finds it through the attention mask.

Byte-level vocabularies (GPT-2, RoBERTa, Llama 3, ModernBERT) write the space before a word into its first piece. Words
given one by one would be glued together, so each gets a space in front, which is what `add_prefix_space=True` does.

Does not know: labels' names, models, files.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from graftwork.errors import BackboneError, DataError, InputTooLong, UserError
from graftwork.tasks.words import Words

IGNORED = -100  # the label of a piece that no loss looks at


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row, not yet padded. T pieces, special ones included."""

    input_ids: tuple[int, ...]  # (T,)
    token_type_ids: tuple[int, ...] | None  # (T,), where the tokenizer makes them
    word_ids: tuple[
        int | None, ...
    ] = ()  # (T,) the word of each piece, None for special pieces; () if not split into words
    words: Words | None = None  # what word_ids count, if the row was split into words
    cut: int = 0  # pieces lost to truncation
    labels: int | float | tuple[int, ...] | None = None  # class index, value, or (T,) tag indices with IGNORED

    def first_pieces(self) -> dict[int, int]:
        """Word -> its first piece. A word without pieces (empty, control characters, cut off) has no entry."""
        first: dict[int, int] = {}
        for piece, word in enumerate(self.word_ids):
            if word is not None:
                first.setdefault(word, piece)
        return first


class TextEncoder:
    """A tokenizer with a limit. `too_long` says what a text over `max_length` pieces meets: "truncate" or "refuse".

    Raises BackboneError for a tokenizer that is not fast, UserError for a limit that it cannot keep.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int, too_long: Literal["truncate", "refuse"] = "refuse"
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise BackboneError(
                f"the tokenizer {type(tokenizer).__name__} is not a fast tokenizer, and only those tell which word a "
                "piece belongs to; load it with transformers.AutoTokenizer, from a folder that holds a tokenizer.json"
            )
        special = tokenizer.num_special_tokens_to_add(pair=True)
        longest = tokenizer.model_max_length  # about 1e30 where the tokenizer does not say
        if not special + 2 <= max_length <= longest:
            allowed = f"at least {special + 2}" + (f" and at most {longest}" if longest < 10**9 else "")
            raise UserError(f"max_length is {max_length}; this tokenizer ({type(tokenizer).__name__}) allows {allowed}")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.too_long = too_long
        self._space_before_words = _glues_words(tokenizer)

    def text(self, text: str, pair: str | None = None) -> Encoded:
        """Encode one text, or two as a pair. Raises InputTooLong, and DataError where no piece comes out."""
        return self._encode(text, pair)

    def words(self, words: Words) -> Encoded:
        """Encode words, keeping the word of every piece. Raises as `text` does."""
        return self._encode(words, None)

    def pad(self, rows: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """Rows of one batch as tensors, padded on the right to the longest row.

        Returns input_ids, attention_mask (B, T) long, token_type_ids (B, T) long where the tokenizer makes them, and
        labels where the rows have them: (B,) long for classes, (B,) float for values, (B, T) long for tags.
        A vocabulary without a padding piece (GPT-2, Llama) is padded with its end-of-sequence piece, masked out.
        """
        width = max(len(row.input_ids) for row in rows)
        batch = {
            "input_ids": _rectangle([row.input_ids for row in rows], width, self.pad_id),
            "attention_mask": _rectangle([(1,) * len(row.input_ids) for row in rows], width, 0),
        }
        types = [row.token_type_ids for row in rows if row.token_type_ids is not None]
        if types:
            batch["token_type_ids"] = _rectangle(types, width, self.tokenizer.pad_token_type_id)
        labels = [row.labels for row in rows if row.labels is not None]
        if labels:
            batch["labels"] = _label_tensor(labels, width)
        return batch

    @property
    def pad_id(self) -> int:
        """The id that fills a row: padding, else end of sequence, else 0. The mask hides it in any case."""
        candidates = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(int(candidate) for candidate in candidates if candidate is not None)

    def _encode(self, first: str | Words, second: str | None) -> Encoded:
        pieces = self._pieces(first, second)
        length = len(pieces["input_ids"][0])
        if length > self.max_length:
            if self.too_long == "refuse":
                raise InputTooLong(
                    f"the text has {length} pieces and the limit is {self.max_length}: shorten it or split it in two"
                )
            pieces = self._pieces(first, second, truncation="longest_first", max_length=self.max_length)
        ids = tuple(pieces["input_ids"][0])
        if not ids:
            raise DataError("the text is empty for this tokenizer: it gives no piece at all; leave the row out")
        return Encoded(
            input_ids=ids,
            token_type_ids=tuple(pieces["token_type_ids"][0]) if "token_type_ids" in pieces else None,
            word_ids=tuple(pieces.word_ids(0)) if isinstance(first, Words) else (),
            words=first if isinstance(first, Words) else None,
            cut=length - len(ids),
        )

    def _pieces(
        self, first: str | Words, second: str | None, truncation: str | bool = False, max_length: int | None = None
    ) -> Any:
        # Always a batch of one: outside a batch, the tokenizer takes an empty second text for none.
        return self.tokenizer(
            [self._spaced(first)] if isinstance(first, Words) else [first],
            None if second is None else [second],
            is_split_into_words=isinstance(first, Words),
            truncation=truncation,
            max_length=max_length,
            padding=False,
            return_attention_mask=False,
            verbose=False,
        )

    def _spaced(self, words: Words) -> list[str]:
        if not self._space_before_words:
            return words.tokens
        return [f" {word}" if word and not word[0].isspace() else word for word in words.tokens]


def _glues_words(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether words given one by one lose the space between them, found by asking: does "a a" come out as a, a?"""

    def ids(text: Any) -> list[int]:
        split = isinstance(text, list)
        encoded = tokenizer(
            [text], is_split_into_words=split, add_special_tokens=False, truncation=False, padding=False
        )
        return list(encoded["input_ids"][0])

    return ids("a a") != ids(["a", "a"]) and ids("a a") == ids(["a", " a"])


def _rectangle(rows: Sequence[tuple[int, ...]], width: int, fill: int) -> torch.Tensor:
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], dtype=torch.long)  # (B, T)


def _label_tensor(labels: Sequence[int | float | tuple[int, ...]], width: int) -> torch.Tensor:
    tags = [label for label in labels if isinstance(label, tuple)]
    if tags:
        return _rectangle(tags, width, IGNORED)
    return torch.tensor(labels, dtype=torch.float32 if isinstance(labels[0], float) else torch.long)


def vocabulary_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 (hex) of everything that decides which ids a text gets: vocabulary, merges, normalisation, special pieces.

    Truncation and padding are state, not vocabulary, and decoding makes no ids: none of them counts. Absent, null and
    false settings count as the same, so a setting that a newer tokenizers library adds, switched off, changes nothing.
    Raises BackboneError for a tokenizer that is not fast.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise BackboneError(
            f"the tokenizer {type(tokenizer).__name__} is not a fast tokenizer, so its vocabulary has no digest"
        )
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    for name in ("version", "truncation", "padding", "decoder"):
        settings.pop(name, None)
    settings["added_tokens"] = sorted(
        ({key: value for key, value in token.items() if key != "special"} for token in settings["added_tokens"]),
        key=lambda token: int(token["id"]),
    )
    settings["vocabulary"] = tokenizer.get_vocab()
    canonical = json.dumps(_without_defaults(settings), sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def _without_defaults(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_defaults(item) for key, item in value.items() if item is not None and item is not False}
    return [_without_defaults(item) for item in value] if isinstance(value, list) else value
