"""Question answering: where in a context the answer to a question stands (Rajpurkar et al. 2016).

Rows {"text", "text_pair", "answers"}: the question, the context, and the answers that would be right, each a text that
stands in the context, or {"text", "start"} with its place in characters; none where the context does not say it. The
head's two numbers a piece are the start and the end of the answer; the best span of the context, at most LONGEST
pieces, is taken, and no answer where the first piece (which is not the context's) scores higher. Scored as SQuAD is:
exact match and F1 of words, in lower case and without articles and punctuation, by the best of the right answers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch

from graftwork.tasks.details import Details
from graftwork.tasks.encoded import IGNORED, Encoded
from graftwork.tasks.metrics import answer_scores
from graftwork.tasks.scorer import Scorer
from graftwork.tasks.task import Answer, Row, Task, checked_logits, missing, text_problems
from graftwork.tasks.text import TextEncoder
from graftwork.tasks.words import span_of

LONGEST = 30  # pieces of an answer


@final
@dataclass(frozen=True)
class Answering(Task):
    """A question and a context, a span of the context."""

    kind: ClassVar[str] = "question_answering"
    form: ClassVar[str] = '{"text", "text_pair", "answers"}: question, context, and answers that stand in it'
    has_labels: ClassVar[bool] = False
    outputs: ClassVar[int] = 2
    head_kind: ClassVar[str] = "question_answering"
    head_layers: ClassVar[int] = 1
    pools: ClassVar[bool] = False

    @property
    def main_score(self) -> str:
        return "f1"

    def problems(self, row: Row, with_labels: bool) -> list[str]:
        found = text_problems(row, "text", self.form) + text_problems(row, "text_pair", self.form)
        if found or not with_labels:
            return found
        if "answers" not in row:
            return [missing(row, "answers", self.form)]
        answers = row["answers"]
        if isinstance(answers, str | Mapping) or not isinstance(answers, Sequence):
            return [f'"answers" is {answers!r:.80}; it must be a list of texts, empty where there is no answer']
        return [
            f'"answers"[{number}] is {answer!r:.80}, which does not stand in the context'
            for number, answer in enumerate(answers)
            if span_of(answer, row["text_pair"]) is None
        ]

    def features(self, row: Row, encoder: TextEncoder) -> Encoded:
        return encoder.located(row["text"], row["text_pair"])

    def target(self, row: Row, features: Encoded) -> tuple[int, ...]:
        """(first piece, last piece) of the first answer; (0, 0) for none; IGNORED twice where it was cut off."""
        if not row["answers"]:
            return (0, 0)
        start, end = span_of(row["answers"][0], row["text_pair"]) or (0, 0)
        inside = [
            piece for piece, place in enumerate(features.offsets) if place and place[0] < end and place[1] > start
        ]
        whole = inside and (features.offsets[inside[-1]] or (0, 0))[1] >= end
        return (inside[0], inside[-1]) if whole else (IGNORED, IGNORED)

    def decode(self, logits: Any, encoded: Encoded) -> Answer:
        """{"answer", "start", "end", "score"}: the text and its place in the context, "" and None for no answer."""
        pieces = checked_logits(logits, 2, 2)[: len(encoded.input_ids)]  # (T, 2)
        real = torch.tensor([place is not None for place in encoded.offsets])
        starts, ends = (pieces[:, side].masked_fill(~real, float("-inf")) for side in (0, 1))
        scores = starts[:, None] + ends[None, :]  # (T, T): first piece, last piece
        allowed = torch.ones_like(scores, dtype=torch.bool).triu().tril(LONGEST - 1)
        scores = scores.masked_fill(~allowed, float("-inf"))
        best = int(scores.argmax())
        first, last = divmod(best, len(real))
        none = float(pieces[0].sum()) if not bool(real[0]) else float("-inf")
        found = float(scores[first, last])
        chance = float(torch.sigmoid(torch.tensor(found - none))) if none > float("-inf") else 1.0
        if none > found or found == float("-inf"):
            return {"answer": "", "start": None, "end": None, "score": 1 - chance}
        start, end = (encoded.offsets[first] or (0, 0))[0], (encoded.offsets[last] or (0, 0))[1]
        return {"answer": encoded.context[start:end], "start": start, "end": end, "score": chance}

    def scorer(self, answers: Sequence[Answer], rows: Sequence[Row]) -> Scorer:
        gold = [[_text(answer) for answer in row["answers"]] for row in rows]
        return answer_scores([answer["answer"] for answer in answers], gold)

    def details(self, answers: Sequence[Answer], rows: Sequence[Row]) -> Details:
        """None: the probability of an answer is that of its span against no answer at all, not of being right."""
        return Details()


def _text(answer: Any) -> str:
    return str(answer["text"] if isinstance(answer, Mapping) else answer)
