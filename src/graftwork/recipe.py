"""A recipe: everything a training run may be told, as typed and frozen data, read from YAML and written back complete.

    load(path) / loads(text)   YAML -> Recipe, or one RecipeError with every problem: file, line, key, value, remedy
    dump(recipe)               Recipe -> YAML with every default written out; loads(dump(recipe)) == recipe
    override(recipe, changes)  the same recipe with some dotted keys changed

The annotations in `schema/sections.py` are the schema. Paths that are read (data files, a model folder) belong to
the recipe's folder; `output` belongs to the folder one works in. Reading a recipe writes nothing. Knows no tensors, no
models and no rows: whether a config string or a metric exists is asked further up."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from graftwork.errors import RecipeError
from graftwork.schema.changes import put, wrong
from graftwork.schema.conflicts import SPLITS, conflicts, missing_files
from graftwork.schema.methods import KEY, expanded, without
from graftwork.schema.problems import sentences, shown, takes_one
from graftwork.schema.sections import (
    AdapterSection,
    DataSection,
    ModelSection,
    Section,
    ServingSection,
    TaskSection,
    TrainingSection,
)
from graftwork.schema.values import MOST, RECIPES, Changes, Name, Text
from graftwork.schema.yaml_text import Document, Problem, dotted, read, write


class Recipe(Section):
    """One training run. `name` is what the adapter is called; `output` is the folder that the run writes to."""

    name: Name
    output: Text = Field(default_factory=lambda fields: f"runs/{fields.get('name', '')}")
    model: ModelSection
    adapter: AdapterSection = AdapterSection()
    training: TrainingSection = Field(default_factory=TrainingSection)
    serving: ServingSection = ServingSection()
    task: TaskSection
    data: DataSection
    compare: Changes = Field(default_factory=dict)  # method of `graftwork compare` -> dotted keys that it changes

    @model_validator(mode="after")
    def _hangs_together(self) -> Self:
        if problems := list(conflicts(self.model_dump(mode="json"))):
            raise ValueError("; ".join(problem.message for problem in problems))
        return self


def load(path: str | Path, *, check_files: bool = True) -> Recipe:
    """Read a recipe file; its stem is the adapter's name unless the recipe says otherwise.

    `check_files`: data files that are missing are problems too. Raises RecipeError with every problem found.
    """
    file = Path(path)
    return loads(_text(file), folder=file.parent, name=file.stem, source=str(path), check_files=check_files)


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 text (byte {error.start}); save the recipe as UTF-8") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecipeError(f"{path}: cannot be read: {reason}; give the path of a recipe file") from None


def swept(path: str | Path, *, check_files: bool = True) -> tuple[Recipe, dict[str, list[Any]]]:
    """Read a recipe in which keys of `adapter` and `training` may hold lists of values: it with the first of each, and
    dotted key -> values. A key that takes a list itself is left as it is. Raises RecipeError with every problem found.
    """
    file = Path(path)
    document = read(_text(file))
    choices: dict[str, list[Any]] = {}
    for section in ("adapter", "training") if isinstance(document.data, dict) else ():
        values, model = document.data.get(section), Recipe.model_fields[section].annotation
        for key in takes_one(model, values) if isinstance(values, dict) and isinstance(model, type) else ():
            choices[f"{section}.{key}"] = values[key]
            values[key] = values[key][0]
    return _checked(document, {"name": file.stem}, file.parent, str(path), check_files), choices


def loads(
    text: str,
    *,
    folder: str | Path = ".",
    name: str = "adapter",
    source: str = "recipe",
    check_files: bool = True,
) -> Recipe:
    """Read a recipe from text. `folder`: where relative paths start. `name`: used where the recipe gives none.

    `source` stands before every problem. Raises RecipeError with every problem found.
    """
    return _checked(read(text), {"name": name}, folder, source, check_files)


def dump(recipe: Recipe) -> str:
    """The recipe as YAML, complete: every default is written out and every path is absolute."""
    return write(recipe.model_dump(mode="json"))


def override(recipe: Recipe, changes: Mapping[str, Any], *, source: str = "--set", check_files: bool = True) -> Recipe:
    """The recipe with some values changed: `{"training.epochs": 3}`. Relative paths start at the working folder.

    Defaults that follow from other values (`output` from `name`) follow the change. `method` takes the place of the
    adapter section and of the keys that it stands for, as in a comparison. Raises RecipeError.
    """
    data = recipe.model_dump(mode="json", exclude_unset=True)
    if KEY in changes:
        data = without(data, changes[KEY])
    problems = list(put(data, changes))
    return _checked(Document(data, problems=problems), {}, ".", source, check_files)


def settings(pairs: Sequence[str], *, source: str = "--set") -> dict[str, Any]:
    """`["training.epochs=3"]` -> `{"training.epochs": 3}`, values read as in a recipe. Raises RecipeError."""
    changes: dict[str, Any] = {}
    problems: list[str] = []
    for pair in pairs:
        key, equals, text = pair.partition("=")
        document = read(text)
        if not (key.strip() and equals):
            problems.append(f"{source} {pair}: not a setting; write section.key=value, as in training.epochs=3")
        problems += [f"{source} {pair}: {problem.message}" for problem in document.problems]
        changes[key.strip()] = document.data
    if problems:
        raise RecipeError(problems)
    return changes


_MODELS = ("model.dtype", "model.quantisation")  # what methods may change of the base: how it is held


def is_methods(key: str) -> bool:
    """Whether a method of a comparison may change a dotted key; with another of the others it would be no method."""
    return key in _MODELS or (key.startswith(("adapter.", "training.")) and key != "training.seed")


def not_methods(method: str, key: str) -> str:
    """What is said where a method changes a key that is not `is_methods`."""
    return (
        f"compare.{method}: {key} is not a method's to change; those of adapter and training are, training.seed "
        f"excepted, and {' and '.join(_MODELS)}"
    )


def _checked(
    document: Document, defaults: Mapping[str, str], folder: str | Path, source: str, check_files: bool
) -> Recipe:
    problems = list(document.problems)
    if isinstance(document.data, dict):
        data, found = expanded({**defaults, **document.data})
        data = _placed(data, folder)
        found += [*conflicts(data), *_compared(data.get("compare")), *(missing_files(data) if check_files else ())]
        try:
            recipe = Recipe.model_validate(data)
        except ValidationError as error:
            found = [*sentences(error, Recipe, data), *found]
        unread = {problem.path for problem in problems}  # what could not be read is no wrong value on top
        problems += [problem for problem in found if problem.path not in unread]
    elif not problems:
        held = "empty" if document.data is None else f"{shown(document.data)} is not a recipe"
        problems.append(Problem((), f"{held}; write sections: {', '.join(Recipe.model_fields)}"))
    if problems:
        lines = [problem.line or document.line(problem.path) for problem in problems]
        ordered = sorted(zip(lines, problems, strict=True), key=lambda pair: pair[0] or MOST)
        raise RecipeError([f"{source}{f':{line}' if line else ''}: {problem.message}" for line, problem in ordered])
    return recipe


def _compared(given: Any) -> Iterator[Problem]:
    """What is wrong with the keys and values that methods of a comparison change."""
    for method, changes in given.items() if isinstance(given, dict) else ():
        if not isinstance(changes, dict):
            continue
        for key in changes:
            if not is_methods(key):
                yield Problem(("compare", method, key), not_methods(method, key))
        for problem in wrong(changes, Recipe):
            yield Problem(("compare", method, dotted(problem.path)), f"compare.{method}: {problem.message}")


def _placed(data: dict[str, Any], folder: str | Path) -> dict[str, Any]:
    """The data with paths that are read made absolute: data files and recipes of members always, a model or data set
    where it is a folder."""
    model, adapter, source = data.get("model"), data.get("adapter"), data.get("data")
    if isinstance(adapter, dict) and isinstance(members := adapter.get("members"), list):
        placed = [_path(one, folder) if isinstance(one, str) and one.endswith(RECIPES) else one for one in members]
        data["adapter"] = {**adapter, "members": placed}
    if isinstance(model, dict):
        data["model"] = {**model, **({"name": _folder(model["name"], folder)} if "name" in model else {})}
    if isinstance(source, dict) and not source.get("hub"):
        files = {split: _path(source[split], folder) for split in SPLITS if split in source}
        data["data"] = {**source, **files}
    elif isinstance(source, dict) and isinstance(source["hub"], dict) and "id" in source["hub"]:
        data["data"] = {**source, "hub": {**source["hub"], "id": _folder(source["hub"]["id"], folder)}}
    return data


def _path(value: Any, folder: str | Path) -> Any:
    usable = isinstance(value, str) and value.strip()
    return os.path.abspath(os.path.join(folder, os.path.expanduser(value))) if usable else value


def _folder(value: Any, folder: str | Path) -> Any:
    """A path (./x, ../x, /x, ~/x) or the name of a folder that lies beside the recipe; anything else is an id."""
    path = _path(value, folder)
    written_as_path = isinstance(value, str) and value.startswith(("./", "../", "/", "~"))
    return path if written_as_path or (isinstance(path, str) and os.path.isdir(path)) else value
