"""What the fields of a training row may hold, field by field: the one place that looks at raw values.

Every check returns the value as a task has it, or raises ValueError with words that follow the value in a message.
Knows no files, labels or tasks.
"""

import json
import math
from collections.abc import Callable
from typing import Any

from graftwork.schema.problems import shown


def text(value: Any) -> str:
    """A text with something in it."""
    if not isinstance(value, str):
        raise ValueError("is not text; write it in quotes")
    if not value.strip():
        raise ValueError("is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("holds half a character (a lone surrogate), which no tokenizer takes") from None
    return value


def _label(value: Any) -> str:
    """Class numbers and flags count as their JSON text: 1 -> "1", true -> "true"."""
    if isinstance(value, bool | int):
        return json.dumps(value)
    if not isinstance(value, str):
        raise ValueError("is not a label; a label is text or a whole number")
    return text(value)


def number(value: Any) -> float:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("is not a number, which a regression learns")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise ValueError("is not a finite number")
    return found


def _tokens(value: Any) -> list[str]:
    return _each(value, text, "words")


def _tags(value: Any) -> list[str]:
    return _each(value, _label, "tags")


def _labels(value: Any) -> list[str]:
    return _each(value, _label, "labels") if value != [] else []


def _choices(value: Any) -> list[str]:
    return _each(value, text, "texts")


def _heads(value: Any) -> list[int]:
    if not isinstance(value, list) or not all(isinstance(one, int) and not isinstance(one, bool) for one in value):
        raise ValueError("is not a list of word numbers, 0 for the root")
    return value


def _answers(value: Any) -> list[Any]:
    """Answers as texts or {"text", "start"}; SQuAD's {"text": [...], "answer_start": [...]} is read too."""
    if isinstance(value, dict) and set(value) == {"text", "answer_start"}:
        texts, starts = value["text"], value["answer_start"]
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            raise ValueError("is not two lists of equal length, text and answer_start")
        value = [{"text": one, "start": start} for one, start in zip(texts, starts, strict=True)]
    if isinstance(value, str) or not isinstance(value, list):
        raise ValueError("is not a list of answers, empty where there is none")
    for one in value:
        text(one.get("text") if isinstance(one, dict) else one)
    return value


def _each(value: Any, check: Callable[[Any], str], what: str) -> list[str]:
    if not isinstance(value, list):
        raise ValueError(f"is not a list of {what}")
    if not value:
        raise ValueError("is empty")
    checked = []
    for place, one in enumerate(value, 1):
        try:
            checked.append(check(one))
        except ValueError as error:
            raise ValueError(f"is not a list of {what}: number {place}, {shown(one)}, {error}") from None
    return checked


# field of a row -> what its value may be; raises ValueError that completes "<value> ..."
CHECKS: dict[str, Callable[[Any], Any]] = {
    "text": text,
    "text_pair": text,
    "target": text,
    "image": text,
    "label": _label,
    "tokens": _tokens,
    "tags": _tags,
    "labels": _labels,
    "choices": _choices,
    "answers": _answers,
    "heads": _heads,
}


def from_text(cell: str, check: Callable[[Any], Any]) -> Any:
    """What a cell of a CSV file stands for: a number, a list written as JSON, or its text."""
    try:
        if check is number:
            return float(cell)
        if check in (_tokens, _tags, _labels, _choices, _answers, _heads):
            return json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    return cell
