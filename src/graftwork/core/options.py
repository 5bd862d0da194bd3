"""What the options of all methods share: the layers and stacks they go to, and what a number, a count, a share is."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from graftwork.core.site import Site
from graftwork.errors import AdapterError


class Placed(Protocol):
    """A configuration that says where it goes."""

    @property
    def leave_out(self) -> tuple[int, ...]:
        """Layers (depths) without an adapter."""
        ...

    @property
    def stacks(self) -> tuple[str, ...]:
        """The stacks it goes to; empty for all."""
        ...


def settle_places(config: Any) -> None:
    """Make tuples of the lists, and words of the layer numbers, that files and people write in a frozen dataclass."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, list):
            object.__setattr__(config, field.name, tuple(value))
        elif isinstance(value, Mapping):
            object.__setattr__(config, field.name, {str(key): item for key, item in value.items()})


def place_problems(config: Placed) -> list[str]:
    """What is wrong with leave_out and stacks."""
    problems = []
    if not isinstance(config.leave_out, tuple) or not all(map(is_count, config.leave_out)):
        problems.append(f"leave_out {config.leave_out!r} must be a list of layer numbers")
    if not isinstance(config.stacks, tuple) or not all(isinstance(name, str) for name in config.stacks):
        problems.append(f"stacks {config.stacks!r} must be a list of names such as 'encoder'")
    return problems


def goes_to(config: Placed, site: Site) -> bool:
    """Whether neither leave_out nor stacks keep a configuration from a site."""
    return site.depth not in config.leave_out and (not config.stacks or site.stack in config.stacks)


def at_layer(name: str, value: Any, site: Site) -> Any:
    """An option that is one value, or a mapping from layer number (across stacks, encoder first) with "default".

    Raises AdapterError where a mapping leaves the layer out.
    """
    if not isinstance(value, Mapping):
        return value
    found = value.get(str(site.depth), value.get("default"))
    if found is None:
        raise AdapterError(f"{name} {dict(value)} has neither an entry for layer {site.depth} nor a 'default'")
    return found


def fits_layers(value: object, fits: Callable[[Any], bool]) -> bool:
    """Whether one value fits, or every value of a mapping from layer number or "default"."""
    if not isinstance(value, Mapping):
        return fits(value)
    return all(str(key) == "default" or str(key).isdecimal() for key in value) and all(map(fits, value.values()))


def switch_problems(config: object, names: tuple[str, ...]) -> list[str]:
    """What is wrong with options that must be true or false."""
    values = ((name, getattr(config, name)) for name in names)
    return [f"{name} {value!r} must be true or false" for name, value in values if not isinstance(value, bool)]


def seed_problems(seed: object) -> list[str]:
    """What is wrong with init_weights_seed."""
    fine = seed is None or is_count(seed, 2**32)
    return [] if fine else [f"init_weights_seed {seed!r} must be none or a whole number from 0 to 2**32 - 1"]


def is_number(value: object) -> bool:
    """Whether a value is a finite number, and not a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: object, below: float = math.inf) -> bool:
    """Whether a value is a whole number from 0, below a limit."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < below


def is_share(value: object) -> bool:
    """Whether a value is a probability below one: a dropout."""
    return is_number(value) and 0 <= value < 1  # type: ignore[operator]
