"""Rows to units of work: what a row asks for is checked, resolved to versions, given its head and task, and tokenised.

Each row gets exactly one outcome, so each problem stays with its row. A row is one unit; with a Parallel it is one unit
per branch, each answered by its own head. Knows no weights: what is planned from are the rows and the manifests.
"""

import difflib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from graftwork.build import package_task
from graftwork.compose.grammar import as_composition
from graftwork.compose.lower import lanes_of, runs_of
from graftwork.compose.tree import BatchSplit, Block, Composition, Parallel, fusions, has, leaves, show, top
from graftwork.errors import AdapterError, CompositionError, DataError, PackageError
from graftwork.registry.store import Registry
from graftwork.serve.catalog import Catalog, Found
from graftwork.serve.outcomes import Outcome, failure
from graftwork.tasks.encoded import Encoded
from graftwork.tasks.images import ImageEncoder
from graftwork.tasks.task import Encoder, Task, shown
from graftwork.tasks.text import TextEncoder, vocabulary_digest

CONTENTS = ("text", "text_pair", "tokens", "choices", "target", "image", "image_base64")  # what a task reads
KEYS = (*CONTENTS, "max_new_tokens", "adapters", "head")
# kinds of task that read "text_pair"; any other would silently leave it out
READS_PAIRS = ("pair", "regression", "question_answering", "similarity")
MEMBERS = 64  # names in the composition of one row


@dataclass(frozen=True, eq=False)
class Unit:
    """One row of a forward: a composition of versions, the head and task that answer, and the pieces of the text.

    packages: what must be loaded, members before their fusion. tokens: how many pieces its Splits cover, if it has any.
    new_tokens: the most pieces of a text that is said, 0 where none is.
    """

    tree: Composition
    head: str
    task: Task
    encoded: Encoded
    encoder: Encoder
    packages: tuple[Found, ...]
    tokens: int | None
    new_tokens: int = 0

    @property
    def length(self) -> int:
        """T, the number of pieces."""
        return self.encoded.length


@dataclass(frozen=True)
class PlannedRow:
    """One row: a unit or an outcome for each branch. `fan_out` is the composition of a row that holds a Parallel."""

    branches: tuple[Unit | Outcome, ...]
    fan_out: Composition = None


class Planner:
    """Plans rows for one tokenizer. `longest` is the number of positions of the model, None where it has no limit."""

    def __init__(
        self,
        registry: Registry,
        tokenizer: PreTrainedTokenizerBase | ImageEncoder,
        longest: int | None,
        too_long: Literal["refuse", "truncate"] = "refuse",
    ) -> None:
        self._registry = registry
        self._too_long: Literal["refuse", "truncate"] = too_long
        self._reads = tokenizer
        self._longest = 0
        if isinstance(tokenizer, ImageEncoder):
            self._vocabulary = tokenizer.digest
        else:
            self._vocabulary = vocabulary_digest(tokenizer)
            self._longest = min(longest or tokenizer.model_max_length, tokenizer.model_max_length)
        self._encoders: dict[int, TextEncoder] = {}
        self._tokenising = threading.Lock()  # a fast tokenizer must not be used and configured at the same time

    def plan(self, rows: Sequence[Mapping[str, Any]]) -> list[PlannedRow]:
        """One plan per row, in order. Never raises for what a row or a package holds."""
        catalog = Catalog(self._registry, self._vocabulary)
        return [self._row(row, catalog) for row in rows]

    def task(self, adapters: Any, head: str | None) -> Task:
        """The task that answers a row with these adapters and head. Raises what would be such a row's error."""
        catalog = Catalog(self._registry, self._vocabulary)
        return task_of(head_of(catalog.resolve(read_adapters(adapters)), head, catalog))

    def exact(self, adapters: Any) -> Composition:
        """The composition of a row, every name at its version. Raises what would be such a row's error."""
        return Catalog(self._registry, self._vocabulary).resolve(read_adapters(adapters))

    def find(self, name: str) -> Found:
        """A package of the registry by name, name@3 or name@alias. Raises NotFound, PackageError, Conflict."""
        return Catalog(self._registry, self._vocabulary).find(name)

    def _row(self, row: Any, catalog: Catalog) -> PlannedRow:
        try:
            check_row(row)
            tree = catalog.resolve(read_adapters(row["adapters"]))
            branches = [branch for _, branch in lanes_of(tree, 1)]
        except Exception as error:  # whatever it is, it is the outcome of this row alone
            return PlannedRow((failure(error, self._registry.root),))
        fan_out = tree if has(tree, Parallel) else None
        return PlannedRow(tuple(self._branch(row, branch, catalog) for branch in branches), fan_out)

    def _branch(self, row: Mapping[str, Any], tree: Composition, catalog: Catalog) -> Unit | Outcome:
        try:
            head = head_of(tree, row.get("head"), catalog)
            task = task_of(head)
            packages = tuple(dict.fromkeys((*catalog.packages(tree), *head.closure)))
            encoder, encoded = self.encode(row, task)
            tokens = covered(tree, [len(text.input_ids) for text in encoded.rows])
        except Exception as error:
            return failure(error, self._registry.root)
        new = min(row.get("max_new_tokens") or encoder.max_length, encoder.max_length) if task.speaks else 0
        return Unit(tree, head.name, task, encoded, encoder, packages, tokens, new)

    def encode(self, row: Mapping[str, Any], task: Task) -> tuple[Encoder, Encoded]:
        """The contents of a row as a task reads them, and what encoded them. Raises DataError, InputTooLong."""
        given = {key: row[key] for key in CONTENTS if row.get(key) is not None}
        if "text_pair" in given and task.kind not in READS_PAIRS:
            raise DataError(
                f'the task is {task.kind}, which reads one text; leave "text_pair" out or take another head'
            )
        if "choices" in given and task.kind != "multiple_choice":
            raise DataError(f'the task is {task.kind}, which has no choices; leave "choices" out or take another head')
        if not task.speaks and (unsaid := [key for key in ("target", "max_new_tokens") if row.get(key) is not None]):
            raise DataError(
                f'the task is {task.kind}, which says no text; leave "{unsaid[0]}" out or take another head'
            )
        if isinstance(self._reads, ImageEncoder):
            return self._reads, task.encode([given], self._reads)[0]
        limit = min(task.max_length, self._longest)
        with self._tokenising:
            if limit not in self._encoders:
                self._encoders[limit] = TextEncoder(self._reads, limit, self._too_long)
            encoder = self._encoders[limit]
            return encoder, task.encode([given], encoder)[0]


