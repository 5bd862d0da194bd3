"""Law: a file has at most 300 lines, a function 50, a signature 8 parameters (self and cls not counted).

A room that outgrows this needs a new seam. What stays larger is named here with its reason, and leaves the list when it
shrinks.
"""

import ast

from tests.house.source import Module, modules, require_none

LINES, FUNCTION, PARAMETERS = 300, 50, 8

# "file" (lines), "file:function" (length) or "file:function()" (parameters) -> (its own limit, why)
EXCEPTIONS: dict[str, tuple[int, str]] = {
    "graftwork.model": (500, "the object people hold: a method for each thing they do with it, most of them two lines"),
    "graftwork.model:AdapterModel.forward": (58, "a line for each input that models of text, images and sound take"),
    "graftwork.model:AdapterModel.forward()": (23, "transformers' Trainer finds columns and labels by this signature"),
    "graftwork.cli.train:command()": (9, "a parameter is an option of the command, and typer takes no other form"),
    "graftwork.core.heads_hub:classification()": (10, "AdapterHub's arguments of add_classification_head"),
    "graftwork.core.heads_hub:image_classification()": (10, "AdapterHub's arguments of add_image_classification_head"),
    "graftwork.evaluate:evaluate()": (9, "what is asked of a model, a task and rows; most of it is said by name"),
    "graftwork.evaluate:answer()": (9, "as evaluate()"),
    "graftwork.compose.blend:average_adapter()": (12, "AdapterHub's arguments of average_adapter, and ours"),
    "graftwork.cli.evaluate:command()": (11, "typer reads the options of a command from its parameters"),
    "graftwork.compose.bank_triton:_times()": (10, "a kernel takes pointers, strides and sizes of blocks one by one"),
    "graftwork.compose.bank_triton:_product_kernel()": (15, "as _times()"),
    "graftwork.compose.bank_triton:_bottleneck_kernel()": (18, "as _times()"),
    "graftwork.core.heads_hub:multiple_choice()": (9, "AdapterHub's arguments of add_multiple_choice_head"),
}


def measures(module: Module) -> dict[str, int]:
    """Everything in a file that exceeds a general limit: what -> how much."""
    found = {module.name: len(module.text.splitlines())} if len(module.text.splitlines()) > LINES else {}
    for name, node in functions(module.tree):
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        given = node.args
        parameters = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, [given.vararg, given.kwarg])]
        count = len(parameters) - (bool(parameters) and parameters[0].arg in ("self", "cls"))
        if length > FUNCTION:
            found[f"{module.name}:{name}"] = length
        if count > PARAMETERS:
            found[f"{module.name}:{name}()"] = count
    return found


def functions(tree: ast.AST, prefix: str = "") -> list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function with its dotted name inside the file: `f`, `Class.method`, `f.inner`."""
    found: list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]] = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{prefix}{node.name}"
            if not isinstance(node, ast.ClassDef):
                found.append((name, node))
            found += functions(node, f"{name}.")
        else:
            found += functions(node, prefix)
    return found


def outgrown(sources: tuple[Module, ...], exceptions: dict[str, tuple[int, str]]) -> list[str]:
    """What is too large, and exceptions that nothing needs any more or that give no reason."""
    found = {what: size for module in sources for what, size in measures(module).items()}
    too_large = [
        f"{what} has {size}, at most {exceptions[what][0] if what in exceptions else 'the general limit'}"
        for what, size in found.items()
        if what not in exceptions or size > exceptions[what][0]
    ]
    idle = [f"{what} needs no exception any more" for what in exceptions if what not in found]
    return too_large + idle + [f"{what} gives no reason" for what, (_, why) in exceptions.items() if not why]


def test_files_functions_and_signatures_stay_small() -> None:
    require_none(outgrown(modules(), EXCEPTIONS))


def test_this_law_can_fail() -> None:
    long_file = Module("graftwork.a", "x = 1\n" * 301)
    wide = "class C:\n    def f(self, a, b, c, d, e, *args, g=1, **more): ..."
    narrow = "class C:\n    def f(self, a, b, c, d, e, *args, **more): ..."
    deep = "async def outer():\n    if True:\n        def inner():\n" + "            x = 1\n" * 50
    assert measures(long_file) == {"graftwork.a": 301}
    assert measures(Module("graftwork.b", wide)) == {}
    assert measures(Module("graftwork.b", wide.replace("g=1", "g=1, h=2"))) == {"graftwork.b:C.f()": 9}
    assert measures(Module("graftwork.b", narrow)) == {}
    assert measures(Module("graftwork.c", deep)) == {"graftwork.c:outer": 53, "graftwork.c:outer.inner": 51}
    assert outgrown((long_file,), {}) == ["graftwork.a has 301, at most the general limit"]
    assert outgrown((long_file,), {"graftwork.a": (300, "reason")}) == ["graftwork.a has 301, at most 300"]
    assert outgrown((long_file,), {"graftwork.a": (310, "reason")}) == []
    assert outgrown((), {"graftwork.a": (310, "")}) == [
        "graftwork.a needs no exception any more",
        "graftwork.a gives no reason",
    ]
