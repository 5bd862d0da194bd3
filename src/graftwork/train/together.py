"""Many adapters in one training run: one frozen forward and one backward for the batches of several recipes.

    each recipe: its own Trainer, which takes turns (turns.py) and stops where it has a batch
    all batches -> one forward, rows side by side (compose/abreast.py) -> each batch's own mean loss -> one backward
    each recipe: goes on alone: clips, steps, schedules, scores its dev rows, stops early, writes its folder and package

Each recipe keeps everything that is its own, and its folder is what `train` alone would make of it, ready to be gone on
with alone or together. What it learns is that of training alone up to rounding, since no loss, gradient, clipping or
random number mixes with another's; but where the base's or an adapter's dropout is active, its random numbers are drawn
for all rows of a forward at once, and training is equal in distribution only. Who diverges fails alone.
"""

import sys
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from rich.progress import Progress
from torch import Tensor

from graftwork.build import open_model
from graftwork.compose.abreast import Call, prompt_lengths, run_abreast
from graftwork.compose.forward import Asks
from graftwork.compose.inputs import for_heads, shape_of
from graftwork.core.backbone import Backbone
from graftwork.errors import Conflict, GraftworkError, RecipeError, told
from graftwork.model import AdapterModel
from graftwork.recipe import Recipe
from graftwork.registry.store import Registry
from graftwork.tasks.text import TextEncoder
from graftwork.train.callbacks import bars
from graftwork.train.data import load_data
from graftwork.train.devices import need_one_process
from graftwork.train.folder import RunFolder
from graftwork.train.job import Job, assemble, read
from graftwork.train.outcome import TrainResult
from graftwork.train.run import How, carry_out
from graftwork.train.settings import wants_bf16
from graftwork.train.stages import together as no_stages
from graftwork.train.trainer import rest
from graftwork.train.turns import Turn

SHARED = "trained together with"  # how the note of a run begins that was one of several
TOKENS = 8192  # of one forward, padding included: what bounds its memory, whatever the number of recipes
# Tokens of padding that a batch may cost in the forward of others on a CPU: there a call costs what some 30 tokens do
# (results/together.md: eight steps of 1 x 16 apart and in one). On an accelerator, which one batch does not fill,
# padding is the lesser cost.
PADDING = 32


def train_together(
    recipes: Sequence[Recipe],
    *,
    registry: Registry | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool | None = None,
    command: str = "",
    checkpoint_seconds: float = 300.0,
    tokens: int = TOKENS,
) -> list[TrainResult | GraftworkError]:
    """Train what several recipes over one base say, each into its own folder; for each its result, or why it failed.

    Arguments as for `train`. resume: each goes on from its own newest checkpoint. tokens: the most that one forward
    holds; where batches have more together, several follow one another, and a batch is never cut.

    Raises UserErrors before anything is written; RecipeError for recipes that cannot share a forward.
    """
    check(recipes)
    need_one_process(recipes[0])
    for recipe in recipes:
        RunFolder(recipe.output).check(resume=resume, overwrite=overwrite)
    jobs = _jobs(recipes, registry)
    how = How(resume, overwrite, command, checkpoint_seconds)
    shared = _Shared(jobs, tokens)
    with bars(sys.stderr.isatty() if progress is None else progress) as shown:
        turns = [_Turn(partial(_work, job, how, shown), job.recipe.name) for job in jobs]
        _take_turns(turns, shared)
    return [_ended(turn) for turn in turns]


