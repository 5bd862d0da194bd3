"""What a task is: rows to pieces, logits to answers, answers to scores. Plain data; its head is described, not built.

Rows are mappings as they come from a file or a request. Training and serving call the same `encode`: the features of a
row are made without looking at its label, which is added afterwards. Shapes: T pieces, L outputs of the head.

Does not know: models, files, batches, how anything is trained or served.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias, cast

import numpy
import torch

from graftwork.errors import AdapterError, DataError, GraftworkError, InputTooLong
from graftwork.manifest import HeadSpec, TaskSpec
from graftwork.tasks.details import Details
from graftwork.tasks.encoded import Encoded, Target
from graftwork.tasks.images import ImageEncoder
from graftwork.tasks.scorer import Scorer
from graftwork.tasks.text import TextEncoder

Row = Mapping[str, Any]
Answer = dict[str, Any]
Encoder: TypeAlias = TextEncoder | ImageEncoder  # of what a task reads
# (a training batch as tensors, the number of each of its rows, the epoch) -> the batch as it is in that epoch
Redraw = Callable[[dict[str, torch.Tensor], "numpy.ndarray[Any, Any]", int], dict[str, torch.Tensor]]

SHOWN = 20  # how many labels or problems a message lists before it says how many more there are


@dataclass(frozen=True)
class Task(ABC):
    """A task: its labels in the order of the head's outputs (none for regression), and its limit in pieces.

    Raises DataError for labels that cannot be told apart, or too few of them.
    """

    labels: tuple[str, ...] = ()
    max_length: int = 256

    kind: ClassVar[str]
    form: ClassVar[str]  # the fields of a labelled row, as messages show them
    has_labels: ClassVar[bool] = True  # whether it answers with labels; else with a number
    head_kind: ClassVar[str]
    head_layers: ClassVar[int]
    pools: ClassVar[bool] = True  # whether the head answers once per row; else once per piece
    outputs: ClassVar[int] = 1  # of the head, where there are no labels
    reads_images: ClassVar[bool] = False  # whether a row is an image; else text
    speaks: ClassVar[bool] = False  # whether it answers with a text that the model generates
    follows_base: ClassVar[bool] = False  # whether the head is shaped by the base: its vocabulary, its width

    def __post_init__(self) -> None:
        twice = sorted({label for label in self.labels if self.labels.count(label) > 1})
        if twice:
            raise DataError(f"{self.kind}: listed more than once among the labels: {shown(twice)}")
        if self.has_labels and len(self.labels) < 2:
            raise DataError(
                f"{self.kind}: needs at least two different labels and has {len(self.labels)}: {shown(self.labels)}"
            )
        if not self.has_labels and self.labels:
            raise DataError(
                f"{self.kind}: answers with a number, so it takes no labels; it was given {shown(self.labels)}"
            )

    @property
    @abstractmethod
    def main_score(self) -> str:
        """The score by which models are compared; higher is better."""

    @abstractmethod
    def problems(self, row: Row, with_labels: bool) -> list[str]:
        """Everything that is wrong with a row for this task, without its place."""

    @abstractmethod
    def features(self, row: Row, encoder: TextEncoder) -> Encoded:
        """One row as pieces, its label not looked at. Raises InputTooLong, DataError."""

    @abstractmethod
    def target(self, row: Row, features: Encoded) -> Target:
        """What the head should answer to a row: a class index, a value, (T,) tag indices; see `Target`."""

    @abstractmethod
    def decode(self, logits: Any, encoded: Encoded) -> Answer:
        """An answer from the head's logits for one row: (L,), or (T or more, L) where the head answers per piece."""

    @abstractmethod
    def scorer(self, answers: Sequence[Answer], rows: Sequence[Row]) -> Scorer:
        """Scores of the answers to labelled rows, `main_score` among them, for any weights of the rows.

        Raises ValueError for unequal or no rows.
        """

    @abstractmethod
    def details(self, answers: Sequence[Answer], rows: Sequence[Row]) -> Details:
        """What more can be said of the answers: by label, by confusion, by how far a probability is to be trusted."""

    def score(self, answers: Sequence[Answer], rows: Sequence[Row]) -> dict[str, float]:
        """Scores of the answers to labelled rows, each row once. Raises as `scorer`."""
        return self.scorer(answers, rows).once()

    def encode(self, rows: Sequence[Row], encoder: Encoder, *, with_labels: bool = False) -> list[Encoded]:
        """Rows as pieces, with labels or without.

        Raises DataError, which lists the problems of all rows, and InputTooLong where the encoder refuses a long text.
        A row is named by its number, from 1, where there are several.
        """
        encoded, problems = [], []
        for number, row in enumerate(rows, start=1):
            place = f"row {number}: " if len(rows) > 1 else ""
            found = self.problems(row, with_labels)
            if not found:
                try:
                    features = self.features(row, cast(TextEncoder, encoder))  # images need none
                    encoded.append(replace(features, labels=self.target(row, features)) if with_labels else features)
                except DataError as error:
                    found = error.problems
                except InputTooLong as error:
                    raise InputTooLong(f"{place}{error}") from None
            problems += [place + problem for problem in found]
        refuse(problems)
        return encoded

    def redraw(self, encoder: Encoder, seed: int) -> Redraw | None:
        """What makes training rows others in every epoch, decided by (seed, epoch, row); None where they stay."""
        return None

    def head(self, dropout: float, pooling: str) -> HeadSpec:
        """The head this task wants. Dropout and pooling ("first", "last", "mean") are the base model's habit.

        Where it follows the base, only the kind is meant: the base's facts say the rest.
        """
        return HeadSpec(
            kind=self.head_kind,
            labels=self.labels if self.has_labels else (),
            num_outputs=len(self.labels) if self.has_labels else self.outputs,
            layers=self.head_layers,
            activation="tanh",
            dropout=dropout,
            pooling=pooling if self.pools else "none",
        )

    @property
    def spec(self) -> TaskSpec:
        """What a package writes down about this task."""
        return TaskSpec(kind=self.kind, max_length=self.max_length, labels=self.labels)