def check_row(row: Any) -> None:
    """Raise DataError, with every problem, unless the row is an object of known keys that says what to run on what."""
    if not isinstance(row, Mapping):
        raise DataError(f'a row is an object such as {{"text": ..., "adapters": ...}}, this is {type(row).__name__}')
    problems = []
    for key in row:
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), KEYS, n=1)
            hint = f'did you mean "{near[0]}"?' if near else f"a row has {shown(KEYS)}"
            problems.append(f"unknown key {str(key)!r:.80}: {hint}")
    if "adapters" not in row:
        problems.append('has no "adapters": say which composition, or "none" for the frozen base with a "head"')
    contents = [key for key in ("text", "tokens", "image", "image_base64") if row.get(key) is not None]
    if len(contents) != 1:
        problems.append('needs one of "text", "tokens", a list of words, and "image_base64"')
    if isinstance(row.get("image"), str):
        problems.append('"image" is a path, and no file is opened for a row; send the image itself as "image_base64"')
    if row.get("text_pair") is not None and row.get("text") is None:
        problems.append('"text_pair" goes with "text"')
    new = row.get("max_new_tokens")
    if new is not None and (isinstance(new, bool) or not isinstance(new, int) or new < 1):
        problems.append(f'"max_new_tokens" is {new!r:.80}; it must be a whole number from 1')
    if not isinstance(row.get("head"), str | None):
        problems.append(f'"head" is {row["head"]!r:.80}; it must be the name of a package that has a head')
    if problems:
        raise DataError(problems)


def read_adapters(value: Any) -> Composition:
    """The composition of one row. Raises CompositionError for what is none, or has no meaning for a single row."""
    if not isinstance(value, str | Block | None):
        raise CompositionError(
            f'"adapters" is {value!r:.80}; write a name or an expression such as "Stack(a, b)", in one string'
        )
    tree = as_composition(value)
    if has(tree, BatchSplit):
        raise CompositionError(
            f"{show(tree)}: BatchSplit divides a batch, and here every row has its own composition; "
            "give each row the one it should have"
        )
    if len(leaves(tree)) > MEMBERS:
        raise CompositionError(f"the composition names {len(leaves(tree))} adapters; a row may name at most {MEMBERS}")
    return tree


def head_of(tree: Composition, asked: str | None, catalog: Catalog) -> Found:
    """The package whose head answers a resolved composition: `asked`, else its top's, else the fusion's own.

    A name without a version that the composition holds means the version it holds. Raises AdapterError that lists what
    can be said, and what `Catalog.find` raises.
    """
    held = list(dict.fromkeys([*(fuse.name for fuse in fusions(tree)), *leaves(tree)]))
    if asked is not None:
        found = catalog.find(_version_held(asked, held, top(tree)))
        if found.manifest.head is None:
            raise AdapterError(
                f"{found.name} has no head (it is a {found.manifest.role} package); {_say(held, catalog)}"
            )
        return found
    named = top(tree)
    if named is not None and catalog.find(named).manifest.head is not None:
        return catalog.find(named)
    what = "the frozen base alone" if tree is None else show(tree)
    raise AdapterError(f"which head answers {what}? {_say(held, catalog)}")


def task_of(head: Found) -> Task:
    """The task of a head's package. Raises Conflict where it says none, PackageError where its head does not fit it."""
    try:
        task = package_task(head.manifest)
    except DataError as error:
        raise PackageError(f"package {head.name}: {error}") from error
    built, wanted = head.manifest.head, task.head(dropout=0.0, pooling="first")
    fits = built is not None and built.kind == wanted.kind
    if built is None or not fits or (not task.follows_base and built.num_outputs != wanted.num_outputs):
        raise PackageError(
            f"package {head.name}: its task is {task.kind} with {wanted.num_outputs} outputs, its head another"
        )
    return task


def covered(tree: Composition, lengths: Sequence[int]) -> int | None:
    """How many pieces the Splits of a composition cover, None without one. Raises unless each text has as many."""
    runs = runs_of(tree)
    if runs[0][0] is None:
        return None
    total = sum(size for size, _ in runs if size is not None)
    if other := [length for length in lengths if length != total]:
        raise CompositionError(
            f"{show(tree)} covers {total} pieces and the text has {other[0]}, special ones included; they must be equal"
        )
    return total


def _version_held(asked: str, held: Sequence[str], first: str | None) -> str:
    versions = [name for name in held if name.partition("@")[0] == asked]
    if len(versions) > 1 and first not in versions:
        raise AdapterError(f"head {asked!r} could be {' or '.join(versions)}: say which")
    return asked if not versions else first if first in versions else versions[0]


def _say(held: Sequence[str], catalog: Catalog) -> str:
    heads = [f'"{name}"' for name in held if catalog.find(name).manifest.head is not None]
    return f'say "head": {" or ".join(heads) or "the name of a package that has one"}'
