"""Prompts make rows longer: what points into a text is moved along, and what is said of its tokens can be had alone.

    places (n, T)     where token t of the text is in its row of T' tokens; rows may have different prompts
    span labels       a place t becomes places[t]
    token labels      (n, T, ...) become (n, T', ...), with IGNORED where no token of the text is
    word starts       as span labels; T, the end of the last word, becomes T'

A place outside 0 ... T - 1 stays one that no loss looks at. Labels of rows, words and decoders are as they were. Knows
kinds of heads; no prompts, no models.
"""

from dataclasses import replace

import torch
from torch import Tensor

from graftwork.core.heads import IGNORED, Beside

SPANS = ("question_answering",)  # kinds whose labels are places
TOKENS = ("tagging", "masked_lm", "causal_lm", "custom")  # whose labels are of tokens, where they are (n, T, ...)
ALONE = ("tagging", "question_answering", "masked_lm", "causal_lm")  # whose logits are of tokens


def moved(beside: Beside, size: int) -> Beside:
    """What heads see beside hidden states (n, T', D), for rows that prompts made T' = `size` tokens long."""
    places, ends, starts = beside.places, beside.ends, beside.word_starts
    if places is None:
        return beside
    if ends is not None:
        ends = torch.zeros(len(ends), size, dtype=ends.dtype, device=ends.device).scatter(1, places, ends)
    if starts is not None:
        after = torch.cat((places, places.new_full((len(places), 1), size)), dim=1)
        starts = _moved(starts, after.to(starts.device), starts)
    return replace(beside, ends=ends, word_starts=starts)


def labels_at(kind: str, labels: Tensor, places: Tensor | None, size: int) -> Tensor:
    """The labels of n rows for rows that prompts made `size` tokens long."""
    if places is None or labels.dim() < 2:
        return labels
    places = places.to(labels.device)
    if kind in SPANS:
        return _moved(labels, places, torch.full_like(labels, IGNORED))
    if kind not in TOKENS or labels.shape[:2] != places.shape:
        return labels
    longer = labels.new_full((len(labels), size, *labels.shape[2:]), IGNORED)
    longer[torch.arange(len(labels), device=labels.device)[:, None], places] = labels
    return longer


def of_text(kind: str, logits: Tensor, places: Tensor | None) -> Tensor:
    """The logits of the text's own tokens, (n, T', ...) -> (n, T, ...), where the kind answers once a token."""
    if places is None or kind not in ALONE:
        return logits
    places = places.to(logits.device)
    return logits[torch.arange(len(logits), device=logits.device)[:, None], places]


def _moved(numbers: Tensor, places: Tensor, outside: Tensor) -> Tensor:
    """places[numbers] row by row, (n, W); what points at no token is as in `outside`."""
    inside = (numbers >= 0) & (numbers < places.shape[1])
    return torch.where(inside, places.gather(1, numbers.clamp(0, places.shape[1] - 1)), outside)
