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

How processes are started, and on which machines, is torchrun's; what they are follows from the environment that it
sets. How they act as one is in processes.py.
"""

import atexit
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from accelerate.data_loader import prepare_data_loader
from torch import distributed
from torch.distributed.tensor import DTensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler
from transformers import PreTrainedModel
from transformers.distributed import DistributedConfig
from transformers.distributed.parallel_utils import replace_layer_number_by_wildcard

from graftwork.build import open_model
from graftwork.core.backbone import load_skeleton
from graftwork.core.families import Family, family_of
from graftwork.core.locate import layers_of
from graftwork.errors import GraftworkError, RecipeError
from graftwork.model import AdapterModel
from graftwork.recipe import Recipe
from graftwork.schema.values import RECIPES
from graftwork.tasks.kinds import TASKS
from graftwork.tasks.task import Row
from graftwork.train.processes import Processes


def _layers(base: PreTrainedModel, count: int) -> DistributedConfig:
    """Every layer in parts, put together while it runs. The embeddings stay whole after they ran: heads read them."""
    layers = {layer for stack in _family(base).stacks for layer in layers_of(base.base_model, stack)}
    names = {name for name, module in base.named_modules() if module in layers}
    plan = {replace_layer_number_by_wildcard(name): "free_full_weight" for name in names}
    return DistributedConfig(fsdp_size=count, fsdp_plan=plan | dict.fromkeys(_embeddings(base), "keep_full_weight"))


def _matrices(base: PreTrainedModel, count: int) -> DistributedConfig:
    """Matrices in parts, as transformers plans them for a type of model. Raises RecipeError for one without a plan."""
    if not base.config.base_model_tp_plan:
        raise RecipeError(
            f"training.parallel: tp: transformers has no tensor-parallel plan for {base.config.model_type}; take fsdp, "
            "or ddp"
        )
    return DistributedConfig(tp_size=count, tp_plan=dict.fromkeys(_embeddings(base), "replicate"))


@dataclass(frozen=True)
class Kind:
    """A way to train on several devices.

    shares_rows: whether each process has other rows. spread: how transformers is to load the base (of which a skeleton
    is given) in so many processes, None for whole. places: of sites where adapters see whole states, None for all.
    """

    shares_rows: bool
    spread: Callable[[PreTrainedModel, int], DistributedConfig] | None = None
    places: tuple[str, ...] | None = None


KINDS = {
    "ddp": Kind(shares_rows=True),
    "fsdp": Kind(shares_rows=True, spread=_layers),
    "tp": Kind(shares_rows=False, spread=_matrices, places=("sublayer", "embed", "prompt")),
}


@dataclass(frozen=True)
class Devices(Processes):
    """The processes of a run, and what they share."""

    name: str = "ddp"

    @property
    def kind(self) -> Kind:
        """What the processes share."""
        return KINDS[self.name]

    @property
    def spread(self) -> Callable[[PreTrainedModel, int], DistributedConfig] | None:
        """How the base is loaded in parts; None where every process has it whole."""
        return self.kind.spread if self.several else None

    @property
    def record(self) -> dict[str, Any]:
        """What a run's result says of them; nothing of one process."""
        return {"kind": self.name, "processes": self.count} if self.several else {}

    def opened(self, recipe: Recipe) -> AdapterModel:
        """The base of a recipe as this process holds it. Raises BackboneError, RecipeError for one without a plan."""
        spread, base = self.spread, recipe.model
        return open_model(base, None if spread is None else spread(load_skeleton(base.name, base.revision), self.count))

    def check(self, model: AdapterModel, recipe: Recipe, dev: Sequence[Row]) -> None:
        """Raise RecipeError for what a recipe put on its base, or asks of rows like `dev`, that cannot be shared."""
        said, places = f"training.parallel: {self.name}", self.kind.places
        if not self.several:
            return
        size = recipe.training.batch_size
        if self.kind.shares_rows and size < self.count:
            raise RecipeError(
                f"training.batch_size: {size} rows cannot be shared by {self.count} processes; it is the number of "
                "rows in all of them together"
            )
        if self.kind.shares_rows and recipe.task.kind == "similarity" and "label" not in dev[0]:
            raise RecipeError(
                f"{said}: pairs without labels learn from all others of their batch, which is shared by {self.count} "
                "processes; train in one process"
            )
        copied = [name for name, parameter in model.parts.named_parameters() if isinstance(parameter, DTensor)]
        if copied:
            raise RecipeError(
                f"{said}: {recipe.adapter.variant} begins as a copy of the base's own tensors, which no process "
                "holds whole; take ddp"
            )
        used = {(table, name) for table in ("adapters", "fusions") for name in model.parts.records(table)}
        keys = {key for part in used for key in model.parts.modules_of(*part)}
        cut = sorted({site.place for site in model.backbone.sites if site.name in keys} - set(places or ()))
        if places is not None and cut:
            raise RecipeError(
                f"{said}: {recipe.adapter.variant} works inside of matrices that are cut ({', '.join(cut)}); take "
                "ddp or fsdp, or an adapter at the ends of sub-layers, such as seq_bn"
            )

    def portion(self, batch: Sequence[int]) -> Sequence[int]:
        """The rows of a batch that are this process's, perhaps none; rows of like length stand side by side."""
        return batch[self.rank :: self.count] if self.kind.shares_rows else batch

    def apart(self, rows: Sequence[int]) -> Sequence[int]:
        """The rows that this process answers by itself; all of them where forwards of all processes meet."""
        return rows if self.spread else self.portion(rows)

    def seed(self, seed: int) -> None:
        """Draw other random numbers for other rows; the first process draws those of a run in one process."""
        if self.several and self.kind.shares_rows:
            torch.manual_seed(seed + self.rank)

    def loader(self, rows: Dataset[Any], sampler: Sampler[int], size: int, collate: Callable[[Any], Any]) -> Any:
        """Batches of `size` rows, of each the portion of this process; a process without rows has a spare one."""
        loader = DataLoader(_Spared(rows), batch_sampler=_Portions(sampler, size, self), collate_fn=collate)
        # accelerate would cut batches of its own and give rows twice to make them even
        return prepare_data_loader(loader, PartialState().device, num_processes=1, process_index=0, put_on_device=True)


