"""Compositions as plain data: equality, printing, what they name, and what nesting is refused and why."""

import pickle
from collections.abc import Callable

import pytest
from hypothesis import given

from graftwork.compose.tree import (
    BLOCKS,
    DEEPEST,
    Average,
    BatchSplit,
    Composition,
    Fuse,
    Parallel,
    Split,
    Stack,
    check_name,
    fusions,
    has,
    leaves,
    show,
    top,
)
from graftwork.errors import CompositionError
from tests.trees import compositions

AB = Average("a", "b")
PAIR = Parallel("a", "b")
ROWS = BatchSplit("a", "b", batch_sizes=[1, 1])
RUNS = Split("a", "b", splits=[1, 2])


def test_blocks_print_as_they_are_written() -> None:
    tree = Stack("hi", Fuse("a", "b", name="ab"), Average("a", None, weights=[0.7, 0.3]))
    assert str(tree) == repr(tree) == "Stack(hi, Fuse(a, b, name=ab), Average(a:0.7, none:0.3))"
    assert show(None) == "none"
    assert show("a@2") == "a@2"
    assert str(RUNS) == "Split(a:1, b:2)"
    assert str(BatchSplit("a", PAIR, batch_sizes=[2, 6])) == "BatchSplit(a:2, Parallel(a, b):6)"
    assert str(Average("a")) == "Average(a)"


@given(compositions(("a", "b/c.d-e", "x_1@latest"), batch=5, tokens=6))
def test_compositions_are_values(tree: Composition) -> None:
    twin = pickle.loads(pickle.dumps(tree))
    assert twin == tree
    assert hash(twin) == hash(tree)
    assert Stack(tree) != tree


def test_order_names_and_numbers_matter() -> None:
    assert Stack("a", "b") != Stack("b", "a")
    assert Stack("a", "b") != Parallel("a", "b")
    assert Fuse("a", "b") != Fuse("a", "b", name="c")
    assert Average("a", "b") != Average("a", "b", weights=[1, 1])
    assert Split("a", "b", splits=[1, 2]) != Split("a", "b", splits=[2, 1])


def test_what_a_composition_names() -> None:
    tree = Stack("hi", Fuse("a", Stack("b", Fuse("c", "a", name="in")), name="out"), None)
    assert leaves(tree) == ("hi", "a", "b", "c", "a")
    assert [fuse.name for fuse in fusions(tree)] == ["out", "in"]
    assert has(tree, Fuse)
    assert not has(tree, Parallel)
    assert not has("a", Stack)
    assert leaves(None) == ()


def test_a_fusion_without_a_name_is_called_like_its_members() -> None:
    assert Fuse("a", "b").name == "a,b"
    assert Fuse(Stack("hi", "a"), "b", Stack("c", None)).name == "a,b,c"
    assert Fuse("a", "b", name="x").name == "x"


def test_the_top_whose_head_answers() -> None:
    assert top("a") == "a"
    assert top(Stack("hi", "ner")) == "ner"
    assert top(Stack("hi", Fuse("a", "b"))) == "a,b"
    assert top(Stack("hi", Stack("x", "y"))) == "y"
    assert top(Fuse("a", "b", name="f")) == "f"
    assert [top(tree) for tree in (None, AB, PAIR, ROWS, RUNS)] == [None] * 5


