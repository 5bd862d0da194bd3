"""The story in Python, one function per arrow:

    recipe.yaml ──train──► package ──push──► registry ──open_engine──► engine ──answer──► answers, in process
                                                          └────────────serve────────────► answers, over HTTP
    compare: one recipe by several methods ──► a row each
                                      evaluate: compositions and labelled rows ──► scores, and how sure they are
    another tool's files ──import_files──► registry ──export_files──► another tool's files

The commands, the demo and the end-to-end test all call these; the README tells the same story. Nothing happens here
that the rooms below do not do: this file only hands one room's result to the next.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from graftwork.asking import evaluate as evaluate
from graftwork.asking import evaluate_several as evaluate_several
from graftwork.asking import predict as predict
from graftwork.asking import questions as questions
from graftwork.asking import questions_of as questions_of
from graftwork.asking import rows_of
from graftwork.build import without_bars
from graftwork.core.backbone import Backbone, load_model
from graftwork.errors import UserError
from graftwork.importing import facts_of, packages, read
from graftwork.recipe import Recipe, load, override, swept
from graftwork.registry.foreign.adapterhub_write import write_adapterhub
from graftwork.registry.foreign.hub import locate
from graftwork.registry.foreign.imported import Fate
from graftwork.registry.foreign.named import base_name
from graftwork.registry.foreign.peft_write import write_peft
from graftwork.registry.package import read as read_package
from graftwork.registry.store import Registry
from graftwork.schema.sections import ModelSection
from graftwork.serve.engine import Engine
from graftwork.serve.limits import Limits
from graftwork.serve.pruning import Pruned
from graftwork.serve.pruning import attention as fusion_attention
from graftwork.serve.pruning import prune as prune_fusion
from graftwork.serve.server import serve as serve_engine
from graftwork.train.compare import compare as compare
from graftwork.train.devices import said_once as said_once
from graftwork.train.devices import speaks as speaks
from graftwork.train.outcome import TrainResult
from graftwork.train.run import train as run
from graftwork.train.sweep import choices, expand
from graftwork.train.sweeping import sweep as run_sweep
from graftwork.train.together import train_together as run_together


def read_recipe(path: Path | str, changes: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe file with some dotted keys changed. Raises RecipeError with every problem."""
    recipe = load(path, check_files=not changes)
    return override(recipe, changes) if changes else recipe


def train(
    recipe: Recipe,
    registry: Registry,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool | None = None,
    command: str = "",
) -> TrainResult:
    """Train what a recipe says and write its package into the recipe's output folder. Raises UserErrors first."""
    return run(recipe, registry=registry, resume=resume, overwrite=overwrite, progress=progress, command=command)


def read_recipes(
    paths: Sequence[Path | str], changes: Mapping[str, Any] | None = None, sweep: Sequence[str] = ()
) -> list[Recipe]:
    """Recipe files with some dotted keys changed, once for every choice of what is swept over: `training.seed=0,1`."""
    return [made for path in paths for made in expand(*read_sweep(path, changes, sweep), given=changes or {})]


def read_sweep(
    path: Path | str, changes: Mapping[str, Any] | None = None, sweep: Sequence[str] = ()
) -> tuple[Recipe, dict[str, Sequence[Any]]]:
    """A recipe file with some dotted keys changed, and what is swept over in it or by `training.seed=0,1`."""
    recipe, listed = swept(path, check_files=not changes)
    chosen = {key: values for key, values in listed.items() if key not in (changes or {})} | choices(sweep)
    return (override(recipe, changes) if changes else recipe), chosen


train_sweep = run_sweep  # one recipe with several values, together where it pays, laid beside each other
train_together = run_together  # several recipes over one base in one run, each into its own folder


def push(result: TrainResult, registry: Registry, name: str | None = None) -> str:
    """Store the package of a run and return `name@version`."""
    return registry.push(result.folder / "package", name or result.name)