ALONE = Devices()


def devices_of(recipe: Recipe) -> Devices:
    """The processes that torchrun or accelerate started; joins them. Raises RecipeError for what they cannot share."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    joined = distributed.is_initialized()
    state = PartialState(cpu=not torch.accelerator.is_available())
    if not joined:
        atexit.register(_part)
    found = Devices(state.process_index, state.num_processes, recipe.training.parallel)
    found.agreed(lambda: _check(recipe, found))
    return found


def _part() -> None:
    """End what the processes tell each other by: its threads, where they outlive the interpreter, abort the process."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def need_one_process(recipe: Recipe) -> None:
    """Raise RecipeError where there are several, for what makes several runs of one."""
    devices = devices_of(recipe)
    if devices.several:
        several = f"several runs share one process, and there are {devices.count} processes here"
        devices.fail(RecipeError(f"{several}; start it without torchrun, or train one recipe after another"))


def speaks() -> bool:
    """Whether this process is the one that says what became of a run."""
    return os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1"


@contextmanager
def said_once() -> Iterator[None]:
    """An error in what every process does alike, before they are joined, is said by one of them."""
    try:
        yield
    except GraftworkError as error:
        error.said_elsewhere = not speaks()
        raise


def _check(recipe: Recipe, devices: Devices) -> None:
    training = recipe.training
    if devices.spread is not None:
        said = f"training.parallel: {devices.name}: no process holds the whole base, which"
        if training.method in ("full", "peft"):
            raise RecipeError(f"{said} training.method: {training.method} copies; take ddp")
        if TASKS[recipe.task.kind].speaks:
            raise RecipeError(f"{said} task kind {recipe.task.kind} needs to say texts; take ddp")
        if any(member.endswith(RECIPES) for member in recipe.adapter.members or ()):
            raise RecipeError(f"{said} the recipes among adapter.members stand on whole; train them first, or take ddp")
        if training.prefix_cache != "off":
            raise RecipeError(f"{said} training.prefix_cache: {training.prefix_cache} runs in one; set it to off")


def _family(base: PreTrainedModel) -> Family:
    """Where the layers of a base are. Raises RecipeError for a type without a row."""
    found = family_of(base.config, base.base_model)
    if found is None:
        raise RecipeError(
            f"training.parallel: fsdp: the layers of {base.config.model_type} are in no table of ours; take ddp"
        )
    return found


def _embeddings(base: PreTrainedModel) -> list[str]:
    """The name of what embeds a base's input ids, where it does."""
    try:
        table = base.get_input_embeddings()
    except NotImplementedError:
        return []
    return [name for name, module in base.named_modules() if module is table][:1]


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
