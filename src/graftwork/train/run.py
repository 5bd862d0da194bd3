"""One training run: recipe -> package, scores and everything about them, in a folder that can be gone on with.

    check everything (job.py) -> claim the folder -> fit, a sealed checkpoint an epoch -> best epoch -> package, result

A run that is killed goes on from its newest whole checkpoint and ends with the weights of an unbroken one, bit for bit
on a CPU: weights, optimiser, schedule, random state and patience are in the checkpoint, and the order of the rows
follows from (seed, epoch). Sets the global random seeds, as transformers' Trainer does.
"""

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import Progress
from transformers import TrainerState

from graftwork.build import open_model, without_bars
from graftwork.compose.tree import show
from graftwork.evaluate import answer
from graftwork.model import AdapterModel
from graftwork.packing import Provenance
from graftwork.recipe import Recipe, dump
from graftwork.registry.durable import named, sibling
from graftwork.registry.package import Package, write
from graftwork.registry.store import Registry
from graftwork.schema.conflicts import SPLITS
from graftwork.schema.sections import ModelSection
from graftwork.tasks.task import Row
from graftwork.train.callbacks import bars
from graftwork.train.checkpoint import Checkpoint, drop_after, newest_whole
from graftwork.train.curve import draw
from graftwork.train.devices import devices_of
from graftwork.train.fit import fit
from graftwork.train.folder import RunFolder
from graftwork.train.full import FullModel
from graftwork.train.fusion import Screening, after, before
from graftwork.train.hold import held
from graftwork.train.job import Job, prepare
from graftwork.train.memory import peak
from graftwork.train.monitor import judge
from graftwork.train.outcome import TrainResult, counts, history, machine, read_result, versions, write_result
from graftwork.train.peft import HEAD_ALONE, save
from graftwork.train.settings import steps_per_epoch
from graftwork.train.stages import FirstStage, first_stage
from graftwork.train.trainer import Step


def train(
    recipe: Recipe,
    *,
    registry: Registry | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool | None = None,
    command: str = "",
    checkpoint_seconds: float = 300.0,
) -> TrainResult:
    """Train what a recipe says, and write it to the recipe's `output`.

    registry: where the members of a composition are. A fusion's members that are recipes are trained first and put
    there (stages.py); their runs are gone on with or read back, whatever is said here of this one. resume: go on where
    a run of this recipe stopped, or begin; a run that is finished is read back. overwrite: put this run in the place of
    another. progress: show a bar; None means on a terminal. command: what was typed, for the record.
    checkpoint_seconds: time between checkpoints within an epoch.

    Raises UserErrors before anything is written, and GoalMissed when the training diverges.
    """
    devices = devices_of(recipe)
    folder = RunFolder(recipe.output)
    devices.from_first(lambda: folder.check(resume=resume, overwrite=overwrite))
    how = How(resume, overwrite, command, checkpoint_seconds)
    with bars(devices.first and (sys.stderr.isatty() if progress is None else progress)) as shown:
        return carry_out(ready(recipe, registry, how, shown), how, shown)


@dataclass(frozen=True)
class How:
    """How a run is to be done, as in `train`: what no recipe says."""

    resume: bool = False
    overwrite: bool = False
    command: str = ""
    checkpoint_seconds: float = 300.0


def ready(recipe: Recipe, registry: Registry | None, how: How, shown: Progress) -> Job:
    """The prepared job of a recipe, its first stage done. Raises UserErrors before anything is written."""
    devices = devices_of(recipe)
    work = devices.agreed(lambda: first_stage(recipe, registry, devices) or prepare(recipe, registry, devices))
    if isinstance(work, FirstStage):
        for member, job in work.jobs.items():
            result = carry_out(job, replace(how, resume=True, overwrite=False), shown)
            devices.one_then_all(partial(work.finished, member, result))
        work = devices.agreed(work.second)
    return work


def carry_out(job: Job, how: How, shown: Progress, step: Step | None = None) -> TrainResult:
    """Claim the folder of a prepared job, train, score and write it all; `step` as in `fit`.

    Raises Conflict where the folder is another run's or another process trains in it, GoalMissed when the training
    diverges.
    """
    with ExitStack() as hold:
        return _carried_out(job, how, shown, step, hold)


