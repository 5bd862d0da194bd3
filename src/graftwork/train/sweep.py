"""One recipe as several: each with one choice of every key that is swept over, and a name and folder that say which.

    expand(recipe, {"adapter.reduction_factor": [2, 8], "training.seed": [0, 1]})   four recipes, the last key fastest

In a recipe a list where a key takes one value says the same (`recipe.swept`); on the command line `--sweep` does.
`mood` becomes `mood-reduction_factor-2-seed-0`, and its output the folder of that name beside the recipe's own.
"""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from graftwork.errors import RecipeError
from graftwork.recipe import Recipe, override, settings
from graftwork.schema.methods import KEY as METHOD

SEED = "training.seed"
OWN = ("name", "output")  # keys that follow from the others


def expand(
    recipe: Recipe,
    choices: Mapping[str, Sequence[Any]],
    *,
    given: Mapping[str, Any] = MappingProxyType({}),
    source: str = "--sweep",
) -> list[Recipe]:
    """A recipe for every combination of choices. Raises RecipeError with what is wrong with keys or values.

    given: keys that were changed on purpose, which a `method` among the choices leaves as they are.
    """
    problems = [f"{source} {key}: {key} follows from what is swept over; leave it out" for key in choices if key in OWN]
    problems += [f"{source} {key}: there is nothing to choose from" for key, values in choices.items() if not values]
    for key, values in choices.items():
        texts = [_text(value) for value in values]
        twice = sorted({text for text in texts if texts.count(text) > 1})
        if twice:
            problems.append(
                f"{source} {key}: {', '.join(twice)} is there more than once, or names no folder of its own"
            )
    if problems:
        raise RecipeError(problems)
    made = []
    for setting in combined(choices):
        suffix = "".join(f"-{key.rpartition('.')[2]}-{_text(value)}" for key, value in setting.items())
        own = {"name": recipe.name + suffix, "output": recipe.output + suffix}
        stays = given if METHOD in setting else {}
        made.append(override(recipe, {**stays, **setting, **own}, source=source) if suffix else recipe)
    return made


def combined(choices: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of choices, the last key fastest."""
    return [dict(zip(choices, chosen, strict=True)) for chosen in itertools.product(*choices.values())]


def label(setting: Mapping[str, Any]) -> str:
    """A combination as people say it, its seed left out: `reduction_factor=2`."""
    said = [f"{key.rpartition('.')[2]}={_text(value)}" for key, value in setting.items() if key != SEED]
    return ", ".join(said) or "recipe"


def choices(pairs: Sequence[str], *, source: str = "--sweep") -> dict[str, Sequence[Any]]:
    """`["training.seed=0,1"]` -> `{"training.seed": [0, 1]}`, values read as in a YAML list. Raises RecipeError."""
    parted = [pair.partition("=") for pair in pairs]
    listed = [f"{key}=[{text}]" if equals else key for key, equals, text in parted]
    read = settings(listed, source=source)
    texts: dict[str, list[str]] = {}
    for key, _, text in parted:
        texts.setdefault(key.strip(), []).append(text.strip())
    problems = [
        f"{source} {key}: is given {len(given)} times; list all its values in one, as in "
        f"{source} {key}={','.join(given)}"
        for key, given in texts.items()
        if len(given) > 1
    ]
    if problems:
        raise RecipeError(problems)
    return {key: value or () for key, value in read.items()}


def _text(value: Any) -> str:
    """A value as part of a name."""
    text = value if isinstance(value, str) else json.dumps(value).replace("+", "")
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.") or "none"
