"""What the keys of a recipe say of one another: combinations that have no meaning, and files that are not there.

Reads plain data that may be wrong in other ways, so that every problem of a recipe can be reported at once: a value
that its own key refuses is passed over here.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from graftwork.schema.problems import shown
from graftwork.schema.sections import NOT_FLAGS
from graftwork.schema.values import RECIPES, flag
from graftwork.schema.yaml_text import Problem

SPLITS = ("train", "dev", "test")
FIELDS: dict[str, tuple[str, ...]] = {
    "classification": ("text", "label"),
    "pair": ("text", "text_pair", "label"),
    "regression": ("text", "text_pair", "label"),  # text_pair in all rows or in none
    "tagging": ("tokens", "tags"),
    "multilabel": ("text", "labels"),
    "multiple_choice": ("text", "choices", "label"),
    "question_answering": ("text", "text_pair", "answers"),
    "dependency_parsing": ("tokens", "heads", "tags"),
    "masked_lm": ("text",),
    "causal_lm": ("text",),
    "seq2seq_lm": ("text", "target"),
    "image_classification": ("image", "label"),
    "similarity": ("text", "text_pair", "label"),  # label in all rows or in none
}
OPTIONAL = {"regression": "text_pair", "similarity": "label"}  # what all rows may lack
WITHOUT_LABELS = ("regression", "question_answering", "masked_lm", "causal_lm", "seq2seq_lm", "similarity")
LANGUAGE_KINDS = ("masked_lm", "causal_lm")
POOLS = (
    "classification",
    "pair",
    "regression",
    "multilabel",
    "multiple_choice",
    "similarity",
    "image_classification",
)  # one answer a row
_BASELINES = ("full", "head", "peft")  # of training.method: they train no adapter of ours


def conflicts(data: Mapping[str, Any]) -> Iterator[Problem]:
    """Problems between keys; their own values are checked elsewhere."""
    adapter, task, source = (_section(data, name) for name in ("adapter", "task", "data"))
    yield from _composition(adapter, _section(data, "training").get("method", "adapter"))
    yield from _fusing(adapter, _section(data, "training"))
    yield from _resting(_section(data, "training"), task.get("kind"), adapter.get("language_adapter"))
    yield from _scheduled(_section(data, "training"))
    yield from _head(task, _section(data, "training").get("method", "adapter"))
    yield from _dropping(_section(data, "training"), task.get("kind"))
    yield from _quantised(_section(data, "model"), _section(data, "training"))
    yield from _task(task)
    yield from _columns(task.get("kind"), source.get("columns"))
    yield from _plain_text(task.get("kind"), source, _section(data, "training").get("prefix_cache", "off"))


def missing_files(data: Mapping[str, Any]) -> Iterator[Problem]:
    """Data files, recipes of members, and a model folder given as a path, that are not there."""
    source, name = _section(data, "data"), _section(data, "model").get("name")
    for split in SPLITS:
        file = source.get(split)
        if isinstance(file, str) and file and not source.get("hub") and not os.path.isfile(file):
            there = "a folder, not a file" if os.path.isdir(file) else "no such file"
            yield Problem(("data", split), f"data.{split}: {file!r}: {there}; paths start at the recipe's folder")
    members = _section(data, "adapter").get("members")
    for file in members if isinstance(members, list) else ():
        if isinstance(file, str) and file.endswith(RECIPES) and not os.path.isfile(file):
            yield Problem(
                ("adapter", "members"), f"adapter.members: {file!r}: no such recipe; paths start at the recipe's folder"
            )
    if isinstance(name, str) and os.path.isabs(name) and not os.path.isdir(name):
        yield Problem(("model", "name"), f"model.name: {name!r}: no such folder; paths start at the recipe's folder")


def _composition(adapter: Mapping[str, Any], method: Any) -> Iterator[Problem]:
    composition = adapter.get("composition")
    if composition not in (None, "stack", "fuse"):
        return
    for key, needs in (("language_adapter", "stack"), ("task_adapter", "stack"), ("members", "fuse")):
        if adapter.get(key) is not None and composition != needs:
            yield _about("adapter", key, f"{adapter[key]!r} has no meaning without composition: {needs}")
    if composition == "stack" and adapter.get("language_adapter") is None:
        yield _about("adapter", "language_adapter", "missing; composition: stack needs the adapter below, such as hi@3")
    listed = adapter.get("language_adapter")
    if isinstance(listed, list) and (twice := _twice(listed)):
        yield _about("adapter", "language_adapter", f"{twice[0]!r} stands there twice; name each language once")
    if adapter.get("role") is not None and (composition == "fuse" or method in _BASELINES):
        what = "composition: fuse" if composition == "fuse" else f"training.method: {method}"
        yield _about("adapter", "role", f"{what} trains no adapter that could have one; remove it")
    if composition == "fuse":
        members = adapter.get("members")
        if members is None or (isinstance(members, list) and len(members) < 2):
            yield _about("adapter", "members", f"{members or 'missing'}; composition: fuse needs two or more members")
        elif isinstance(members, list) and (twice := _twice(members)):
            yield _about("adapter", "members", f"{twice[0]!r} stands there twice; name each member once")
        for key in adapter:
            if key not in NOT_FLAGS and adapter[key] is not None:
                yield _about(
                    "adapter", key, "composition: fuse trains no new adapter and its members keep their form; remove it"
                )
    if composition and method in _BASELINES:
        yield _about(
            "adapter", "composition", f"{composition} has no meaning with training.method: {method}; use adapter"
        )


def _fusing(adapter: Mapping[str, Any], training: Mapping[str, Any]) -> Iterator[Problem]:
    """Choices about a fusion where there is none."""
    for key in ("fusion_regularisation", "screen_members"):
        if flag(training.get(key)) is False and adapter.get("composition") != "fuse":
            yield _about("training", key, "false has no meaning without adapter.composition: fuse; remove it")


def _resting(training: Mapping[str, Any], kind: Any, below: Any) -> Iterator[Problem]:
    """What has no meaning without a frozen base that rests, and rows that stay what they are."""
    method = training.get("method")
    full, rests = method in ("full", "peft"), flag(training.get("base_dropout")) is False
    if full and rests:
        yield _about("training", "base_dropout", f"method: {method} leaves no base frozen that could rest; remove it")
    if rests and flag(training.get("gradient_checkpointing")) is True:
        yield _about(
            "training", "gradient_checkpointing", "transformers computes no layer again that rests; leave it out, or "
            "base_dropout: false"
        )  # fmt: skip
    wanted = training.get("prefix_cache", "off")
    if wanted == "off":
        return
    why = ""
    if full:
        why = f"method: {method} trains every layer"
    elif not rests:
        why = "the base's dropout draws other states in every epoch; set training.base_dropout: false"
    elif kind == "masked_lm":
        why = "masked_lm hides other pieces in every epoch"
    elif isinstance(below, list):
        why = "other language adapters lie below in every step"
    elif below is not None and training.get("drop") is not None:
        why = "drop leaves out the lowest layers of the language adapter, of more of them in some steps"
    elif kind == "image_classification":
        why = "states are kept of texts, not of images"
    if why:
        yield _about("training", "prefix_cache", f"{shown(wanted)}: {why}, or set it to off")


LOWEST = 1e-7  # where transformers' polynomial schedule ends


def _scheduled(training: Mapping[str, Any]) -> Iterator[Problem]:
    """A learning rate that has to fall to one above it."""
    rate = training.get("learning_rate")
    if training.get("lr_scheduler") == "polynomial" and isinstance(rate, float) and rate <= LOWEST:
        yield _about(
            "training", "learning_rate", f"{rate:g}: lr_scheduler: polynomial ends at {LOWEST:g}; begin above it"
        )


def _dropping(training: Mapping[str, Any], kind: Any) -> Iterator[Problem]:
    """Where there are no adapters to drop, or nothing could run without them later."""
    drop, method = training.get("drop"), training.get("method")
    if drop is None:
        return
    if method in _BASELINES:
        yield _about("training", "drop", f"{shown(drop)}: method: {method} trains no adapter to drop; remove it")
    elif kind == "seq2seq_lm":
        yield _about("training", "drop", f"{shown(drop)}: texts are said with the adapters of all layers; remove it")


def _quantised(model: Mapping[str, Any], training: Mapping[str, Any]) -> Iterator[Problem]:
    packed = model.get("quantisation")
    if packed in ("4bit", "8bit") and training.get("method") == "full":
        yield _about("model", "quantisation", f"{packed}: method: full trains what is packed; remove one of them")


def _task(task: Mapping[str, Any]) -> Iterator[Problem]:
    labels = task.get("labels")
    kind = task.get("kind")
    if labels is not None and kind == "regression":
        yield _about("task", "labels", "a regression predicts a number and has no labels; remove it")
    elif labels is not None and (kind in WITHOUT_LABELS or kind == "multiple_choice"):
        yield _about("task", "labels", f"{kind} has no labels to name; remove it")
    elif isinstance(labels, list) and (twice := _twice(labels)):
        yield _about("task", "labels", f"{twice[0]!r} stands there twice; name each label once")
    if task.get("pooling") is not None and kind in FIELDS and kind not in POOLS:
        yield _about("task", "pooling", f"{kind} answers once a token and pools nothing; remove it")


def _head(task: Mapping[str, Any], method: Any) -> Iterator[Problem]:
    """What has no meaning with a head that stays as it is."""
    if task.get("head") is None:
        return
    if method in _BASELINES:
        why = "trains every weight" if method == "full" else "trains the head"
        yield _about(
            "task", "head", f"{shown(task['head'])} stays frozen, and training.method: {method} {why}; remove it"
        )
    if task.get("pooling") is not None:
        yield _about("task", "pooling", f"the head of {shown(task['head'])} keeps its own; remove it")


def _columns(kind: Any, columns: Any) -> Iterator[Problem]:
    if not isinstance(columns, dict):
        return
    for field in columns:
        if kind in FIELDS and field not in FIELDS[kind] and any(field in fields for fields in FIELDS.values()):
            takes = ", ".join(FIELDS[kind])
            yield Problem(
                ("data", "columns", field), f"data.columns.{field}: task.kind: {kind} has no such field, only {takes}"
            )
    for column in _twice(list(columns.values())):
        yield _about("data", "columns", f"the column {column!r} is given to two fields; each field needs its own")


def is_plain_text(file: Any) -> bool:
    """Whether a data file is plain text, a text a line."""
    return isinstance(file, str) and file.lower().endswith(".txt")


def _plain_text(kind: Any, source: Mapping[str, Any], prefix_cache: Any) -> Iterator[Problem]:
    """What has no meaning with plain text."""
    files = [split for split in SPLITS if is_plain_text(source.get(split)) and not source.get("hub")]
    for split in files if kind in FIELDS and kind not in LANGUAGE_KINDS else ():
        needs = ", ".join(FIELDS[kind])
        yield _about(
            "data",
            split,
            f"{shown(source[split])} is plain text, for {' and '.join(LANGUAGE_KINDS)}; {kind} needs rows with {needs}",
        )
    if files and source.get("columns"):
        yield _about("data", "columns", "plain text has no columns; remove it")
    if "train" in files and kind == "causal_lm" and prefix_cache != "off":
        yield _about("training", "prefix_cache", f"{shown(prefix_cache)}: plain text is streamed; set it to off")


def _twice(values: list[Any]) -> list[str]:
    counts = Counter(str(value) for value in values if isinstance(value, str | int))
    return [value for value, count in counts.items() if count > 1]


def _section(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = data.get(name)
    return section if isinstance(section, Mapping) else {}


def _about(section: str, key: str, message: str) -> Problem:
    return Problem((section, key), f"{section}.{key}: {message}")
