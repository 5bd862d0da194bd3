"""The engine: one frozen backbone, many packages, one mixed batch at a time.

    Engine(model, tokenizer, registry).answer([
        {"text": "where is my parcel", "adapters": "intent@stable"},
        {"text": "bahut accha", "adapters": "Stack(hinglish, mood)"},
    ])

Rows with different compositions and heads share a forward. A row that cannot be answered gets an error of its own; an
adapter that is not there is never replaced by the base. Knows no HTTP and no queue. Threads may call at the same time.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import torch
from transformers import PreTrainedTokenizerBase

from graftwork.build import open_model, open_reader, positions
from graftwork.compose.lower import Lanes
from graftwork.compose.tree import Composition, show
from graftwork.core.accelerator import to_accelerator
from graftwork.errors import UserError
from graftwork.model import AdapterModel
from graftwork.registry.store import Registry
from graftwork.saying import said
from graftwork.schema.sections import ModelSection
from graftwork.serve.batches import apart, batches, texts_of, waves
from graftwork.serve.catalog import Found
from graftwork.serve.outcomes import Outcome, failure
from graftwork.serve.planner import PlannedRow, Planner, Unit
from graftwork.serve.pool import Pool
from graftwork.tasks.images import ImageEncoder
from graftwork.tasks.task import Task, refuse


@dataclass
class Counts:
    """What the engine did so far; the last three are sums over forwards."""

    rows: Counter[str] = field(default_factory=Counter)  # "ok" or the code of the error -> rows
    forwards: int = 0
    forward_seconds: float = 0.0
    pieces: int = 0  # of the texts
    padded: int = 0  # rows times the longest of them
    compositions: int = 0  # distinct ones


class Engine:
    """Answers rows from the packages of one registry. The model is the engine's from now on.

    adapter_cache_size: packages kept in the model; max_batch_rows, max_batch_tokens: rows and padded pieces a forward;
    too_long: what becomes of a text beyond its task's limit.
    Raises UserError for a size below 1, BackboneError for a tokenizer that is not fast.
    """

    def __init__(
        self,
        model: AdapterModel,
        tokenizer: PreTrainedTokenizerBase | ImageEncoder,
        registry: Registry,
        *,
        adapter_cache_size: int = 32,
        max_batch_rows: int = 32,
        max_batch_tokens: int = 4096,
        too_long: Literal["refuse", "truncate"] = "refuse",
    ) -> None:
        sizes = {"adapter_cache_size": adapter_cache_size, "max_batch_rows": max_batch_rows}
        for name, size in {**sizes, "max_batch_tokens": max_batch_tokens}.items():
            if size < 1:
                raise UserError(f"{name} is {size}; it must be at least 1")
        self.model = model.eval()
        model.execution = "auto"
        if model.device.type == "cpu":  # where memory that nothing was written to costs nothing
            model.reserve(adapter_cache_size)
        self.registry = registry
        self.counts = Counts()
        self._turn = threading.Lock()  # one at a time runs or changes the model
        self._tally = threading.Lock()
        self.pool = Pool(model, adapter_cache_size, self._turn)
        self._planner = Planner(registry, tokenizer, positions(model.config), too_long)
        self._max_rows, self._max_tokens = max_batch_rows, max_batch_tokens

    @classmethod
    def open(
        cls,
        section: ModelSection,
        registry: Registry,
        *,
        adapter_cache_size: int = 32,
        too_long: Literal["refuse", "truncate"] = "refuse",
    ) -> Self:
        """An engine for a model by id, folder or `minilm`, on the accelerator if there is one. Raises BackboneError."""
        model = open_model(section)
        to_accelerator(model)
        reader = open_reader(section.name, model)
        return cls(model, reader, registry, adapter_cache_size=adapter_cache_size, too_long=too_long)

    def task(self, adapters: Any, head: str | None = None) -> Task:
        """The task that answers rows with this composition and head. Raises what would be the error of such a row."""
        return self._planner.task(adapters, head)

    def exact(self, adapters: Any) -> Composition:
        """A composition with every name at its version. Raises what would be the error of a row that asks for it."""
        return self._planner.exact(adapters)

    @contextmanager
    def holding(self, name: str) -> Iterator[Found]:
        """Have a package in the model, by the `name` of what is found, as long as the block lasts.

        Raises NotFound, PackageError, Conflict.
        """
        found = self._planner.find(name)
        self.pool.acquire(found)
        try:
            yield found
        finally:
            self.pool.release(found)

    def inputs(
        self, rows: Sequence[Mapping[str, Any]], task: Task, *, labels: bool = False
    ) -> list[dict[str, torch.Tensor]]:
        """What the model is given for the contents of rows of a task, in batches. Raises DataError, InputTooLong.

        labels: with what the head should answer, of rows that are one text each.
        """
        encoded = [self._planner.encode(row, task) for row in rows]
        if labels:
            refuse([f"row {n}: {one}" for n, row in enumerate(rows, 1) for one in task.problems(row, with_labels=True)])
            own = zip(rows, encoded, strict=True)
            encoded = [(encoder, replace(one, labels=task.target(row, one))) for row, (encoder, one) in own]
        texts = [text for _, row in encoded for text in row.rows]
        size, device = self._max_rows, self.model.device
        made = [encoded[0][0].pad(texts[start : start + size]) for start in range(0, len(texts), size)]
        return [{key: value.to(device) for key, value in one.items() if key != "word_starts"} for one in made]

    def answer(self, rows: Sequence[Mapping[str, Any]]) -> list[Outcome]:
        """One outcome per row, in order: {"label", ..., "adapters", "head"}, or {"error": {"code", "message"}}.

        A row is {"text", "text_pair"?} or {"tokens"}, with "adapters", a composition, and "head" where that does not
        say which head answers. A Parallel gives {"adapters", "branches": [one outcome per branch]}.
        """
        plans = self._planner.plan(rows)
        units = [unit for plan in plans for unit in plan.branches if isinstance(unit, Unit)]
        outcomes: dict[Unit, Outcome] = {}
        for wave in waves(units, self.pool.capacity, self.pool.loaded()):
            outcomes |= self._answer_wave(wave)
        answers = [_assembled(plan, outcomes) for plan in plans]
        with self._tally:
            self.counts.rows.update(_code(answer) for answer in answers)
        return answers

    def _answer_wave(self, wave: Sequence[Unit]) -> dict[Unit, Outcome]:
        outcomes: dict[Unit, Outcome] = {}
        with self._holding(wave) as broken:
            ready = []
            for unit in wave:
                errors = [broken[package.name] for package in unit.packages if package.name in broken]
                if errors:
                    outcomes[unit] = errors[0]
                else:
                    ready.append(unit)
            for units in apart(ready):
                for batch in batches(units, self._max_rows, self._max_tokens):
                    outcomes |= self._answer_batch(batch)
        return outcomes

    @contextmanager
    def _holding(self, wave: Sequence[Unit]) -> Iterator[dict[str, Outcome]]:
        """Hold the packages of a wave; yields package -> outcome for those that cannot be loaded."""
        held, broken = [], {}
        try:
            for package in dict.fromkeys(package for unit in wave for package in unit.packages):
                try:
                    self.pool.acquire(package)
                    held.append(package)
                except Exception as error:  # the outcome of the rows that need it, of no others
                    broken[package.name] = failure(error, self.registry.root)
            yield broken
        finally:
            for package in held:
                self.pool.release(package)

    def _answer_batch(self, batch: Sequence[Unit]) -> dict[Unit, Outcome]:
        try:
            return self._say(batch) if batch[0].task.speaks else self._forward(batch)
        except Exception as error:
            if len(batch) == 1:
                return {batch[0]: failure(error, self.registry.root)}
        outcomes: dict[Unit, Outcome] = {}  # alone, so that only the row that fails has an error
        for unit in batch:
            outcomes |= self._answer_batch([unit])
        return outcomes

    def _forward(self, batch: Sequence[Unit]) -> dict[Unit, Outcome]:
        """One forward that gives each row its composition and its head, and is given each text once."""
        owners = [unit for unit in batch for _ in unit.encoded.rows]  # a unit of several texts has a row for each
        texts, rows_of = texts_of(text for unit in batch for text in unit.encoded.rows)
        tensors = batch[0].encoder.pad(texts)  # (B, T) each
        started = time.perf_counter()
        with self._turn, torch.inference_mode():
            output = self.model(
                **{key: tensor.to(self.model.device) for key, tensor in tensors.items()},
                adapters=Lanes(rows_of, [unit.tree for unit in owners]),
                head=[unit.head for unit in owners],
            )
            groups = [(group.rows.tolist(), group.text_logits.float().cpu()) for group in output.groups]
            self._count(batch, started, len(owners) * (tensors["input_ids"].shape[1] if "input_ids" in tensors else 0))
        rows: dict[Unit, list[torch.Tensor]] = {}
        for members, logits in groups:
            for row, own in zip(members, logits, strict=True):
                rows.setdefault(owners[row], []).append(own)
        return {unit: self._decoded(unit, own[0] if len(own) == 1 else torch.stack(own)) for unit, own in rows.items()}

    def _say(self, batch: Sequence[Unit]) -> dict[Unit, Outcome]:
        """The texts of B rows, each with its composition, all by one head."""
        first, started = batch[0], time.perf_counter()
        trees, limits = [unit.tree for unit in batch], [unit.new_tokens for unit in batch]
        rows = [unit.encoded for unit in batch]
        with self._turn, torch.inference_mode():
            answers = said(self.model, first.task, first.encoder, rows, trees, first.head, limits)
            self._count(batch, started, len(batch) * max(unit.length for unit in batch))
        return {
            unit: {**answer, "adapters": show(unit.tree), "head": unit.head}
            for unit, answer in zip(batch, answers, strict=True)
        }

    def _count(self, batch: Sequence[Unit], started: float, padded: int) -> None:
        self.counts.forwards += 1
        self.counts.forward_seconds += time.perf_counter() - started
        self.counts.pieces += sum(unit.length for unit in batch)
        self.counts.padded += padded
        self.counts.compositions += len({unit.tree for unit in batch})

    def _decoded(self, unit: Unit, logits: torch.Tensor) -> Outcome:
        """The answer to one row, from logits (L,) or (T, L)."""
        try:
            answer = unit.task.decode(logits, unit.encoded)
        except Exception as error:
            return failure(error, self.registry.root)
        return {**answer, "adapters": show(unit.tree), "head": unit.head}


def _assembled(plan: PlannedRow, outcomes: Mapping[Unit, Outcome]) -> Outcome:
    branches = [outcomes[one] if isinstance(one, Unit) else one for one in plan.branches]
    return branches[0] if plan.fan_out is None else {"adapters": show(plan.fan_out), "branches": branches}


def _code(answer: Outcome) -> str:
    return str(answer["error"]["code"]) if "error" in answer else "ok"
