"""Law: imports point downward, form no cycle, hide in no function, and the light entrances stay light.

    core <- compose <- model <- build <- (train | serve) <- workflow <- cli

`tasks` stands beside `compose`, `registry` beside `core`. A file imports from the file that defines
a name, never from a package.
"""

import ast
import subprocess
import sys

import pytest

from tests.house.source import Module, modules, require_none

UNDER_MODEL = {"summary", "packing", "wordfiles", "compose", "core", "registry", "manifest", "errors"}
UNDER_BUILD = {"model", "tasks", "recipe", "schema"} | UNDER_MODEL
# room -> the rooms it may import from, besides itself
BELOW: dict[str, set[str]] = {
    "errors": set(),
    "timing": set(),
    "strict_json": {"errors"},
    "manifest": {"strict_json", "errors"},
    "schema": {"core.strings", "core.spellings", "errors"},
    "recipe": {"schema", "compose.tree", "compose.grammar", "errors"},
    "core": {"errors"},
    "registry": {"manifest", "strict_json", "errors"},
    "compose": {"core", "errors"},
    "tasks": {"core", "manifest", "errors"},
    "summary": {"compose", "core", "errors"},
    "packing": {"compose", "core", "registry", "manifest", "errors"},
    "wordfiles": {"compose", "core", "registry", "errors"},
    "importing": {"packing", "compose", "core", "registry", "manifest", "errors"},
    "model": UNDER_MODEL,
    "build": UNDER_BUILD,
    "saying": {"model", "tasks"} | UNDER_MODEL,
    "evaluate": {"saying"} | UNDER_BUILD,
    "train": {"build", "evaluate", "strict_json", "timing"} | UNDER_BUILD,
    "serve": {"build", "saying"} | UNDER_BUILD,
    "costs": UNDER_BUILD,
    "sizes": {"summary", "compose", "core", "errors"},
    "describe": {"costs", "sizes"} | UNDER_BUILD,
    "asking": {"train.data", "train.records", "serve", "evaluate"} | UNDER_BUILD,
    "workflow": {"asking", "importing", "train", "serve", "build", "evaluate", "describe"} | UNDER_BUILD,
    "demo": {"workflow", "train.outcome", "registry", "errors"},
    "__main__": {"cli.main"},
    "cli": {"workflow", "evaluate", "tasks.details", "describe", "demo", "train.report", "train.outcome", "serve"}
    | {"train.attention", "train.comparison", "train.methods", "train.run"}
    | {"registry", "recipe", "manifest", "errors"},
}
# room or file -> other people's libraries that it must not know
UNKNOWN_TO: dict[str, set[str]] = {
    "errors": {"torch", "transformers", "yaml", "pydantic", "typer", "fastapi"},
    "manifest": {"torch", "transformers", "yaml", "typer", "fastapi"},
    "recipe": {"torch", "transformers", "typer", "fastapi"},
    "schema": {"torch", "transformers", "typer", "fastapi"},
    "core": {"yaml", "typer", "rich", "fastapi", "datasets", "tokenizers"},
    "compose": {"yaml", "typer", "rich", "fastapi", "datasets", "tokenizers"},
    "core.spellings": {"torch", "transformers"},
    "core.strings": {"torch", "transformers"},
    "compose.tree": {"torch", "transformers"},
    "compose.grammar": {"torch", "transformers"},
    "registry": {"torch.nn", "transformers", "yaml", "typer", "fastapi"},
    "cli": {"torch", "transformers", "datasets", "fastapi", "yaml"},
}
# the files that import by name at run time, so that an entrance stays light
LAZY = {"graftwork", "graftwork.cli.main", "graftwork.cli.registry"}
HEAVY = ("torch", "transformers", "datasets", "sklearn", "fastapi", "matplotlib", "bitsandbytes", "peft")


def targets(module: Module) -> list[tuple[str, int]]:
    """The dotted names that a file imports, each with its line; relative imports are made absolute."""
    found = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = module.name.split(".")
            up = parts[: len(parts) - node.level + module.is_package] if node.level else []
            source = ".".join([*up, *filter(None, [node.module])])
            found += [(f"{source}.{alias.name}", node.lineno) for alias in node.names]
    return found


def own(target: str, known: set[str]) -> str | None:
    """The file of the package that an imported dotted name lies in, or None for another's library."""
    while target and target not in known:
        target = target.rpartition(".")[0]
    return target or None


def covers(names: set[str], dotted: str) -> bool:
    return any(dotted == name or dotted.startswith(name + ".") for name in names)


