"""Text classification: one text, one label of several. Rows {"text", "label"}; scored by accuracy, macro F1 and MCC.

Pairs and images ask the same question of two texts and of an image: how a class is read, answered and scored stands
here for all three.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

from graftwork.tasks.details import Details, calibration, classes
from graftwork.tasks.encoded import Encoded
from graftwork.tasks.metrics import class_scores
from graftwork.tasks.scorer import Scorer
from graftwork.tasks.task import Answer, Row, Task, checked_logits, missing, shown, text_problems
from graftwork.tasks.text import TextEncoder


@dataclass(frozen=True)
class OneLabel(Task):
    """One label of several for each row: what it is answered and scored by, whatever the row holds."""

    @property
    def main_score(self) -> str:
        return "accuracy"

    def target(self, row: Row, features: Encoded) -> int:
        return self.labels.index(str(row["label"]))

    def decode(self, logits: Any, encoded: Encoded) -> Answer:
        return class_answer(logits, self.labels)

    def scorer(self, answers: Sequence[Answer], rows: Sequence[Row]) -> Scorer:
        return class_scores([answer["label"] for answer in answers], [str(row["label"]) for row in rows])

    def details(self, answers: Sequence[Answer], rows: Sequence[Row]) -> Details:
        return class_details(answers, rows, self.labels)


@final
@dataclass(frozen=True)
class Classification(OneLabel):
    """One text, one label."""

    kind: ClassVar[str] = "classification"
    form: ClassVar[str] = '{"text", "label"}'
    head_kind: ClassVar[str] = "classification"
    head_layers: ClassVar[int] = 2

    def problems(self, row: Row, with_labels: bool) -> list[str]:
        found = text_problems(row, "text", self.form)
        return found + class_problems(row, self.labels, self.form) if with_labels else found

    def features(self, row: Row, encoder: TextEncoder) -> Encoded:
        return encoder.text(row["text"])


def class_problems(row: Row, labels: Sequence[str], form: str) -> list[str]:
    """What is wrong with the label of a row. A class is a string, or a whole number, which counts as its digits."""
    if "label" not in row:
        return [missing(row, "label", form)]
    label = row["label"]
    if isinstance(label, bool) or not isinstance(label, str | int) or label == "":
        hint = '; numbers to be predicted are task kind "regression"' if isinstance(label, float) else ""
        return [f'"label" is {label!r} ({type(label).__name__}); a class is a string or a whole number{hint}']
    if str(label) not in labels:
        return [f'"label" is "{label}", which is not one of the labels: {shown(labels)}']
    return []


def class_answer(logits: Any, labels: Sequence[str]) -> Answer:
    """{"label", "score", "scores"} from logits (L,): the likeliest label, its probability, and those of all labels."""
    probabilities = checked_logits(logits, 1, len(labels)).softmax(-1).tolist()
    scores = dict(zip(labels, probabilities, strict=True))
    best = max(scores, key=lambda label: scores[label])
    return {"label": best, "score": scores[best], "scores": scores}


def class_details(answers: Sequence[Answer], rows: Sequence[Row], labels: Sequence[str]) -> Details:
    """Each label, the confusion and the calibration of answers as `class_answer` gives them."""
    gold, places = [str(row["label"]) for row in rows], {label: place for place, label in enumerate(labels)}
    chances = [[answer["scores"][label] for label in labels] for answer in answers]
    found = classes([answer["label"] for answer in answers], gold, labels)
    return replace(found, calibration=calibration(chances, [places[label] for label in gold]))
