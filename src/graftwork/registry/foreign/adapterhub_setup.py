"""A whole setup that AdapterHub wrote: `adapter_setup.json` and a folder for every adapter, fusion and head in it.

The composition is nested {type, children, kwargs}; it becomes one expression, as `Stack(hi, Fuse(a, b))` is written.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graftwork.errors import PackageError
from graftwork.registry.foreign.adapterhub import (
    ADAPTER_CONFIG,
    FUSION_CONFIG,
    read_adapterhub,
    read_fusion,
    read_head,
)
from graftwork.registry.foreign.files import listing, read_json
from graftwork.registry.foreign.heads import CONFIG as HEAD_CONFIG
from graftwork.registry.foreign.imported import UNKNOWN, Facts, Imported, honest

SETUP_CONFIG = "adapter_setup.json"


def read_setup(folder: Path | str, *, facts: Facts = UNKNOWN) -> tuple[str, list[Imported]]:
    """A whole setup: the composition, written as we write it, and its adapters, fusions and heads in that order.

    Raises NotFound, PackageError: a part that the setup names and the folder lacks.
    """
    with honest(str(folder)):
        return _read_setup(Path(folder), facts)


def _read_setup(folder: Path, facts: Facts) -> tuple[str, list[Imported]]:
    written, where = read_json(folder, SETUP_CONFIG), str(folder / SETUP_CONFIG)
    setup = written.get("adapter_setup")
    if not isinstance(setup, dict):
        raise PackageError(f"{where}: adapter_setup is {setup!r:.80}; expected a composition")
    parts: dict[str, list[Imported]] = {"adapters": [], "fusions": [], "heads": []}
    for child in sorted(path for path in folder.iterdir() if path.is_dir()):
        if (child / ADAPTER_CONFIG).exists():
            parts["adapters"] += read_adapterhub(child, facts=facts)
        elif (child / HEAD_CONFIG).exists():
            parts["heads"].append(read_head(child, facts=facts))
        if (child / FUSION_CONFIG).exists():
            parts["fusions"].append(read_fusion(child))
    text, leaves = expression(setup, where)
    if missing := sorted(set(leaves) - {one.name for one in parts["adapters"]}):
        raise PackageError(f"{where}: names adapters that the folder lacks: {missing}; it holds {listing(folder)}")
    return text, [*parts["adapters"], *parts["fusions"], *parts["heads"]]


def expression(setup: Mapping[str, Any], where: str) -> tuple[str, list[str]]:
    """A composition as one expression, and its adapters."""
    kind, children = setup.get("type"), setup.get("children")
    if not isinstance(children, list) or not children:
        raise PackageError(f"{where}: a block without children: {setup!r:.80}")
    if kind == "single":
        return str(children[0]), [str(children[0])]
    read = [expression(child, where) for child in children if isinstance(child, dict)]
    names = [name for _, own in read for name in own]
    numbers = _numbers(setup, str(kind), len(read), where)
    return f"{kind}({', '.join(t + n for (t, _), n in zip(read, numbers, strict=True))})", names


def _numbers(setup: Mapping[str, Any], kind: str, count: int, where: str) -> Sequence[str]:
    """`:0.7` after each child of a block that weighs or counts, nothing after the others."""
    field = {"Average": "weights", "Split": "splits", "BatchSplit": "batch_sizes"}.get(kind)
    if kind not in ("Stack", "Fuse", "Parallel") and field is None:
        raise PackageError(f"{where}: block {kind!r} is not read; there are Stack, Fuse, Average, Split, BatchSplit, "
                           "Parallel")  # fmt: skip
    values = (setup.get("kwargs") or {}).get(field) if field else None
    if values is None:
        return [""] * count
    values = [values] * count if isinstance(values, int | float) else values
    if len(values) != count:
        raise PackageError(f"{where}: {kind} has {count} children and {len(values)} {field}")
    return [f":{value}" for value in values]
