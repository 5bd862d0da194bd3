"""Stage one of AdapterFusion (Pfeiffer et al. 2021, §3.1): members that are recipes are trained before the fusion.

    adapter.members: [sst2.yaml, trec.yaml, mnli@3]   ->   sst2@1 and trec@4 are trained and pushed   ->   stage two

Every member has its own run folder and its own package in the registry, so that it can be served, fused again and found
under the exact reference that the fusion's composition and package name. What is wrong with any of the recipes, with
the packages beside them or with the fusion itself is found before anything trains: its job is made once over members
as they are at birth, and thrown away. One base serves them all. A member's run that is finished is read back, one that
was stopped goes on.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote

from graftwork import recipe as recipes
from graftwork.build import open_model
from graftwork.compose.tree import show
from graftwork.core.backbone import Backbone
from graftwork.errors import Conflict, RecipeError
from graftwork.model import AdapterModel
from graftwork.packing import Provenance
from graftwork.recipe import Recipe
from graftwork.registry.store import Registry
from graftwork.schema.values import RECIPES
from graftwork.train.data import Data, load_data
from graftwork.train.devices import ALONE, Devices
from graftwork.train.folder import RunFolder
from graftwork.train.job import Job, Read, assemble, read
from graftwork.train.outcome import TrainResult, read_result
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
        job = self._over(self.registry, self.references)
        return replace(job, notes=(*self.notes, *job.notes))

    def rehearse(self) -> None:
        """Make that job over members as they are at birth, or as their finished runs made them. Raises as `second`."""
        made: dict[str, str] = {}
        with TemporaryDirectory() as folder:
            shelf = _shelf(self.registry, Path(folder), {job.setup.name for job in self.jobs.values()})
            for path, job in self.jobs.items():
                run = RunFolder(job.recipe.output)
                if run.finished:
                    made[path] = kept(shelf, read_result(run))
                    continue
                told = Provenance(task=job.task.spec, vocabulary=job.encoder.digest, members=job.setup.members,
                                  composition=show(job.setup.composition))  # fmt: skip
                taken = job.setup.name in {reference.partition("@")[0] for reference in made.values()}
                name = f"{job.setup.name}-{len(made)}" if taken else job.setup.name
                made[path] = shelf.push(job.model.package(job.setup.name, provenance=told), name)
            self._over(shelf, made)

    def _over(self, registry: Registry, references: Mapping[str, str]) -> Job:
        """The fusion's job over members, those that are recipes by their references."""
        members = self.recipe.adapter.members or ()
        named = [references.get(member, member) for member in members]
        if twice := sorted({one for one in named if named.count(one) > 1}):
            alike = ", ".join(member for member, one in zip(members, named, strict=True) if one == twice[0])
            raise RecipeError(f"{KEY}: {alike} are one package, {twice[0]}; name each member once")
        exact = recipes.override(self.recipe, {KEY: named}, check_files=False)
        return assemble(exact, registry, self.data, AdapterModel(self.backbone), self.rows, self.devices)


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
    problems += [f"{KEY}: {one} and {other} say the same; name each member once" for one, other in _alike(members)]
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
    stage = FirstStage(recipe, registry, model.backbone, data, rows, jobs, devices)
    stage.rehearse()
    return stage


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


def _shelf(registry: Registry, folder: Path, mine: Collection[str]) -> Registry:
    """A registry in a folder that holds what another does, where `mine` can be pushed without its changing."""
    for there in registry.root.iterdir() if registry.root.is_dir() else ():
        place = folder / there.name
        if there.name.startswith("."):
            continue
        if unquote(there.name) in mine:
            place.mkdir()
            for part in there.iterdir():
                (place / part.name).symlink_to(part.absolute())
        else:
            place.symlink_to(there.absolute())
    return Registry(folder)


def _alike(members: Mapping[str, Recipe]) -> Iterator[tuple[str, str]]:
    """The recipes that would make one package: they differ in their folders at most."""
    asked = {path: one.model_dump(exclude={"output"}) for path, one in members.items()}
    return ((one, other) for one, other in combinations(asked, 2) if asked[one] == asked[other])


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
