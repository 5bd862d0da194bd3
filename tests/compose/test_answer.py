"""Answers: which head answers which row, and how groups, logits and losses come back."""

import pytest
import torch
from torch import Tensor

from graftwork.compose.answer import AdapterOutput, answer, head_of
from graftwork.compose.tree import Composition, Fuse, Parallel, Stack
from graftwork.core.heads import Head, HeadConfig
from graftwork.core.heads_table import build_head
from graftwork.errors import AdapterError
from tests.rig import randomise

B, T, D = 5, 4, 8


def heads() -> dict[str, Head]:
    made = {
        "two": build_head(HeadConfig(kind="classification", num_outputs=2, pooling="mean"), D),
        "three": build_head(HeadConfig(kind="classification", num_outputs=3, pooling="last"), D),
        "tags": build_head(HeadConfig(kind="tagging", num_outputs=4, pooling="none", layers=1), D),
    }
    for head in made.values():
        randomise(head.eval().parameters())
    return made


def hidden() -> Tensor:
    return torch.randn(B, T, D, generator=torch.Generator().manual_seed(0))


MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0]])


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ("a", "a"),
        (Stack("hi", "a"), "a"),
        (Fuse("a", "b", name="f"), "f"),
        (Stack("hi", Fuse("a", "b")), "a,b"),
        ("unknown", "default"),
        (None, "default"),
        (Parallel("a", "a"), "default"),
    ],
)
def test_the_top_of_a_composition_names_its_head(tree: Composition, expected: str) -> None:
    assert head_of(tree, ["a", "f", "a,b", "default"], "default") == expected
    assert head_of(tree, [], None) is None


def test_a_head_that_is_not_clear_is_asked_for() -> None:
    with pytest.raises(
        AdapterError, match=r"which head answers Stack\(hi, x\)\? None is named 'x'; say head=... with one"
    ):
        head_of(Stack("hi", "x"), ["b", "a"], None)
    with pytest.raises(
        AdapterError, match=r"which head answers none\? None is named like it; .* one of: a, b, or head='non"
    ):
        head_of(None, ["b", "a"], None)


def test_one_head_answers_the_whole_batch() -> None:
    table, x, labels = heads(), hidden(), torch.tensor([0, 1, 1, 0, 1])
    output = answer(["two"] * B, table.__getitem__, x, MASK, labels)
    expected = table["two"](x, MASK)
    assert output.logits is not None
    assert output.loss is not None
    assert torch.equal(output.logits, expected)
    assert torch.equal(output.loss, table["two"].loss(expected, labels))
    (group,) = output.groups
    assert (group.head, group.rows.tolist()) == ("two", [0, 1, 2, 3, 4])
    assert answer(["two"] * B, table.__getitem__, x, MASK, None).loss is None


@pytest.mark.parametrize("mask", [MASK, None, MASK[2:3]])
def test_rows_with_different_heads_come_back_as_groups(mask: Tensor | None) -> None:
    table, x, labels = heads(), hidden(), torch.tensor([1, 2, 0, 1, 0])
    names = ["two", "three", "two", "two", "three"]
    output = answer(names, table.__getitem__, x, mask, labels)
    assert output.logits is None
    assert [(group.head, group.rows.tolist()) for group in output.groups] == [("two", [0, 2, 3]), ("three", [1, 4])]
    total = 0.0
    for group in output.groups:
        for place, row in enumerate(group.rows.tolist()):
            own = None if mask is None else mask[row : row + 1] if len(mask) == B else mask
            torch.testing.assert_close(group.logits[place], table[group.head](x[row : row + 1], own)[0])
        assert group.loss is not None
        torch.testing.assert_close(group.loss, table[group.head].loss(group.logits, labels[group.rows]))
        total += float(group.loss.detach())
    assert output.loss is not None
    assert float(output.loss.detach()) == pytest.approx(total)


def test_tokens_and_rows_can_be_answered_in_one_batch() -> None:
    table, x = heads(), hidden()
    output = answer(["tags", "two", "tags", "two", "two"], table.__getitem__, x, MASK, None)
    assert [tuple(group.logits.shape) for group in output.groups] == [(2, T, 4), (3, 2)]


def test_groups_are_an_attribute_and_not_one_of_the_keys() -> None:
    output = answer(["two"] * B, heads().__getitem__, hidden(), None, None)
    assert list(output.keys()) == ["logits"]
    assert len(output.groups) == 1
    assert AdapterOutput().groups == ()
    assert len(answer(["two"] * B, heads().__getitem__, hidden(), None, torch.zeros(B).long()).to_tuple()) == 2
