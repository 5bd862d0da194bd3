"""From a recipe to everything a run needs, in memory. Whatever is wrong with a recipe, its data or its members is found
here, before anything is written.

The three ways to train, in one table: an adapter or fusion; only a head on the frozen base; the whole model.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from graftwork.build import open_encoder, open_images, positions, recipe_task
from graftwork.core.counting import counted
from graftwork.errors import RecipeError
from graftwork.evaluate import evaluate
from graftwork.model import AdapterModel
from graftwork.recipe import Recipe
from graftwork.registry.store import Registry
from graftwork.summary import heavy
from graftwork.tasks.encoded import Encoded
from graftwork.tasks.task import Encoder, Task
from graftwork.tasks.text import TextEncoder
from graftwork.train.batches import EncodedRows, ImageRows, rows_of
from graftwork.train.data import Data, load_data
from graftwork.train.devices import ALONE, Devices
from graftwork.train.drop import Drop, plan_drop
from graftwork.train.full import FullModel
from graftwork.train.peft import configured, put
from graftwork.train.plain import PlainText
from graftwork.train.prefix import Prefix, plan
from graftwork.train.settings import wants_bf16
from graftwork.train.setup import Setup, set_up, set_up_head
from graftwork.train.stream import Stream, TextBlocks, cache_root, tokenised

PROBED = 2  # dev rows that go through the untrained model, to see that everything fits together


@dataclass(frozen=True)
class Job:
    """A recipe with its data, model, and what trains.

    learner: what the Trainer gets, `model` or a full copy of it. encoded: split -> its tokenised rows; those of dev are
    longest first, and `dev` holds its rows in the same order. sets: the same as data sets. metric: the score that picks
    the best epoch. drop: the layers that a step runs without adapters, prefix: those whose states are kept, where the
    recipe asks for it. devices: the processes that do it together.
    """

    recipe: Recipe
    data: Data
    dev: tuple[dict[str, Any], ...]
    encoded: Mapping[str, Sequence[Encoded]]
    task: Task
    encoder: Encoder
    model: AdapterModel
    learner: nn.Module
    setup: Setup
    metric: str
    sets: Mapping[str, EncodedRows | ImageRows | TextBlocks]
    drop: Drop | None
    prefix: Prefix | None
    notes: tuple[str, ...]
    devices: Devices = ALONE

    @property
    def identity(self) -> dict[str, Any]:
        """What a run stands on; two runs with the same identity are the same run."""
        return {
            **asked_for(self.recipe),
            "data": self.data.digest,
            "base": self.model.backbone.fingerprint,
            **{f"package {member.name}": member.digest for member in self.setup.members},
        }


def asked_for(recipe: Recipe) -> dict[str, Any]:
    """The part of a run's identity that its recipe says."""
    return dict(_flat(recipe.model_dump(mode="json", exclude={"output", "serving", "compare"}), "recipe"))


def _adapter(model: AdapterModel, recipe: Recipe, task: Task, registry: Registry | None) -> tuple[Setup, nn.Module]:
    return set_up(model, recipe, task, registry), model


def _head(model: AdapterModel, recipe: Recipe, task: Task, registry: Registry | None) -> tuple[Setup, nn.Module]:
    return set_up_head(model, recipe, task), model


def _full(model: AdapterModel, recipe: Recipe, task: Task, registry: Registry | None) -> tuple[Setup, nn.Module]:
    setup = set_up_head(model, recipe, task)
    return setup, FullModel(model, setup.name)


def _peft(model: AdapterModel, recipe: Recipe, task: Task, registry: Registry | None) -> tuple[Setup, nn.Module]:
    config = configured(recipe.adapter.variant, recipe.adapter.options or {})
    setup = set_up_head(model, recipe, task)
    return setup, FullModel(model, setup.name, lambda copied: put(copied, config, setup.name))


# training.method -> what trains, and what the Trainer gets
METHODS: dict[str, Callable[[AdapterModel, Recipe, Task, Registry | None], tuple[Setup, nn.Module]]] = {
    "adapter": _adapter,
    "head": _head,
    "full": _full,
    "peft": _peft,
}


@dataclass(frozen=True)
class Read:
    """The rows of a recipe as its base reads them, as in `Job`."""

    task: Task
    encoder: Encoder
    encoded: Mapping[str, Sequence[Encoded]]
    dev: tuple[dict[str, Any], ...]
    stream: Stream | None = None  # of plain text, which is in the place of encoded rows of train


def prepare(recipe: Recipe, registry: Registry | None, devices: Devices = ALONE) -> Job:
    """Read, open, tokenise and check everything. Raises UserErrors; writes nothing. Seeds torch's random numbers."""
    wants_bf16(recipe.training)
    data = load_data(recipe)
    model = devices.opened(recipe)
    return assemble(recipe, registry, data, model, read(recipe, data, model), devices)


