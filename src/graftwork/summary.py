"""What a model carries, as rows for a machine and as a table for people."""

from dataclasses import dataclass

from graftwork.compose.parts import Parts
from graftwork.compose.tree import Composition, fusions, leaves
from graftwork.core.backbone import Backbone
from graftwork.core.counting import counted

LIGHT = 5.0  # percent of the base; above it a fusion is no small module any more


def heavy(name: str, parameters: int, base: int) -> str | None:
    """What is to be said of a fusion that has more than 5 % of its base's parameters; None of a lighter one."""
    share = 100 * parameters / max(base, 1)
    if share <= LIGHT:
        return None
    return (
        f"fusion {name} has {parameters:,} parameters, {share:.1f} % of the base: whole matrices (query, key, value) "
        "at every site, however few its members; Average(a, b) has none"
    )


@dataclass(frozen=True)
class SummaryRow:
    """One part: `share` is its parameters over those of the base, in percent."""

    name: str
    kind: str
    parameters: int
    share: float
    active: bool
    trains: bool


@dataclass(frozen=True)
class Summary:
    """Every part, and the size of the frozen base."""

    rows: tuple[SummaryRow, ...]
    base_parameters: int

    def __str__(self) -> str:
        header = ("Name", "Kind", "Parameters", "% of base", "Active", "Trains")
        lines = [
            (row.name, row.kind, f"{row.parameters:,}", f"{row.share:.3f}", _mark(row.active), _mark(row.trains))
            for row in self.rows
        ]
        lines.append(("(frozen base)", "", f"{self.base_parameters:,}", "100.000", "", _mark(False)))
        widths = [max(len(line[column]) for line in [header, *lines]) for column in range(len(header))]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
                         for line in [header, tuple("-" * width for width in widths), *lines])  # fmt: skip


def _mark(value: bool) -> str:
    return "yes" if value else "no"


def summarise(parts: Parts, backbone: Backbone, active: Composition, head: str | None) -> Summary:
    """Count every part of a model; `active` and `head` are what answers by default."""
    base = counted(backbone.model)
    in_use: dict[str, set[str | None]] = {
        "adapters": set(leaves(active)),
        "fusions": {fuse.name for fuse in fusions(active)},
        "heads": {head},
    }
    kinds = {
        "adapters": {name: config.kind for name, config in parts.adapter_configs.items()},
        "fusions": {name: record.composition for name, record in parts.fusion_records.items()},
        "heads": {name: f"{config.kind} head" for name, config in parts.head_configs.items()},
    }
    rows = []
    for table, named in kinds.items():
        for name, kind in named.items():
            count = parts.count(table, name)
            trains = any(p.requires_grad for m in parts.modules_of(table, name).values() for p in m.parameters())
            rows.append(SummaryRow(name, kind, count, 100 * count / max(base, 1), name in in_use[table], trains))
    return Summary(tuple(rows), base)
