"""Regression: a text, or two, and a number. Rows {"text", "label"} or {"text", "text_pair", "label"}.

The head's single output is the value itself: nothing is scaled, so an answer has the unit of the labels. Scored by
Pearson's r, Spearman's rho and the mean squared error.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

from graftwork.tasks.details import Details, residuals
from graftwork.tasks.encoded import Encoded
from graftwork.tasks.metrics import value_scores
from graftwork.tasks.scorer import Scorer
from graftwork.tasks.task import Answer, Row, Task, checked_logits, missing, text_problems
from graftwork.tasks.text import TextEncoder


@final
@dataclass(frozen=True)
class Regression(Task):
    """One text or two, one number."""

    kind: ClassVar[str] = "regression"
    form: ClassVar[str] = '{"text", "label"} or {"text", "text_pair", "label"}, the label a number'
    has_labels: ClassVar[bool] = False
    head_kind: ClassVar[str] = "regression"
    head_layers: ClassVar[int] = 2

    @property
    def main_score(self) -> str:
        return "pearson"

    def problems(self, row: Row, with_labels: bool) -> list[str]:
        found = text_problems(row, "text", self.form)
        if row.get("text_pair") is not None:
            found += text_problems(row, "text_pair", self.form)
        if not with_labels:
            return found
        if "label" not in row:
            return [*found, missing(row, "label", self.form)]
        label = row["label"]
        if isinstance(label, bool) or not isinstance(label, int | float) or not math.isfinite(label):
            found.append(f'"label" is {label!r} ({type(label).__name__}); it must be a finite number')
        return found

    def features(self, row: Row, encoder: TextEncoder) -> Encoded:
        return encoder.text(row["text"], row.get("text_pair"))

    def target(self, row: Row, features: Encoded) -> float:
        return float(row["label"])

    def decode(self, logits: Any, encoded: Encoded) -> Answer:
        return {"value": float(checked_logits(logits, 1, 1)[0])}

    def scorer(self, answers: Sequence[Answer], rows: Sequence[Row]) -> Scorer:
        return value_scores([answer["value"] for answer in answers], [float(row["label"]) for row in rows])

    def details(self, answers: Sequence[Answer], rows: Sequence[Row]) -> Details:
        gold = [float(row["label"]) for row in rows]
        return Details(residuals=residuals([answer["value"] for answer in answers], gold))
