"""Multiple choice: a text and several continuations or answers, one of them right. Rows {"text", "choices", "label"}.

Every choice goes in as a pair with the text; all rows of a task have as many. The label is the number of the right one,
from 0, and so are the task's labels: "0", "1", ... Scored by accuracy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

from graftwork.tasks.details import Details, calibration
from graftwork.tasks.encoded import Encoded
from graftwork.tasks.metrics import class_scores
from graftwork.tasks.scorer import Scorer, renamed
from graftwork.tasks.task import Answer, Row, Task, checked_logits, missing, string_problems, text_problems
from graftwork.tasks.text import TextEncoder


@final
@dataclass(frozen=True)
class Choice(Task):
    """One text, one of C choices."""

    kind: ClassVar[str] = "multiple_choice"
    form: ClassVar[str] = '{"text", "choices", "label"}, the label the number of a choice'
    head_kind: ClassVar[str] = "multiple_choice"
    head_layers: ClassVar[int] = 2

    @property
    def main_score(self) -> str:
        return "accuracy"

    def problems(self, row: Row, with_labels: bool) -> list[str]:
        found = text_problems(row, "text", self.form) + self._choice_problems(row)
        if with_labels and "label" not in row:
            found.append(missing(row, "label", self.form))
        elif with_labels and str(row["label"]) not in self.labels:
            found.append(f'"label" is {row["label"]!r}; it must be the number of a choice, 0 to {len(self.labels) - 1}')
        return found

    def _choice_problems(self, row: Row) -> list[str]:
        if "choices" not in row:
            return [missing(row, "choices", self.form)]
        choices = row["choices"]
        if isinstance(choices, str) or not isinstance(choices, Sequence) or len(choices) != len(self.labels):
            return [f'"choices" is {choices!r:.80}; it must be a list of {len(self.labels)} texts']
        return [problem for n, text in enumerate(choices) for problem in string_problems(text, f'"choices"[{n}]')]

    def features(self, row: Row, encoder: TextEncoder) -> Encoded:
        parts = tuple(encoder.text(row["text"], choice) for choice in row["choices"])
        return Encoded((), None, parts=parts, texts=tuple(row["choices"]), cut=sum(part.cut for part in parts))

    def target(self, row: Row, features: Encoded) -> int:
        return self.labels.index(str(row["label"]))

    def decode(self, logits: Any, encoded: Encoded) -> Answer:
        """{"label", "choice", "score", "scores"}: the number and the text of the likeliest choice, and all chances."""
        chances = checked_logits(logits, 1, len(self.labels)).softmax(-1).tolist()
        best = max(range(len(chances)), key=chances.__getitem__)
        return {"label": self.labels[best], "choice": encoded.texts[best], "score": chances[best], "scores": chances}

    def scorer(self, answers: Sequence[Answer], rows: Sequence[Row]) -> Scorer:
        right = class_scores([answer["label"] for answer in answers], [str(row["label"]) for row in rows])
        return renamed(right, {"accuracy": "accuracy"})

    def details(self, answers: Sequence[Answer], rows: Sequence[Row]) -> Details:
        """Calibration alone: the number of a choice means nothing beyond its row."""
        places = [self.labels.index(str(row["label"])) for row in rows]
        return Details(calibration=calibration([answer["scores"] for answer in answers], places))
