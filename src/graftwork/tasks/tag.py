"""Tagging: one label for every word. Rows {"tokens", "tags"}, or {"text"} when asked for an answer.

The first piece of a word carries its label and gives its answer; other pieces are left out of the loss (Devlin et al.
2019, section 5.3). Labels that are all O or begin with B-, I-, E- or S- are read as entities and scored by entity F1;
any others (parts of speech) count word by word, and the score is accuracy.

A word that the model does not read (it has no piece: empty, control characters; or the limit cut it off) is answered
with "O" where that is a label, else with the first label. Its index is listed under "unread": no answer is ever one
word off.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, final

from graftwork.errors import AdapterError
from graftwork.tasks.details import Details, classes, kinds_of
from graftwork.tasks.encoded import IGNORED, Encoded
from graftwork.tasks.metrics import entities, entity_scores, tag_accuracy
from graftwork.tasks.scorer import Scorer
from graftwork.tasks.task import Answer, Row, Task, checked_logits, missing, shown, string_problems, text_problems
from graftwork.tasks.text import TextEncoder
from graftwork.tasks.words import Words

ENTITY_PREFIXES = ("B-", "I-", "E-", "S-")


@final
@dataclass(frozen=True)
class Tagging(Task):
    """One label for every word."""

    kind: ClassVar[str] = "tagging"
    form: ClassVar[str] = '{"tokens", "tags"}, two lists of equal length'
    head_kind: ClassVar[str] = "tagging"
    head_layers: ClassVar[int] = 1
    pools: ClassVar[bool] = False

    @property
    def reads_entities(self) -> bool:
        """Whether the labels mark entities (O, B-..., I-...)."""
        return all(label == "O" or label.startswith(ENTITY_PREFIXES) for label in self.labels)

    @property
    def main_score(self) -> str:
        return "f1" if self.reads_entities else "accuracy"

    def problems(self, row: Row, with_labels: bool) -> list[str]:
        if with_labels:
            return list_problems(row, "tokens", self.form) + tag_problems(row, self.labels, self.form)
        return (
            list_problems(row, "tokens", self.form)
            if "tokens" in row
            else text_problems(row, "text", '{"text"} or {"tokens"}')
        )

    def features(self, row: Row, encoder: TextEncoder) -> Encoded:
        return encoder.words(Words.of_tokens(row["tokens"]) if "tokens" in row else Words.of_text(row["text"]))

    def target(self, row: Row, features: Encoded) -> tuple[int, ...]:
        """(T,) the tag of a word at its first piece, IGNORED elsewhere: everywhere, where no word has a piece."""
        target = [IGNORED] * len(features.input_ids)
        for word, piece in features.first_pieces().items():
            target[piece] = self.labels.index(str(row["tags"][word]))
        return tuple(target)

    def decode(self, logits: Any, encoded: Encoded) -> Answer:
        """{"tokens", "tags", "unread"}, and "entities" {"type", "text", "start", "end"} where the labels mark them.

        start and end count characters of the text asked, or of the tokens joined by one space.
        """
        if encoded.words is None:
            raise ValueError("a tagging answer needs a row encoded as words")
        pieces = checked_logits(logits, 2, len(self.labels))  # (T or more, L)
        if len(pieces) < len(encoded.input_ids):
            raise AdapterError(f"the head answers for {len(pieces)} pieces of a row that has {len(encoded.input_ids)}")
        best, first = pieces.argmax(-1).tolist(), encoded.first_pieces()
        unread = [word for word in range(len(encoded.words.spans)) if word not in first]
        tags = [
            self.labels[best[first[word]]] if word in first else self._unread_tag
            for word in range(len(encoded.words.spans))
        ]
        answer: Answer = {"tokens": encoded.words.tokens, "tags": tags, "unread": unread}
        return answer | {"entities": _found(tags, encoded.words)} if self.reads_entities else answer

    def scorer(self, answers: Sequence[Answer], rows: Sequence[Row]) -> Scorer:
        predicted, gold = [answer["tags"] for answer in answers], [[str(tag) for tag in row["tags"]] for row in rows]
        return entity_scores(predicted, gold) if self.reads_entities else tag_accuracy(predicted, gold)

    def details(self, answers: Sequence[Answer], rows: Sequence[Row]) -> Details:
        """Of whole entities by their type, or of words by their label with the confusion."""
        predicted, gold = [answer["tags"] for answer in answers], [list(map(str, row["tags"])) for row in rows]
        if self.reads_entities:
            return kinds_of(list(map(entities, predicted)), list(map(entities, gold)))
        return classes(list(chain.from_iterable(predicted)), list(chain.from_iterable(gold)), self.labels)

    @property
    def _unread_tag(self) -> str:
        return "O" if "O" in self.labels else self.labels[0]


def _found(tags: Sequence[str], words: Words) -> list[dict[str, Any]]:
    """The entities in one row of tags, with their place in the text."""
    found = []
    for kind, first, last in entities(tags):
        start, end = words.spans[first][0], words.spans[last - 1][1]
        found.append({"type": kind, "text": words.text[start:end], "start": start, "end": end})
    return found


def list_problems(row: Row, field: str, form: str) -> list[str]:
    """What is wrong with a field that must hold a list of strings."""
    if field not in row:
        return [missing(row, field, form)]
    value = row[field]
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        return [f'"{field}" is {value!r} ({type(value).__name__}); it must be a list of at least one string']
    return [problem for place, item in enumerate(value) for problem in string_problems(item, f'"{field}"[{place}]')]


def tag_problems(row: Row, labels: Sequence[str], form: str) -> list[str]:
    """What is wrong with the tags of a row: one known label for each token."""
    found = list_problems(row, "tags", form)
    if found or "tokens" not in row:
        return found
    tokens, tags = row["tokens"], row["tags"]
    if isinstance(tokens, Sequence) and len(tokens) != len(tags):
        return [f'has {len(tokens)} "tokens" and {len(tags)} "tags"; every token needs one tag']
    unknown = sorted({tag for tag in tags if tag not in labels})
    return [f'"tags" holds {shown(unknown)}, not among the labels: {shown(labels)}'] if unknown else []
