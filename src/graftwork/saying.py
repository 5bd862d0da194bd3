"""Answers that a model says: texts by generation, and how surely a given text would be said. Greedy, so repeatable.

Knows tasks and models; nothing of recipes, files, training or serving.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from graftwork.model import AdapterModel
from graftwork.model import Setup as Adapters
from graftwork.tasks.encoded import Encoded
from graftwork.tasks.task import Answer, Encoder, Task
from graftwork.tasks.text import TextEncoder


def said(
    model: AdapterModel,
    task: Task,
    encoder: Encoder,
    rows: Sequence[Encoded],
    adapters: Adapters,
    head: str,
    limits: Sequence[int],
) -> list[Answer]:
    """One answer a row of a batch: {"text"} where its limit, the most pieces it may have, is not 0; and, of rows with a
    `truth`, what `task.decode` says of it.

    adapters: a composition, or a list with one a row. Raises AdapterError for what cannot speak.
    """
    assert isinstance(encoder, TextEncoder), "a task that speaks reads text"
    answers: list[Answer] = [{} for _ in rows]
    if max(limits) > 0:
        for answer, text in zip(answers, _texts(model, encoder, rows, adapters, head, limits), strict=True):
            answer["text"] = text
    known = [number for number, row in enumerate(rows) if row.truth]
    if known:
        own = [adapters[number] for number in known] if isinstance(adapters, list) else adapters
        inputs = encoder.pad([replace(rows[number], labels=rows[number].truth) for number in known])
        placed = {key: tensor.to(model.device) for key, tensor in inputs.items()}
        (group,) = model(**placed, adapters=own, head=head).groups
        for number, logits in zip(known, group.logits.float().cpu(), strict=True):
            answers[number] |= task.decode(logits, rows[number])
    return answers


def _texts(
    model: AdapterModel,
    encoder: TextEncoder,
    rows: Sequence[Encoded],
    adapters: Adapters,
    head: str,
    limits: Sequence[int],
) -> list[str]:
    inputs = encoder.pad([replace(row, labels=None) for row in rows])
    mask: torch.Tensor = inputs["attention_mask"].to(model.device)
    sequences: Any = model.generate(
        inputs["input_ids"].to(model.device),
        attention_mask=mask,
        adapters=adapters,
        head=head,
        do_sample=False,
        num_beams=1,
        max_new_tokens=max(limits),
    )
    # the first piece is the one that the decoder starts from
    told = [pieces[1 : limit + 1] for pieces, limit in zip(sequences.tolist(), limits, strict=True)]
    return [str(encoder.tokenizer.decode(pieces, skip_special_tokens=True)).strip() for pieces in told]