def climbing(sources: tuple[Module, ...]) -> list[str]:
    """Imports that the table does not allow, rooms that it does not list, and imports of a whole package."""
    known, packages = {module.name for module in sources}, {module.name for module in sources if module.is_package}
    wrong = []
    for module in sources:
        path = module.name.removeprefix("graftwork").removeprefix(".")
        room = path.split(".")[0]
        if path and room not in BELOW:
            wrong.append(f"{module.name}: room {room!r} is not in the table")
            continue
        for target, line in targets(module):
            other = own(target, known)
            if not path or other is None:
                continue
            if other in packages:
                wrong.append(f"{module.name}:{line} imports the package {other}, not the file that defines the name")
            elif not covers({room, *BELOW[room]}, other.removeprefix("graftwork.")):
                wrong.append(f"{module.name}:{line} climbs to {other}")
    return wrong


def strangers(sources: tuple[Module, ...]) -> list[str]:
    """Imports of a library that a room must not know."""
    return [
        f"{module.name}:{line} knows {target}"
        for module in sources
        for place, libraries in UNKNOWN_TO.items()
        if covers({place}, module.name.removeprefix("graftwork."))
        for target, line in targets(module)
        if covers(libraries, target)
    ]


def hidden(sources: tuple[Module, ...]) -> list[str]:
    """Own-package imports inside a function, and imports by name outside the files that need them."""
    wrong = []
    for module in sources:
        functions = [n for n in ast.walk(module.tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
        for function in functions:
            inner = Module(module.name, ast.unparse(function), module.is_package)
            if any(covers({"graftwork"}, target) for target, _ in targets(inner)):
                wrong.append(f"{module.name}:{function.lineno} {function.name} imports its own package")
        if module.name not in LAZY and any(covers({"importlib.import_module"}, t) for t, _ in targets(module)):
            wrong.append(f"{module.name} imports by name at run time")
    return wrong


def cycles(sources: tuple[Module, ...]) -> list[str]:
    """Every import chain that comes back to where it began."""
    known = {module.name for module in sources}
    edges = {m.name: {own(t, known) for t, _ in targets(m)} - {None, m.name} for m in sources if m.name != "graftwork"}
    found: list[str] = []
    done: set[str] = set()

    def visit(name: str, chain: tuple[str, ...]) -> None:
        if name in chain:
            found.append(" -> ".join([*chain[chain.index(name) :], name]))
        elif name not in done:
            for other in sorted(edges.get(name, ())):
                visit(other, (*chain, name))
            done.add(name)

    for name in sorted(edges):
        visit(name, ())
    return found


def loaded_by(statement: str) -> set[str]:
    """The heavy libraries that a fresh interpreter holds after one statement."""
    code = f"import sys\n{statement}\nprint(*[name for name in {HEAVY} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return set(ran.stdout.split())


def test_imports_point_downward() -> None:
    require_none(climbing(modules()))


def test_rooms_do_not_know_what_is_not_theirs() -> None:
    require_none(strangers(modules()))


def test_no_import_hides_in_a_function() -> None:
    require_none(hidden(modules()))


def test_no_cycle() -> None:
    require_none(cycles(modules()))


def test_importing_the_package_is_light() -> None:
    assert (
        loaded_by("import graftwork; graftwork.__version__, graftwork.Stack, graftwork.parse, dir(graftwork)") == set()
    )


@pytest.mark.parametrize("entrance", ["graftwork.cli.main", "graftwork.recipe"])
def test_importing_the_commands_and_recipes_is_light(entrance: str) -> None:
    assert loaded_by(f"import {entrance}") == set()


def test_models_are_loaded_without_the_extras_of_packed_bases_and_baselines() -> None:
    loads = "from graftwork import AutoAdapterModel; AutoAdapterModel.from_pretrained('minilm').add_adapter('a')"
    assert loaded_by(loads).isdisjoint({"bitsandbytes", "peft", "datasets", "matplotlib"})


def test_these_laws_can_fail() -> None:
    errors, package = Module("graftwork.errors", ""), Module("graftwork.core", "", is_package=True)
    site = Module("graftwork.core.site", "from ..model import AdapterModel\nimport yaml\nimport graftwork.attic")
    model = Module(
        "graftwork.model", "def f():\n    from graftwork.core import site\nfrom importlib import import_module"
    )
    attic = Module("graftwork.attic", "from .core import Anything")
    house = (errors, package, site, model, attic)
    assert climbing(house) == [
        "graftwork.core.site:1 climbs to graftwork.model",
        "graftwork.core.site:3 climbs to graftwork.attic",
        "graftwork.attic: room 'attic' is not in the table",
    ]
    facade = Module("graftwork.model", "from graftwork.core import Anything")
    assert climbing((package, facade)) == [
        "graftwork.model:1 imports the package graftwork.core, not the file that defines the name"
    ]
    assert strangers(house) == ["graftwork.core.site:2 knows yaml"]
    assert hidden(house) == [
        "graftwork.model:1 f imports its own package",
        "graftwork.model imports by name at run time",
    ]
    assert cycles(house) == ["graftwork.core.site -> graftwork.model -> graftwork.core.site"]
    assert loaded_by("import fastapi") == {"fastapi"}
