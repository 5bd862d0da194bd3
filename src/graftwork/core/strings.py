"""Config strings, cut into names and flags: `seq_bn[reduction_factor=8,leave_out=[0,1]]`, `lora[r=8]|seq_bn`.

    union  := one ("|" one)*              one := name | name "[" flag ("," flag)* "]"
    flag   := key "=" value               value := a Python literal, true, false, none, or a word

Knows no names and no flags: `core/kinds.py` looks them up.
"""

import ast
import re
from typing import Any

from graftwork.errors import AdapterError

_ONE = re.compile(r"\s*([A-Za-z0-9_+]+)\s*(?:\[(.*)\])?\s*", re.DOTALL)
_WORDS = {"true": True, "false": False, "none": None, "null": None}


def members(text: str) -> list[str]:
    """The strings between the bars of a union; one string where there is no bar."""
    return cut(text, "|")


def name_of(text: str) -> str | None:
    """The name that one string begins with, or None where it does not have the form of one."""
    match = _ONE.fullmatch(text)
    return match.group(1) if match else None


def flags_of(text: str) -> dict[str, Any]:
    """The flags of one string. Raises AdapterError for a flag that cannot be read or is written twice."""
    match = _ONE.fullmatch(text)
    inner = (match.group(2) or "") if match else ""
    flags: dict[str, Any] = {}
    for part in cut(inner, ",") if inner.strip() else ():
        key, equals, value = part.partition("=")
        if not equals or not key.strip() or key.strip() in flags:
            raise AdapterError(f"cannot read {part.strip()!r} in {text!r}: write each flag once, as key=value")
        flags[key.strip()] = _value(value.strip())
    return flags


def cut(text: str, mark: str) -> list[str]:
    """Cut at a mark; one inside brackets belongs to the value: leave_out=[0,1], reduction_factor={'0': 8, '1': 4}."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[({") - (character in "])}")
        if character == mark and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
