"""Image classification: one image, one label of several. Rows {"image", "label"}, the image the path of a file.

Asked over HTTP, an image comes as {"image_base64"}: a server opens no file that a request names. Scored by accuracy,
macro F1 and MCC.
"""

from dataclasses import dataclass
from typing import ClassVar, final

from graftwork.tasks.classify import OneLabel, class_problems
from graftwork.tasks.encoded import Encoded
from graftwork.tasks.images import decoded_base64, image_of
from graftwork.tasks.task import Row, missing
from graftwork.tasks.text import TextEncoder


@final
@dataclass(frozen=True)
class ImageClassification(OneLabel):
    """One image, one label."""

    kind: ClassVar[str] = "image_classification"
    form: ClassVar[str] = '{"image", "label"}, the image the path of a file'
    head_kind: ClassVar[str] = "image_classification"
    head_layers: ClassVar[int] = 1
    reads_images: ClassVar[bool] = True

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
