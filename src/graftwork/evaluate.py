"""How good a composition is: rows -> answers -> scores, on any model, in batches of similar length; and beside others.

Knows tasks and models; nothing of recipes, files, training or serving. The order of the rows is kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from graftwork.errors import AdapterError, CompositionError, UserError
from graftwork.model import AdapterModel
from graftwork.model import Setup as Adapters
from graftwork.saying import said
from graftwork.tasks.bootstrap import RESAMPLES, Interval, difference, interval
from graftwork.tasks.details import Details
from graftwork.tasks.scorer import Scorer
from graftwork.tasks.task import Answer, Encoder, Row, Task, refuse

ONE_BY_ONE = "Parallel answers every row once per branch; evaluate its branches one by one"


def evaluate(
    model: AdapterModel,
    task: Task,
    encoder: Encoder,
    rows: Sequence[Row],
    *,
    adapters: Adapters,
    head: str,
    batch_size: int = 64,
    new_tokens: int | None = None,
    skip_layers: Sequence[int] = (),
) -> tuple[dict[str, float], list[Answer]]:
    """The scores of a composition on labelled rows, and its answers. Raises DataError with the problems of all rows.

    new_tokens: the most pieces of a text that the model says; None is as many as the encoder takes, 0 is no text.
    skip_layers: those that run without adapters.
    """
    found = [(number, task.problems(row, with_labels=True)) for number, row in enumerate(rows, start=1)]
    problems = [f"row {number}: {problem}" for number, several in found for problem in several]
    refuse(problems if rows else ["there are no rows, so there is nothing to score"])
    answers = answer(
        model,
        task,
        encoder,
        rows,
        adapters=adapters,
        head=head,
        batch_size=batch_size,
        new_tokens=new_tokens,
        skip_layers=skip_layers,
    )
    return task.score(answers, rows), answers


def answer(
    model: AdapterModel,
    task: Task,
    encoder: Encoder,
    rows: Sequence[Row],
    *,
    adapters: Adapters,
    head: str,
    batch_size: int = 64,
    new_tokens: int | None = None,
    skip_layers: Sequence[int] = (),
) -> list[Answer]:
    """One answer a row, in their order; labels are not looked at. Raises DataError, InputTooLong, AdapterError."""
    if task.speaks and skip_layers:
        raise AdapterError(f"task kind {task.kind} says texts, which run the adapters of all layers; skip none")
    encoded = task.encode(rows, encoder)
    by_length = sorted(range(len(encoded)), key=lambda row: -encoded[row].length)  # the largest batch first
    answers: dict[int, Answer] = {}
    limit = encoder.max_length if new_tokens is None else new_tokens
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for start in range(0, len(by_length), batch_size):
                batch = by_length[start : start + batch_size]
                if task.speaks:
                    own = [encoded[row] for row in batch]
                    found = said(model, task, encoder, own, adapters, head, [limit] * len(own))
                    answers |= dict(zip(batch, found, strict=True))
                    continue
                inputs = encoder.pad([encoded[row] for row in batch])
                placed = {key: value.to(model.device) for key, value in inputs.items()}
                logits = _logits(model(**placed, adapters=adapters, head=head, skip_layers=skip_layers), len(batch))
                answers |= {row: task.decode(logits[place], encoded[row]) for place, row in enumerate(batch)}
    finally:
        model.train(training)
    return [answers[row] for row in range(len(rows))]


@dataclass(frozen=True)
class Evaluation:
    """Scores of one composition on labelled rows, `main` naming the one that counts, and the answers in order.

    asked: the composition as it was given; composition: with its versions, as it was answered.
    """

    asked: str
    composition: str
    head: str
    main: str
    scores: Mapping[str, float]
    answers: Sequence[Mapping[str, Any]]
    details: Details
    scorer: Scorer


@dataclass(frozen=True)
class Standing:
    """One of several evaluations on the same rows: how sure its main score is, and what it is more than another's.

    difference: its main score less that of the one they are held against, paired; None for that one itself.
    """

    evaluation: Evaluation
    interval: Interval
    difference: Interval | None


def standings(
    evaluations: Sequence[Evaluation], *, against: str | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> list[Standing]:
    """Evaluations on the same rows, in their order, held against one of them: the one named, else the first.

    Raises UserError for a name that is none of them, for two that are the same, or main scores that differ.
    """
    meant = held_against([(one.asked, one.composition, one.head) for one in evaluations], against)
    mains = {one.main: one.composition for one in evaluations}
    if len(mains) > 1:
        said = ", ".join(f"{name} by {main}" for main, name in mains.items())
        raise UserError(f"these are not measured by one score ({said}); evaluate them apart")
    return [
        Standing(
            one,
            interval(one.scorer, one.main, resamples=resamples, seed=seed),
            None
            if one is evaluations[meant]
            else difference([[(evaluations[meant].scorer, one.scorer)]], one.main, resamples=resamples, seed=seed),
        )
        for one in evaluations
    ]


def held_against(systems: Sequence[tuple[str, str, str | None]], against: str | None) -> int:
    """Which of some systems the others are held against: the one named, else the first.

    systems: of each what was asked for, the same with its versions, and its head. Raises UserError as `standings`.
    """
    for place, (asked, exact, head) in enumerate(systems):
        if (exact, head) in [(there, by) for _, there, by in systems[:place]]:
            raise UserError(f"{asked} is given twice: as {exact}{f', answered by {head}' if head else ''}")
    meant = [place for place, (asked, exact, _) in enumerate(systems) if against in (None, asked, exact)]
    if not meant:
        names = ", ".join(exact for _, exact, _ in systems)
        raise UserError(f"{against} is none of the compositions that are evaluated: {names}")
    return meant[0]


def _logits(output: Any, rows: int) -> Tensor:
    """(B, L), or (B, T, L) where the head answers per piece; float32 on the CPU."""
    (group,) = output.groups
    logits: Tensor = group.text_logits
    if len(logits) != rows:
        raise CompositionError(ONE_BY_ONE)
    return logits.float().cpu()
