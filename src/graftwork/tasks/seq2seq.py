"""Sequence to sequence: a text that answers a text (Sutskever et al. 2014). Rows {"text", "target"}.

Learned by teacher forcing: each piece of the target from the text and the pieces before it. Asked with {"text"}, the
answer is what the model says, piece by piece, each the likeliest; with a "target" beside it, also how surely the target
would be said. Scored by the mean log-likelihood of a piece, perplexity and accuracy of pieces, and, where the model has
spoken, by how many texts are exactly the target but for white space. Needs an encoder-decoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch

from graftwork.tasks.encoded import Encoded
from graftwork.tasks.language import Language, told
from graftwork.tasks.scorer import Scorer, joined, summed
from graftwork.tasks.task import Answer, Row, checked_logits, missing, text_problems
from graftwork.tasks.text import TextEncoder


@final
@dataclass(frozen=True)
class SequenceToSequence(Language):
    """One text, another text."""

    kind: ClassVar[str] = "seq2seq_lm"
    form: ClassVar[str] = '{"text", "target"}: a text, and the text to say'
    head_kind: ClassVar[str] = "seq2seq_lm"
    head_layers: ClassVar[int] = 1
    speaks: ClassVar[bool] = True

    def problems(self, row: Row, with_labels: bool) -> list[str]:
        found = text_problems(row, "text", self.form)
        if row.get("target") is not None:
            return found + text_problems(row, "target", self.form)
        return [*found, missing(row, "target", self.form)] if with_labels else found

    def features(self, row: Row, encoder: TextEncoder) -> Encoded:
        whole = encoder.text(row["text"])
        if row.get("target") is None:
            return whole
        target = encoder.target(row["target"])
        return replace(whole, truth=target.input_ids, cut=whole.cut + target.cut)

    def target(self, row: Row, features: Encoded) -> tuple[int, ...]:
        """(W,) the pieces to say."""
        return features.truth

    def decode(self, logits: Any, encoded: Encoded) -> Answer:
        """{"pieces", "right", "log_likelihood", "perplexity"} of the target, from logits (W or more, V)."""
        logits = checked_logits(logits, 2, torch.as_tensor(logits).shape[-1])[: len(encoded.truth)]
        return told(logits, torch.tensor(encoded.truth))

    def scorer(self, answers: Sequence[Answer], rows: Sequence[Row]) -> Scorer:
        scores = super().scorer(answers, rows)
        if any("text" not in answer for answer in answers):
            return scores
        same = [answer["text"].split() == str(row["target"]).split() for answer, row in zip(answers, rows, strict=True)]
        exact = summed([(one, 1) for one in same], lambda hits, count: {"exact_match": hits / count})
        return joined(scores, exact)
