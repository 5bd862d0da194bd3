"""Images to tensors: the one place where images are read, for training and for serving alike.

An image is a file (its path), its bytes, or its bytes in base 64. What it is is checked when a row is encoded; it is
decoded and made to the base's size by the base's own image processor when a batch needs it, so that a data set need
not fit in memory. Only common formats are opened, and no image of more than MOST_PIXELS is ever decoded.

Does not know: labels, models, requests.
"""

import base64
import binascii
import hashlib
import json
import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError

from graftwork.errors import DataError
from graftwork.tasks.encoded import Encoded, label_tensor

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MOST_PIXELS = 64 * 10**6
MOST_BYTES = 32 * 2**20


class ImageEncoder:
    """The image processor of a base. `max_length` is that of the recipe, and means nothing for images."""

    def __init__(self, processor: Any, max_length: int = 1) -> None:
        self.processor = processor
        self.max_length = max_length

    @property
    def digest(self) -> str:
        """sha256 (hex) of everything that decides which numbers an image becomes."""
        written, place = self.processor.to_dict(), ("backend", "_processor_class")
        settings = {key: value for key, value in written.items() if key not in place}
        return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write the processor beside a model."""
        self.processor.save_pretrained(folder)

    def pad(self, rows: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """Rows of one batch as tensors: pixel_values (B, C, H, W), and labels (B,) where the rows have them."""
        pictures = [_picture(row.image) for row in rows if row.image is not None]
        made = self.processor(images=pictures, return_tensors="pt")
        batch: dict[str, torch.Tensor] = {"pixel_values": made["pixel_values"]}
        labels = [row.labels for row in rows if row.labels is not None]
        return batch | ({"labels": label_tensor(labels)} if labels else {})


def image_of(value: Any) -> Encoded:
    """An image by its path or bytes as a row, not decoded yet. Raises DataError for what is none that is read here."""
    if isinstance(value, bytes) and len(value) > MOST_BYTES:
        raise DataError(f"the image has {len(value)} bytes; at most {MOST_BYTES} are taken")
    row = Encoded((), None, image=value)
    what = f"{value!r}" if isinstance(value, str) else f"of {len(value)} bytes"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # there is a limit of our own
        try:
            with _opened(value) as picture:
                width, height = picture.size
                if width * height <= MOST_PIXELS:
                    picture.verify()
        except FileNotFoundError:
            raise DataError(f"the image {what} is not there; give a path that starts at the file of the rows") from None
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
            raise DataError(
                f"the image {what} cannot be read ({error}); it must be a sound {', '.join(FORMATS)} file"
            ) from None
    if width * height > MOST_PIXELS:
        raise DataError(f"the image {what} has {width} x {height} pixels; at most {MOST_PIXELS} are taken")
    return row


def decoded_base64(text: str) -> bytes:
    """The bytes that a text in base 64 stands for. Raises DataError."""
    if len(text) > MOST_BYTES * 4 // 3 + 4:
        raise DataError(f'"image_base64" has {len(text)} letters; at most {MOST_BYTES} bytes are taken')
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f'"image_base64" is no text in base 64 ({error})') from None


def _opened(value: str | bytes) -> Image.Image:
    return Image.open(BytesIO(value) if isinstance(value, bytes) else value, formats=FORMATS)


def _picture(value: str | bytes) -> Image.Image:
    """The image in three colours. Raises DataError where it is damaged further in."""
    try:
        with _opened(value) as picture:
            return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        what = f"{value!r}" if isinstance(value, str) else f"of {len(value)} bytes"
        raise DataError(f"the image {what} is damaged: {error}") from None
