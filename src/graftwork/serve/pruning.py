"""The attention of a fusion of the registry over rows, and the fusion pruned by it as a package: `compose/prune.py`.

The rows are read as the fusion's task reads them; for pruning, what they are labelled does not matter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graftwork.build import package_task
from graftwork.compose.prune import FusionAttention
from graftwork.compose.tree import show
from graftwork.errors import UserError
from graftwork.packing import Provenance
from graftwork.registry.package import Package
from graftwork.serve.catalog import Found
from graftwork.serve.engine import Engine
from graftwork.tasks.kinds import numbers_classes
from graftwork.tasks.task import Task


@dataclass(frozen=True)
class Pruned:
    """A pruned fusion, and the attention that it was pruned by."""

    package: Package
    attention: FusionAttention
    kept: Mapping[str, tuple[int, ...]]


def attention(engine: Engine, reference: str, rows: Sequence[Mapping[str, Any]]) -> FusionAttention:
    """What a fusion attends to over labelled rows of its task, apart for each label where labels are classes.

    Raises UserError for what is no fusion or without rows, DataError for rows that the task cannot read.
    """
    with engine.holding(reference) as found:
        task = _task(found)
        return engine.model.fusion_attention(found.name, engine.inputs(rows, task, labels=numbers_classes(task)))


def prune(
    engine: Engine, reference: str, rows: Sequence[Mapping[str, Any]], keep: int, name: str | None = None
) -> Pruned:
    """Keep the most attended members of a fusion at each site. name: left out, `<fusion>-<keep>`.

    The engine must not answer meanwhile; it is left as it was. The package says in `training` what it was pruned from;
    scores are not taken over. Raises UserError for what is no fusion or without rows, DataError for rows that the task
    cannot read, AdapterError for a number of members.
    """
    with engine.holding(reference) as found:
        task = _task(found)
        model, whole = engine.model, found.manifest
        attention = model.fusion_attention(found.name, engine.inputs(rows, task))
        made = model.prune_fusion(attention, keep, name=name or f"{whole.name}-{keep}".replace(",", "-"))
        said = {"from": found.name, "digest": found.digest, "keep": keep, "tokens": attention.tokens}
        try:
            package = model.package(
                made,
                provenance=Provenance(
                    task=whole.task,
                    vocabulary=whole.vocabulary,
                    composition=show(model.parts.fusion_records[made].tree),
                    members=whole.members,
                    data=whole.data,
                    training=_training(whole.training) | {"pruned": said},
                    description=whole.description,
                    licence=whole.licence,
                ),
            )
            kept = dict(model.parts.fusion_records[made].kept)
        finally:
            model.delete_adapter_fusion(made)
            if made in model.parts.head_configs:
                model.delete_head(made)
    return Pruned(package, attention, kept)


def _training(whole: Mapping[str, Any]) -> dict[str, Any]:
    """How the whole fusion was trained, without its scores by layers dropped, which are not those of the pruned one."""
    return {key: value for key, value in whole.items() if key != "drop" and not key.endswith("_by_layers_dropped")}


def _task(found: Found) -> Task:
    """The task of a fusion. Raises UserError for what is none, or attends to what it says itself."""
    if found.fuse is None:
        raise UserError(f"{found.name} is not a fusion, it is a {found.manifest.role} package")
    task = package_task(found.manifest)
    if task.speaks:
        raise UserError(
            f"{found.name} is for task kind {task.kind}, which says texts piece by piece; what it attends to depends "
            "on what it has said, so rows alone do not tell it"
        )
    return task
