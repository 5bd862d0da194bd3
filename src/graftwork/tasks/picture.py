"""Image classification: one image, one label of several. Rows {"image", "label"}, the image the path of a file.

Asked over HTTP, an image comes as {"image_base64"}: a server opens no file that a request names. Scored by accuracy,
macro F1 and MCC.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

from graftwork.tasks.classify import class_answer, class_details, class_problems
from graftwork.tasks.details import Details
from graftwork.tasks.encoded import Encoded
from graftwork.tasks.images import decoded_base64, image_of
from graftwork.tasks.metrics import class_scores
from graftwork.tasks.scorer import Scorer
from graftwork.tasks.task import Answer, Row, Task, missing
from graftwork.tasks.text import TextEncoder


@final
@dataclass(frozen=True)
class ImageClassification(Task):
    """One image, one label."""

    kind: ClassVar[str] = "image_classification"
    form: ClassVar[str] = '{"image", "label"}, the image the path of a file'
    head_kind: ClassVar[str] = "image_classification"
    head_layers: ClassVar[int] = 1
    reads_images: ClassVar[bool] = True

    @property
    def main_score(self) -> str:
        return "accuracy"

    def problems(self, row: Row, with_labels: bool) -> list[str]:
        given = [key for key in ("image", "image_base64") if row.get(key) is not None]
        if len(given) == 1:
            value, types = row[given[0]], (str, bytes) if given == ["image"] else (str,)
            fine = isinstance(value, types) and bool(value)
            found = [] if fine else [f'"{given[0]}" is {value!r:.80}; it must be an image']
        else:
            found = [missing(row, "image", self.form)] if not given else ['give "image" or "image_base64", not both']
        return found + (class_problems(row, self.labels, self.form) if with_labels else [])

    def features(self, row: Row, encoder: TextEncoder) -> Encoded:
        """The image, checked and not decoded; no encoder is needed for that."""
        return image_of(row["image"] if row.get("image") is not None else decoded_base64(row["image_base64"]))

    def target(self, row: Row, features: Encoded) -> int:
        return self.labels.index(str(row["label"]))

    def decode(self, logits: Any, encoded: Encoded) -> Answer:
        return class_answer(logits, self.labels)

    def scorer(self, answers: Sequence[Answer], rows: Sequence[Row]) -> Scorer:
        return class_scores([answer["label"] for answer in answers], [str(row["label"]) for row in rows])

    def details(self, answers: Sequence[Answer], rows: Sequence[Row]) -> Details:
        return class_details(answers, rows, self.labels)
