"""The methods of a comparison: what each is in a recipe, and the learning rate and epochs that suit it.

A method takes the place of a recipe's adapter section and brings its own learning rate and epochs; all else, data,
task, base, batches and lengths, stays the recipe's. Compared at one learning rate adapters lose by construction: they
want about ten times fine-tuning's (Houlsby et al. 2019 §3.1), prompts more. The rates are those of the papers or, where
a paper's base or optimiser is another one, what they come to with AdamW on an encoder.

    to add a method: a row in METHODS. Any config string of docs/adapters.md is a method too, without one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from graftwork.core.kinds import ALIASES, is_named
from graftwork.core.strings import cut, name_of
from graftwork.errors import RecipeError
from graftwork.recipe import Recipe, is_methods, not_methods, override
from graftwork.schema.problems import nearest
from graftwork.schema.sections import TrainingSection

PEFT = "peft:"  # before a name: that method of PEFT
AS_IT_IS = "recipe"  # the method that the recipe itself describes


@dataclass(frozen=True)
class Method:
    """The variant of the adapter section ("" for none) and what else it sets; `source`: where the rate is from."""

    variant: str
    learning_rate: float
    epochs: int
    source: str
    method: str = "adapter"
    others: Mapping[str, Any] = field(default_factory=dict)

    def changes(self) -> dict[str, Any]:
        """What it changes in a recipe, by dotted keys."""
        adapter = {"variant": self.variant} if self.variant else {}
        rates = {"training.learning_rate": self.learning_rate, "training.epochs": self.epochs}
        return {"adapter": adapter, "training.method": self.method, **rates, **self.others}


def _usual(*keys: str) -> dict[str, Any]:
    """Keys of `training` that a method gives no meaning, at their defaults."""
    fields = TrainingSection.model_fields
    return {f"training.{key}": fields[key].default for key in keys if key in fields}


WITHOUT_FROZEN = ("base_dropout", "prefix_cache")  # say something of a base that stays as it is

METHODS: dict[str, Method] = {
    "seq_bn": Method("seq_bn", 1e-3, 5, "Houlsby et al. 2019: 3e-5 to 3e-3; AdapterHub: 1e-4 and 30 epochs"),
    "double_seq_bn": Method("double_seq_bn", 5e-4, 5, "Houlsby et al. 2019: 3e-4 on GLUE"),
    "par_bn": Method("par_bn", 5e-4, 5, "He et al. 2022: 1e-4 with ten epochs on GLUE"),
    "full": Method("", 5e-5, 3, "Devlin et al. 2019: 2e-5 to 5e-5", "full", _usual(*WITHOUT_FROZEN, "drop")),
    "head_only": Method("", 2e-3, 10, "a linear model: no deep gradient to blow up", "head", _usual("drop")),
    "lora": Method("lora", 5e-4, 5, "Hu et al. 2021: 4e-4 to 5e-4 with RoBERTa-base on GLUE"),
    "dora": Method("dora", 5e-4, 5, "Liu et al. 2024: as LoRA"),
    "ia3": Method("ia3", 3e-3, 10, "Liu et al. 2022: 3e-3"),
    "bitfit": Method("bitfit", 1e-3, 10, "Ben Zaken et al. 2022: 1e-4 to 1e-3"),
    "prefix": Method("prefix_tuning", 1e-3, 10, "Li & Liang 2021 (5e-5, a decoder); Liu et al. 2022: 5e-3 on encoders"),
    "prompt": Method("prompt_tuning", 1e-2, 10, "Lester et al. 2021: 0.3 with Adafactor"),
}  # fmt: skip

OTHER = Method("", 5e-4, 5, "between those of bottlenecks and LoRA")  # of a config string without a row


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
    plain = ALIASES.get(name, name)
    if plain in METHODS:
        return METHODS[plain].changes()
    if name.startswith(PEFT):
        kind = name.removeprefix(PEFT)
        like = _like(kind, "adapter")
        rates = {key: value for key, value in like.changes().items() if key.startswith("training.")}
        return {**rates, "adapter": {"variant": kind}, "training.method": "peft", **METHODS["full"].others}
    if method := own.get("training.method", "adapter" if "adapter.variant" in own else ""):
        return _like(str(own.get("adapter.variant", "")), str(method)).changes() | {"adapter": {}}
    if is_named(name):
        return _like(name, "adapter").changes() | {"adapter": {"variant": name}}
    close = nearest(name, known())
    raise RecipeError(
        f"method {name!r} is unknown{f'; did you mean {close}?' if close else ''}; there are {', '.join(known())}, "
        "peft:lora and PEFT's others, any config string of docs/adapters.md, and names that the recipe's compare "
        "section gives an adapter.variant"
    )


def _like(variant: str, method: str) -> Method:
    """The method with a row that is nearest: of the same kind and, for an adapter, of the same named configuration."""
    named = name_of(variant) or variant
    named = ALIASES.get(named, named)
    alike = [one for one in METHODS.values() if one.method == ("adapter" if method == "peft" else method)]
    plain = OTHER if method in ("adapter", "peft") or not alike else alike[0]  # an unknown one the schema refuses
    return next((one for one in alike if one.variant == named), plain)
