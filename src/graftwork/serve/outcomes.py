"""What a row gets that cannot be answered: {"error": {"code", "message"}}, its code from one table.

Messages of our own errors are shown as they are, without the places where files lie; of anything else the client sees
only the number under which the server's log has it.
"""

import logging
import uuid
from pathlib import Path
from typing import Any, TypeAlias

from graftwork.errors import Conflict, GraftworkError, InputTooLong, NotFound, PackageError, UserError

Outcome: TypeAlias = dict[str, Any]  # an answer, or {"error": {"code", "message"}}

# class of the error -> code of the row; the first class in an error's own order of bases that stands here counts
CODES: dict[type[BaseException], str] = {
    NotFound: "not_found",
    Conflict: "conflict",
    InputTooLong: "too_long",
    PackageError: "damaged",
    UserError: "invalid",
    GraftworkError: "internal",
    Exception: "internal",
}
_LONGEST = 2000  # characters of a message; names and expressions in it come from the client

log = logging.getLogger("graftwork.serve")


def failure(error: Exception, root: Path) -> Outcome:
    """The outcome of a row that met `error`; `root`, the registry's folder, is not shown."""
    code = next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)
    message = public(str(error), root)
    if code == "internal":
        number = uuid.uuid4().hex[:12]
        log.error("row failed, number %s", number, exc_info=error)
        said = message if isinstance(error, GraftworkError) else "this row could not be answered"
        message = f"{said}; the log has it as {number}"
    return {"error": {"code": code, "message": message}}


def public(message: str, root: Path) -> str:
    """A message for a client: one line of at most 2000 characters, without the registry's place on this machine."""
    for place in {str(root), str(root.resolve())}:
        message = message.replace(f"{place}/", "").replace(f"registry {place}", "registry").replace(place, "registry")
    message = "; ".join(message.splitlines()).encode("utf-8", "backslashreplace").decode()
    return message if len(message) <= _LONGEST else f"{message[: _LONGEST - 4]} ..."
