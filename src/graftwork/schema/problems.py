"""What pydantic found wrong -> one sentence for each key: the key, its value, what is allowed, and what was meant.

Works from the annotations of any pydantic model: a type says in words what it takes by carrying `Allowed`.
Knows nothing of what a recipe holds.
"""

import difflib
import reprlib
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from graftwork.schema.values import Allowed
from graftwork.schema.yaml_text import KeyPath, Problem, dotted

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 160
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict = 2, 6, 6


def sentences(error: ValidationError, model: type[BaseModel], data: Any) -> list[Problem]:
    """One problem for each key that `model` refused in `data`; checks of the whole (at the root) are not among them."""
    found: dict[KeyPath, Problem] = {}
    for detail in error.errors(include_url=False):
        if detail["type"] != "default_factory_not_called" and detail["loc"]:
            problem = _sentence(detail, model, data)
            found.setdefault(problem.path, problem)
    # A union reports both the value and the part of it that is wrong: the part says more.
    return [found[path] for path in found if not any(other[: len(path)] == path for other in found if other != path)]


def shown(value: Any) -> str:
    """A value as a person wrote it, shortened."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return _SHORT.repr(value)


def takes_one(model: type[BaseModel], data: Mapping[str, Any]) -> list[str]:
    """The keys of `data` that hold a list of values where `model` takes one value."""
    hints = get_type_hints(model, include_extras=True)
    return [key for key, value in data.items() if isinstance(value, list) and value and key in hints
            and _item_in(hints[key]) is None]  # fmt: skip


def nearest(word: str, known: Sequence[str]) -> str | None:
    """The known word that was probably meant."""
    lowered = {one.lower(): one for one in known}
    close = difflib.get_close_matches(word.lower(), list(lowered), n=1, cutoff=0.6)
    return lowered[close[0]] if close else None


def _sentence(detail: ErrorDetails, model: type[BaseModel], data: Any) -> Problem:
    path, hint = _place(detail["loc"], model, data)
    key, value = dotted(path), detail["input"]
    section = _model_in(hint)
    if detail["type"] == "missing":
        return Problem(path, f"{key}: missing; write {_words(hint)}")
    if detail["type"] in ("extra_forbidden", "invalid_key") and section:
        return Problem(path, f"{key}: unknown key; {_meant(path, section, model)} (value: {shown(value)})")
    if section:
        return Problem(path, f"{key}: {shown(value)} is not a section; write {_words(section)}")
    if detail["loc"][-1] == "[key]":
        return Problem(path, f"{key}: the key {shown(path[-1])} is not allowed; write {_words(hint)}")
    written = _at(data, path)
    choice = nearest(written, list(_choices(hint))) if isinstance(written, str) else None
    did_you_mean = f"; did you mean {choice}?" if choice else ""
    return Problem(path, f"{key}: {shown(written)} is not allowed; write {_words(hint)}{did_you_mean}")


def _place(loc: Sequence[int | str], model: type[BaseModel], data: Any) -> tuple[KeyPath, Any]:
    """The key that an error is about, and the type that this key takes.

    pydantic mixes names of union members into the location: what is neither a field nor in the data is left out.
    """
    path: KeyPath = ()
    hint: Any = model
    for part in loc:
        section = _model_in(hint)
        if section and part in section.model_fields:
            hint = get_type_hints(section, include_extras=True)[str(part)]
            path = (*path, part)
        elif _has(data, (*path, part)):
            path = (*path, part)
            if section:
                break
            hint = (isinstance(part, int) and _item_in(hint)) or hint
    return path, hint


def _has(data: Any, path: KeyPath) -> bool:
    try:
        _at(data, path)
    except (LookupError, TypeError):
        return False
    return True


def _at(data: Any, path: KeyPath) -> Any:
    for part in path:
        if isinstance(data, str):  # an index into text is not a key
            raise KeyError(part)
        data = data[part]
    return data


def _meant(path: KeyPath, section: type[BaseModel], root: type[BaseModel]) -> str:
    """The key that an unknown one stands for: here, in another section, or else all that are known here."""
    word = str(path[-1])
    if close := nearest(word, list(section.model_fields)):
        return f"did you mean {close}?"
    elsewhere = {
        key: f"{name}.{key}"
        for name, hint in get_type_hints(root, include_extras=True).items()
        if (other := _model_in(hint))
        for key in other.model_fields
    }
    if close := nearest(word, list(elsewhere)):
        return f"did you mean {elsewhere[close]}?"
    return f"known here: {', '.join(section.model_fields)}"


def _model_in(hint: Any) -> type[BaseModel] | None:
    """The section that a type takes, where it takes one."""
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return hint
    if get_origin(hint) in (Union, types.UnionType, Annotated):
        return next((found for part in get_args(hint) if (found := _model_in(part))), None)
    return None


def _item_in(hint: Any) -> Any:
    """What the items of a list may be, where a type takes a list."""
    if get_origin(hint) is tuple:
        return get_args(hint)[0]
    return next((found for part in get_args(hint) if (found := _item_in(part)) is not None), None)


def _words(hint: Any) -> str:
    """A type in words."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        said = [part.words for part in parts[1:] if isinstance(part, Allowed)]
        return said[-1] if said else _words(parts[0])  # nested annotations are flattened, the outermost comes last
    if origin is Literal:
        return _either([str(part) for part in parts])
    if origin in (Union, types.UnionType):
        return _either([_words(part) for part in parts])
    if origin is tuple:
        return f"a list (each item: {_words(parts[0])})"
    if hint is types.NoneType:
        return "null"
    section = _model_in(hint)
    return f"a section with {', '.join(section.model_fields)}" if section else str(getattr(hint, "__name__", hint))


def _either(words: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _choices(hint: Any) -> Iterator[str]:
    """Every word that a type lists as a choice."""
    if get_origin(hint) is Literal:
        yield from (part for part in get_args(hint) if isinstance(part, str))
    else:
        for part in get_args(hint):
            yield from _choices(part)
