"""Law: every file opens by saying what it is, and every public `forward` states the shapes that go in and come out."""

import ast
import re

from tests.house.source import Module, modules, require_none

SHAPE = re.compile(r"\([A-Z0-9n.][^()]*\)|scalar")  # (B, T, D), (n,), (..., D), (B, T or 1, D)


def silent(sources: list[tuple[str, str]]) -> list[str]:
    """Files, as (name, text), that hold code but open without a docstring."""
    return [name for name, text in sources if text.strip() and ast.get_docstring(ast.parse(text)) is None]


def shapeless(sources: tuple[Module, ...]) -> list[str]:
    """Public `forward` methods of public classes whose docstring does not name at least one shape."""
    found = []
    for module in sources:
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
                continue
            for method in node.body:
                is_forward = isinstance(method, ast.FunctionDef) and method.name == "forward"
                if is_forward and not SHAPE.search(ast.get_docstring(method) or ""):
                    found.append(f"{module.name}:{method.lineno} {node.name}.forward")
    return found


def test_every_file_opens_with_what_it_is() -> None:
    require_none(silent([(module.name, module.text) for module in modules()]))


def test_every_forward_states_its_shapes() -> None:
    require_none(shapeless(modules()))


def test_these_laws_can_fail() -> None:
    assert silent([("a.py", "import os\n"), ("b.py", '"""What it is."""\nimport os\n'), ("empty.py", "\n")]) == ["a.py"]
    method = 'class {}:\n    def forward(self, x):\n        """{}"""\n'
    texts = method.format("Good", "h (B, T, D) -> delta (B, T, D)."), method.format("Bad", "Runs (on anything).")
    private = method.format("_Inner", "Runs.")
    assert shapeless(tuple(Module("graftwork.core.x", text) for text in (*texts, private))) == [
        "graftwork.core.x:2 Bad.forward"
    ]
