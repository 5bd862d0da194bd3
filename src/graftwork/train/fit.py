"""The training itself: a prepared job through transformers' Trainer, from the start or from a checkpoint."""

from contextlib import nullcontext

import safetensors.torch
from rich.progress import Progress
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback, TrainerState

from graftwork.core.accelerator import to_accelerator
from graftwork.registry.durable import named
from graftwork.train.batches import as_it_is
from graftwork.train.callbacks import Bar, Clock, LogAtEpochEnd, SaveByTheClock
from graftwork.train.checkpoint import STATE, Checkpoint
from graftwork.train.folder import RunFolder
from graftwork.train.job import Job
from graftwork.train.language import Cycle
from graftwork.train.monitor import Monitor
from graftwork.train.scores import DevScores
from graftwork.train.settings import arguments
from graftwork.train.trainer import AdapterTrainer, Step

WEIGHTS = "model.safetensors"  # in a checkpoint, as transformers calls it


def fit(
    job: Job,
    folder: RunFolder,
    start: Checkpoint | None,
    *,
    shown: Progress,
    checkpoint_seconds: float,
    step: Step | None = None,
) -> TrainerState:
    """Train the job's learner, which then holds the weights of the best epoch, and return the Trainer's record.

    shown: gets a bar. step: in the place of transformers' forward and backward (`AdapterTrainer.step`).

    Raises GoalMissed when the training diverges, UserError when the disk refuses.
    """
    if start is not None and start.finished:
        return _read_end(job, start)
    training = job.recipe.training
    with named(folder.checkpoints):
        bar = Bar(job.recipe.name, job.metric, shown)
        callbacks: list[TrainerCallback] = [LogAtEpochEnd(), SaveByTheClock(checkpoint_seconds, job.devices), bar]
        callbacks.append(Clock())
        if training.early_stopping_patience is not None:
            callbacks.append(EarlyStoppingCallback(training.early_stopping_patience))
        if getattr(job.model.base, "is_gradient_checkpointing", False) and not training.gradient_checkpointing:
            job.model.base.gradient_checkpointing_disable()  # a member that trained on this base asked for it
        trainer = AdapterTrainer(
            model=job.learner,
            args=arguments(job.recipe, folder.checkpoints, len(job.sets["train"]), job.metric),
            data_collator=as_it_is,
            train_dataset=job.sets["train"],
            eval_dataset=job.sets["dev"],
            callbacks=callbacks,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.step, trainer.devices = step, job.devices
        # accelerate then leaves the model as it is, and its gradients to `devices`
        trainer.is_distributed_loading_by_transformers = job.devices.several
        size = training.eval_batch_size
        trainer.dev = DevScores(job.task, job.dev, job.encoded["dev"], job.sets["dev"], size, job.devices)
        job.devices.seed(training.seed)
        trainer.base_dropout, trainer.drop = training.base_dropout, job.drop
        trainer.cycle = Cycle(job.model, job.setup.cycle, training.seed) if job.setup.cycle else None
        trainer.monitor = Monitor.of(job.learner)
        with nullcontext() if job.prefix is None else job.prefix.kept(size) as trainer.shortcut:
            trainer.train(resume_from_checkpoint=None if start is None else str(start.folder))
        # mixed precision leaves a wrapper around the forward that loses which head answered which row
        trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    return trainer.state


def _read_end(job: Job, end: Checkpoint) -> TrainerState:
    """What a run that was stopped after its last step had: the weights of its best epoch, and its record."""
    best = end.folder if end.best is None else end.best
    if job.devices.spread is None:  # what is spread over processes is where it belongs
        to_accelerator(job.learner)
    job.learner.load_state_dict(safetensors.torch.load_file(best / WEIGHTS))
    return TrainerState.load_from_json(str(end.folder / STATE))