def check(recipes: Sequence[Recipe]) -> None:
    """Raise RecipeError for recipes that cannot share a run: another base, another precision, everything trains."""
    if not recipes:
        raise RecipeError("there is no recipe to train; give one or more")
    no_stages(recipes)
    first = recipes[0]
    folders: dict[Any, str] = {}
    for recipe in recipes:
        if recipe.model != first.model:
            raise RecipeError(
                f"recipes that train together have one base: model is {_said(first)} in {first.name!r} and "
                f"{_said(recipe)} in {recipe.name!r}; train them apart"
            )
        if recipe.training.method in ("full", "peft"):
            raise RecipeError(
                f"{recipe.name!r}: training.method {recipe.training.method} changes the base that the others stand on; "
                "train it alone"
            )
        if wants_bf16(recipe.training) != wants_bf16(first.training):
            raise RecipeError(
                f"training.bf16 is {first.training.bf16} in {first.name!r} and {recipe.training.bf16} in "
                f"{recipe.name!r}; one forward has one precision, so make them equal"
            )
        if recipe.training.base_dropout != first.training.base_dropout:
            raise RecipeError(
                f"training.base_dropout is {str(first.training.base_dropout).lower()} in {first.name!r} and "
                f"{str(recipe.training.base_dropout).lower()} in {recipe.name!r}; one forward has one base, so make "
                "them equal"
            )
        if recipe.training.prefix_cache != "off":
            raise RecipeError(
                f"{recipe.name!r}: training.prefix_cache is {recipe.training.prefix_cache}, and the forward of several "
                "recipes begins at the first layer; set it to off, or train it alone"
            )
        place = RunFolder(recipe.output).path.resolve()
        if place in folders:
            raise Conflict(f"{recipe.output}: is the output of {folders[place]!r} and of {recipe.name!r}; name two")
        folders[place] = recipe.name


def _said(recipe: Recipe) -> str:
    model = recipe.model
    return f"{model.name!r} ({model.dtype}{f', revision {model.revision}' if model.revision else ''})"


def _jobs(recipes: Sequence[Recipe], registry: Registry | None) -> list[Job]:
    """The jobs, each on a model of its own over one backbone. What several recipes read alike is read once."""
    sources = [
        (recipe.data, recipe.task, recipe.training.seed if recipe.data.dev is None else None) for recipe in recipes
    ]
    data = _once(sources, lambda place: load_data(recipes[place]))
    base = open_model(recipes[0].model)
    pieces = [(id(found), recipe.training.max_seq_length) for recipe, found in zip(recipes, data, strict=True)]
    rows = _once(pieces, lambda place: read(recipes[place], data[place], base))
    jobs = []
    for recipe, found, own in zip(recipes, data, rows, strict=True):
        if own.task.speaks:
            raise RecipeError(
                f"{recipe.name!r}: task kind {recipe.task.kind} runs a decoder over texts of its own, which rows of "
                "other recipes have not; train it alone"
            )
        job = assemble(recipe, registry, found, AdapterModel(base.backbone), own)
        others = ", ".join(other.name for other in recipes if other is not recipe)
        jobs.append(replace(job, notes=(*job.notes, f"{SHARED} {others or 'nothing else'}")))
    return jobs


_Made = TypeVar("_Made")


def _once(keys: Sequence[Hashable], make: Callable[[int], _Made]) -> list[_Made]:
    """For each key what is made at its place; what was made for an equal key before is taken again."""
    made: dict[str, _Made] = {}
    return [
        made[repr(key)] if repr(key) in made else made.setdefault(repr(key), make(at)) for at, key in enumerate(keys)
    ]


@dataclass(frozen=True)
class _Batch:
    """The next batch of a job, the layers without adapters, and its share of its optimiser step."""

    job: Job
    inputs: dict[str, Tensor]
    dropped: Sequence[int]
    share: Tensor


_Turn: TypeAlias = Turn[_Batch, Tensor, TrainResult]


def _work(job: Job, how: How, shown: Progress, ask: Callable[[_Batch], Tensor]) -> TrainResult:
    return carry_out(job, how, shown, lambda *batch: ask(_Batch(job, *batch)))


def _take_turns(turns: Sequence[_Turn], shared: "_Shared") -> None:
    """Let every job run to its next batch, run the batches, and again, until all have ended."""
    waiting: list[tuple[_Turn, Tensor | None]] = [(turn, None) for turn in turns]
    try:
        while waiting:
            asked = []
            for turn, loss in waiting:
                batch = turn.go(loss)
                if batch is not None:
                    asked.append((turn, batch))
            waiting = list(zip([turn for turn, _ in asked], shared.step(asked), strict=True)) if asked else []
    finally:
        for turn in turns:
            turn.stop()


