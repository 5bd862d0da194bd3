"""Law: names say what a thing is. No drawers for leftovers, no options passed through unseen, public names complete."""

import ast

import pytest

import graftwork
from tests.house.source import SRC, Module, modules, require_none

DRAWERS = {"utils", "util", "helpers", "helper", "common", "base", "misc", "manager", "managers", "core.core"}

# "file:function" that takes **keywords -> why it must
TAKES_KEYWORDS: dict[str, str] = {
    "graftwork.core.attention:_attend": "what an attention function of transformers gets is its interface's affair",
    "graftwork.core.backbone:load_model": "options of transformers' from_pretrained, which transformers checks",
    "graftwork.core.plain:forward": "further arguments of a plain module's forward, which Python checks",
    "graftwork.core.shortcut:__call__": "what a layer of any model is called with; only states are looked at",
    "graftwork.core.kinds:load": "AdapterHub's AdapterConfig.load(name, reduction_factor=8); every key is checked",
    "graftwork.core.kinds:__init__": "AdapterConfig(...) is refused, and its arguments told back as BnConfig(...)",
    "graftwork.model:add_custom_head": "arguments of the user's own factory of heads, which checks them",
    "graftwork.compose.compiled:call": "stands in for the call of a model of any family, whose own forward checks them",
    "graftwork.compose.methods:method": "typed by the function it was made from, which names and checks each",
    "graftwork.model:from_pretrained": "options of transformers' from_pretrained, which transformers checks",
    "graftwork.train.callbacks:on_epoch_end": "transformers' callback protocol hands over whatever it has",
    "graftwork.train.callbacks:on_log": "transformers' callback protocol hands over whatever it has",
    "graftwork.train.callbacks:on_save": "transformers' callback protocol hands over whatever it has",
    "graftwork.train.callbacks:on_step_end": "transformers' callback protocol hands over whatever it has",
    "graftwork.model:generate": "options of transformers' generate, which transformers checks",
}


def drawers(sources: tuple[Module, ...]) -> list[str]:
    """Files whose name says nothing about what they hold."""
    return [module.name for module in sources if module.name.rpartition(".")[2] in DRAWERS]


def keywords(sources: tuple[Module, ...]) -> set[str]:
    """Functions with a `**keywords` parameter."""
    return {
        f"{module.name}:{node.name}"
        for module in sources
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.args.kwarg
    }


def furnished(sources: tuple[Module, ...]) -> list[str]:
    """Packages, the root aside, whose `__init__` holds more than one docstring."""
    inner = [module for module in sources if module.is_package and module.name != "graftwork"]
    return [m.name for m in inner if len(m.tree.body) != 1 or ast.get_docstring(m.tree) is None]


def imported_for_types(facade: Module) -> dict[str, str]:
    """What the `if TYPE_CHECKING:` block of the facade imports: public name -> file."""
    block = next(node for node in facade.tree.body if isinstance(node, ast.If))
    found = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name: str(node.module) for node in found for alias in node.names}


def test_no_file_is_a_drawer() -> None:
    require_none(drawers(modules()))


def test_keywords_are_not_passed_through() -> None:
    found = keywords(modules())
    require_none(sorted(found - set(TAKES_KEYWORDS)))
    require_none([f"{name} needs no exception any more" for name in set(TAKES_KEYWORDS) - found])
    assert all(TAKES_KEYWORDS.values())


def test_inner_packages_hold_one_docstring() -> None:
    require_none(furnished(modules()))


def test_public_names_are_sorted_complete_and_importable() -> None:
    assert graftwork.__all__ == sorted(graftwork.__all__) == dir(graftwork)
    assert {*graftwork.__all__} == {*graftwork.DEFINED_IN, "__version__"}
    for name in graftwork.__all__:
        assert getattr(graftwork, name) is not None
    for name, file in graftwork.DEFINED_IN.items():
        value = getattr(graftwork, name)
        if getattr(value, "__name__", None) == name:  # an alias or a prepared configuration is where the table says
            assert value.__module__ == file, f"{name} is defined in {value.__module__}, not {file}"


def test_type_checkers_see_the_same_names() -> None:
    facade = next(module for module in modules() if module.name == "graftwork")
    assert imported_for_types(facade) == graftwork.DEFINED_IN


def test_every_error_is_public() -> None:
    errors = next(module for module in modules() if module.name == "graftwork.errors")
    classes = {node.name for node in errors.tree.body if isinstance(node, ast.ClassDef)}
    assert {name for name in classes if not name.startswith("_")} <= {*graftwork.__all__}


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match=r"'AdapterModell'.*graftwork\.__all__"):
        _ = graftwork.AdapterModell


def test_the_types_marker_is_shipped() -> None:
    assert (SRC / "graftwork" / "py.typed").is_file()


def test_these_laws_can_fail() -> None:
    house = (
        Module("graftwork", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from a.b import C as C", True),
        Module("graftwork.core.utils", "def f(x, **kwargs): ...\nclass A:\n    async def g(self, **more): ..."),
        Module("graftwork.core", '"""Core."""\nimport torch', is_package=True),
        Module("graftwork.tasks", '"""Tasks."""', is_package=True),
    )
    assert drawers(house) == ["graftwork.core.utils"]
    assert keywords(house) == {"graftwork.core.utils:f", "graftwork.core.utils:g"}
    assert furnished(house) == ["graftwork.core"]
    assert imported_for_types(house[0]) == {"C": "a.b"}