def _carried_out(job: Job, how: How, shown: Progress, step: Step | None, hold: ExitStack) -> TrainResult:
    folder = RunFolder(job.recipe.output)
    start, finished = job.devices.from_first(lambda: _claimed(job, folder, how, hold))
    if finished:
        return job.devices.agreed(lambda: read_result(folder))
    trained = sum(parameter.numel() for parameter in job.learner.parameters() if parameter.requires_grad)
    screened = before(job)
    begun = time.perf_counter()
    state = fit(job, folder, start, shown=shown, checkpoint_seconds=how.checkpoint_seconds, step=step)
    seconds = round(time.perf_counter() - begun + (start.seconds if start else 0.0), 3)
    call = _Call(trained, seconds, how.command, start.step if start else 0, screened)
    return _conclude(job, folder, state, call)


def _claimed(job: Job, folder: RunFolder, how: How, hold: ExitStack) -> tuple[Checkpoint | None, bool]:
    """Make the folder this run's: where it goes on from, and whether it was brought to its end before."""
    folder.check(resume=how.resume, overwrite=how.overwrite, identity=job.identity)
    if not (how.resume and folder.finished):
        with named(folder.path):
            folder.path.mkdir(parents=True, exist_ok=True)
            hold.enter_context(held(folder.path))
    folder.claim(job.identity, dump(job.recipe), resume=how.resume, overwrite=how.overwrite)
    if folder.finished:
        return None, True
    start = newest_whole(folder.checkpoints)
    with named(folder.checkpoints):
        drop_after(folder.checkpoints, start.step if start else 0)
    return start, False


@dataclass(frozen=True)
class _Call:
    """What only this process knows of the run."""

    trained: int  # parameters
    seconds: float  # those of earlier processes too
    command: str
    resumed_from: int
    screened: Screening


def _conclude(job: Job, folder: RunFolder, state: TrainerState, call: _Call) -> TrainResult:
    """Score the best epoch, package what was trained, and write it all down."""
    recipe, name = job.recipe, job.setup.name
    model, kept = _learnt(job, folder)
    points, best = history(state.log_history), _best_epoch(job, state)
    scores = {split: _scores(job, model, rows) for split in ("dev", "test") if (rows := getattr(job.data, split))}
    curve = [scores["dev"], *(_scores(job, model, job.data.dev, range(n)) for n in job.drop.counts)] if job.drop else []
    told = scores if recipe.training.method != "peft" else {}  # of the head without PEFT's layers they would not be
    provenance = _provenance(job, told, _training(job, state.global_step, best, curve))
    package = kept.package(name, provenance=provenance)
    title = f"{name} ({recipe.task.kind}, {recipe.training.method})"
    no_curve = job.devices.from_first(lambda: _written(package, folder, points, job.metric, title))
    fused = after(job, call.screened, scores["dev"], folder)
    verdict = judge(points)
    result = TrainResult(
        name=name,
        method=recipe.training.method,
        composition=provenance.composition,
        main=job.task.main_score,
        scores=scores,
        learning=verdict.written if verdict.numbers else {},
        drop_curve=curve,
        parallel=job.devices.record,
        screening=list(fused.screening),
        attention=fused.attention,
        history=points,
        steps=state.global_step,
        epochs=state.epoch,
        best_epoch=best,
        parameters={"trained": call.trained, **counts(kept, name)},
        data=provenance.data,
        seed=recipe.training.seed,
        seconds=call.seconds,
        command=call.command,
        folder=folder.path,
        package=package,
        notes=(*job.notes, *fused.notes, *filter(None, (no_curve, verdict.said, "" if told is scores else HEAD_ALONE))),
        resumed_from=call.resumed_from,
        machine=machine(),
        memory=peak(),
        versions=versions(),
    )
    job.devices.from_first(lambda: write_result(result))
    return result


def _written(package: Package, folder: RunFolder, points: Sequence[Mapping[str, Any]], metric: str, title: str) -> str:
    """Write the package and the curve; "", or why there is no curve."""
    with named(folder.path):
        write(package, folder.package, overwrite=True)
        return draw(points, metric, title, folder.curve)


