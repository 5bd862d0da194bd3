"""How evaluations print: a row for each system and, where asked, what lies behind its scores; or all of it as data."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import typer

from graftwork.cli.printing import table
from graftwork.evaluate import Standing
from graftwork.tasks.details import Details

WIDEST = 12  # labels of a confusion that is printed whole; of more, the commonest mistakes
LISTED = 20  # of them


def as_data(found: Sequence[Standing]) -> dict[str, Any]:
    """{"rows", "main", "systems"}; the difference of the one that others are held against is null."""
    return {
        "rows": len(found[0].evaluation.answers),
        "main": found[0].evaluation.main,
        "against": _held_against(found),
        "systems": [
            {
                "composition": one.evaluation.composition,
                "head": one.evaluation.head,
                "scores": one.evaluation.scores,
                "interval": asdict(one.interval),
                "difference": None if one.difference is None else asdict(one.difference),
                "details": _found(one.evaluation.details),
            }
            for one in found
        ],
    }


def _held_against(found: Sequence[Standing]) -> str:
    return next(one.evaluation.composition for one in found if one.difference is None)


def _found(details: Details) -> dict[str, Any]:
    """What has a meaning for the task, and nothing else."""
    return {key: value for key, value in asdict(details).items() if value}


def as_tables(found: Sequence[Standing], data: str, resamples: int, seed: int, details: bool) -> None:
    """Print them for people."""
    first, main = found[0].evaluation, found[0].evaluation.main
    typer.echo(f"{len(first.answers)} rows of {data}; 95 % intervals from {resamples} draws of them (seed {seed})")
    if len(found) > 1:
        typer.echo(f"difference: {main} less that of {_held_against(found)}, on the same draws")
    rows: list[dict[str, Any]] = []
    for one in found:
        row: dict[str, Any] = {"composition": one.evaluation.composition, "head": one.evaluation.head}
        row |= {main: one.interval.value, "interval": f"{one.interval.low:.4f} to {one.interval.high:.4f}"}
        if one.difference is not None:
            row |= {
                "difference": f"{one.difference.value:+.4f}",
                "its interval": f"{one.difference.low:+.4f} to {one.difference.high:+.4f}",
            }
        rows.append(row | {name: value for name, value in one.evaluation.scores.items() if name != main})
    order = ["composition", "head", main, "interval", "difference", "its interval", *first.scores]
    table(rows, [name for name in dict.fromkeys(order) if any(name in row for row in rows)])
    for one in found if details else ():
        _details(one.evaluation.composition, _found(one.evaluation.details))


def _details(composition: str, found: Mapping[str, Any]) -> None:
    if not found:
        typer.echo(f"\n{composition}: this kind of task has no labels, confusion or calibration")
    if "labels" in found:
        typer.echo(f"\n{composition} by label")
        table(found["labels"], ["label", "precision", "recall", "f1", "support"])
    if "confusion" in found:
        _confusion(composition, found["confusion"]["labels"], found["confusion"]["counts"])
    if "calibration" in found:
        own = found["calibration"]
        typer.echo(f"\n{composition} calibration: ece {own['ece']:.4f}, brier {own['brier']:.4f}, nll {own['nll']:.4f}")
        table(own["bins"], ["low", "high", "count", "confidence", "accuracy"])
    if "residuals" in found:
        own = found["residuals"]
        typer.echo(f"\n{composition} answers less labels: mean {own['bias']:+.4f}, size {own['mean_absolute']:.4f}")
        table([{"quantile": at, "value": value} for at, value in own["quantiles"]], ["quantile", "value"])


def _confusion(composition: str, labels: Sequence[str], counts: Sequence[Sequence[int]]) -> None:
    if len(labels) <= WIDEST:
        typer.echo(f"\n{composition} confusion: a row is a label, its columns what was answered")
        table([{"": gold, **dict(zip(labels, row, strict=True))} for gold, row in zip(labels, counts, strict=True)],
              ["", *labels])  # fmt: skip
        return
    wrong = [
        {"label": gold, "answered": said, "times": count}
        for gold, row in zip(labels, counts, strict=True)
        for said, count in zip(labels, row, strict=True)
        if count and gold != said
    ]
    typer.echo(f"\n{composition} confusion: the commonest mistakes")
    table(sorted(wrong, key=lambda one: -int(str(one["times"])))[:LISTED], ["label", "answered", "times"])
