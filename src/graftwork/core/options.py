"""What the options of all methods share: the layers and stacks they go to, and what a number, a count, a share is."""

import math
from typing import Protocol

from graftwork.core.site import Site


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


def settle_places(config: Placed) -> None:
    """Make tuples of the lists that files and people write, in a frozen dataclass that is being made."""
    for name in ("leave_out", "stacks"):
        if isinstance(getattr(config, name), list):
            object.__setattr__(config, name, tuple(getattr(config, name)))


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


def is_number(value: object) -> bool:
    """Whether a value is a finite number, and not a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: object, below: float = math.inf) -> bool:
    """Whether a value is a whole number from 0, below a limit."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < below


def is_share(value: object) -> bool:
    """Whether a value is a probability below one: a dropout."""
    return is_number(value) and 0 <= value < 1  # type: ignore[operator]
