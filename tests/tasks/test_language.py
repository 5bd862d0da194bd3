"""Language modelling: which pieces are hidden, what is told, and the scores of it."""

import math

import pytest
import torch

from graftwork.errors import DataError
from graftwork.tasks.encoded import IGNORED
from graftwork.tasks.language import MASKED, CausalLanguage, MaskedLanguage
from graftwork.tasks.text import TextEncoder
from tests.tasks.vocabularies import tokenizer

ENCODER = TextEncoder(tokenizer("minilm"), 64)
TEXT = "the quick brown fox ships a parcel to Hyderabad and Chennai while Asha lives at Pune"


def test_a_share_of_the_pieces_is_hidden_and_always_the_same() -> None:
    task = MaskedLanguage((), 64)
    (row,) = task.encode([{"text": TEXT}], ENCODER, with_labels=True)
    plain, mask = ENCODER.text(TEXT).input_ids, ENCODER.tokenizer.mask_token_id
    hidden = [place for place, piece in enumerate(row.input_ids) if piece == mask]
    assert len(hidden) == max(1, round(MASKED * (len(plain) - 2)))
    assert row.truth == plain
    assert row.labels == tuple(plain[place] if place in hidden else IGNORED for place in range(len(plain)))
    assert task.encode([{"text": TEXT}], ENCODER, with_labels=True) == [row]
    assert {0, len(plain) - 1}.isdisjoint(hidden)
    logits = torch.randn(len(plain) + 2, ENCODER.tokenizer.vocab_size, generator=torch.Generator().manual_seed(0))
    told = task.decode(logits, row)
    expected = sum(float(logits[place].log_softmax(-1)[plain[place]]) for place in hidden)
    assert told == {
        "pieces": len(hidden),
        "right": 0,
        "log_likelihood": pytest.approx(expected),
        "perplexity": pytest.approx(math.exp(-expected / len(hidden))),
    }
    logits[hidden, [plain[place] for place in hidden]] = 50
    assert task.decode(logits, row)["right"] == len(hidden)


def test_masks_that_came_with_the_text_are_filled() -> None:
    task = MaskedLanguage((), 64)
    (row,) = task.encode([{"text": "the [MASK] ships a [MASK]"}], ENCODER)
    fox, parcel = (ENCODER.tokenizer.convert_tokens_to_ids(word) for word in ("fox", "parcel"))
    logits = torch.zeros(len(row.input_ids), ENCODER.tokenizer.vocab_size)
    logits[row.asked[0], fox] = logits[row.asked[1], parcel] = 9
    answer = task.decode(logits, row)
    assert [one["pieces"][0] for one in answer["masks"]] == ["fox", "parcel"]
    assert answer["pieces"] == 0


def test_every_piece_from_those_before_it() -> None:
    task = CausalLanguage((), 64)
    encoder = TextEncoder(tokenizer("gpt2"), 64)
    (row,) = task.encode([{"text": TEXT}], encoder, with_labels=True)
    assert row.labels == row.input_ids
    logits = torch.randn(len(row.input_ids) + 1, 400, generator=torch.Generator().manual_seed(0))
    told = task.decode(logits, row)
    expected = sum(float(logits[t].log_softmax(-1)[row.input_ids[t + 1]]) for t in range(len(row.input_ids) - 1))
    assert told["pieces"] == len(row.input_ids) - 1
    assert told["log_likelihood"] == pytest.approx(expected, rel=1e-5)
    assert len(told["next"]["pieces"]) == 5


def test_scores_are_over_all_pieces() -> None:
    answers = [{"pieces": 3, "right": 1, "log_likelihood": -6.0}, {"pieces": 1, "right": 1, "log_likelihood": -0.5}]
    scores = MaskedLanguage((), 8).score(answers, [{}, {}])
    assert scores == {"log_likelihood": -1.625, "perplexity": pytest.approx(math.exp(1.625)), "accuracy": 0.5}
    with pytest.raises(ValueError, match="2 answers for 1 rows"):
        MaskedLanguage((), 8).score(answers, [{}])
    for task, why in (
        (MaskedLanguage((), 8), "each holds masks already"),
        (CausalLanguage((), 8), "each is of one piece"),
    ):
        with pytest.raises(DataError, match=f"in none of the 1 texts is there a piece to be told: {why}"):
            task.score([{"pieces": 0, "right": 0, "log_likelihood": 0.0}], [{}])


def test_a_vocabulary_without_a_mask_is_refused() -> None:
    with pytest.raises(DataError, match="masked_lm: the tokenizer has no mask"):
        MaskedLanguage((), 64).encode([{"text": "x"}], TextEncoder(tokenizer("gpt2"), 64))
