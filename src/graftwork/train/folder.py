"""The folder of one run: what lies where, who may write into it, and when a run may go on in it.

    recipe.yaml    the recipe, complete            checkpoints/   to go on from
    run.json       what the run stands on          package/       what was trained
    result.json    how it went; written last       model/         the tuned base, for training.method full
    peft/          what PEFT trained, for training.method peft
    curve.png      loss and dev score             attention.png  of a fusion: what it attends to

A folder that holds something else is never written into; what a killed process was writing is put away by the run that
goes on or takes its place. Errors of the disk become UserErrors that name the folder.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from graftwork.errors import Conflict
from graftwork.recipe import Recipe
from graftwork.registry.durable import named, remove_torn, replace_file, strangers
from graftwork.train.checkpoint import newest_whole

OWN = (
    "result.json",
    "recipe.yaml",
    "curve.png",
    "attention.png",
    "checkpoints",
    "package",
    "model",
    "peft",
    "run.json",
)


class RunFolder:
    """The files of one run under `path`; nothing is created before `claim`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.run = self.path / "run.json"
        self.recipe = self.path / "recipe.yaml"
        self.result = self.path / "result.json"
        self.curve = self.path / "curve.png"
        self.attention = self.path / "attention.png"
        self.checkpoints = self.path / "checkpoints"
        self.package = self.path / "package"
        self.model = self.path / "model"
        self.peft = self.path / "peft"

    @property
    def finished(self) -> bool:
        """Whether a run was brought to its end here."""
        return self.result.is_file()

    def check(self, *, resume: bool, overwrite: bool, identity: Mapping[str, Any] | None = None) -> None:
        """Raises Conflict where this folder cannot take the run, or is not that of `identity`; writes nothing."""
        if not os.path.lexists(self.path):
            return
        if not self.path.is_dir():
            raise Conflict(f"{self.path}: is not a folder; choose another output")
        others = strangers(self.path, OWN)
        if others or (not self.run.is_file() and any(path.name in OWN for path in self.path.iterdir())):
            raise Conflict(
                f"{self.path}: holds files that are no run's ({', '.join(others[:5]) or 'no run.json'}); "
                "choose another output"
            )
        if self.run.is_file() and not (resume or overwrite):
            newest = newest_whole(self.checkpoints)
            how = "finished" if self.finished else f"stopped after step {newest.step if newest else 0}"
            raise Conflict(
                f"{self.path}: holds a run already ({how}); go on with it (--resume), put the new one in its place "
                "(--overwrite), or choose another output"
            )
        if resume and self.run.is_file() and identity is not None:
            with named(self.path):
                self._compare(identity)

    def claim(self, identity: Mapping[str, Any], recipe: str, *, resume: bool, overwrite: bool) -> None:
        """Make the folder this run's. Raises Conflict as `check`, or where the run to go on with is another one."""
        self.check(resume=resume, overwrite=overwrite, identity=identity)
        with named(self.path):
            remove_torn(self.path, OWN)
        if resume and self.run.is_file():
            return
        with named(self.path):
            if overwrite and self.run.is_file():
                self._clear()
            self.path.mkdir(parents=True, exist_ok=True)
            replace_file(self.run, encoded(identity))
            replace_file(self.recipe, recipe.encode())

    def check_asked(self, asked: Mapping[str, Any]) -> None:
        """Raise Conflict where a run is here whose recipe said something else; `asked`: that part of an identity."""
        if self.run.is_file():
            with named(self.path):
                self._compare(asked, only="recipe.")

    def _compare(self, identity: Mapping[str, Any], only: str = "") -> None:
        try:
            there = json.loads(self.run.read_bytes())
        except ValueError:
            raise Conflict(f"{self.run}: is damaged; start again with --overwrite") from None
        there = {key: value for key, value in there.items() if key.startswith(only)}
        there = {key: value for key, value in unsaid().items() if key in identity} | there
        here = json.loads(encoded(identity))
        differing = [key for key in sorted(there.keys() | here.keys()) if there.get(key) != here.get(key)]
        if differing:
            says = "; ".join(f"{key} was {there.get(key)!r}, is {here.get(key)!r}" for key in differing[:10])
            raise Conflict(
                f"{self.path}: is another run's, so it cannot go on: {says}; put the new one in its place "
                "(--overwrite), or choose another output"
            )

    def _clear(self) -> None:
        for name in OWN:  # run.json last: what is half-removed is still a run that can be put out of the way
            path = self.path / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def unsaid() -> dict[str, Any]:
    """What the keys of a recipe mean where nothing is said, as run.json names them.

    A run that was begun before a key was there had what is its default now, for a new key changes no earlier recipe.
    """
    sections = {name: field.annotation for name, field in Recipe.model_fields.items()}
    return {
        f"recipe.{name}.{key}": field.default
        for name, section in sections.items()
        if isinstance(section, type) and issubclass(section, BaseModel)
        for key, field in section.model_fields.items()
        if not field.is_required() and field.default_factory is None
    }


def encoded(contents: Mapping[str, Any] | Sequence[Any]) -> bytes:
    """JSON as it lies in a run's folder: sorted, indented, no NaN."""
    return (json.dumps(contents, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
