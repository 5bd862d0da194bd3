"""Which adapter may lie on which: every order of a Stack, nested or not, and what says that it is meant."""

import pytest
from hypothesis import given

from graftwork.compose.grammar import parse
from graftwork.compose.order import check_order
from graftwork.compose.tree import Block, Composition, Stack, leaves, show
from graftwork.errors import CompositionError
from tests.trees import compositions

ROLES = {"en": "language", "de": "language", "ner": "task", "pos": "task"}


@pytest.mark.parametrize(
    "text",
    [
        *("en", "none", "Stack(en, ner)", "Stack(en, de, ner)", "Stack(ner, pos)", "Stack(x, en)", "Stack(ner, x)"),
        *("Stack(en, Stack(de, ner))", "Stack(Average(en, de), ner)", "Parallel(ner, en)", "Average(ner, en)"),
        *("Stack(en, Parallel(ner, pos))", "Stack(ner, en, order=any)", "Stack(x, Stack(ner, en, order=any))"),
        "BatchSplit(Stack(en, ner):1, en:2)",
    ],
)
def test_orders_that_are_fine(text: str) -> None:
    check_order(parse(text), ROLES.get)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("Stack(ner, en)", "Stack(en, ner)"),
        ("Stack(en, ner, de)", "Stack(en, de, ner)"),
        ("Stack(Stack(ner, pos), x, en)", "Stack(en, Stack(ner, pos), x)"),
        ("Parallel(en, Stack(ner, en))", "Stack(en, ner)"),
        ("Stack(ner, Average(x, en))", "Stack(Average(x, en), ner)"),
        ("Stack(Stack(ner, en), x, order=any)", "Stack(en, ner)"),
        ("Fuse(Stack(ner, en), x, name=both)", "Stack(en, ner)"),
    ],
)
def test_a_language_adapter_on_one_of_a_task_is_refused(text: str, meant: str) -> None:
    with pytest.raises(CompositionError, match=r"(en|de) is a language adapter and ner, below") as told:
        check_order(parse(text), ROLES.get)
    said = str(told.value)
    assert f"write {meant}, or " in said
    check_order(parse(meant), ROLES.get)
    forced = parse(said.split(", or ")[1].removesuffix(" where this order is meant"))
    assert isinstance(forced, Stack)
    assert forced.order == "any"


def _wrong(tree: Composition) -> bool:
    """The law, said otherwise: in some Stack the last member with a language comes after the first with a task."""
    if not isinstance(tree, Block):
        return False
    own = False
    if isinstance(tree, Stack) and tree.order is None:
        tasks = [at for at, one in enumerate(tree.children) if any(ROLES.get(name) == "task" for name in leaves(one))]
        langs = [at for at, one in enumerate(tree.children) if any(ROLES.get(n) == "language" for n in leaves(one))]
        own = bool(tasks and langs) and langs[-1] > tasks[0]
    return own or any(map(_wrong, tree.children))


@given(compositions(("en", "ner", "x"), batch=4, tokens=6))
def test_exactly_what_the_law_says_is_refused(tree: Composition) -> None:
    if _wrong(tree):
        with pytest.raises(CompositionError):
            check_order(tree, ROLES.get)
    else:
        check_order(tree, ROLES.get)


def test_an_order_is_written_and_read() -> None:
    forced = Stack("ner", Stack("a", "b"), order="any")
    assert show(forced) == "Stack(ner, Stack(a, b), order=any)"
    assert parse(show(forced)) == forced != Stack("ner", Stack("a", "b"))
    assert parse("Stack(order, a)") == Stack("order", "a")
    with pytest.raises(CompositionError, match="Stack has order 'free'; it is 'any', or left out"):
        parse("Stack(a, b, order=free)")
    with pytest.raises(CompositionError, match="expected"):
        parse("Stack(order=any, a)")
    with pytest.raises(CompositionError, match="expected"):
        parse("Average(a, b, order=any)")
    with pytest.raises(CompositionError, match="needs at least one member"):
        parse("Stack(order=any)")
