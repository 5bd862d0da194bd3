"""Tokenised rows as tensors, padded a batch at a time, without a Python loop over rows or tokens.

The numbers of all rows lie end to end in one array per field. A batch is one gather: token t of row b is at
start[b] + t, and what lies past the row's end becomes the field's filler. The result is what `TextEncoder.pad` makes of
the same rows, in a fraction of the time, which matters in the training step and nowhere else.
"""

from collections.abc import Sequence

import numpy
import torch
from torch import Tensor
from torch.utils.data import Dataset

from graftwork.tasks.text import IGNORED, Encoded, TextEncoder


class EncodedRows(Dataset[dict[str, Tensor]]):
    """Labelled rows as a data set. Ask for several rows at once (`__getitems__`), as a DataLoader does, for a batch."""

    def __init__(self, rows: Sequence[Encoded], encoder: TextEncoder) -> None:
        tokenizer = encoder.tokenizer
        self.lengths = numpy.array([len(row.input_ids) for row in rows], dtype=numpy.int64)  # (rows,)
        self._starts = numpy.cumsum(self.lengths) - self.lengths
        self._fields: dict[str, tuple[numpy.ndarray, int]] = {  # field -> (tokens of all rows,), filler
            "input_ids": (_flat([row.input_ids for row in rows]), encoder.pad_id)
        }
        if rows and rows[0].token_type_ids is not None:
            types = [row.token_type_ids or () for row in rows]
            self._fields["token_type_ids"] = (_flat(types), int(tokenizer.pad_token_type_id))
        labels = [row.labels for row in rows]
        tags = [label for label in labels if isinstance(label, tuple)]
        if tags:
            self._fields["labels"] = (_flat(tags), IGNORED)
        self._labels = None if tags else torch.tensor(labels)  # (rows,) long or float

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return self.__getitems__([row])

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """input_ids, attention_mask, perhaps token_type_ids (B, T); labels (B,), or (B, T) for tags."""
        chosen = numpy.asarray(rows)
        lengths = self.lengths[chosen][:, None]  # (B, 1)
        places = numpy.arange(lengths.max())[None, :]  # (1, T)
        real = places < lengths  # (B, T)
        where = self._starts[chosen][:, None] + numpy.where(real, places, 0)
        batch = {
            field: torch.from_numpy(numpy.where(real, flat[where], filler).astype(numpy.int64))
            for field, (flat, filler) in self._fields.items()
        }
        batch["attention_mask"] = torch.from_numpy(real.astype(numpy.int64))
        if self._labels is not None:
            batch["labels"] = self._labels[torch.from_numpy(chosen)]
        return batch


def as_it_is(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The collator for EncodedRows, which hands out whole batches already."""
    return batch


def _flat(rows: Sequence[Sequence[int]]) -> numpy.ndarray:
    return numpy.fromiter((number for row in rows for number in row), dtype=numpy.int32)
