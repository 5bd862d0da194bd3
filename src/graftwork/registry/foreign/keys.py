"""The keys of AdapterHub's state dicts, taken apart: <module path>.<collection>.<adapter name>.<parameter>.

A name is compared with a whole step of the path, never searched for, so that an adapter called `output` or like a
part of another's name finds its own tensors only. Version 1 had other words for two collections.
"""

from collections.abc import Iterable
from dataclasses import dataclass

# word in a path -> what it holds
COLLECTIONS = {
    "adapters": "adapters",
    "attention_text_task_adapters": "adapters",
    "attention_text_lang_adapters": "adapters",
    "layer_text_task_adapters": "adapters",
    "layer_text_lang_adapters": "adapters",
    "invertible_adapters": "invertible",
    "invertible_lang_adapters": "invertible",
    "adapter_fusion_layer": "fusion",
    "loras": "loras",
    "prefix_tunings": "prefixes",
    "prefix_gates": "gates",
    "prompt_tunings": "prompts",
    "refts": "refts",
    "shared_parameters": "shared",
}
# the module that holds a collection, where it is not the one that our site is named by
_HOLDERS = ("prefix_tuning", "reft_layer", "prompt_tuning")


@dataclass(frozen=True)
class Key:
    """One key: `place` is the module path before the collection, `leaf` what comes after the name.

    copy: whether it is one of the aliases of a prefix that every attention module stores.
    """

    text: str
    place: str
    collection: str
    leaf: str
    copy: bool = False


def take_apart(text: str, name: str) -> Key | None:
    """A key that belongs to the adapter or fusion of that name, or None."""
    steps = text.split(".")
    for at in range(len(steps) - 2):
        if steps[at] in COLLECTIONS and steps[at + 1] == name:
            place = steps[:at]
            copy = place[-2:] == ["prefix_tuning", "pool"]
            place = place[:-2] if copy else place
            if place and place[-1] in _HOLDERS:
                place = place[:-1]
            return Key(text, ".".join(place), COLLECTIONS[steps[at]], ".".join(steps[at + 2 :]), copy)
    return None


def keys_of(texts: Iterable[str], name: str) -> list[Key]:
    """Every key that belongs to that name, in the order of the file."""
    return [key for text in texts if (key := take_apart(text, name)) is not None]
