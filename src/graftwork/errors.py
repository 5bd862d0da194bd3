"""One exception tree. Every message names the thing, shows the value, says what is allowed and what to do.

GraftworkError
├── UserError                  what the caller asked for cannot be (exit code 2, HTTP 4xx)
│   ├── RecipeError            a recipe file or value; all problems at once
│   ├── DataError              a data file, row or label; all problems at once
│   ├── CompositionError       a composition that has no meaning, or cannot be parsed
│   ├── AdapterError           an unknown, duplicate or impossible adapter, fusion or head
│   ├── BackboneError          a model that is unknown, unreachable or has no described sites
│   ├── NotFound               a name or version that the registry does not hold
│   ├── Conflict               a package for another base; an immutable version pushed twice
│   └── InputTooLong           a text longer than the model or the request allows
├── PackageError               a damaged or dishonest file (exit code 1)
├── RoutingError               a forward that was re-entered, or a route that does not fit its batch
└── GoalMissed                 a step ran but missed its bar (exit code 1)
"""

from collections.abc import Sequence


class GraftworkError(Exception):
    """Root of every error that graftwork raises on purpose."""

    said_elsewhere = False  # whether another process of the same run says it


class UserError(GraftworkError):
    """The request itself is wrong; nothing was changed."""


def in_a_line(error: BaseException) -> str:
    """What a library raised, for a row of a table: its type and the beginning of its message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def told(error: Exception) -> GraftworkError:
    """An error that ended one of several runs, to be told beside the others: our own, or a library's in a line."""
    return error if isinstance(error, GraftworkError) else GraftworkError(in_a_line(error))


class _Problems(UserError):
    """Several problems found in one pass, reported together."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class RecipeError(_Problems):
    """One or more problems in a recipe."""


class DataError(_Problems):
    """One or more problems in data files or rows."""


class CompositionError(UserError):
    """A composition that cannot be parsed or has no meaning."""


class AdapterError(UserError):
    """An adapter, fusion or head that is unknown, duplicate or impossible."""


class BackboneError(UserError):
    """A model that is unknown, unreachable or whose sites are not described."""


class NotFound(UserError):
    """A name, version or alias that is not there."""


class Conflict(UserError):
    """A package for another base, or an immutable version pushed again with other contents."""


class InputTooLong(UserError):
    """A text longer than the limit."""


class PackageError(GraftworkError):
    """A package that is damaged: a digest, shape, tensor or key is not what its manifest says."""


class RoutingError(GraftworkError):
    """A forward that was re-entered, or a route that does not fit the batch it meets."""


class GoalMissed(GraftworkError):
    """A step ran to its end but missed the bar that was set for it."""
