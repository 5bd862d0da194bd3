"""Units to forwards: waves that fit the adapters in memory, and in each wave batches of similar length.

A wave is what runs while one set of packages is held: units that need the same packages stay together, sets that are
already loaded go first. A batch is one forward: longest rows first, so that little is padded, and rows of one text side
by side, for the model is given each text once. Pure functions of their arguments; no unit is lost, none runs twice.
"""

from collections.abc import Collection, Iterable, Sequence

from graftwork.serve.planner import Unit
from graftwork.tasks.encoded import Encoded


def waves(units: Sequence[Unit], capacity: int, loaded: Collection[str]) -> list[list[Unit]]:
    """Divide units into waves of at most `capacity` packages; a unit that alone needs more is a wave of its own."""
    same: dict[frozenset[str], list[Unit]] = {}
    for unit in units:
        same.setdefault(frozenset(package.name for package in unit.packages), []).append(unit)
    made: list[list[Unit]] = []
    needed: frozenset[str] = frozenset()
    for names, members in sorted(same.items(), key=lambda item: not item[0] <= set(loaded)):
        if not made or len(needed | names) > capacity:
            made.append([])
            needed = frozenset()
        needed |= names
        made[-1] += members
    return made


def apart(units: Sequence[Unit]) -> list[list[Unit]]:
    """Divide units into those that share forwards: all that say no text, and by head and encoder those that do."""
    made: dict[object, list[Unit]] = {}
    for unit in units:
        made.setdefault((unit.head, unit.encoder) if unit.task.speaks else None, []).append(unit)
    return list(made.values())


def batches(units: Sequence[Unit], max_rows: int, max_tokens: int) -> list[list[Unit]]:
    """Divide units into batches of at most `max_rows` rows and, rows times longest, `max_tokens` pieces.

    A row is an answer: several to one text count each, for the upper layers run each. A single row may be longer than
    `max_tokens`. Units with a Split share batches only with Splits of the same length.
    """
    by_split: dict[int | None, list[Unit]] = {}
    for unit in units:
        by_split.setdefault(unit.tokens, []).append(unit)
    made: list[list[Unit]] = []
    for members in by_split.values():
        batch: list[Unit] = []
        for unit in sorted(members, key=lambda one: (one.length, one.encoded.input_ids), reverse=True):
            if batch and (len(batch) == max_rows or batch[0].length * (len(batch) + 1) > max_tokens):
                made.append(batch)
                batch = []
            batch.append(unit)
        made.append(batch)
    return made


def texts_of(rows: Iterable[Encoded]) -> tuple[list[Encoded], list[int]]:
    """The texts that rows are about, each once, and which of them each row is about."""
    places: dict[object, int] = {}
    texts: list[Encoded] = []
    numbers = []
    for row in rows:
        seen = (row.input_ids, row.token_type_ids, row.word_starts, row.image)  # what `Encoder.pad` reads
        if places.setdefault(seen, len(texts)) == len(texts):
            texts.append(row)
        numbers.append(places[seen])
    return texts, numbers
