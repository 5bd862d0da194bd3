"""Dependency parsing: for every word its head and the relation to it. Rows {"tokens", "heads", "tags"}.

Heads count words from 1, 0 is the root; tags are the relations. Asked with {"tokens"} or {"text"}. Each word takes the
head with the highest arc, and the likeliest relation to it (greedy: the arcs need not form a tree). A word that the
model does not read (no piece, or cut off) is answered with head 0 and the first relation, and is listed under "unread".
Scored by attachment: labelled (las) and unlabelled (uas).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

from graftwork.errors import AdapterError
from graftwork.tasks.details import Details, kinds_of
from graftwork.tasks.encoded import IGNORED, Encoded
from graftwork.tasks.metrics import attachment_scores
from graftwork.tasks.scorer import Scorer
from graftwork.tasks.tag import list_problems, tag_problems
from graftwork.tasks.task import Answer, Row, Task, checked_logits, missing, text_problems
from graftwork.tasks.text import TextEncoder
from graftwork.tasks.words import Words


@final
@dataclass(frozen=True)
class Parsing(Task):
    """A head and a relation for every word."""

    kind: ClassVar[str] = "dependency_parsing"
    form: ClassVar[str] = '{"tokens", "heads", "tags"}, three lists of equal length'
    head_kind: ClassVar[str] = "dependency_parsing"
    head_layers: ClassVar[int] = 1
    pools: ClassVar[bool] = False

    @property
    def main_score(self) -> str:
        return "las"

    def problems(self, row: Row, with_labels: bool) -> list[str]:
        if not with_labels and "tokens" not in row:
            return text_problems(row, "text", '{"text"} or {"tokens"}')
        found = list_problems(row, "tokens", self.form)
        if not with_labels:
            return found
        found += tag_problems(row, self.labels, self.form)
        if "heads" not in row:
            return [*found, missing(row, "heads", self.form)]
        heads, count = row["heads"], len(row.get("tokens") or ())
        if isinstance(heads, str) or not isinstance(heads, Sequence) or len(heads) != count:
            return [*found, f'"heads" is {heads!r:.80}; it must be a list of {count} numbers, one for each token']
        wrong = [head for head in heads if not isinstance(head, int) or not 0 <= head <= count]
        return [*found, *([f'"heads" holds {wrong[0]!r}; a head is a word from 1 to {count}, or 0'] if wrong else [])]

    def features(self, row: Row, encoder: TextEncoder) -> Encoded:
        made = encoder.words(Words.of_tokens(row["tokens"]) if "tokens" in row else Words.of_text(row["text"]))
        first = made.first_pieces()
        read = tuple(sorted(first, key=first.__getitem__))
        last = max((piece for piece, word in enumerate(made.word_ids) if word is not None), default=0)
        return replace(made, read=read, word_starts=(*(first[word] for word in read), last + 1))

    def target(self, row: Row, features: Encoded) -> tuple[tuple[int, int], ...]:
        """(W, 2) head and relation of each word that is read; a head that is not read is left out."""
        places = {word + 1: place for place, word in enumerate(features.read, start=1)} | {0: 0}
        return tuple(
            (places.get(row["heads"][word], IGNORED), self.labels.index(str(row["tags"][word])))
            for word in features.read
        )

    def decode(self, logits: Any, encoded: Encoded) -> Answer:
        """{"tokens", "heads", "tags", "unread"}."""
        if encoded.words is None:
            raise ValueError("a parse needs a row encoded as words")
        numbers = checked_logits(logits, 3, len(self.labels) + 1)  # (T, T + 1, L + 1)
        count = len(encoded.read)
        if len(numbers) < count:
            raise AdapterError(f"the head answers for {len(numbers)} words of a row that has {count}")
        arcs = numbers[:count, : count + 1, -1].clone()
        arcs[range(count), range(1, count + 1)] = float("-inf")  # no word is its own head
        best = arcs.argmax(-1).tolist() if count else []
        relations = [int(numbers[word, head, :-1].argmax()) for word, head in enumerate(best)]
        heads, tags = [0] * len(encoded.words.spans), [self.labels[0]] * len(encoded.words.spans)
        for word, head, relation in zip(encoded.read, best, relations, strict=True):
            heads[word] = encoded.read[head - 1] + 1 if head else 0
            tags[word] = self.labels[relation]
        unread = sorted(set(range(len(heads))) - set(encoded.read))
        return {"tokens": encoded.words.tokens, "heads": heads, "tags": tags, "unread": unread}

    def scorer(self, answers: Sequence[Answer], rows: Sequence[Row]) -> Scorer:
        mine = [list(zip(answer["heads"], answer["tags"], strict=True)) for answer in answers]
        gold = [list(zip(row["heads"], map(str, row["tags"]), strict=True)) for row in rows]
        return attachment_scores(mine, gold)

    def details(self, answers: Sequence[Answer], rows: Sequence[Row]) -> Details:
        """Of relations: one is right with its word and its head."""
        mine, gold = (
            [[(str(tag), word, head) for word, (tag, head) in enumerate(zip(one["tags"], one["heads"], strict=True))]
             for one in side]
            for side in (answers, rows)
        )  # fmt: skip
        return kinds_of(mine, gold)