def _learnt(job: Job, folder: RunFolder) -> tuple[AdapterModel, AdapterModel]:
    """The model that is scored, and the one that the package is of; what is in no package is written beside it."""
    learner = job.learner
    if not isinstance(learner, FullModel):
        return job.model, job.model
    if job.recipe.training.method == "full":
        tuned = _tuned(job, folder, learner)
        return tuned, tuned
    job.model.parts.head(learner.head).load_state_dict(learner.model.parts.head(learner.head).state_dict())
    job.devices.from_first(lambda: _save_peft(folder, learner))
    return learner.model, job.model  # PEFT's layers are in a copy; the head is one on the base as it was


def _save_peft(folder: RunFolder, learner: FullModel) -> None:
    with named(folder.peft):
        shutil.rmtree(folder.peft, ignore_errors=True)
        save(learner.model, folder.peft)


def _tuned(job: Job, folder: RunFolder, learner: FullModel) -> AdapterModel:
    """The tuned base, written as a model folder and opened from there, with its head: what is scored is on disk."""
    job.devices.from_first(lambda: _save(job, folder, learner))
    tuned = open_model(ModelSection(name=str(folder.model.absolute()), dtype=job.recipe.model.dtype))
    tuned.to(learner.model.device)
    tuned.add_head(learner.head, learner.model.parts.head_configs[learner.head])
    tuned.parts.head(learner.head).load_state_dict(learner.model.parts.head(learner.head).state_dict())
    return tuned


def _save(job: Job, folder: RunFolder, learner: FullModel) -> None:
    fresh = sibling(folder.model)
    with named(folder.model), without_bars():
        learner.model.base.save_pretrained(fresh)
        job.encoder.save(fresh)
        shutil.rmtree(folder.model, ignore_errors=True)
        fresh.rename(folder.model)


def _best_epoch(job: Job, state: TrainerState) -> float:
    best: int = state.best_global_step or state.global_step
    return round(best / steps_per_epoch(job.recipe.training, len(job.sets["train"])), 2)


def _scores(job: Job, model: AdapterModel, rows: Sequence[Row], skip: Sequence[int] = ()) -> dict[str, float]:
    """Of the composition on labelled rows, without adapters in the layers `skip`; processes answer those of each."""
    places = job.devices.apart(range(len(rows)))
    answers = answer(
        model,
        job.task,
        job.encoder,
        [rows[place] for place in places],
        adapters=job.setup.composition,
        head=job.setup.name,
        batch_size=job.recipe.training.eval_batch_size,
        skip_layers=skip,
    )
    found = {
        place: one
        for part in job.devices.gathered(dict(zip(places, answers, strict=True)))
        for place, one in part.items()
    }
    return job.task.score([found[place] for place in range(len(rows))], rows)


def _training(job: Job, steps: int, best: float, curve: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """How it was trained, for the package: the recipe's settings and what they came to."""
    recipe, main = job.recipe, job.task.main_score
    written = {**recipe.training.model_dump(mode="json"), "steps": steps, "best_epoch": best}
    if job.drop is not None:
        written |= {"drop": [job.drop.low, job.drop.high]}
        written |= {f"dev_{main}_by_layers_dropped": {str(n): scores[main] for n, scores in enumerate(curve)}}
    return written | {"serving": recipe.serving.model_dump(mode="json")}


def _provenance(job: Job, scores: Mapping[str, Mapping[str, float]], training: dict[str, Any]) -> Provenance:
    return Provenance(
        task=job.task.spec,
        vocabulary=job.encoder.digest,
        composition=show(job.setup.composition),
        members=job.setup.members,
        scores=scores,
        data=_data(job),
        training=training,
    )


def _data(job: Job) -> dict[str, Any]:
    """Which rows: their digest and numbers, and the names of files or data set without the folders of one machine."""
    source = job.recipe.data
    named_splits = {split: getattr(source, split) for split in SPLITS if getattr(source, split) is not None}
    files = {split: name if source.hub else Path(name).name for split, name in named_splits.items()}
    rows = {split: len(getattr(job.data, split)) for split in SPLITS}
    return {"digest": job.data.digest, "rows": rows, "source": files | ({"hub": source.hub.id} if source.hub else {})}
