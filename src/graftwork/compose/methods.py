"""Methods of a model made from functions of its parts: same arguments, same documentation, nothing in between.

add_tagging_head = adds(heads_hub.tagging)            asked(facts, …) -> the head to add
merge_adapter = changes(merge_adapter)                asked(parts, backbone, …) -> the setup to make active, or None
add_embeddings = asks(add_embeddings)                 asked(parts, backbone, …) -> what the method returns
compile = plans(compile_trunk)                        asked(planner, backbone, …) -> what the method returns
"""

from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any, Concatenate, ParamSpec, TypeVar

from graftwork.compose.parts import Parts
from graftwork.compose.plan import Planner
from graftwork.core.backbone import Backbone
from graftwork.core.heads_facts import Asked, HeadFacts, facts_of

_P = ParamSpec("_P")
_R = TypeVar("_R")
_M = TypeVar("_M", bound=Callable[..., Any])


def adds(asked: Callable[Concatenate[HeadFacts, _P], Asked]) -> Callable[Concatenate[Any, str, _P], None]:
    """A method `add_..._head(name, ...)` from a function that makes a head's configuration from the same arguments."""

    def method(self: Any, name: str, /, *args: _P.args, **kwargs: _P.kwargs) -> None:
        made = asked(facts_of(self.backbone), *args, **kwargs)
        self.add_head(name, made.config, overwrite_ok=made.overwrite_ok)

    return _signed(method, asked, ("self", "name"), 1)


def changes(asked: Callable[Concatenate[Parts, Backbone, _P], str | None]) -> Callable[Concatenate[Any, _P], None]:
    """A method that changes parts or base; plans are made again, and what the function returns becomes active."""

    def method(self: Any, /, *args: _P.args, **kwargs: _P.kwargs) -> None:
        active = asked(self.parts, self.backbone, *args, **kwargs)
        self._planner.forget()
        if active is not None:
            self.set_active_adapters(active)

    return _signed(method, asked, ("self",), 2)


def asks(asked: Callable[Concatenate[Parts, Backbone, _P], _R]) -> Callable[Concatenate[Any, _P], _R]:
    """A method that returns what a function of parts and base returns, and leaves the plans as they are."""

    def method(self: Any, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        return asked(self.parts, self.backbone, *args, **kwargs)

    return _signed(method, asked, ("self",), 2)


def plans(asked: Callable[Concatenate[Planner, Backbone, _P], _R]) -> Callable[Concatenate[Any, _P], _R]:
    """A method that returns what a function of planner and base returns."""

    def method(self: Any, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        return asked(self._planner, self.backbone, *args, **kwargs)

    return _signed(method, asked, ("self",), 2)


def _signed(method: _M, asked: Callable[..., Any], own: tuple[str, ...], taken: int) -> _M:
    """The method with the function's documentation and signature, `own` parameters in the place of the first ones."""
    plain = signature(asked)
    names = [Parameter(one, Parameter.POSITIONAL_ONLY) for one in own]
    method.__signature__ = plain.replace(parameters=[*names, *list(plain.parameters.values())[taken:]])  # type: ignore[attr-defined]
    method.__doc__ = asked.__doc__
    return method
