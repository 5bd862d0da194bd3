"""What a recipe trains, put on a model, for the compositions that a recipe can name:

    null     name                       a new adapter
    stack    Stack(hi@3, name)          a frozen language adapter; on it a new adapter, or a package to go on from;
                                        of several language adapters one lies below in each step (`language.py`)
    fuse     Fuse(a@1, b@2, name=name)  frozen members; a new fusion over them

Members are installed under their exact reference (`hi@3`), so that a composition says which packages it means.
Nothing is read here but packages; nothing is written.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from graftwork.build import adapter_config, add_task_head
from graftwork.compose.order import LANGUAGE, TASK
from graftwork.compose.tree import Composition, Fuse, Stack
from graftwork.core.fusion import FUSIONS
from graftwork.core.kinds import read_config, write_config
from graftwork.errors import RecipeError
from graftwork.manifest import Member
from graftwork.model import AdapterModel
from graftwork.packing import install_head
from graftwork.recipe import Recipe
from graftwork.registry.package import Package
from graftwork.registry.store import Registry
from graftwork.schema.conflicts import LANGUAGE_KINDS
from graftwork.schema.sections import AdapterSection
from graftwork.tasks.task import Task


@dataclass(frozen=True)
class Setup:
    """What a recipe put on a model: the composition that runs, and its part `name` that trains, with the head of it.

    cycle: compositions of which each step trains another; `composition` is the first, which is scored.
    """

    name: str
    composition: Composition
    members: tuple[Member, ...] = ()
    packages: tuple[Package, ...] = ()  # of a fusion, those of its members
    cycle: tuple[Composition, ...] = ()


def set_up(model: AdapterModel, recipe: Recipe, task: Task, registry: Registry | None = None) -> Setup:
    """Put a recipe's adapter or fusion with its members and head on a model, and let only the new parts train.

    Raises RecipeError, AdapterError, NotFound for a member that the registry lacks, Conflict for one of another base.
    """
    setup = _COMPOSITIONS[recipe.adapter.composition](model, recipe, task, registry)
    if recipe.task.head is not None:
        setup = replace(setup, members=(*setup.members, _take_head(model, recipe, task, registry)))
    elif setup.name not in model.parts.head_configs:
        add_task_head(model, task, setup.name, recipe.task.pooling)
    if isinstance(setup.composition, Fuse):
        model.train_adapter_fusion(setup.composition)
    else:
        model.parts.roles[setup.name] = recipe.adapter.role or _role(recipe)
        model.train_adapter(setup.name)
        for composition in (*setup.cycle, setup.composition):
            model.set_active_adapters(composition)
    if recipe.task.head is not None:
        model.parts.head(setup.name).requires_grad_(False)
    return setup


def _role(recipe: Recipe) -> str:
    """What a recipe's adapter is trained for: a language, where it is a language model's alone."""
    alone = recipe.adapter.composition is None and recipe.task.kind in LANGUAGE_KINDS
    return LANGUAGE if alone else TASK


def set_up_head(model: AdapterModel, recipe: Recipe, task: Task) -> Setup:
    """Put only the task's head on a model and let it train: the frozen base as a baseline.

    Raises RecipeError for a head without weights of its own: the package of a baseline would hold nothing.
    """
    add_task_head(model, task, recipe.name, recipe.task.pooling)
    if not model.parts.count("heads", recipe.name):
        raise RecipeError(
            f"training.method: the package of {recipe.training.method} is the head alone, and the head of {task.kind} "
            "has no weights on this base; take method adapter"
        )
    model.set_active_adapters(None)
    model.parts.train_only([("heads", recipe.name)])
    model.train()
    return Setup(recipe.name, None)


def _alone(model: AdapterModel, recipe: Recipe, task: Task, registry: Registry | None) -> Setup:
    model.add_adapter(recipe.name, adapter_config(recipe.adapter, model.backbone.layers))
    return Setup(recipe.name, recipe.name)


def _stack(model: AdapterModel, recipe: Recipe, task: Task, registry: Registry | None) -> Setup:
    named = recipe.adapter.language_adapter or ""
    references = (named,) if isinstance(named, str) else named
    found = [install_member(model, "adapter.language_adapter", reference, registry) for reference in references]
    members = [member for member, _ in found]
    stacks = tuple(Stack(below.name, recipe.name) for below in members)
    if recipe.adapter.task_adapter is None:
        model.add_adapter(recipe.name, adapter_config(recipe.adapter, model.backbone.layers))
    else:
        reference, package = _fetch("adapter.task_adapter", recipe.adapter.task_adapter, registry)
        _check_same_form(recipe.adapter, reference, package, model.backbone.layers)
        # other labels, or a head from elsewhere: the package's own cannot go on, the adapter can
        model.install(package, recipe.name, with_head=recipe.task.head is None and answers(package, task))
        members.append(Member(name=reference, digest=package.digest))
    return Setup(recipe.name, stacks[0], tuple(members), cycle=stacks if len(stacks) > 1 else ())


def _fuse(model: AdapterModel, recipe: Recipe, task: Task, registry: Registry | None) -> Setup:
    wanted = recipe.adapter.members or ()
    found = [install_member(model, "adapter.members", reference, registry) for reference in wanted]
    members, packages = tuple(member for member, _ in found), tuple(package for _, package in found)
    fuse = Fuse(*(member.name for member in members), name=recipe.name)
    model.add_adapter_fusion(fuse, replace(FUSIONS["dynamic"], regularization=recipe.training.fusion_regularisation))
    return Setup(recipe.name, fuse, members, packages)


_COMPOSITIONS: dict[str | None, Callable[[AdapterModel, Recipe, Task, Registry | None], Setup]] = {
    None: _alone,
    "stack": _stack,
    "fuse": _fuse,
}


def _take_head(model: AdapterModel, recipe: Recipe, task: Task, registry: Registry | None) -> Member:
    """Add the head that the recipe takes from a package."""
    exact, package = _find("task.head", recipe.task.head or "", registry)
    head, spec = package.manifest.head, package.manifest.task
    if head is None or not answers(package, task):
        has = "no head" if head is None else f"a head for {spec.kind if spec else head.kind}"
        labels = f" with the labels {', '.join(head.labels)}" if head is not None and head.labels else ""
        wanted = task.kind + (f" with the labels {', '.join(task.labels)}" if task.labels else "")
        raise RecipeError(f"task.head: {exact} has {has}{labels}; the recipe's task is {wanted}")
    install_head(model.parts, model.backbone, package, recipe.name)
    return Member(name=exact, digest=package.digest)


def answers(package: Package, task: Task) -> bool:
    """Whether a package's head answers a task as it is."""
    spec = package.manifest.task
    return spec is not None and (spec.kind, spec.labels) == (task.kind, task.labels)