def shown(names: Sequence[str]) -> str:
    """Names for a message: in quotes, at most SHOWN of them."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(f'"{name}"' for name in names[:SHOWN]) or "none") + more


def refuse(problems: Sequence[str]) -> None:
    """Raise DataError if there are problems; its message lists SHOWN of them and counts the rest."""
    if problems:
        rest = [f"and {len(problems) - SHOWN} more problems like these"] if len(problems) > SHOWN else []
        raise DataError([*problems[:SHOWN], *rest])


def missing(row: Row, field: str, form: str) -> str:
    """The message for a row without a field."""
    return f'has no "{field}" (its fields: {shown(sorted(map(str, row)))}); expected {form}'


def text_problems(row: Row, field: str, form: str) -> list[str]:
    """What is wrong with a field that must hold a text."""
    if field not in row:
        return [missing(row, field, form)]
    return string_problems(row[field], f'"{field}"')


def string_problems(value: Any, name: str) -> list[str]:
    """What is wrong with a value that must be a string a tokenizer can read."""
    if not isinstance(value, str):
        return [f"{name} is {value!r} ({type(value).__name__}); it must be a string"]
    try:
        value.encode()
    except UnicodeEncodeError as error:
        return [f"{name} holds half a surrogate pair, {value[error.start]!r}, which is not a character; take it out"]
    return []


def checked_logits(logits: Any, dimensions: int, outputs: int) -> torch.Tensor:
    """The logits of one row in float32 on the CPU, (L,) or (T, L). Raises AdapterError for a head of another size."""
    tensor = torch.as_tensor(logits).detach().to("cpu", torch.float32)
    if tensor.ndim != dimensions or tensor.shape[-1] != outputs:
        raise AdapterError(
            f"the head answers with shape {tuple(tensor.shape)}; the task needs {outputs} outputs at the end"
        )
    if not bool(torch.isfinite(tensor).all()):
        raise GraftworkError(
            "the model answers with numbers that are not finite (NaN or infinity); its weights are unusable"
        )
    return tensor
