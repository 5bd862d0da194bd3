"""Sentence pairs: two texts, one label for what holds between them. Rows {"text", "text_pair", "label"}.

The two texts go in as one sequence, in the tokenizer's own form for pairs; a long pair is cut at its longer side.
Classes are read, answered and scored as in classify.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

from graftwork.tasks.classify import class_answer, class_details, class_problems
from graftwork.tasks.details import Details
from graftwork.tasks.encoded import Encoded
from graftwork.tasks.metrics import class_scores
from graftwork.tasks.scorer import Scorer
from graftwork.tasks.task import Answer, Row, Task, text_problems
from graftwork.tasks.text import TextEncoder


@final
@dataclass(frozen=True)
class Pair(Task):
    """Two texts, one label."""

    kind: ClassVar[str] = "pair"
    form: ClassVar[str] = '{"text", "text_pair", "label"}'
    head_kind: ClassVar[str] = "classification"
    head_layers: ClassVar[int] = 2

    @property
    def main_score(self) -> str:
        return "accuracy"

    def problems(self, row: Row, with_labels: bool) -> list[str]:
        found = text_problems(row, "text", self.form) + text_problems(row, "text_pair", self.form)
        return found + class_problems(row, self.labels, self.form) if with_labels else found

    def features(self, row: Row, encoder: TextEncoder) -> Encoded:
        return encoder.text(row["text"], row["text_pair"])

    def target(self, row: Row, features: Encoded) -> int:
        return self.labels.index(str(row["label"]))

    def decode(self, logits: Any, encoded: Encoded) -> Answer:
        return class_answer(logits, self.labels)

    def scorer(self, answers: Sequence[Answer], rows: Sequence[Row]) -> Scorer:
        return class_scores([answer["label"] for answer in answers], [str(row["label"]) for row in rows])

    def details(self, answers: Sequence[Answer], rows: Sequence[Row]) -> Details:
        return class_details(answers, rows, self.labels)
