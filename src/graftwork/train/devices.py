"""More than one device: the processes of one run, what each of them holds, and how they act as one.

    torchrun --nproc-per-node 2 -m graftwork train recipe.yaml         accelerate launch -m graftwork train recipe.yaml

    training.parallel   a process holds               rows of a batch   processes tell each other
    ddp (the default)   the whole base                its share         the gradients of what trains
    fsdp                its share of every layer      its share         every layer before it runs, and those gradients
    tp                  its share of every matrix     all of them       the states inside of every layer

What trains is whole in every process, and equal: adapters are small. Its gradients are averaged once an optimiser step,
in one message, by `average` and not by torch's DistributedDataParallel: that cannot hold a base whose tensors lie in
several processes, and has to be told of what a step leaves out (AdapterDrop, stochastic depth).

A batch is the recipe's `batch_size` rows whatever the number of processes, and the loss of a step one mean over its
items (mean.py), so that a run learns what it learns in one process, up to rounding and to the random numbers of
dropout, which every process draws for its own rows.

The first process alone writes and speaks. What may fail is done by all and agreed on, or done by the first one and told
to the others: either all go on or all raise the same error. How processes are started, and on which machines, is
torchrun's; what they are follows from the environment that it sets.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from accelerate import PartialState
from accelerate.data_loader import prepare_data_loader
from torch import Tensor, distributed
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from graftwork.build import open_model
from graftwork.errors import GraftworkError, RecipeError
from graftwork.model import AdapterModel
from graftwork.recipe import Recipe

MESSAGE = 25_000_000  # numbers of one message, which are held twice
Value = TypeVar("Value")


@dataclass(frozen=True)
class Kind:
    """A way to train on several devices. shares_rows: whether each process has other rows."""

    shares_rows: bool


KINDS = {"ddp": Kind(shares_rows=True)}


@dataclass(frozen=True)
class Devices:
    """The processes of a run and which of them this one is, counted from 0."""

    name: str = "ddp"
    rank: int = 0
    count: int = 1

    @property
    def kind(self) -> Kind:
        """What the processes share."""
        return KINDS[self.name]

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are other processes."""
        return self.count > 1

    @property
    def record(self) -> dict[str, Any]:
        """What a run's result says of them; nothing of one process."""
        return {"kind": self.name, "processes": self.count} if self.several else {}

    def opened(self, recipe: Recipe) -> AdapterModel:
        """The base of a recipe as this process holds it. Raises BackboneError."""
        return open_model(recipe.model)

    def portion(self, batch: Sequence[int]) -> Sequence[int]:
        """The rows of a batch that are this process's, perhaps none; rows of like length stand side by side."""
        return batch[self.rank :: self.count] if self.kind.shares_rows else batch

    def seed(self, seed: int) -> None:
        """Draw other random numbers for other rows; the first process draws those of a run in one process."""
        if self.several and self.kind.shares_rows:
            torch.manual_seed(seed + self.rank)

    def gathered(self, value: Value) -> list[Value]:
        """What every process has, in their order."""
        if not self.several:
            return [value]
        found: list[Any] = [None] * self.count
        distributed.all_gather_object(found, value)
        return found

    def told(self, value: Value) -> Value:
        """What the first process has."""
        if not self.several:
            return value
        held: list[Any] = [value if self.first else None]
        distributed.broadcast_object_list(held, src=0)
        return held[0]  # type: ignore[no-any-return]

    def agreed(self, work: Callable[[], Value]) -> Value:
        """What some work gives here, once it has succeeded in all processes; else all raise the first one's error."""
        if not self.several:
            return work()
        made, failed = _tried(work)
        _raise(next((error for error in self.gathered(failed) if error is not None), None), self.first)
        return made  # type: ignore[return-value]

    def from_first(self, work: Callable[[], Value]) -> Value:
        """What some work gives in the first process, where alone it is done; all raise its error."""
        if not self.several:
            return work()
        made, failed = self.told(_tried(work) if self.first else (None, None))
        _raise(failed, self.first)
        return made  # type: ignore[return-value]

    def make_equal(self, parameters: Iterable[Tensor]) -> None:
        """Give all processes the first one's numbers."""
        for parameter in parameters if self.several else ():
            distributed.broadcast(parameter.data, src=0)

    def average(self, parameters: Sequence[Tensor]) -> None:
        """Average gradients over all processes; where one has none it counts as 0, where none has one there is none."""
        if not self.several:
            return
        for bunch in _bunches(parameters):
            parts = [torch.zeros_like(one) if one.grad is None else one.grad for one in bunch]
            there = torch.tensor([float(one.grad is not None) for one in bunch])
            sums = torch.cat([part.flatten().float() for part in (*parts, there.to(parts[0].device))])
            distributed.all_reduce(sums)
            *means, there = torch.split(sums / self.count, [*(one.numel() for one in bunch), len(bunch)])
            for one, mean, share in zip(bunch, means, there.tolist(), strict=True):
                one.grad = mean.view_as(one).to(one.dtype) if share else None

    def one_then_all(self, work: Callable[[], Value]) -> Value:
        """Some work that is done once and found done by the others: the first process begins, and they follow."""
        made, failed = _tried(work) if self.first else (None, None)
        _raise(self.told(failed), self.first)
        return self.agreed(lambda: cast(Value, made) if self.first else work())

    def wait(self) -> None:
        """Until all are here."""
        if self.several:
            distributed.barrier()

    def loader(self, rows: Dataset[Any], sampler: Sampler[int], size: int, collate: Callable[[Any], Any]) -> Any:
        """Batches of `size` rows, of each the portion of this process; a process without rows has a spare one."""
        loader = DataLoader(_Spared(rows), batch_sampler=_Portions(sampler, size, self), collate_fn=collate)
        # accelerate would cut batches of its own and give rows twice to make them even
        return prepare_data_loader(loader, PartialState().device, num_processes=1, process_index=0, put_on_device=True)


