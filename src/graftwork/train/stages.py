"""Stage one of AdapterFusion (Pfeiffer et al. 2021, §3.1): members that are recipes are trained before the fusion.

    adapter.members: [sst2.yaml, trec.yaml, mnli@3]   ->   sst2@1 and trec@4 are trained and pushed   ->   stage two

Every member has its own run folder and its own package in the registry, so that it can be served, fused again and found
under the exact reference that the fusion's composition and package name. What is wrong with any of the recipes, with
the packages beside them or with the fusion's own rows is found before anything trains; one base serves them all. A
member's run that is finished is read back, one that was stopped goes on.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from graftwork import recipe as recipes
from graftwork.build import open_model
from graftwork.core.backbone import Backbone
from graftwork.errors import Conflict, RecipeError
from graftwork.model import AdapterModel
from graftwork.recipe import Recipe
from graftwork.registry.store import Registry
from graftwork.schema.values import RECIPES
from graftwork.train.data import Data, load_data
from graftwork.train.devices import ALONE, Devices
from graftwork.train.folder import RunFolder
from graftwork.train.job import Job, Read, assemble, read
from graftwork.train.outcome import TrainResult
from graftwork.train.setup import install_member

KEY = "adapter.members"


@dataclass
class FirstStage:
    """A fusion whose members `jobs`, by the paths of their recipes, train before it; `second` then is its own job."""

    recipe: Recipe
    registry: Registry
    backbone: Backbone
    data: Data
    rows: Read
    jobs: Mapping[str, Job]
    devices: Devices = ALONE
    references: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def finished(self, member: str, result: TrainResult) -> None:
        """Keep what a member's run made: in the registry, where the same package is not kept twice."""
        reference = kept(self.registry, result)
        self.references[member] = reference
        score = f"dev {result.main} {result.scores['dev'][result.main]:.4f}"
        self.notes.append(f"member {reference} was trained first: {score}, from {member}, all of it in {result.folder}")

    def second(self) -> Job:
        """The job of the fusion over what the first stage made. Raises UserErrors as `prepare`."""
        named = [self.references.get(member, member) for member in self.recipe.adapter.members or ()]
        exact = recipes.override(self.recipe, {"adapter.members": named}, check_files=False)
        job = assemble(exact, self.registry, self.data, AdapterModel(self.backbone), self.rows, self.devices)
        return replace(job, notes=(*self.notes, *job.notes))


def first_stage(recipe: Recipe, registry: Registry | None, devices: Devices = ALONE) -> FirstStage | None:
    """What trains before a recipe's fusion, all of it checked; None where every member is a package.

    Raises RecipeError with what is wrong with the members, Conflict for run folders, and UserErrors as `prepare`.
    Writes nothing.
    """
    paths = recipes_among(recipe)
    if not paths:
        return None
    if registry is None:
        raise RecipeError(f"{KEY}: {paths[0]!r} is trained into the registry, and no registry was given")
    members = {path: recipes.load(path) for path in paths}
    problems = [f"{KEY}: {path}: {problem}" for path, one in members.items() for problem in _problems(one, recipe)]
    if problems:
        raise RecipeError(problems)
    _check_folders(recipe, members)
    data, model = load_data(recipe), open_model(recipe.model)
    rows = read(recipe, data, model)
    for reference in recipe.adapter.members or ():
        if reference not in paths:
            install_member(model, KEY, reference, registry)
    jobs = {path: _job(one, registry, model.backbone, devices) for path, one in members.items()}
    for job in jobs.values():
        RunFolder(job.recipe.output).check(resume=True, overwrite=False, identity=job.identity)
    return FirstStage(recipe, registry, model.backbone, data, rows, jobs, devices)


def recipes_among(recipe: Recipe) -> list[str]:
    """The members of a fusion that are recipes, by path."""
    return [member for member in recipe.adapter.members or () if member.endswith(RECIPES)]


def kept(registry: Registry, result: TrainResult) -> str:
    """The exact reference of a run's package in the registry, where it is put unless some version is the same."""
    for version in reversed(registry.versions(result.name)):
        found = registry.resolve(f"{result.name}@{version}")
        if found.digest == result.package.digest:
            return str(found)
    return registry.push(result.package, result.name)


def _problems(member: Recipe, fusion: Recipe) -> Iterator[str]:
    """Why a recipe cannot train a member of a fusion."""
    if member.model != fusion.model:
        there, here = (
            f"{one.name!r} ({one.dtype}, {one.revision or 'newest'})" for one in (member.model, fusion.model)
        )
        yield f"its model is {there} and the fusion's {here}; a fusion and its members have one base"
    if member.training.method != "adapter":
        yield f"training.method is {member.training.method}; a member is an adapter"
    if member.adapter.composition is not None:
        yield f"adapter.composition is {member.adapter.composition}; a member is trained alone, or is a package"


def _check_folders(fusion: Recipe, members: Mapping[str, Recipe]) -> None:
    """Raise Conflict where two of these runs have one folder, or one of the members' is not a run's."""
    owners: dict[Path, str] = {RunFolder(fusion.output).path.resolve(): f"the fusion {fusion.name!r}"}
    for path, one in members.items():
        place = RunFolder(one.output).path.resolve()
        if place in owners:
            raise Conflict(f"{one.output}: is the output of {owners[place]} and of {path}; name two")
        owners[place] = path
        RunFolder(one.output).check(resume=True, overwrite=False)


def _job(member: Recipe, registry: Registry, backbone: Backbone, devices: Devices) -> Job:
    data, model = load_data(member), AdapterModel(backbone)
    return assemble(member, registry, data, model, read(member, data, model), devices)


def together(recipes: Sequence[Recipe]) -> None:
    """Raise RecipeError for a recipe with a stage before it, which has no part in a run of several."""
    for recipe in recipes:
        if paths := recipes_among(recipe):
            raise RecipeError(
                f"{recipe.name!r}: {KEY}: {paths[0]!r} is a recipe, which trains before the fusion does; train "
                "this one alone, or name packages"
            )