def install_member(model: AdapterModel, key: str, reference: str, registry: Registry | None) -> tuple[Member, Package]:
    """Install a package without its head, under its exact reference. Raises as `set_up`."""
    exact, package = _fetch(key, reference, registry)
    if exact in model.parts.adapter_configs:
        raise RecipeError(f"{key}: {reference!r} is {exact}, which is a member already; name each member once")
    model.install(package, exact, with_head=False)
    return Member(name=exact, digest=package.digest), package


def _find(key: str, reference: str, registry: Registry | None) -> tuple[str, Package]:
    """The exact reference and the package. Raises RecipeError, NotFound, PackageError."""
    if registry is None:
        raise RecipeError(f"{key}: {reference!r} is a package, and no registry was given to look it up in")
    found = registry.resolve(reference)
    return str(found), registry.get(found)


def _fetch(key: str, reference: str, registry: Registry | None) -> tuple[str, Package]:
    """As `_find`, for what must be an adapter."""
    found, package = _find(key, reference, registry)
    if package.manifest.method is None:
        raise RecipeError(
            f"{key}: {found} is a {package.manifest.role} package; an adapter is needed here (role task or language)"
        )
    return found, package


def _check_same_form(section: AdapterSection, reference: str, package: Package, layers: int) -> None:
    """A package to go on from brings its own form: a recipe that asks for another one is refused."""
    asked = "variant" in section.model_fields_set or section.overrides()
    if not asked:
        return
    wanted, has = (
        write_config(adapter_config(section, layers)),
        write_config(read_config(package.manifest.method or {})),
    )
    differing = [
        f"{key} {has.get(key)!r} there, {value!r} here" for key, value in wanted.items() if has.get(key) != value
    ]
    if differing:
        raise RecipeError(
            f"adapter.task_adapter: {reference} has another form ({'; '.join(differing)}); training goes on from "
            "it as it is, so remove variant and flags from the recipe"
        )
