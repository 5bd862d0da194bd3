"""The written form: what is printed can be read back, and what cannot be read is refused at its position."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftwork.compose.grammar import as_composition, as_fuse, parse
from graftwork.compose.tree import (
    DEEPEST,
    Average,
    BatchSplit,
    Composition,
    Fuse,
    Parallel,
    Split,
    Stack,
    show,
)
from graftwork.errors import CompositionError, GraftworkError
from tests.trees import compositions, rows

NAMES = ("a", "none-of", "Stack", "name", "hi.wiki/x_1", "ner@3", "7")


@given(compositions(NAMES, batch=6, tokens=7, depth=5))
def test_what_is_shown_is_read_back(tree: Composition) -> None:
    assert parse(show(tree)) == tree


@given(rows(NAMES, tokens=9, depth=5), st.sampled_from([" ", "", "\n  ", "\t"]))
def test_white_space_does_not_matter(tree: Composition, space: str) -> None:
    text = show(tree).replace(" ", "")
    for mark in "(),:=":
        text = text.replace(mark, f"{space}{mark}{space}")
    assert parse(space + text + space) == tree


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("a", "a"),
        ("none", None),
        ("Stack(hi, ner)", Stack("hi", "ner")),
        ("Fuse(a, b, name=ab)", Fuse("a", "b", name="ab")),
        ("Fuse(name, b)", Fuse("name", "b")),
        ("Average(a:0.7, b:0.3)", Average("a", "b", weights=[0.7, 0.3])),
        ("Average(a, b)", Average("a", "b")),
        ("Average(a:-1e-2, b:2)", Average("a", "b", weights=[-0.01, 2])),
        ("Split(a:16, Stack(b, c):48)", Split("a", Stack("b", "c"), splits=[16, 48])),
        ("BatchSplit(a:2, none:6)", BatchSplit("a", None, batch_sizes=[2, 6])),
        ("Parallel(a, Stack(b, none))", Parallel("a", Stack("b", None))),
    ],
)
def test_written_forms(text: str, tree: Composition) -> None:
    assert parse(text) == tree
    assert as_composition(text) == tree


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at character 0: expected a name or a block, found the end"),
        ("Stack(a", r"'Stack\(a' at character 7: expected ',', found the end"),
        ("Stack(a b)", r"at character 8: expected ',', found 'b'"),
        ("Stack(a,)", r"at character 8: expected a name or a block, found '\)'"),
        ("Stack(,a)", "at character 6: expected a name or a block, found ','"),
        ("a)", r"at character 1: expected the end, found '\)'"),
        ("a b", "at character 2: expected the end, found 'b'"),
        ("(a)", r"at character 0: expected a name or a block, found '\('"),
        ("Stack(é)", "at character 6: expected a name or a block, found 'é'"),
        (
            "Stick(a)",
            "at character 0: 'Stick' is not a block, the blocks are Stack, Fuse, Average, Parallel, Split, Ba",
        ),
        ("Stack(a, fuse(b))", "at character 9: 'fuse' is not a block"),
        ("none(a)", r"at character 4: expected the end, found '\('"),
        ("Average(a:x, b:1)", "at character 10: expected a number, found 'x'"),
        ("Split(a:1.5, b:1)", "at character 8: expected a whole number, found '1.5'"),
        ("Split(a:, b:1)", "at character 8: expected a whole number, found ','"),
        ("Split(a, b)", r"Split has 2 members but 0 splits: \[\]"),
        ("Average(a, b:0.5)", r"Average has 2 members but 1 weights: \[0.5\]"),
        ("Stack(a:1, b:2)", "Stack takes no numbers, only Average, Split, BatchSplit do"),
        ("Fuse(a, name=)", r"at character 13: expected a name or a block, found '\)'"),
        ("Fuse(a, name=b, c)", r"at character 14: expected '\)', found ','"),
        ("Stack(a, name=b)", "at character 13: expected ',', found '='"),
        ("Fuse(name=x)", "Fuse needs at least one member"),
        ("Fuse(a, none)", "Fuse cannot hold none"),
    ],
)
def test_what_cannot_be_read_is_refused_at_its_position(text: str, message: str) -> None:
    with pytest.raises(CompositionError, match=message):
        parse(text)


def test_size_and_depth_have_an_end() -> None:
    with pytest.raises(CompositionError, match=r"a composition of 20001 characters is too long \(at most 20000\)"):
        parse("a" * 20001)
    with pytest.raises(CompositionError, match=r"at character \d+: nested deeper than 32 blocks"):
        parse("Stack(" * 3000 + "a" + ")" * 30)
    wide = f"Stack({', '.join(['Stack(a)'] * (2 * DEEPEST))})"
    assert show(parse(wide)) == wide  # blocks beside each other are not inside each other
    deep = "Stack(" * DEEPEST + "a" + ")" * DEEPEST
    assert show(parse(deep)) == deep


@given(st.text(alphabet="ab(),:=1. Stack" + "Fuse", max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        tree = parse(text)
    except GraftworkError:
        return
    assert parse(show(tree)) == tree


@pytest.mark.parametrize(
    ("value", "tree"),
    [
        (None, None),
        (["a"], "a"),
        (["hi", "ner"], Stack("hi", "ner")),
        (("hi", "Fuse(a, b)"), Stack("hi", Fuse("a", "b"))),
        (["hi", ["a", "b"]], Stack("hi", Stack("a", "b"))),
        (Stack("a"), Stack("a")),
    ],
)
def test_compositions_as_people_write_them(value: Any, tree: Composition) -> None:
    assert as_composition(value) == tree


@pytest.mark.parametrize("value", [3, [], (), {"a": 1}, 0.5])
def test_what_is_no_composition(value: Any) -> None:
    with pytest.raises(
        CompositionError, match=r"is not a composition: give a name, an expression such as 'Stack\(a, b"
    ):
        as_composition(value)


@pytest.mark.parametrize("value", ["a,b", "a, b", ["a", "b"], ("a", "b"), "Fuse(a, b)", Fuse("a", "b")])
def test_fusions_as_people_write_them(value: Any) -> None:
    assert as_fuse(value) == Fuse("a", "b")
    assert as_fuse(value, "ab") == Fuse("a", "b", name="ab")


def test_a_fusion_keeps_its_name_unless_another_is_given() -> None:
    named = Fuse("a", "b", name="x")
    assert as_fuse(named).name == "x"
    assert as_fuse(named, "y").name == "y"
    assert as_fuse(["Stack(hi, a)", "b"]) == Fuse(Stack("hi", "a"), "b")


@pytest.mark.parametrize("value", ["Stack(a, b)", Stack("a", "b"), None, 3])
def test_what_is_no_fusion(value: Any) -> None:
    with pytest.raises(CompositionError, match=r"is not a fusion: give Fuse|is not a composition"):
        as_fuse(value)