def open_engine(
    model: str,
    registry: Registry,
    *,
    dtype: str = "float32",
    adapter_cache_size: int = 32,
    too_long: Literal["refuse", "truncate"] = "refuse",
) -> Engine:
    """One frozen base, on the accelerator if there is one, with every package of a registry at hand.

    Raises BackboneError, UserError.
    """
    section = ModelSection.model_validate({"name": model, "dtype": dtype})
    return Engine.open(section, registry, adapter_cache_size=adapter_cache_size, too_long=too_long)


@dataclass(frozen=True)
class Import:
    """One part of another tool's files in a registry, what became of each of its tensors, and what is to be known.

    composition: of a whole setup, else "".
    """

    reference: str
    role: str
    source: str
    fates: Sequence[Fate]
    notes: Sequence[str]
    composition: str = ""


def import_files(
    source: str,
    registry: Registry,
    *,
    model: str | None = None,
    name: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    subtract_projection: bool | None = None,
) -> list[Import]:
    """Read a folder, a repository or an id of AdapterHub's index, try it on its base, and store each part.

    model: the base; left out, the one that the files name. name: of an adapter that is alone. config: which of several
    adapters of one id. Raises NotFound, PackageError, BackboneError, UserError before anything is stored.
    """
    folder, meant = locate(source, base=model, config=config, revision=revision)
    with without_bars():
        backbone = Backbone(load_model(model or base_name(folder)))
    composition, imports = read(folder, backbone, name=name or "", subtract_projection=subtract_projection)
    if name is not None and len(imports) != 1:
        raise UserError(f"{source} holds {len(imports)} parts, each with a name of its own; leave the name out")
    made = packages(imports, backbone, composition=composition)
    return [
        Import(
            registry.push(package, name or imported.name.replace(",", "-")),
            imported.role,
            meant,
            imported.fates,
            imported.notes,
            composition,
        )
        for package, imported in zip(made, imports, strict=True)
    ]


def export_files(
    reference: str,
    registry: Registry,
    folder: Path | str,
    to: Literal["adapterhub", "peft"],
    *,
    model: str | None = None,
    bare: bool = False,
) -> list[str]:
    """Write a package as another tool's folder and return the names of its files.

    model: the base; left out, the one that the package names. bare: for PEFT, modules named as the bare model has them,
    not as a class with a head. Raises PackageError with what the other tool lacks, BackboneError, Conflict.
    """
    package = read_package(registry.resolve(reference).path)
    with without_bars():
        backbone = Backbone(load_model(model or package.manifest.base.name))
    if to == "peft":
        prefix = "" if bare else backbone.model.base_model_prefix
        return write_peft(package, folder, facts_of(backbone), prefix=prefix)
    return write_adapterhub(package, folder, facts_of(backbone))


def prune(engine: Engine, fusion: str, file: str, keep: int = 2, name: str | None = None) -> tuple[str, Pruned]:
    """Prune a fusion by its attention over a file of rows, and store it; `name@version`, and what was done. UserErrors.

    name: left out, `<fusion>-<keep>`.
    """
    task = engine.task(fusion)
    made = prune_fusion(engine, fusion, rows_of(file, task.kind), keep, name)
    return engine.registry.push(made.package, made.package.manifest.name), made


def attention(engine: Engine, fusion: str, file: str) -> dict[str, Any]:
    """What a fusion attends to over a file of labelled rows, as `FusionAttention.told`. Raises UserErrors."""
    task = engine.task(fusion)
    return fusion_attention(engine, fusion, rows_of(file, task.kind)).told(task.labels)


def serve(
    engine_factory: Callable[[], Engine],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: Limits | None = None,
    announce: Callable[[str], None] = print,
) -> None:
    """Answer over HTTP until stopped; the engine is made while the port is already open. Raises UserError.

    `announce` is told the address as soon as it is open.
    """
    serve_engine(engine_factory, host, port, limits, announce)
