"""Sentence pairs: two texts, one label for what holds between them. Rows {"text", "text_pair", "label"}.

The two texts go in as one sequence, in the tokenizer's own form for pairs; a long pair is cut at its longer side.
Classes are read, answered and scored as in classify.py.
"""

from dataclasses import dataclass
from typing import ClassVar, final

from graftwork.tasks.classify import OneLabel, class_problems
from graftwork.tasks.encoded import Encoded
from graftwork.tasks.task import Row, text_problems
from graftwork.tasks.text import TextEncoder


@final
@dataclass(frozen=True)
class Pair(OneLabel):
    """Two texts, one label."""

    kind: ClassVar[str] = "pair"
    form: ClassVar[str] = '{"text", "text_pair", "label"}'
    head_kind: ClassVar[str] = "classification"
    head_layers: ClassVar[int] = 2

    def problems(self, row: Row, with_labels: bool) -> list[str]:
        found = text_problems(row, "text", self.form) + text_problems(row, "text_pair", self.form)
        return found + class_problems(row, self.labels, self.form) if with_labels else found

    def features(self, row: Row, encoder: TextEncoder) -> Encoded:
        return encoder.text(row["text"], row["text_pair"])
