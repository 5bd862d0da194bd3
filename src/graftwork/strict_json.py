"""JSON in which a key stands once and a number is a number, and the one spelling of a value that a digest is taken of.

Knows nothing of what the values mean.
"""

import json
from collections import Counter

from pydantic import JsonValue

from graftwork.errors import PackageError


def canonical_json(value: JsonValue) -> str:
    """One spelling for one value: sorted keys, no spaces, no escapes of letters. Raises ValueError on NaN, infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def load_json(data: bytes, where: str) -> JsonValue:
    """Read JSON in which a key stands once and a number is a number. Raises PackageError that names the file."""
    try:
        return json.loads(data.decode(), object_pairs_hook=_once, parse_constant=_no_constant)  # type: ignore[no-any-return]
    except (ValueError, RecursionError) as error:
        raise PackageError(f"{where}: not valid JSON: {error}") from error


def _once(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    if twice := [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]:
        raise ValueError(f"key {twice[0]!r} stands twice")
    return dict(pairs)


def _no_constant(text: str) -> JsonValue:
    raise ValueError(f"{text} is not a number that JSON knows; use null")
