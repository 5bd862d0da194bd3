"""Answers and scores: batches change nothing, the order of rows is kept, bad rows are all named."""

from typing import Any

import pytest

from graftwork.build import add_task_head
from graftwork.compose.tree import Parallel
from graftwork.errors import CompositionError, DataError, InputTooLong, UserError
from graftwork.evaluate import Evaluation, answer, evaluate, standings
from graftwork.model import AdapterModel
from graftwork.tasks.bootstrap import Interval
from graftwork.tasks.classify import Classification
from graftwork.tasks.details import Details
from graftwork.tasks.scorer import summed
from graftwork.tasks.tag import Tagging
from graftwork.tasks.task import Task
from graftwork.tasks.text import TextEncoder
from tests import tiny
from tests.train import small

TASK = Classification(("bad", "good"), 32)


def setting(task: Task = TASK, too_long: Any = "refuse") -> tuple[AdapterModel, TextEncoder]:
    model = AdapterModel(tiny.model("bert"))
    model.add_adapter("mood", "seq_bn[reduction_factor=2]")
    add_task_head(model, task, "mood")
    return model.eval(), TextEncoder(small.tokenizer(), 32, too_long)


def test_answers_are_those_of_one_row_at_a_time() -> None:
    model, encoder = setting()
    rows = small.texts(11)
    together = answer(model, TASK, encoder, rows, adapters="mood", head="mood", batch_size=4)
    for row, found in zip(rows, together, strict=True):
        logits = model(**encoder.pad(TASK.encode([row], encoder)), adapters="mood", head="mood").logits[0]
        alone = TASK.decode(logits, TASK.encode([row], encoder)[0])
        assert found["label"] == alone["label"]
        assert found["score"] == pytest.approx(alone["score"], abs=1e-5)


def test_tags_are_those_of_one_row_at_a_time() -> None:
    task = Tagging(("O", "B-x"), 32)
    model, encoder = setting(task)
    rows = [{"tokens": row["text"].split()} for row in small.texts(9)]
    together = answer(model, task, encoder, rows, adapters=None, head="mood", batch_size=4)
    alone = [answer(model, task, encoder, [row], adapters=None, head="mood")[0] for row in rows]
    assert together == alone
    assert [found["tokens"] for found in together] == [row["tokens"] for row in rows]


def test_scores_are_the_tasks_own_and_the_mode_is_put_back() -> None:
    model, encoder = setting()
    model.train()
    rows = small.texts(10)
    scores, answers = evaluate(model, TASK, encoder, rows, adapters="mood", head="mood", batch_size=3)
    right = [found["label"] == row["label"] for found, row in zip(answers, rows, strict=True)]
    assert scores["accuracy"] == sum(right) / 10
    assert model.training
    assert evaluate(model, TASK, encoder, rows, adapters="mood", head="mood")[0] == scores  # no dropout


def test_the_composition_matters() -> None:
    model, encoder = setting()
    for module in model.parts.modules_of("adapters", "mood").values():
        module.up.weight.data.normal_(std=1.0)
    rows = small.texts(4)
    with_it = answer(model, TASK, encoder, rows, adapters="mood", head="mood")
    without = answer(model, TASK, encoder, rows, adapters=None, head="mood")
    assert all(abs(a["score"] - b["score"]) > 1e-4 for a, b in zip(with_it, without, strict=True))


def test_bad_rows_are_all_named() -> None:
    model, encoder = setting()
    rows = [{"text": "good", "label": "good"}, {"label": "bad"}, {"text": "bad", "label": "neutral"}]
    with pytest.raises(DataError, match='row 2: has no "text"') as caught:
        evaluate(model, TASK, encoder, rows, adapters="mood", head="mood")
    assert any('row 3: "label" is "neutral"' in problem for problem in caught.value.problems)


def test_nothing_to_score_is_said() -> None:
    model, encoder = setting()
    with pytest.raises(DataError, match="there are no rows"):
        evaluate(model, TASK, encoder, [], adapters="mood", head="mood")
    assert answer(model, TASK, encoder, [], adapters="mood", head="mood") == []


def test_a_long_text_is_refused_where_the_encoder_refuses() -> None:
    model, encoder = setting()
    with pytest.raises(InputTooLong, match="row 2: the text has"):
        answer(model, TASK, encoder, [{"text": "good"}, {"text": "good " * 40}], adapters="mood", head="mood")
    model, encoder = setting(too_long="truncate")
    assert len(answer(model, TASK, encoder, [{"text": "good " * 40}], adapters="mood", head="mood")) == 1


def evaluation(name: str, right: list[int], main: str = "accuracy") -> Evaluation:
    """One whose answers are right (1) or wrong (0)."""
    scorer = summed([(one, 1) for one in right], lambda hits, count: {main: hits / count})
    return Evaluation(name, f"{name}@1", f"{name}@1", main, scorer.once(), [{}] * len(right), Details(), scorer)


def test_systems_are_held_against_the_first_or_the_one_named() -> None:
    three = [evaluation("a", [1, 0, 1, 1]), evaluation("b", [1, 1, 1, 1]), evaluation("c", [1, 0, 1, 1])]
    first, second, third = standings(three)
    assert first.difference is None
    assert second.interval == Interval(1.0, 1.0, 1.0)
    assert second.difference is not None
    assert (second.difference.value, second.difference.low) == (0.25, 0.0)
    assert third.difference == Interval(0.0, 0.0, 0.0)
    for name in ("b", "b@1"):
        found = standings(three, against=name)
        assert [one.difference and one.difference.value for one in found] == [-0.25, None, -0.25]
        assert [one.interval for one in found] == [one.interval for one in (first, second, third)]


def test_what_cannot_be_held_against_each_other_is_refused() -> None:
    a, b = evaluation("a", [1, 0]), evaluation("b", [1, 1])
    with pytest.raises(UserError, match="c is none of the compositions that are evaluated: a@1, b@1"):
        standings([a, b], against="c")
    with pytest.raises(UserError, match="a is given twice: as a@1, answered by a@1"):
        standings([a, b, a])
    with pytest.raises(UserError, match=r"not measured by one score \(a@1 by accuracy, t@1 by f1\)"):
        standings([a, evaluation("t", [1, 1], "f1")])


def test_parallel_is_refused() -> None:
    model, encoder = setting()
    model.add_adapter("other")
    with pytest.raises(CompositionError, match="evaluate its branches one by one"):
        answer(model, TASK, encoder, small.texts(3), adapters=Parallel("mood", "other"), head="mood")
