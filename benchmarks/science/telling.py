"""How the studies of this room are told: numbers with their spread, differences with intervals, and pages.

Knows rows and studies; trains nothing, reads no files.
"""

from collections.abc import Sequence
from statistics import mean, stdev

import rows as book
from room import Asked, Study
from rows import Row

from graftwork.tasks.bootstrap import Interval, difference


def paired(tests: Sequence[Sequence[tuple[Row, Row]]]) -> Interval:
    """Points that the second row of each pair is above the first, over test sets and, in each, runs (seeds).

    The interval is over test items and runs drawn anew (`tasks/bootstrap.py`, runs_too).
    """
    pairs = [[(book.scorer(one), book.scorer(other)) for one, other in runs] for runs in tests]
    found = difference(pairs, book.SCORE, runs_too=True)
    return Interval(100 * found.value, 100 * found.low, 100 * found.high)


def matched(one: dict[int, Row], other: dict[int, Row]) -> list[tuple[Row, Row]]:
    """The rows of two systems by seed, as pairs of the seeds that both have."""
    return [(one[seed], other[seed]) for seed in sorted(one.keys() & other.keys())]


def shown(one: Interval) -> str:
    """A difference in points with its interval."""
    return f"{one.value:+.2f} [{one.low:+.2f}, {one.high:+.2f}]"


def spread(values: Sequence[float]) -> str:
    """Mean of shares in percent, and their standard deviation where there are several."""
    return f"{100 * mean(values):.2f}" + (f" ± {100 * stdev(values):.2f}" if len(values) > 1 else "")


def study_page(study: Study, found: Sequence[Row], asked: Asked, *parts: str) -> str:
    """A study's page: what it asks, what was found, the parts, and where the rows come from."""
    said = study.result(found, asked) or "Not all rows that it takes are there yet."
    opening = [
        f"**Claim.** {study.claim}",
        f"**Design.** {study.design}",
        f"**Bar.** {study.bar}",
        f"**Result.** {said}",
    ]
    return "\n\n".join([f"# {title(study)}", *opening, *parts, made_by(study, found)]) + "\n"


def title(study: Study) -> str:
    """`E1: parity` for `e1_parity`."""
    number, _, name = study.name.partition("_")
    return f"{number.upper()}: {name.replace('_', ' ')}"


def made_by(study: Study, found: Sequence[Row]) -> str:
    """Command, machines, versions and commits of the rows, not of who writes the page."""
    machines = sorted({row["machine"] for row in found})
    libraries = sorted({f"{name} {number}" for row in found for name, number in row["versions"].items()})
    commits = sorted({row["commit"] for row in found})
    return (
        f"{len(found)} rows, made by\n\n    python benchmarks/science/{study.name}.py\n\n"
        f"Machine: {'; '.join(machines)}. {', '.join(libraries)}. Commits: {', '.join(commits)}. "
        f"CPU time: {sum(row['cpu'] for row in found) / 3600:.1f} h. The page follows from `{study.name}.jsonl`."
    )
