"""Changes to a recipe by dotted keys, `{"training.epochs": 3}`: put into its data, and checked key by key.

Works on plain data and any pydantic model, as `problems.py` does. Knows nothing of what a recipe holds.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from graftwork.schema.problems import sentences, shown
from graftwork.schema.yaml_text import Problem


def put(data: dict[str, Any], changes: Mapping[str, Any]) -> Iterator[Problem]:
    """Set every dotted key in `data`, making sections on the way; a problem for each that has no place there."""
    for key, value in changes.items():
        *sections, last = key.split(".")
        place = data
        for depth, section in enumerate(sections, 1):
            if place.get(section) is None:
                place[section] = {}
            if not isinstance(place[section], dict):
                held = ".".join(sections[:depth])
                yield Problem((), f"{key}: {held} is {shown(place[section])}, not a section; set {held} itself")
                break
            place = place[section]
        else:
            place[last] = copy.deepcopy(value)  # a later key may be set inside it


def wrong(changes: Mapping[str, Any], model: type[BaseModel]) -> Iterator[Problem]:
    """What a model refuses of the keys and values of some changes; what else it would need is not asked for."""
    data: dict[str, Any] = {}
    found = list(put(data, changes))
    try:
        model.model_validate(data)
    except ValidationError as error:
        keys = [tuple(key.split(".")) for key in changes]
        found += [
            one
            for one in sentences(error, model, data)
            if any(one.path[: len(key)] == key[: len(one.path)] for key in keys)
        ]
    yield from found
