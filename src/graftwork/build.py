"""The one translator: a recipe or a manifest -> models, encoders, tasks, adapters and heads. Configuration stops here.

`set_up` puts on a model what a recipe trains, for the compositions a recipe can name:

    null     name                       a new adapter
    stack    Stack(hi@3, name)          a frozen language adapter; on it a new adapter, or a package to go on from
    fuse     Fuse(a@1, b@2, name=name)  frozen members; a new fusion over them

Members are installed under their exact reference (`hi@3`), so that a composition says which packages it means.
Nothing is read here but models, tokenizers and packages; nothing is written.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from graftwork.compose.tree import Composition, Fuse, Stack
from graftwork.core.adapter import MethodConfig
from graftwork.core.backbone import load_image_processor, load_tokenizer
from graftwork.core.heads import HeadConfig, read_head
from graftwork.core.heads_facts import HeadFacts, facts_of
from graftwork.core.heads_hub import causal_lm, masked_lm, sentence_embedding, seq2seq_lm
from graftwork.core.kinds import read_config, write_config
from graftwork.errors import AdapterError, Conflict, RecipeError
from graftwork.manifest import Manifest, Member
from graftwork.model import AdapterModel, AutoAdapterModel
from graftwork.recipe import Recipe
from graftwork.registry.package import Package
from graftwork.registry.store import Registry
from graftwork.schema.sections import AdapterSection, ModelSection
from graftwork.tasks.images import ImageEncoder
from graftwork.tasks.kinds import task_class, task_from_spec
from graftwork.tasks.task import Task
from graftwork.tasks.text import TextEncoder


def open_model(section: ModelSection) -> AdapterModel:
    """The frozen base that a recipe names, without adapters. Raises BackboneError."""
    dtype = "auto" if section.dtype == "auto" else getattr(torch, section.dtype)
    revision = {} if section.revision is None else {"revision": section.revision}
    with without_bars():
        return AutoAdapterModel.from_pretrained(section.name, dtype=dtype, **revision)


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


def adapter_config(section: AdapterSection) -> MethodConfig:
    """The configuration of a recipe's new adapter: its variant, changed by its flags. Raises RecipeError."""
    try:
        return read_config(section.variant, section.overrides())
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


@dataclass(frozen=True)
class Setup:
    """What a recipe put on a model: the composition that runs, and its part `name` that trains, with the head of it."""

    name: str
    composition: Composition
    members: tuple[Member, ...] = ()


def set_up(model: AdapterModel, recipe: Recipe, task: Task, registry: Registry | None = None) -> Setup:
    """Put a recipe's adapter or fusion with its members and head on a model, and let only the new parts train.

    Raises RecipeError, AdapterError, NotFound for a member that the registry lacks, Conflict for one of another base.
    """
    setup = _COMPOSITIONS[recipe.adapter.composition](model, recipe, task, registry)
    if setup.name not in model.parts.head_configs:
        add_task_head(model, task, setup.name, recipe.task.pooling)
    if isinstance(setup.composition, Fuse):
        model.train_adapter_fusion(setup.composition)
    else:
        model.train_adapter(setup.name)
        model.set_active_adapters(setup.composition)
    return setup


def set_up_head(model: AdapterModel, recipe: Recipe, task: Task) -> Setup:
    """Put only the task's head on a model and let it train: the frozen base as a baseline."""
    add_task_head(model, task, recipe.name, recipe.task.pooling)
    model.set_active_adapters(None)
    model.parts.train_only([("heads", recipe.name)])
    model.train()
    return Setup(recipe.name, None)


def _alone(model: AdapterModel, recipe: Recipe, task: Task, registry: Registry | None) -> Setup:
    model.add_adapter(recipe.name, adapter_config(recipe.adapter))
    return Setup(recipe.name, recipe.name)


def _stack(model: AdapterModel, recipe: Recipe, task: Task, registry: Registry | None) -> Setup:
    below = _install_member(model, "adapter.language_adapter", recipe.adapter.language_adapter or "", registry)
    members = [below]
    if recipe.adapter.task_adapter is None:
        model.add_adapter(recipe.name, adapter_config(recipe.adapter))
    else:
        reference, package = _fetch("adapter.task_adapter", recipe.adapter.task_adapter, registry)
        _check_same_form(recipe.adapter, reference, package)
        spec = package.manifest.task
        same = spec is not None and (spec.kind, spec.labels) == (task.kind, task.labels)
        model.install(package, recipe.name, with_head=same)  # other labels: the head cannot go on, the adapter can
        members.append(Member(name=reference, digest=package.digest))
    return Setup(recipe.name, Stack(below.name, recipe.name), tuple(members))


def _fuse(model: AdapterModel, recipe: Recipe, task: Task, registry: Registry | None) -> Setup:
    wanted = recipe.adapter.members or ()
    members = [_install_member(model, "adapter.members", reference, registry) for reference in wanted]
    fuse = Fuse(*(member.name for member in members), name=recipe.name)
    model.add_adapter_fusion(fuse)
    return Setup(recipe.name, fuse, tuple(members))


_COMPOSITIONS: dict[str | None, Callable[[AdapterModel, Recipe, Task, Registry | None], Setup]] = {
    None: _alone,
    "stack": _stack,
    "fuse": _fuse,
}


def _install_member(model: AdapterModel, key: str, reference: str, registry: Registry | None) -> Member:
    """Install a package without its head, under its exact reference."""
    exact, package = _fetch(key, reference, registry)
    if exact in model.parts.adapter_configs:
        raise RecipeError(f"{key}: {reference!r} is {exact}, which is a member already; name each member once")
    model.install(package, exact, with_head=False)
    return Member(name=exact, digest=package.digest)


def _fetch(key: str, reference: str, registry: Registry | None) -> tuple[str, Package]:
    """The exact reference and the package, which must be an adapter. Raises RecipeError, NotFound, PackageError."""
    if registry is None:
        raise RecipeError(f"{key}: {reference!r} is a package, and no registry was given to look it up in")
    found = registry.resolve(reference)
    package = registry.get(found)
    if package.manifest.method is None:
        raise RecipeError(
            f"{key}: {found} is a {package.manifest.role} package; an adapter is needed here (role task or language)"
        )
    return str(found), package


def _check_same_form(section: AdapterSection, reference: str, package: Package) -> None:
    """A package to go on from brings its own form: a recipe that asks for another one is refused."""
    asked = "variant" in section.model_fields_set or section.overrides()
    if not asked:
        return
    wanted, has = write_config(adapter_config(section)), write_config(read_config(package.manifest.method or {}))
    differing = [
        f"{key} {has.get(key)!r} there, {value!r} here" for key, value in wanted.items() if has.get(key) != value
    ]
    if differing:
        raise RecipeError(
            f"adapter.task_adapter: {reference} has another form ({'; '.join(differing)}); training goes on from "
            "it as it is, so remove variant and flags from the recipe"
        )
