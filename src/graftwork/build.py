"""The one translator: a recipe or a manifest -> models, encoders, tasks, adapters and heads. Configuration stops here.

What a recipe trains is put on a model by `train/setup.py`. Nothing is read here but models and tokenizers; nothing is
written.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase
from transformers.distributed import DistributedConfig
from transformers.utils import logging

from graftwork.core.adapter import MethodConfig
from graftwork.core.backbone import load_image_processor, load_tokenizer
from graftwork.core.heads import HeadConfig, read_head
from graftwork.core.heads_facts import HeadFacts, facts_of
from graftwork.core.heads_hub import causal_lm, masked_lm, sentence_embedding, seq2seq_lm
from graftwork.core.kinds import read_config
from graftwork.core.packed import keep_layout, packing
from graftwork.errors import AdapterError, Conflict, RecipeError
from graftwork.manifest import Manifest
from graftwork.model import AdapterModel, AutoAdapterModel
from graftwork.recipe import Recipe
from graftwork.schema.sections import AdapterSection, ModelSection
from graftwork.tasks.images import ImageEncoder
from graftwork.tasks.kinds import task_class, task_from_spec
from graftwork.tasks.task import Task
from graftwork.tasks.text import TextEncoder


def open_model(section: ModelSection, distributed: DistributedConfig | None = None) -> AdapterModel:
    """The frozen base that a recipe names, without adapters; distributed: of which a process holds a part.

    Raises BackboneError.
    """
    dtype = "auto" if section.dtype == "auto" else getattr(torch, section.dtype)
    options: dict[str, Any] = {} if section.revision is None else {"revision": section.revision}
    computes = dtype if isinstance(dtype, torch.dtype) else torch.get_default_dtype()
    options |= {} if section.quantisation is None else packing(section.quantisation, computes)
    options |= {} if distributed is None else {"distributed_config": distributed}
    with without_bars():
        model = AutoAdapterModel.from_pretrained(section.name, dtype=dtype, **options)
    keep_layout(model.base)
    return model


@contextmanager
def without_bars() -> Iterator[None]:
    """Keep transformers from drawing a progress bar for a second of loading or saving, which fills people's logs."""
    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def open_encoder(
    name: str, max_length: int, too_long: Literal["truncate", "refuse"] = "refuse", longest: int | None = None
) -> TextEncoder:
    """The tokenizer of a model, with a limit in pieces: at most what it and the model (`longest`) can take.

    Raises BackboneError, UserError for an impossible limit.
    """
    tokenizer = load_tokenizer(name)
    return TextEncoder(tokenizer, min(max_length, tokenizer.model_max_length, longest or max_length), too_long)


def open_images(name: str, max_length: int = 1) -> ImageEncoder:
    """The image processor of a model. Raises BackboneError."""
    return ImageEncoder(load_image_processor(name), max_length)


def open_reader(name: str, model: AdapterModel) -> PreTrainedTokenizerBase | ImageEncoder:
    """What a base reads with: its tokenizer, or its image processor where it reads images. Raises BackboneError."""
    return open_images(name) if model.base.main_input_name == "pixel_values" else load_tokenizer(name)


def positions(config: Any) -> int | None:
    """How many pieces a model has positions for; None where it says nothing.

    RoBERTa and its relatives number positions from the padding id on, so they have that many, and one, fewer.
    """
    text = config.get_text_config()
    longest = getattr(text, "max_position_embeddings", None)
    offset = text.pad_token_id + 1 if "roberta" in text.model_type else 0
    return None if longest is None else int(longest) - offset


def recipe_task(recipe: Recipe, labels: Sequence[str]) -> Task:
    """The task of a recipe with the labels that its data has. Raises DataError."""
    return task_class(recipe.task.kind)(labels=tuple(labels), max_length=recipe.training.max_seq_length)


def package_task(manifest: Manifest) -> Task:
    """The task that a package was trained for. Raises Conflict when it says none."""
    if manifest.task is None:
        raise Conflict(f"package {manifest.name!r} (role {manifest.role}) does not say what task it was trained for")
    return task_from_spec(manifest.task)


def adapter_config(section: AdapterSection, layers: int) -> MethodConfig:
    """The configuration of a recipe's new adapter on a base of so many layers: its variant, changed by its flags.

    Raises RecipeError.
    """
    changes = section.overrides()
    if "last" in (left_out := changes.get("leave_out") or ()):
        changes["leave_out"] = [layers - 1 if layer == "last" else layer for layer in left_out]
    try:
        return read_config(section.variant, changes)
    except AdapterError as error:
        raise RecipeError(f"adapter: {error}") from None


def add_task_head(model: AdapterModel, task: Task, name: str, pooling: str | None = None) -> None:
    """Add the head that a task wants, freshly initialised, with its labels. Raises AdapterError."""
    if task.speaks and not model.config.is_encoder_decoder:
        raise AdapterError(
            f"task kind {task.kind} needs an encoder-decoder such as T5 or BART, and this base is a "
            f"{type(model.base).__name__}; take one, or task kind causal_lm"
        )
    if task.follows_base:
        facts = facts_of(model.backbone)
        model.add_head(name, _BY_BASE[task.head_kind](facts, pooling))
        return
    spec = task.head(model.default_dropout, pooling or model.default_pooling)
    model.add_head(name, read_head(spec.model_dump()))


# kind of head that is shaped by the base -> its configuration from the base's facts and a pooling
_BY_BASE: dict[str, Callable[[HeadFacts, str | None], HeadConfig]] = {
    "masked_lm": lambda facts, _: masked_lm(facts).config,
    "causal_lm": lambda facts, _: causal_lm(facts).config,
    "seq2seq_lm": lambda facts, _: seq2seq_lm(facts).config,
    "sentence_embedding": lambda facts, pooling: sentence_embedding(facts, pooling or "mean").config,
}
