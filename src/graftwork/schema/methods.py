"""Methods by name: what each is in a recipe, and the learning rate and epochs that suit it.

    method: lora     in a recipe: adapter.variant, training.method, learning_rate and epochs, where the recipe has none

Compared at one learning rate adapters lose by construction: they want about ten times fine-tuning's (Houlsby et al.
2019 §3.1), prompts more. The rates are those of the papers or, where a paper's base or optimiser is another one, what
they come to with AdamW on an encoder. Recipes and comparisons (`train/methods.py`) read the same table.

    to add a method: a row in METHODS. Any config string of docs/adapters.md is a method too, without one.

Knows names only: whether there is such a configuration is asked further up.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from graftwork.core.spellings import ALIASES
from graftwork.core.strings import name_of
from graftwork.schema.problems import shown
from graftwork.schema.sections import TrainingSection
from graftwork.schema.values import spelled
from graftwork.schema.yaml_text import Problem

KEY = "method"  # at the top of a recipe
PEFT = "peft:"  # before a name: that method of PEFT
BESIDE = "peft:lora and PEFT's others, any config string of docs/adapters.md"  # what is a method without a row


@dataclass(frozen=True)
class Method:
    """The variant of the adapter section ("" for none) and what else it sets; `source`: where the rate is from."""

    variant: str
    learning_rate: float
    epochs: int
    source: str
    method: str = "adapter"
    others: Mapping[str, Any] = field(default_factory=dict)

    def training(self) -> dict[str, Any]:
        """What it says of training, by dotted keys."""
        rates = {"training.learning_rate": self.learning_rate, "training.epochs": self.epochs}
        return {"training.method": self.method, **rates, **self.others}

    def changes(self) -> dict[str, Any]:
        """What it says of a recipe, by dotted keys; of its adapter section nothing else."""
        return ({"adapter.variant": self.variant} if self.variant else {}) | self.training()


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


def row(name: str) -> Method | None:
    """The row of a method, under any of its names; None where it has none."""
    return next((method for key, method in METHODS.items() if spelled(key) == _plain(name)), None)


def meant(name: str) -> dict[str, Any]:
    """What a method's name says of a recipe, by dotted keys; without a row it is a config string, or one of PEFT's."""
    if found := row(name):
        return found.changes()
    if name.startswith(PEFT):
        kind = name.removeprefix(PEFT)
        rates = like(kind, "adapter").training()
        return {**rates, "adapter.variant": kind, "training.method": "peft", **METHODS["full"].others}
    return like(name, "adapter").changes() | {"adapter.variant": name}


def like(variant: str, method: str) -> Method:
    """The method with a row that is nearest: of the same kind and, for an adapter, of the same named configuration."""
    named = _plain(name_of(variant) or variant)
    alike = [one for one in METHODS.values() if one.method == ("adapter" if method == "peft" else spelled(method))]
    plain = OTHER if method in ("adapter", "peft") or not alike else alike[0]  # an unknown one is refused as a value
    return next((one for one in alike if one.variant == named), plain)


def expanded(data: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """A recipe's data with what its method says where it is silent, and what is wrong with the name."""
    found = dict(data)
    if isinstance(training := found.get("training"), dict) and "method" in training:
        found["training"] = {**training, "method": spelled(training["method"])}
    name = found.pop(KEY, None)
    if name is None:
        return found, []
    if problems := list(_problems(name, found)):
        return found, problems
    for key, value in meant(name).items():
        section, _, last = key.partition(".")
        if isinstance(held := found.get(section, {}), dict):
            found[section] = {last: value, **held}
    return found, []


def without(data: Mapping[str, Any], name: Any) -> dict[str, Any]:
    """A recipe's data without what another method takes the place of."""
    if not _readable(name):
        return dict(data)
    said = meant(name)
    kept = {key: value for key, value in data.get("training", {}).items() if f"training.{key}" not in said}
    return {**{key: value for key, value in data.items() if key != "adapter"}, "training": kept}


def _plain(name: str) -> str:
    return str(spelled(ALIASES.get(name, name)))


def _readable(name: Any) -> bool:
    return isinstance(name, str) and bool(name.removeprefix(PEFT).strip())


def _problems(name: Any, data: Mapping[str, Any]) -> Iterator[Problem]:
    """Why a name says nothing, or another thing than the keys that it stands for."""
    if not _readable(name):
        yield Problem(
            (KEY,), f"{KEY}: {shown(name)} is not allowed; write the name of a method: {', '.join(METHODS)}, {BESIDE}"
        )
        return
    said = meant(name)
    adapter, training = (held if isinstance(held := data.get(one), dict) else {} for one in ("adapter", "training"))
    for key, given in (("adapter.variant", adapter.get("variant")), ("training.method", training.get("method"))):
        if not isinstance(given, str) or (key in said and _plain(given) == _plain(said[key])):
            continue
        stands = f"is {key}: {said[key]}, and {key} is" if key in said else f"trains no adapter of {key}, which is"
        yield Problem((KEY,), f"{KEY}: {shown(name)} {stands} {shown(given)}; keep one of them")
    if adapter.get("composition") == "fuse" and said["training.method"] == "adapter":
        yield Problem(
            (KEY,),
            f"{KEY}: {shown(name)} has no meaning with adapter.composition: fuse, which trains no new one; remove it",
        )
