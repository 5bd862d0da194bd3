"""What a run of a fusion has that no other has: its members screened before it trains, its attention told afterwards.

Screening is in `screening.py`, what is attended to in `attention.py`, members that train first in `stages.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from graftwork.compose.tree import Fuse
from graftwork.registry.durable import named
from graftwork.train import attention, screening
from graftwork.train.folder import RunFolder
from graftwork.train.job import Job

Screening = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Told:
    """What is told of a fusion beside what is told of every run; empty of all else. See `TrainResult`."""

    screening: Screening = ()
    attention: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def before(job: Job) -> Screening:
    """What each member is worth alone, where a job trains a fusion that is to be screened; else nothing."""
    wanted = isinstance(job.setup.composition, Fuse) and job.recipe.training.screen_members
    return screening.screen(job) if wanted else ()


def after(job: Job, screened: Screening, dev: Mapping[str, float], folder: RunFolder) -> Told:
    """What a trained fusion attends to, drawn into the run's folder, with what there is to say of it. dev: its scores.

    Raises UserError where the picture cannot be written.
    """
    if not isinstance(job.setup.composition, Fuse):
        return Told()
    main, name = job.task.main_score, job.setup.name
    found = attention.measured(job)
    no_picture = job.devices.from_first(lambda: _drawn(found, name, folder)) if found else ""
    notes = (
        *screening.notes(screened, main),
        *screening.below_best(screened, dev[main], main, name),
        *attention.findings(found, name),
        *filter(None, [no_picture]),
    )
    return Told(list(screened), found, notes)


def _drawn(found: Mapping[str, Any], name: str, folder: RunFolder) -> str:
    with named(folder.path):
        return attention.draw(found, f"attention of {name}", folder.attention)
