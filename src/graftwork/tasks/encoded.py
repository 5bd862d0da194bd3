"""One row as pieces, and rows of one batch as tensors. Shapes: B rows, T pieces, C texts a row.

Padding is on the right. A row may have several texts (the choices of a question, a pair of sentences to compare): its
`parts`, which become (B, C, T); every row of a batch then has as many. Labels are a number, or a list of their own
length, padded with IGNORED. Does not know tokenizers, labels' names or models.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from graftwork.tasks.words import Words

IGNORED = -100  # the label of a piece that no loss looks at
NO_WORD = -1  # fills `word_starts`

# a class or a place, a value, class numbers (tags, words, a span), values (each label yes or no), (head, relation)
Target: TypeAlias = int | float | tuple[int, ...] | tuple[float, ...] | tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row, not yet padded. T pieces, special ones included.

    word_ids: the word of each piece, None for special pieces; () if not split into words. words: what they count.
    offsets: the [start, end) of each piece in `context`, the second of two texts; None for all others. word_starts: the
    first piece of each word that is read, and the piece after the last one; `read` says which words those are. parts:
    the texts of a row that has several; the row then has no pieces of its own. texts: what `parts` say. truth: the
    pieces as they were before some were masked, or those that are to be said. asked: places of masks that came with the
    text. spell: ids to how the vocabulary writes them. cut: pieces lost to truncation. image: of a row that is one: its
    path, or its bytes.
    """

    input_ids: tuple[int, ...]  # (T,)
    token_type_ids: tuple[int, ...] | None  # (T,), where the tokenizer makes them
    word_ids: tuple[int | None, ...] = ()
    words: Words | None = None
    cut: int = 0
    labels: Target | None = None
    offsets: tuple[tuple[int, int] | None, ...] = ()
    context: str = ""
    word_starts: tuple[int, ...] = ()
    read: tuple[int, ...] = ()
    parts: tuple["Encoded", ...] = ()
    texts: tuple[str, ...] = ()
    truth: tuple[int, ...] = ()
    asked: tuple[int, ...] = ()
    spell: Callable[[list[int]], list[str]] | None = None
    image: str | bytes | None = None

    @property
    def length(self) -> int:
        """How many pieces the row runs over: T, or C times the longest of its texts."""
        return len(self.parts) * max(len(part.input_ids) for part in self.parts) if self.parts else len(self.input_ids)

    @property
    def rows(self) -> tuple["Encoded", ...]:
        """The row as texts that run side by side: itself, or its parts."""
        return self.parts or (self,)

    def first_pieces(self) -> dict[int, int]:
        """Word -> its first piece. A word without pieces (empty, control characters, cut off) has no entry."""
        first: dict[int, int] = {}
        for piece, word in enumerate(self.word_ids):
            if word is not None:
                first.setdefault(word, piece)
        return first


def padded(rows: Sequence[Encoded], pad_id: int, pad_type: int) -> dict[str, torch.Tensor]:
    """Rows of one batch as tensors: input_ids, attention_mask (B, T) or (B, C, T) long, padded to the longest.

    And token_type_ids, word_starts (B, W) and labels where the rows have them: (B,) long for classes, (B,) float for
    values, (B, longest) for lists, (B, longest, 2) for pairs.
    """
    texts = [text for row in rows for text in row.rows]
    width = max(len(text.input_ids) for text in texts)
    batch = {
        "input_ids": _rectangle([text.input_ids for text in texts], width, pad_id),
        "attention_mask": _rectangle([(1,) * len(text.input_ids) for text in texts], width, 0),
    }
    types = [text.token_type_ids for text in texts if text.token_type_ids is not None]
    if types:
        batch["token_type_ids"] = _rectangle(types, width, pad_type)
    if rows[0].parts:
        batch = {key: tensor.view(len(rows), -1, width) for key, tensor in batch.items()}
    if any(row.word_starts for row in rows):
        longest = max(len(row.word_starts) for row in rows)
        batch["word_starts"] = _rectangle([row.word_starts for row in rows], longest, NO_WORD)
    labels = [row.labels for row in rows if row.labels is not None]
    if labels:
        batch["labels"] = label_tensor(labels)
    return batch


def _rectangle(rows: Sequence[tuple[int, ...]], width: int, fill: int) -> torch.Tensor:
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], dtype=torch.long)  # (B, T)


def label_tensor(labels: Sequence[Target]) -> torch.Tensor:
    """The labels of a batch: (B,), (B, longest) or (B, longest, 2), as `padded` says."""
    lists = [label for label in labels if isinstance(label, tuple)]
    if not lists:
        return torch.tensor(labels, dtype=torch.float32 if isinstance(labels[0], float) else torch.long)
    width = max(len(label) for label in lists)
    sample = next((label[0] for label in lists if label), 0)
    fill = (IGNORED, IGNORED) if isinstance(sample, tuple) else IGNORED
    filled = [[*label, *[fill] * (width - len(label))] for label in lists]
    return torch.tensor(filled, dtype=torch.float32 if isinstance(sample, float) else torch.long)
