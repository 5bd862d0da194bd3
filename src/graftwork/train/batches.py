"""Tokenised rows as tensors, padded a batch at a time, without a Python loop over rows or tokens.

The numbers of all rows lie end to end in one array per field. A batch is one gather: token t of row b is at
start[b] + t, and what lies past the row's end becomes the field's filler. The result is what `TextEncoder.pad` makes of
the same rows, in a fraction of the time, which matters in the training step and nowhere else. Rows of several texts
(the choices of a question) are all of as many. Rows may be others in every epoch: `redraw` makes them so.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils.data import Dataset

from graftwork.tasks.encoded import IGNORED, NO_WORD, Encoded
from graftwork.tasks.images import ImageEncoder
from graftwork.tasks.task import Encoder, Redraw
from graftwork.tasks.text import TextEncoder

_STORED: dict[type, type] = {numpy.int64: numpy.int32}  # ids are small: half the memory


class _Lists:
    """Lists of numbers (or of pairs of them), end to end, and gathered as a rectangle with a filler."""

    def __init__(self, lists: Sequence[Sequence[Any]], filler: int, dtype: type = numpy.int64) -> None:
        self.lengths = numpy.array([len(one) for one in lists], dtype=numpy.int64)  # (rows,)
        starts = numpy.cumsum(self.lengths) - self.lengths
        self._starts = numpy.minimum(starts, max(int(self.lengths.sum()) - 1, 0))  # of an empty last one too
        self._numbers: numpy.ndarray = numpy.array(
            [number for one in lists for number in one], dtype=_STORED.get(dtype, dtype)
        )
        self._filler, self._dtype = filler, dtype

    @property
    def digest(self) -> str:
        """sha256 of the lists."""
        return hashlib.sha256(self.lengths.tobytes() + self._numbers.tobytes()).hexdigest()

    def gather(self, rows: numpy.ndarray) -> Tensor:
        """(B, longest), or (B, longest, 2) for pairs."""
        lengths = self.lengths[rows][:, None]  # (B, 1)
        places = numpy.arange(lengths.max())[None, :]  # (1, T)
        real = places < lengths  # (B, T)
        found = self._numbers[self._starts[rows][:, None] + numpy.where(real, places, 0)] if len(self._numbers) else (
            numpy.zeros(real.shape)
        )  # fmt: skip
        real = real[..., None] if found.ndim > 2 else real
        return torch.from_numpy(numpy.where(real, found, self._filler).astype(self._dtype))


class EncodedRows(Dataset[dict[str, Tensor]]):
    """Labelled rows as a data set. Ask for several rows at once (`__getitems__`), as a DataLoader does, for a batch.

    states: what is known of the hidden states of texts, (numbers (n,), T) -> (n, T, D), for batches to bring.
    """

    def __init__(self, rows: Sequence[Encoded], encoder: TextEncoder, redraw: Redraw | None = None) -> None:
        self._redraw, self._epoch = redraw, 0
        self.states: Callable[[Any, int], Tensor] | None = None
        rows = rows if redraw is None else [replace(row, input_ids=row.truth or row.input_ids) for row in rows]
        tokenizer, texts = encoder.tokenizer, [text for row in rows for text in row.rows]
        self.lengths = numpy.array([row.length for row in rows], dtype=numpy.int64)  # (rows,)
        self._parts = len(rows[0].parts) if rows else 0  # texts a row, 0 where a row is its own text
        self._texts = {
            "input_ids": _Lists([text.input_ids for text in texts], encoder.pad_id),
            "attention_mask": _Lists([(1,) * len(text.input_ids) for text in texts], 0),
        }
        if texts and texts[0].token_type_ids is not None:
            types = [text.token_type_ids or () for text in texts]
            self._texts["token_type_ids"] = _Lists(types, int(tokenizer.pad_token_type_id))
        self._lists: dict[str, _Lists] = {}
        if any(row.word_starts for row in rows):
            self._lists["word_starts"] = _Lists([row.word_starts for row in rows], NO_WORD)
        labels = [row.labels for row in rows]
        lists = [label for label in labels if isinstance(label, tuple)]
        if lists:
            values = any(isinstance(number, float) for label in lists for number in label)
            self._lists["labels"] = _Lists(lists, IGNORED, numpy.float32 if values else numpy.int64)
        self._labels = None if lists else torch.tensor(labels)  # (rows,) long or float

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def text_lengths(self) -> numpy.ndarray:
        """Pieces of every text, (texts,)."""
        return self._texts["input_ids"].lengths

    @property
    def digest(self) -> str:
        """sha256 of everything a model is given of the texts, in their order."""
        return hashlib.sha256(
            repr([(field, lists.digest) for field, lists in self._texts.items()]).encode()
        ).hexdigest()

    def texts(self, rows: numpy.ndarray) -> numpy.ndarray:
        """The texts of rows (B,), each row's side by side, (B·C,)."""
        return rows if not self._parts else (rows[:, None] * self._parts + numpy.arange(self._parts)).ravel()

    def set_epoch(self, epoch: int) -> None:
        """Hand out the rows as they are in this epoch."""
        self._epoch = epoch

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return self.__getitems__([row])

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """input_ids, attention_mask, perhaps token_type_ids (B, T) or (B, C, T); word_starts (B, W); labels.

        And where states are known `entering`, (B, T, D) or (B·C, T, D).
        """
        chosen = numpy.asarray(rows)
        texts = self.texts(chosen)
        batch = {field: lists.gather(texts) for field, lists in self._texts.items()}
        if self._parts:
            batch = {field: tensor.view(len(chosen), self._parts, -1) for field, tensor in batch.items()}
        batch |= {field: lists.gather(chosen) for field, lists in self._lists.items()}
        if self._labels is not None:
            batch["labels"] = self._labels[torch.from_numpy(chosen)]
        if self.states is not None:
            batch["entering"] = self.states(texts, batch["input_ids"].shape[-1])
        return batch if self._redraw is None else self._redraw(batch, chosen, self._epoch)


class ImageRows(Dataset[dict[str, Tensor]]):
    """Labelled images as a data set, decoded when a batch asks for them."""

    def __init__(self, rows: Sequence[Encoded], encoder: ImageEncoder) -> None:
        self._rows, self._encoder = rows, encoder

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return self.__getitems__([row])

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """pixel_values (B, C, H, W); labels."""
        return self._encoder.pad([self._rows[row] for row in rows])


def rows_of(rows: Sequence[Encoded], encoder: Encoder, redraw: Redraw | None = None) -> EncodedRows | ImageRows:
    """Labelled rows as the data set that fits what they are."""
    return ImageRows(rows, encoder) if isinstance(encoder, ImageEncoder) else EncodedRows(rows, encoder, redraw)


def as_it_is(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The collator for EncodedRows, which hands out whole batches already."""
    return batch
