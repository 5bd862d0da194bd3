"""Multiple choice: the choices as texts side by side, and what is refused."""

import pytest
import torch

from graftwork.tasks.choice import Choice
from graftwork.tasks.text import TextEncoder
from tests.tasks.vocabularies import tokenizer

TASK = Choice(("0", "1", "2"), 32)
ROW = {"text": "the fox", "choices": ["ships", "a late parcel", "to Pune"], "label": 1}


def test_every_choice_is_a_pair_with_the_text() -> None:
    encoder = TextEncoder(tokenizer("minilm"), 32)
    (row,) = TASK.encode([ROW], encoder, with_labels=True)
    assert row.labels == 1
    assert [part.input_ids for part in row.rows] == [encoder.text("the fox", one).input_ids for one in ROW["choices"]]
    assert row.length == 3 * max(len(part.input_ids) for part in row.parts)
    batch = encoder.pad([row, row])
    assert batch["input_ids"].shape == (2, 3, max(len(part.input_ids) for part in row.parts))
    assert batch["attention_mask"][0, 0].sum() == len(row.parts[0].input_ids)
    assert batch["labels"].tolist() == [1, 1]
    answer = TASK.decode(torch.tensor([0.0, 1.0, 3.0]), row)
    assert (answer["label"], answer["choice"]) == ("2", "to Pune")
    assert answer["scores"] == pytest.approx(torch.tensor([0.0, 1.0, 3.0]).softmax(-1).tolist())
    assert TASK.score([{"label": "2"}, {"label": "1"}], [{"label": 2}, {"label": "0"}]) == {"accuracy": 0.5}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"choices": ["a", "b"]}, "it must be a list of 3 texts"),
        ({"choices": ["a", "b", 3]}, '"choices"[2] is 3 (int); it must be a string'),
        ({"label": 3}, '"label" is 3; it must be the number of a choice, 0 to 2'),
    ],
)
def test_what_is_refused(change: dict[str, object], problem: str) -> None:
    assert any(problem in found for found in TASK.problems({**ROW, **change}, with_labels=True))
