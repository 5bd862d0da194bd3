"""Sentence embeddings: a vector for a text, near to those of texts that mean the same (Reimers & Gurevych 2019).

Rows {"text", "text_pair"}: two texts that belong together; those of other rows are what they are told from. Or
{"text", "text_pair", "label"}: two texts and their similarity, a number from -1 to 1, in all rows or in none. Asked
with {"text"}, the answer is its embedding. Scored by Spearman's rho and Pearson's r of the cosine where there are
labels, else by how often the partner of a text is the nearest of all partners.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy
import torch

from graftwork.errors import AdapterError
from graftwork.tasks.details import Details, residuals
from graftwork.tasks.encoded import Encoded
from graftwork.tasks.metrics import value_scores
from graftwork.tasks.scorer import Scorer, renamed, summed
from graftwork.tasks.task import Answer, Row, Task, checked_logits, missing, text_problems
from graftwork.tasks.text import TextEncoder


@final
@dataclass(frozen=True)
class Similarity(Task):
    """One text or two, a vector each."""

    kind: ClassVar[str] = "similarity"
    form: ClassVar[str] = '{"text", "text_pair"}, and a "label" between -1 and 1 in all rows or in none'
    has_labels: ClassVar[bool] = False
    follows_base: ClassVar[bool] = True
    head_kind: ClassVar[str] = "sentence_embedding"
    head_layers: ClassVar[int] = 0

    @property
    def main_score(self) -> str:
        return "nearness"

    def problems(self, row: Row, with_labels: bool) -> list[str]:
        found = text_problems(row, "text", self.form)
        if with_labels and row.get("text_pair") is None:
            return [*found, missing(row, "text_pair", self.form)]
        if row.get("text_pair") is not None:
            found += text_problems(row, "text_pair", self.form)
        label = row.get("label")
        number = isinstance(label, int | float) and not isinstance(label, bool) and math.isfinite(label)
        if with_labels and label is not None and not (number and -1 <= label <= 1):
            found.append(f'"label" is {label!r} ({type(label).__name__}); it must be a number from -1 to 1')
        return found

    def features(self, row: Row, encoder: TextEncoder) -> Encoded:
        texts = [row["text"], *([row["text_pair"]] if row.get("text_pair") is not None else [])]
        if len(texts) == 1:
            return encoder.text(texts[0])
        parts = tuple(encoder.text(text) for text in texts)
        return Encoded((), None, parts=parts, texts=tuple(texts), cut=sum(part.cut for part in parts))

    def target(self, row: Row, features: Encoded) -> int | float:
        """The similarity, or a number that is the same for the same partner, which is no negative of itself."""
        if row.get("label") is not None:
            return float(row["label"])
        return zlib.crc32(str(row["text_pair"]).encode())

    def decode(self, logits: Any, encoded: Encoded) -> Answer:
        """{"embedding"} of one text (E,), or {"embeddings", "similarity"} of two (2, E)."""
        tensor = torch.as_tensor(logits)
        made = checked_logits(tensor, 2 if encoded.parts else 1, tensor.shape[-1])
        if not encoded.parts:
            return {"embedding": made.tolist()}
        if len(made) != 2:
            raise AdapterError(f"the head answers with {len(made)} embeddings for a row of 2 texts")
        return {"embeddings": made.tolist(), "similarity": float(torch.cosine_similarity(made[0], made[1], dim=0))}

    def scorer(self, answers: Sequence[Answer], rows: Sequence[Row]) -> Scorer:
        """nearness is rho where there are labels, else the share of texts whose partner is the nearest.

        Whatever the weights, a partner is looked for among those of all rows: fewer would make it easier.
        """
        if all(row.get("label") is not None for row in rows):
            similar = [answer["similarity"] for answer in answers]
            scores = value_scores(similar, [float(row["label"]) for row in rows])
            return renamed(scores, {"nearness": "spearman", "spearman": "spearman", "pearson": "pearson"})
        if len(answers) != len(rows) or not rows:
            raise ValueError(f"{len(answers)} answers for {len(rows)} rows: a score needs one each, and at least one")
        pairs = numpy.asarray([answer["embeddings"] for answer in answers], dtype=numpy.float64)  # (N, 2, E)
        pairs /= numpy.maximum(numpy.linalg.norm(pairs, axis=-1, keepdims=True), 1e-12)
        nearest = (pairs[:, 0] @ pairs[:, 1].T).argmax(axis=1)
        partners = [str(row["text_pair"]) for row in rows]
        right = [(partners[found] == partners[own], 1) for own, found in enumerate(nearest.tolist())]
        return summed(right, lambda hits, count: {"nearness": hits / count, "retrieval": hits / count})

    def details(self, answers: Sequence[Answer], rows: Sequence[Row]) -> Details:
        """Residuals of the cosine, where there are labels."""
        if any(row.get("label") is None for row in rows):
            return Details()
        similar = [answer["similarity"] for answer in answers]
        return Details(residuals=residuals(similar, [float(row["label"]) for row in rows]))