class _Shared:
    """Forward and backward of the batches of several jobs over one backbone."""

    def __init__(self, jobs: Sequence[Job], tokens: int) -> None:
        first = jobs[0]
        self._backbone: Backbone = first.model.backbone
        self._tokens = tokens
        self._padding = PADDING if self._backbone.model.device.type == "cpu" else tokens
        self._bf16 = wants_bf16(first.recipe.training)
        encoder = first.encoder
        self._fills: dict[str, int] = {}
        if isinstance(encoder, TextEncoder):
            self._fills = {"input_ids": encoder.pad_id, "token_type_ids": int(encoder.tokenizer.pad_token_type_id)}
        torch.manual_seed(first.recipe.training.seed)  # of the base's dropout

    def step(self, asked: Sequence[tuple[_Turn, _Batch]]) -> list[Tensor]:
        """The loss of each batch, its gradients being in the parameters of its own job."""
        losses: dict[int, Tensor] = {}
        for _, batch in asked:
            batch.job.model.train()
            if not batch.job.recipe.training.base_dropout:
                rest(batch.job.model)
        calls = [_call(batch) for _, batch in asked]
        for bundle in bundles([_size(call) for call in calls], self._tokens, self._padding):
            some = [asked[place] for place in bundle]
            with torch.autocast(self._backbone.model.device.type, torch.bfloat16, enabled=self._bf16):
                answers = run_abreast(self._backbone, [calls[place] for place in bundle], self._fills)
                found = [self._loss(turn, batch, answer) for (turn, batch), answer in zip(some, answers, strict=True)]
            torch.autograd.backward(found)
            losses |= {place: loss.detach() for place, loss in zip(bundle, found, strict=True)}
        return [losses[place] for place in range(len(asked))]

    def _loss(self, turn: _Turn, batch: _Batch, answer: Callable[[], Any]) -> Tensor:
        with turn.own_state():  # a head's dropout draws what it draws alone
            loss: Tensor = answer().loss
        return loss.float() * batch.share


def _call(batch: _Batch) -> Call:
    model, setup = batch.job.model, batch.job.setup
    shape = shape_of(batch.inputs)
    plan = model.plan(model.active_adapters, setup.name, shape.rows, batch.dropped)
    return Call(model.parts, plan, for_heads(batch.inputs, shape), Asks(None, shape.choices, True, scored_only=True))


class Size(NamedTuple):
    """Of one batch: its rows, the tokens of each (an image counts as one), and those that prompts put in front."""

    rows: int
    tokens: int
    prompts: tuple[int, ...] = (0,)


def _size(call: Call) -> Size:
    lead = call.inputs.get("input_ids")
    return Size(call.plan.rows, 1 if lead is None else lead.shape[1], prompt_lengths(call.plan))


def bundles(sizes: Sequence[Size], tokens: int, padding: int) -> list[list[int]]:
    """Which batches share a forward: places in `sizes`, at most `tokens` in a forward of several, padding included.

    Batches of like length come together, and one that would be padded by more than `padding` tokens begins another
    forward; those with other prompts run apart.
    """
    made: list[list[int]] = []
    rows, head = 0, None
    for place in sorted(range(len(sizes)), key=lambda place: (sizes[place].prompts, -sizes[place].tokens)):
        own = sizes[place]
        fits = (
            head is not None
            and own.prompts == head.prompts
            and (rows + own.rows) * head.tokens <= tokens
            and own.rows * (head.tokens - own.tokens) <= padding
        )
        if not fits:
            made.append([])
            rows, head = 0, own
        made[-1].append(place)
        rows += own.rows
    return made


def _ended(turn: _Turn) -> TrainResult | GraftworkError:
    """What became of a recipe; what a library raised of it is its own, as the others go on."""
    if turn.error is not None:
        return told(turn.error)
    assert turn.result is not None  # what ended without an error has one
    return turn.result
