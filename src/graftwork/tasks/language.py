"""Language modelling: texts are their own labels. Rows {"text"}.

Masked (Devlin et al. 2019): 15 % of the pieces of a text are replaced by the mask; where a text holds masks already,
those are the ones. To score, they are chosen by the text's own content, so that they are always the same; to train,
anew in every epoch, as `masking.py` says. Causal: every piece is to be told from those before it. Scored by accuracy of
pieces, the mean log-likelihood of a piece, and perplexity (exp of its negative), over all pieces of all rows.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import numpy
import torch

from graftwork.errors import DataError
from graftwork.tasks.details import Details
from graftwork.tasks.encoded import IGNORED, Encoded
from graftwork.tasks.masking import Masking
from graftwork.tasks.scorer import Numbers, Scorer, share, summed
from graftwork.tasks.task import Answer, Encoder, Redraw, Row, Task, checked_logits, text_problems
from graftwork.tasks.text import TextEncoder

MASKED = 0.15  # share of the pieces that are hidden
LISTED = 5  # candidates an answer names for each mask


@dataclass(frozen=True)
class Language(Task):
    """What language modelling has in common: no labels, a head that the base shapes, scores over pieces."""

    form: ClassVar[str] = '{"text"}'
    has_labels: ClassVar[bool] = False
    follows_base: ClassVar[bool] = True
    head_layers: ClassVar[int] = 2
    pools: ClassVar[bool] = False
    untold: ClassVar[str]  # why a text may have nothing to be told

    @property
    def main_score(self) -> str:
        return "log_likelihood"

    def problems(self, row: Row, with_labels: bool) -> list[str]:
        return text_problems(row, "text", self.form)

    def scorer(self, answers: Sequence[Answer], rows: Sequence[Row]) -> Scorer:
        if len(answers) != len(rows) or not rows:
            raise ValueError(f"{len(answers)} answers for {len(rows)} rows: a score needs one each, and at least one")
        if not any(answer["pieces"] for answer in answers):
            raise DataError(f"in none of the {len(rows)} texts is there a piece to be told: {self.untold}")
        return summed([(answer["log_likelihood"], answer["right"], answer["pieces"]) for answer in answers], _said)

    def details(self, answers: Sequence[Answer], rows: Sequence[Row]) -> Details:
        """None: a text has no labels."""
        return Details()


@final
@dataclass(frozen=True)
class MaskedLanguage(Language):
    """One text, the pieces behind its masks."""

    kind: ClassVar[str] = "masked_lm"
    head_kind: ClassVar[str] = "masked_lm"
    untold: ClassVar[str] = "each holds masks already, and what is behind those is not known; give whole texts"

    def features(self, row: Row, encoder: TextEncoder) -> Encoded:
        whole, mask = encoder.text(row["text"]), encoder.tokenizer.mask_token_id
        if mask is None:
            raise DataError("masked_lm: the tokenizer has no mask; take a base that was trained with one")
        if mask in whole.input_ids:
            asked = tuple(place for place, piece in enumerate(whole.input_ids) if piece == mask)
            return replace(whole, asked=asked, spell=encoder.tokenizer.convert_ids_to_tokens)
        special = set(encoder.tokenizer.all_special_ids)
        places = [place for place, piece in enumerate(whole.input_ids) if piece not in special]
        draw = random.Random(repr(whole.input_ids))
        hidden = set(draw.sample(places, min(len(places), max(1, round(MASKED * len(places))))))
        ids = tuple(mask if place in hidden else piece for place, piece in enumerate(whole.input_ids))
        return replace(whole, input_ids=ids, truth=whole.input_ids)

    def redraw(self, encoder: Encoder, seed: int) -> Redraw:
        """Other pieces are hidden in every epoch."""
        assert isinstance(encoder, TextEncoder)
        tokenizer = encoder.tokenizer
        return Masking(int(tokenizer.mask_token_id), len(tokenizer), tuple(tokenizer.all_special_ids), MASKED, seed)

    def target(self, row: Row, features: Encoded) -> tuple[int, ...]:
        """(T,) what stood at a masked piece, IGNORED elsewhere."""
        pairs = zip(features.input_ids, features.truth or features.input_ids, strict=True)
        return tuple(true if seen != true else IGNORED for seen, true in pairs)

    def decode(self, logits: Any, encoded: Encoded) -> Answer:
        """Of a text that was masked here, how well it was told; of one with masks, what stands behind them.

        {"pieces", "right", "log_likelihood", "perplexity"}; with masks {"masks": [{"pieces", "scores"} for each]}
        beside it, the likeliest first.
        """
        logits = checked_logits(logits, 2, torch.as_tensor(logits).shape[-1])[: len(encoded.input_ids)]
        target = torch.tensor(self.target({}, encoded))
        said = told(logits, target)
        return said | ({"masks": _candidates(logits[list(encoded.asked)], encoded)} if encoded.asked else {})


@final
@dataclass(frozen=True)
class CausalLanguage(Language):
    """One text, each piece told from those before it."""

    kind: ClassVar[str] = "causal_lm"
    head_kind: ClassVar[str] = "causal_lm"
    untold: ClassVar[str] = "each is of one piece, which nothing stands before; give longer texts"

    def features(self, row: Row, encoder: TextEncoder) -> Encoded:
        return replace(encoder.text(row["text"]), spell=encoder.tokenizer.convert_ids_to_tokens)

    def target(self, row: Row, features: Encoded) -> tuple[int, ...]:
        """(T,) the pieces themselves; the head shifts them."""
        return features.input_ids

    def decode(self, logits: Any, encoded: Encoded) -> Answer:
        """{"pieces", "right", "log_likelihood", "perplexity"} of the text, and "next", the likeliest pieces."""
        logits = checked_logits(logits, 2, torch.as_tensor(logits).shape[-1])[: len(encoded.input_ids)]
        return {**told(logits[:-1], torch.tensor(encoded.input_ids[1:])), "next": _candidates(logits[-1:], encoded)[0]}


def _said(likelihood: Numbers, right: Numbers, pieces: Numbers) -> dict[str, Numbers]:
    mean = share(likelihood, pieces)
    return {
        "log_likelihood": mean,
        "perplexity": numpy.exp(numpy.minimum(-mean, 700.0)),
        "accuracy": share(right, pieces),
    }


def told(logits: torch.Tensor, target: torch.Tensor) -> Answer:
    """How many pieces were asked, how many told right, their summed log-likelihood, and perplexity.

    logits (T, V), target (T,) with IGNORED.
    """
    asked = target != IGNORED
    chosen, true = logits[asked], target[asked]
    sure = chosen.log_softmax(-1).gather(-1, true[:, None]).sum() if len(true) else torch.zeros(())
    right = int((chosen.argmax(-1) == true).sum()) if len(true) else 0
    perplexity = math.exp(min(-float(sure) / max(len(true), 1), 700.0))
    return {"pieces": len(true), "right": right, "log_likelihood": float(sure), "perplexity": perplexity}


def _candidates(logits: torch.Tensor, encoded: Encoded) -> list[dict[str, Any]]:
    """The likeliest pieces at each of (N, V) and their probabilities."""
    assert encoded.spell is not None
    best = logits.softmax(-1).topk(min(LISTED, logits.shape[-1]), dim=-1)
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [{"pieces": encoded.spell(ids), "scores": scores} for ids, scores in pairs]
