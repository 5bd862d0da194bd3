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
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from graftwork.errors import BackboneError, DataError, InputTooLong, UserError
from graftwork.tasks.encoded import Encoded, padded
from graftwork.tasks.words import Words


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

    @property
    def digest(self) -> str:
        """The digest of the vocabulary."""
        return vocabulary_digest(self.tokenizer)

    def save(self, folder: Path) -> None:
        """Write the tokenizer beside a model."""
        self.tokenizer.save_pretrained(folder)

    def text(self, text: str, pair: str | None = None) -> Encoded:
        """Encode one text, or two as a pair. Raises InputTooLong, and DataError where no piece comes out."""
        return self._encode(text, pair)

    def located(self, question: str, context: str) -> Encoded:
        """Encode two texts as a pair, keeping where each piece of the second lies in it. Raises as `text` does."""
        return self._encode(question, context, located=True)

    def target(self, text: str) -> Encoded:
        """Encode a text that is to be said, in the language that the tokenizer has for those. Raises as `text` does."""
        return self._encode(text, None, said=True)

    def words(self, words: Words) -> Encoded:
        """Encode words, keeping the word of every piece. Raises as `text` does."""
        return self._encode(words, None)

    def pad(self, rows: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """Rows of one batch as tensors, padded on the right to the longest row: see `padded`.

        A vocabulary without a padding piece (GPT-2, Llama) is padded with its end-of-sequence piece, masked out.
        """
        return padded(rows, self.pad_id, int(self.tokenizer.pad_token_type_id))

    @property
    def pad_id(self) -> int:
        """The id that fills a row: padding, else end of sequence, else 0. The mask hides it in any case."""
        candidates = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(int(candidate) for candidate in candidates if candidate is not None)

    def _encode(self, first: str | Words, second: str | None, located: bool = False, said: bool = False) -> Encoded:
        ask = self._said if said else self._pieces
        pieces = ask(first, second)
        length = len(pieces["input_ids"][0])
        if length > self.max_length:
            if self.too_long == "refuse":
                raise InputTooLong(
                    f"the text has {length} pieces and the limit is {self.max_length}: shorten it or split it in two"
                )
            pieces = ask(first, second, truncation="longest_first", max_length=self.max_length)
        ids = tuple(pieces["input_ids"][0])
        if not ids:
            raise DataError("the text is empty for this tokenizer: it gives no piece at all; leave the row out")
        return Encoded(
            input_ids=ids,
            token_type_ids=tuple(pieces["token_type_ids"][0]) if "token_type_ids" in pieces else None,
            word_ids=tuple(pieces.word_ids(0)) if isinstance(first, Words) else (),
            words=first if isinstance(first, Words) else None,
            cut=length - len(ids),
            offsets=_offsets(pieces.encodings[0]) if located else (),
            context=second if located and second is not None else "",
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

    def _said(
        self, first: str | Words, _: str | None, truncation: str | bool = False, max_length: int | None = None
    ) -> Any:
        return self.tokenizer(
            text_target=[first],
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


def _offsets(encoding: Any) -> tuple[tuple[int, int] | None, ...]:
    """The place of each piece in the second text, None for pieces of the first and special ones."""
    places = zip(encoding.sequence_ids, encoding.offsets, strict=True)
    return tuple((int(start), int(end)) if text == 1 else None for text, (start, end) in places)


def _glues_words(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether words given one by one lose the space between them, found by asking: does "a a" come out as a, a?"""

    def ids(text: Any) -> list[int]:
        split = isinstance(text, list)
        encoded = tokenizer(
            [text], is_split_into_words=split, add_special_tokens=False, truncation=False, padding=False
        )
        return list(encoded["input_ids"][0])

    return ids("a a") != ids(["a", "a"]) and ids("a a") == ids(["a", " a"])


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
