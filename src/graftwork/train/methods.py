"""The methods of a comparison as recipes: each takes the place of a recipe's adapter section, learning rate and epochs.

All else, data, task, base, batches and lengths, stays the recipe's. What each name says is in `schema/methods.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from graftwork.core.kinds import is_named
from graftwork.core.strings import cut
from graftwork.errors import RecipeError
from graftwork.recipe import Recipe, is_methods, not_methods, override
from graftwork.schema.methods import BESIDE, METHODS, PEFT, like, meant, row
from graftwork.schema.problems import nearest

AS_IT_IS = "recipe"  # the method that the recipe itself describes


def recipes_of(
    recipe: Recipe, methods: Sequence[str], changes: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Recipe]:
    """The recipe of every method, by name. changes: method -> dotted keys, after those of the recipe's own `compare`.

    A name that is no method is one of its own where its changes say `adapter.variant` or `training.method`.
    Raises RecipeError with every problem of names, keys and values.
    """
    asked = {name: {**recipe.compare.get(name, {}), **(changes or {}).get(name, {})} for name in methods}
    own = {name: {key: value for key, value in asked[name].items() if is_methods(key)} for name in asked}
    problems = [
        f"method {name!r} is given twice" for name in sorted({one for one in methods if [*methods].count(one) > 1})
    ]
    problems += [
        f"compare.{name}: is not among the methods that are compared: {', '.join(methods)}"
        for name in changes or {}
        if name not in own
    ]
    problems += [not_methods(name, key) for name in asked for key in asked[name] if key not in own[name]]
    made = {}
    for name in dict.fromkeys(methods):
        try:
            made[name] = override(
                recipe, {"compare": {}, **_base(name, own[name]), **own[name]}, source=f"compare.{name}"
            )
        except RecipeError as error:
            problems += error.problems
    if problems or not methods:
        raise RecipeError(problems or f"there is no method to compare; known are {', '.join(known())}")
    return made


def listed(text: str) -> list[str]:
    """`seq_bn,lora[r=4,alpha=8],full` as names; a comma in brackets belongs to its config string."""
    return [name.strip() for name in cut(text, ",") if name.strip()]


def whose(setting: str, names: Sequence[str]) -> str | None:
    """The method that a setting is for, `lora[r=4]:training.epochs=3`: one of `names`, else what stands before a colon
    of its key; None: it is for all."""
    for name in sorted(names, key=len, reverse=True):  # peft:lora before peft
        if setting.startswith(f"{name}:"):
            return name
    method, colon, _ = cut(setting, "=")[0].rpartition(":")
    return method if colon else None


def known() -> list[str]:
    """The methods with a row, and the recipe's own."""
    return [*METHODS, AS_IT_IS]


def _base(name: str, own: Mapping[str, Any]) -> dict[str, Any]:
    """What a method's name says of a recipe. Raises RecipeError for a name that says nothing."""
    if name == AS_IT_IS:
        return {}
    if row(name) or name.startswith(PEFT):
        return {"adapter": {}, **meant(name)}
    if method := own.get("training.method", "adapter" if "adapter.variant" in own else ""):
        return {"adapter": {}, **like(str(own.get("adapter.variant", "")), str(method)).training()}
    if is_named(name):
        return {"adapter": {}, **meant(name)}
    close = nearest(name, known())
    raise RecipeError(
        f"method {name!r} is unknown{f'; did you mean {close}?' if close else ''}; there are {', '.join(known())}, "
        f"{BESIDE}, and names that the recipe's compare section gives an adapter.variant"
    )