def test_shares_sum_to_one() -> None:
    assert Average("a", "b", weights=[1, 3]).shares == (0.25, 0.75)
    assert Average("a", "b", weights=[3, -1]).shares == (1.5, -0.5)
    assert Average("a", "b", "c", "d").shares == (0.25,) * 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Fuse("a", None), "Fuse cannot hold none: fusion attends to what its members say, and no adapter says"),
        (lambda: Fuse("a", Stack(None)), r"Fuse cannot hold Stack\(none\): fusion attends to what its members say"),
        (lambda: Fuse("a", PAIR), r"Fuse cannot hold Parallel\(a, b\): .*put the routing outside, one Fuse per branch"),
        (lambda: Fuse("a", ROWS), r"Fuse cannot hold BatchSplit\(a:1, b:1\): a fusion is trained for one fixed list"),
        (lambda: Fuse("a", RUNS), r"Fuse cannot hold Split\(a:1, b:2\): a fusion is trained"),
        (lambda: Fuse("a", Stack("b", RUNS)), r"Fuse cannot hold Stack\(b, Split\(a:1, b:2\)\): a fusion is trained"),
        (lambda: Average("a", PAIR), r"Average cannot hold Parallel\(a, b\): an average has one result, Parallel has"),
        (lambda: Average("a", Stack(PAIR)), r"Average cannot hold Stack\(Parallel\(a, b\)\): an average has one"),
        (lambda: Split("a", PAIR, splits=[1, 1]), r"Split cannot hold Parallel\(a, b\): tokens of one row cannot be"),
        (lambda: Split("a", ROWS, splits=[1, 1]), r"Split cannot hold BatchSplit\(a:1, b:1\): tokens of one row"),
        (lambda: Split(Stack(ROWS), splits=[1]), r"Split cannot hold Stack\(BatchSplit\(a:1, b:1\)\): tokens of"),
        (
            lambda: Stack(PAIR, "c", PAIR),
            "holds more than one Parallel: one Parallel in a composition decides how often",
        ),
        (lambda: Stack(Stack("c", PAIR), ROWS, Stack(PAIR)), "holds more than one Parallel"),
        (lambda: Stack(), "Stack needs at least one member"),
        (lambda: Average(weights=[]), "Average needs at least one member"),
        (lambda: Stack("a b"), "'a b' is not a name: begin with a letter or digit"),
        (
            lambda: Stack(3),
            "3 cannot stand in a composition: use a name, None, or one of Stack, Fuse, Average, Parallel",
        ),
        (lambda: Stack(["a"]), r"\['a'\] cannot stand in a composition"),
        (lambda: Fuse("a", name="x y"), "'x y' is not a name"),
        (lambda: Average("a", "b", weights=[1]), r"Average has 2 members but 1 weights: \[1\]"),
        (
            lambda: Average("a", "b", weights=[1, -1]),
            r"weights \[1, -1\] must be finite numbers and must not sum to zero",
        ),
        (lambda: Average("a", weights=[float("nan")]), r"weights \[nan\] must be finite"),
        (lambda: Average("a", "b", weights=[1e308, 1e308]), "must be finite"),
        (lambda: Average("a", weights=["much"]), r"weights \['much'\] must be finite numbers"),
        (lambda: Split("a", "b", splits=[1]), r"Split has 2 members but 1 splits: \[1\]"),
        (lambda: Split("a", splits=[0]), r"Split splits \[0\]: each must be a whole number of at least 1"),
        (lambda: Split("a", splits=[1.5]), r"Split splits \[1.5\]: each must be a whole number"),
        (lambda: BatchSplit("a", batch_sizes=[True]), r"BatchSplit batch_sizes \[True\]: each must be a whole number"),
        (
            lambda: Split("c", RUNS, splits=[1, 4]),
            r"Split\(a:1, b:2\) covers 3 tokens but stands where 4 are split off",
        ),
        (lambda: BatchSplit("c", ROWS, batch_sizes=[1, 3]), r"BatchSplit\(a:1, b:1\) covers 2 rows but stands where 3"),
    ],
)
def test_nesting_without_a_meaning_is_refused_with_the_reason(make: Callable[[], object], message: str) -> None:
    with pytest.raises(CompositionError, match=message):
        make()


def test_nesting_has_an_end() -> None:
    tree: Composition = "a"
    for _ in range(DEEPEST):
        tree = Stack(tree)
    with pytest.raises(CompositionError, match="this Average would be nested deeper than 32 blocks"):
        Average("b", tree)


@pytest.mark.parametrize(
    "name", ["a", "7", "sst-2", "hi.wiki", "x_1", "org/name", "ner@3", "ner@latest", "Stack", "name"]
)
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "none", "-a", ".a", "/a", "a b", "a,b", "a:1", "a(b)", "a@", "a@b@c", "é", "a\n", 3]
)
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(CompositionError, match=r"is not a name: begin with a letter or digit.*'none' is taken"):
        check_name(name)


def test_the_table_of_blocks() -> None:
    assert list(BLOCKS) == ["Stack", "Fuse", "Average", "Parallel", "Split", "BatchSplit"]