def read(recipe: Recipe, data: Data, model: AdapterModel) -> Read:
    """The rows of a recipe in the pieces of a model. Raises DataError, BackboneError."""
    task = recipe_task(recipe, data.labels)
    longest, most = positions(model.config), recipe.training.max_seq_length
    encoder: Encoder = (
        open_images(recipe.model.name, most)
        if task.reads_images
        else open_encoder(recipe.model.name, most, "truncate", longest)
    )
    encoded: dict[str, Sequence[Encoded]] = {"dev": task.encode(data.dev, encoder, with_labels=True)}
    task.encode(data.test, encoder, with_labels=True)  # read at the end; what is wrong with them is said before
    stream = None
    if isinstance(data.train, PlainText):
        stream = tokenised(data.train, cast(TextEncoder, encoder), cache_root(os.environ))
    else:
        encoded["train"] = task.encode(data.train, encoder, with_labels=True)
    order = sorted(range(len(data.dev)), key=lambda row: -encoded["dev"][row].length)
    encoded["dev"] = [encoded["dev"][row] for row in order]
    return Read(task, encoder, encoded, tuple(data.dev[row] for row in order), stream)


def assemble(
    recipe: Recipe, registry: Registry | None, data: Data, model: AdapterModel, rows: Read, devices: Devices = ALONE
) -> Job:
    """The job of a recipe on a model without parts. Raises UserErrors as `prepare`; seeds torch's random numbers."""
    if model.dtype == torch.float16:
        raise RecipeError("model.dtype: float16 loses small gradients; train in float32 or bfloat16")
    torch.manual_seed(recipe.training.seed)  # of the new weights
    if recipe.training.gradient_checkpointing and not getattr(model.base, "supports_gradient_checkpointing", False):
        kind = type(model.base).__name__
        raise RecipeError(f"training.gradient_checkpointing: transformers has none for {kind}; leave it out")
    setup, learner = METHODS[recipe.training.method](model, recipe, rows.task, registry)
    devices.check(model, recipe, rows.dev)
    metric = _metric(recipe, rows.task, model, rows.encoder, setup, rows.dev)
    redraw = rows.task.redraw(rows.encoder, recipe.training.seed)
    splits = rows.encoded
    sets: dict[str, EncodedRows | ImageRows | TextBlocks] = {"dev": rows_of(splits["dev"], rows.encoder)}
    if rows.stream is None:
        sets["train"] = rows_of(splits["train"], rows.encoder, redraw)
    else:
        sets["train"] = TextBlocks(rows.stream, cast(TextEncoder, rows.encoder), redraw)
    drop = plan_drop(model, recipe.training.drop, recipe.training.seed)
    prefix, kept = _prefix(recipe, model, sets)
    said = (*_cut(splits, rows.encoder.max_length, recipe), kept, *_heavy(model, setup))
    notes = (*data.notes, *filter(None, said))
    return Job(
        recipe,
        data,
        rows.dev,
        splits,
        rows.task,
        rows.encoder,
        model,
        learner,
        setup,
        metric,
        sets,
        drop,
        prefix,
        notes,
        devices,
    )


def _prefix(
    recipe: Recipe, model: AdapterModel, sets: Mapping[str, EncodedRows | ImageRows | TextBlocks]
) -> tuple[Prefix | None, str]:
    texts = [one for one in sets.values() if isinstance(one, EncodedRows)]  # a recipe for images asks for none
    return plan(model, texts, recipe.training.prefix_cache, torch.bfloat16 if wants_bf16(recipe.training) else None)


def _metric(
    recipe: Recipe, task: Task, model: AdapterModel, encoder: Encoder, setup: Setup, dev: Sequence[dict[str, Any]]
) -> str:
    """The score that picks the best epoch; what scores there are is found by scoring a few rows."""
    probed, composition = dev[:PROBED], setup.composition
    if task.speaks:  # texts are said at the end of the run alone, and whether they can be is seen here
        evaluate(model, task, encoder, probed, adapters=composition, head=setup.name, new_tokens=1)
    scores, _ = evaluate(model, task, encoder, probed, adapters=composition, head=setup.name, new_tokens=0)
    wanted = recipe.training.metric or task.main_score
    known = [*scores, "loss"]
    if wanted not in known:
        raise RecipeError(f"training.metric: {wanted!r} is no score of task {task.kind}; those are {', '.join(known)}")
    return wanted


def _cut(encoded: Mapping[str, Sequence[Encoded]], limit: int, recipe: Recipe) -> Iterator[str]:
    if limit < recipe.training.max_seq_length:
        yield f"training.max_seq_length is {recipe.training.max_seq_length}; this base takes {limit} pieces at most"
    for split, rows in encoded.items():
        if cut := sum(row.cut > 0 for row in rows):
            yield f"{cut} of {len(rows)} rows of {split} are longer than {limit} pieces and were cut"


def _heavy(model: AdapterModel, setup: Setup) -> Iterator[str]:
    if setup.name in model.parts.fusion_records:
        yield heavy(setup.name, model.parts.count("fusions", setup.name), counted(model.base)) or ""


def _flat(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from _flat(inner, f"{prefix}.{key}")
        else:
            yield f"{prefix}.{key}", inner
