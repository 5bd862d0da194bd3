"""Multilabel classification: one text, any of several labels, perhaps none. Rows {"text", "labels"}.

Each label is a yes or a no of its own; it holds from a probability of one half on. Scored by F1 over all decisions
(micro), its mean over labels (macro), and the share of rows with every label right.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

from graftwork.tasks.details import Details, decision_calibration, memberships
from graftwork.tasks.encoded import Encoded
from graftwork.tasks.metrics import indicators, label_scores
from graftwork.tasks.scorer import Scorer
from graftwork.tasks.task import Answer, Row, Task, checked_logits, missing, shown, text_problems
from graftwork.tasks.text import TextEncoder


@final
@dataclass(frozen=True)
class Multilabel(Task):
    """One text, any labels."""

    kind: ClassVar[str] = "multilabel"
    form: ClassVar[str] = '{"text", "labels"}, the labels a list'
    head_kind: ClassVar[str] = "multilabel_classification"
    head_layers: ClassVar[int] = 2

    @property
    def main_score(self) -> str:
        return "f1_micro"

    def problems(self, row: Row, with_labels: bool) -> list[str]:
        found = text_problems(row, "text", self.form)
        if not with_labels:
            return found
        if "labels" not in row:
            return [*found, missing(row, "labels", self.form)]
        labels = row["labels"]
        if isinstance(labels, str) or not isinstance(labels, Sequence):
            return [*found, f'"labels" is {labels!r} ({type(labels).__name__}); it must be a list of labels']
        unknown = sorted({str(label) for label in labels} - set(self.labels))
        return [*found, *([f'"labels" holds {shown(unknown)}, not among: {shown(self.labels)}'] if unknown else [])]

    def features(self, row: Row, encoder: TextEncoder) -> Encoded:
        return encoder.text(row["text"])

    def target(self, row: Row, features: Encoded) -> tuple[float, ...]:
        """(L,) 1.0 for a label that holds."""
        holds = {str(label) for label in row["labels"]}
        return tuple(float(label in holds) for label in self.labels)

    def decode(self, logits: Any, encoded: Encoded) -> Answer:
        """{"labels", "scores"}: those that hold, and the probability of each."""
        chances = checked_logits(logits, 1, len(self.labels)).sigmoid().tolist()
        scores = dict(zip(self.labels, chances, strict=True))
        return {"labels": [label for label, chance in scores.items() if chance >= 0.5], "scores": scores}

    def scorer(self, answers: Sequence[Answer], rows: Sequence[Row]) -> Scorer:
        gold = [[str(label) for label in row["labels"]] for row in rows]
        return label_scores([answer["labels"] for answer in answers], gold, self.labels)

    def details(self, answers: Sequence[Answer], rows: Sequence[Row]) -> Details:
        gold = [[str(label) for label in row["labels"]] for row in rows]
        chances = [[answer["scores"][label] for label in self.labels] for answer in answers]
        return Details(
            labels=memberships([answer["labels"] for answer in answers], gold, self.labels),
            calibration=decision_calibration(chances, indicators(gold, self.labels)),
        )
