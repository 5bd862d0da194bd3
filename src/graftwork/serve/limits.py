"""What a whole request may be, and the reasons to refuse one. Rows have errors of their own: `outcomes.py`.

Knows no HTTP: `app.py` holds the table from these classes to status codes.
"""

from dataclasses import dataclass, fields

from graftwork.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one server takes. Raises UserError for a limit below 1.

    max_rows: of one request, and of the requests that are answered together; max_body_bytes: of a request's body;
    max_waiting: requests in the queue; retry_after: the seconds after which a refused client may come again.
    """

    max_rows: int = 256
    max_body_bytes: int = 4 * 2**20
    max_waiting: int = 64
    retry_after: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise UserError(f"{field.name} is {getattr(self, field.name)}; it must be at least 1")


class Refused(UserError):
    """A whole request that gets no answer."""


class NotJson(Refused):
    """The body is not JSON."""


class TooLarge(Refused):
    """More rows or bytes than the limits allow."""


class Malformed(Refused):
    """JSON of another form than {"rows": [...]}."""


class Gone(Refused):
    """The client went away before its request was complete."""


class QueueFull(Refused):
    """As many requests wait as may wait."""


class NotReady(Refused):
    """The engine is still being built, could not be built, or is stopping."""
