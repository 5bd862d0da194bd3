"""The words of a text, with their places in it: the one rule that splits raw text for a tagger. And of an answer.

The rule. White space and control characters separate words. Letters, digits, marks, underscores and joiners that touch
each other are one word; every punctuation mark or symbol is a word of its own. A mark or joiner belongs to what it
follows, so the vowel signs of Hindi or Tamil stay in their word (`\\w` of Python's `re` would cut there) and an emoji
keeps its variation selector.

    "12/4, एम जी रोड!"  ->  12 / 4 , एम जी रोड !

Knows no tokenizer: pieces smaller than words are the business of text.py.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Words:
    """A text and the words in it: `spans[i]` is the [start, end) of word i, in characters of `text`."""

    text: str
    spans: tuple[tuple[int, int], ...]

    @classmethod
    def of_text(cls, text: str) -> Self:
        """Split a raw text by the rule above."""
        return cls(text, tuple(_spans(text)))

    @classmethod
    def of_tokens(cls, tokens: Sequence[str]) -> Self:
        """Take words as they are given; `text` is the words joined by one space."""
        spans, start = [], 0
        for token in tokens:
            spans.append((start, start + len(token)))
            start += len(token) + 1
        return cls(" ".join(tokens), tuple(spans))

    @property
    def tokens(self) -> list[str]:
        """The words themselves, in order."""
        return [self.text[start:end] for start, end in self.spans]


def _spans(text: str) -> list[tuple[int, int]]:
    """The spans of the words of a text, in order and without overlap."""
    spans: list[tuple[int, int]] = []
    joins = False  # whether the next letter or digit goes on with the last word
    for place, character in enumerate(text):
        category = unicodedata.category(character)
        touches = bool(spans) and spans[-1][1] == place
        if category[0] == "Z" or category == "Cc":
            continue
        if category[0] == "M" or category == "Cf":
            extends, joins = touches, joins if touches else True
        elif category[0] in "PS" and category != "Pc":
            extends, joins = False, False
        else:
            extends, joins = touches and joins, True
        if extends:
            spans[-1] = (spans[-1][0], place + 1)
        else:
            spans.append((place, place + 1))
    return spans


def span_of(answer: Any, context: str) -> tuple[int, int] | None:
    """[start, end) of an answer in a context, in characters; None where it does not stand there, or is no answer."""
    text = answer.get("text") if isinstance(answer, Mapping) else answer
    if not isinstance(text, str) or not text:
        return None
    start = answer.get("start") if isinstance(answer, Mapping) else None
    start = context.find(text) if start is None else start
    if not isinstance(start, int) or start < 0 or context[start : start + len(text)] != text:
        return None
    return start, start + len(text)