ALONE = Devices()


def devices_of(*recipes: Recipe) -> Devices:
    """The processes that torchrun or accelerate started; joins them. Raises RecipeError for what they cannot share."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    state = PartialState(cpu=not torch.accelerator.is_available())
    found = Devices("ddp", state.process_index, state.num_processes)
    found.agreed(lambda: _check(recipes, found))
    return found


def speaks() -> bool:
    """Whether this process is the one that says what became of a run."""
    return os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1"


def _check(recipes: Sequence[Recipe], devices: Devices) -> None:
    if len(recipes) > 1:
        raise RecipeError(
            f"{len(recipes)} recipes together, in {devices.count} processes: what shares a forward runs in one; "
            "train them in one process, or one after another"
        )
    training = recipes[0].training
    if devices.kind.shares_rows and training.batch_size < devices.count:
        raise RecipeError(
            f"training.batch_size: {training.batch_size} rows cannot be shared by {devices.count} processes; it is the "
            "number of rows in all of them together"
        )


def _tried(work: Callable[[], Value]) -> tuple[Value | None, GraftworkError | None]:
    try:
        return work(), None
    except GraftworkError as error:
        return None, error


def _raise(error: GraftworkError | None, first: bool) -> None:
    if error is not None:
        error.said_elsewhere = not first
        raise error


def _bunches(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters of one message each: at most MESSAGE numbers, or one parameter that has more."""
    bunch: list[Tensor] = []
    for parameter in parameters:
        if bunch and sum(one.numel() for one in bunch) + parameter.numel() > MESSAGE:
            yield bunch
            bunch = []
        bunch.append(parameter)
    if bunch:
        yield bunch


class _Portions(BatchSampler):
    """Of every batch, the rows of one process."""

    def __init__(self, sampler: Sampler[int], size: int, devices: Devices) -> None:
        super().__init__(sampler, size, drop_last=False)
        self._devices = devices

    def __iter__(self) -> Iterator[list[int]]:
        for batch in super().__iter__():
            yield list(self._devices.portion(batch))


class _Spared(Dataset[Any]):
    """A data set that is also asked for no rows: forwards of all processes meet, so a process without rows runs one
    that counts for nothing, `spare`."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Any]:
        found: dict[str, Any] = self._rows.__getitems__(rows or [0])
        return found if rows else found | {"spare": torch.ones(1)}
