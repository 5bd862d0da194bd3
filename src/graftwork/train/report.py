"""The last thing a person sees of a run: a table of what was trained and how good it is, and where the files are."""

import json
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from graftwork.train.attention import lines as attended
from graftwork.train.folder import RunFolder
from graftwork.train.monitor import told
from graftwork.train.outcome import TrainResult


def table(results: Sequence[TrainResult]) -> Table:
    """One line a run: scores of its best epoch, how much trained (and of the base), size on disk, time."""
    mains = {result.main for result in results}
    score = f" {mains.pop()}" if len(mains) == 1 else ""
    made = Table(header_style="bold")
    for heading in ("run", "method", f"dev{score}", f"test{score}", "epoch", "trained", "package", "time"):
        made.add_column(heading, justify="left" if heading in ("run", "method") else "right", overflow="fold")
    for result in results:
        trained, base = result.parameters["trained"], result.parameters["base"]
        made.add_row(
            result.name,
            result.method,
            _score(result, "dev", named=not score),
            _score(result, "test", named=not score),
            f"{result.best_epoch:g} of {result.epochs:.3g}",
            f"{trained:,} ({trained / base:.1%})",
            f"{result.size / 1e6:.2f} MB",
            f"{result.seconds:.0f} s",
        )
    return made


def written(result: TrainResult) -> dict[str, Any]:
    """What lies in result.json, and the folder that it lies in."""
    contents: dict[str, Any] = json.loads(RunFolder(result.folder).result.read_text("utf8"))
    return contents | {"folder": str(result.folder)}


def lines(result: TrainResult) -> list[str]:
    """All scores, what was decided on the way, and where everything lies."""
    folder = RunFolder(result.folder)
    scores = [
        f"{split}: {', '.join(f'{name} {value:.4f}' for name, value in found.items())}"
        for split, found in result.scores.items()
    ]
    main, curve = result.main, result.drop_curve
    dropped = ", ".join(f"{n}: {found[main]:.4f}" for n, found in enumerate(curve))
    return [
        *scores,
        *([f"dev {main} by layers dropped: {dropped}"] if dropped else []),
        *attended(result.attention),
        told(result.learning),
        *(f"note: {note}" for note in result.notes),
        f"package: {folder.package}",
        f"all of it: {folder.path}",
    ]


def _score(result: TrainResult, split: str, named: bool) -> str:
    found = result.scores.get(split)
    return f"{found[result.main]:.4f}{f' {result.main}' if named else ''}" if found else "-"
