"""A recipe's training section as transformers' TrainingArguments. What a recipe does not say is decided here."""

import math
from pathlib import Path

import torch
from transformers import TrainingArguments

from graftwork.errors import RecipeError
from graftwork.recipe import Recipe
from graftwork.schema.sections import TrainingSection
from graftwork.tasks.metrics import LOWER_IS_BETTER

# Checkpoints on disk: the best, the newest, and the one before it, for transformers removes the others before the
# newest is sealed as whole.
KEPT = 3


def arguments(recipe: Recipe, folder: Path, rows: int, metric: str) -> TrainingArguments:
    """How to train on so many rows, with checkpoints in `folder`; `metric` picks the best epoch.

    A process uses one device.
    """
    training = recipe.training
    made = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=training.epochs,
        max_steps=training.max_steps or -1,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=training.eval_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation,
        learning_rate=training.learning_rate,
        warmup_steps=warmup_steps(training, rows),
        lr_scheduler_type=training.lr_scheduler,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        seed=training.seed,
        activation_checkpointing=training.gradient_checkpointing,
        bf16=wants_bf16(training),
        use_cpu=not torch.accelerator.is_available(),
        logging_steps=training.logging_steps,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=KEPT,
        load_best_model_at_end=True,
        metric_for_best_model=metric,
        greater_is_better=metric not in LOWER_IS_BETTER,
        restore_callback_states_from_checkpoint=True,  # the patience of early stopping
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,  # progress is shown by our own callback
        report_to="none",
    )
    made._n_gpu = min(made.n_gpu, 1)  # of several, transformers would copy the model to all, and multiply the batch
    return made


def steps_per_epoch(training: TrainingSection, rows: int) -> int:
    """Optimiser steps in one pass over the rows."""
    return math.ceil(math.ceil(rows / training.batch_size) / training.gradient_accumulation)


def total_steps(training: TrainingSection, rows: int) -> int:
    """Optimiser steps of the whole run, if it is not stopped early."""
    return training.max_steps or training.epochs * steps_per_epoch(training, rows)


def warmup_steps(training: TrainingSection, rows: int) -> int:
    """Optimiser steps in which the learning rate rises from 0; never all of them, for the first of them has 0."""
    total = total_steps(training, rows)
    return min(math.ceil(training.warmup_ratio * total), total - 1)


def wants_bf16(training: TrainingSection) -> bool:
    """Whether to train in mixed precision: as told, or where a GPU has it. On a CPU it rarely pays.

    Raises RecipeError where it is asked for and the accelerator has none.
    """
    has_it = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    if training.bf16 == "auto":
        return has_it
    if training.bf16 and torch.accelerator.is_available() and not has_it:
        raise RecipeError("training.bf16: this machine's accelerator has no bfloat16; set it to auto or false")
    return training.bf16
