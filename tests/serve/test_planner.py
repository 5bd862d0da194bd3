"""Planning: every row gets exactly one outcome in its place, and what is wrong with it is said."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftwork.compose.tree import Stack, show
from graftwork.errors import GraftworkError
from graftwork.serve.planner import KEYS, Planner, Unit, check_row, read_adapters
from tests.serve.world import World, error, text
from tests.trees import compositions

WORDS = st.sampled_from(["text", "text_pair", "tokens", "adapters", "head", "label", "txet"])
EXPRESSIONS = st.sampled_from(
    [
        *("intent", "mood", "hi", "both", "headless", "probe", "none", "gone", "intent@1", "intent@9", "../x"),
        *("Stack(hi, mood)", "Stack(hi", "Average(intent, mood)", "Parallel(intent, hi, both)"),
        *("Split(hi:2, mood:3)", "BatchSplit(hi:1)", "Fuse(intent, mood)"),
    ]
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | EXPRESSIONS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
LIKELY = st.fixed_dictionaries(
    {"adapters": EXPRESSIONS},
    optional={
        "text": st.sampled_from(["w1", "w1 w2 w3", text(70), ""]),
        "text_pair": st.just("w5"),
        "tokens": st.lists(st.sampled_from(["w1", "", "w2"]), max_size=4),
        "head": st.sampled_from(["mood", "intent", "hi", "ner", "gone", "none", "intent@1"]),
    },
)


@pytest.fixture(scope="module")
def planner(tiny_world: World) -> Planner:
    return Planner(tiny_world.registry, tiny_world.tokenizer, 64)


def plan_one(planner: Planner, **row: Any) -> Unit:
    (planned,) = planner.plan([row])
    (unit,) = planned.branches
    assert isinstance(unit, Unit), unit
    return unit


def refusal(planner: Planner, row: Any) -> tuple[str, str]:
    (planned,) = planner.plan([row])
    (outcome,) = planned.branches
    assert isinstance(outcome, dict), outcome
    return error(outcome)


@given(rows=st.lists(LIKELY | ANYTHING | st.dictionaries(WORDS, ANYTHING, max_size=5), max_size=6))
def test_every_row_gets_one_outcome_in_its_place(planner: Planner, rows: list[Any]) -> None:
    planned = planner.plan(rows)
    assert len(planned) == len(rows)
    for row, plan in zip(rows, planned, strict=True):
        assert plan.branches
        assert len(plan.branches) == 1 or plan.fan_out is not None
        for branch in plan.branches:
            if isinstance(branch, Unit):
                given = row["tokens"] if row.get("text") is None else row["text"].split()
                assert branch.length >= 2 + len([word for word in given if word])
                assert branch.head in [package.name for package in branch.packages]
            else:
                code, message = error(branch)
                assert code in ("not_found", "conflict", "too_long", "invalid", "damaged")
                json.dumps(message, ensure_ascii=False).encode()
                assert "\n" not in message
    alone = [planner.plan([row])[0] for row in rows]
    assert [same(plan) for plan in planned] == [same(plan) for plan in alone]


def same(plan: Any) -> list[Any]:
    return [
        (show(branch.tree), branch.head, branch.encoded) if isinstance(branch, Unit) else branch
        for branch in plan.branches
    ]


@given(tree=compositions(("intent", "intent@1", "mood", "hi"), batch=2, tokens=6))
def test_any_composition_has_an_outcome(planner: Planner, tree: Any) -> None:
    (by_name,) = planner.plan([{"text": text(4), "adapters": show(tree), "head": "mood"}])
    (by_block,) = planner.plan([{"text": text(4), "adapters": tree, "head": "mood"}])
    assert same(by_name) == same(by_block)


HEADS = [
    ({"adapters": "intent"}, "intent@2"),
    ({"adapters": "Stack(hi, mood)"}, "mood@1"),
    ({"adapters": "Stack(hi, both)"}, "both@1"),
    ({"adapters": "Fuse(intent@1, mood, name=both)"}, "both@1"),
    ({"adapters": "Average(intent@1, mood)", "head": "intent"}, "intent@1"),
    ({"adapters": "Average(intent@1, mood)", "head": "intent@2"}, "intent@2"),
    ({"adapters": "Stack(intent@2, intent@1)", "head": "intent"}, "intent@1"),
    ({"adapters": "both", "head": "both"}, "both@1"),
    ({"adapters": "both", "head": "intent"}, "intent@1"),
    ({"adapters": "headless", "head": "mood"}, "mood@1"),
    ({"adapters": "hi", "head": "probe"}, "probe@1"),
    ({"adapters": "none", "head": "intent@stable"}, "intent@1"),
    ({"adapters": "intent@1", "head": None}, "intent@1"),
]


@pytest.mark.parametrize(("row", "head"), HEADS, ids=lambda value: str(value))
def test_which_head_answers(planner: Planner, row: dict[str, Any], head: str) -> None:
    unit = plan_one(planner, text=text(3), **row)
    assert unit.head == head
    assert head in [package.name for package in unit.packages]


REFUSALS = [
    ({"adapters": "hi"}, 'which head answers hi@1? say "head": the name of a package that has one'),
    ({"adapters": "none"}, 'which head answers the frozen base alone? say "head": the name of a package that has one'),
    ({"adapters": "headless"},
     'which head answers Fuse(mood@1, hi@1, name=headless@1)? say "head": "mood@1"'),
    ({"adapters": "Average(intent, mood)"},
     'which head answers Average(intent@2, mood@1)? say "head": "intent@2" or "mood@1"'),
    ({"adapters": "Stack(mood, hi, order=any)"},
     'which head answers Stack(mood@1, hi@1, order=any)? say "head": "mood@1"'),
    ({"adapters": "Stack(mood, hi)"},
     "Stack(mood@1, hi@1): hi@1 is a language adapter and mood@1, below it, a task adapter; a task adapter reads what "
     "a language adapter made of the text, so write Stack(hi@1, mood@1), or Stack(mood@1, hi@1, order=any) where this "
     "order is meant"),
    ({"adapters": "Average(intent@1, intent@2)", "head": "intent"},
     "head 'intent' could be intent@1 or intent@2: say which"),
    ({"adapters": "mood", "head": "hi"}, 'hi@1 has no head (it is a language package); say "head": "mood@1"'),
    ({"adapters": "BatchSplit(hi:1, mood:1)"},
     "BatchSplit(hi:1, mood:1): BatchSplit divides a batch, and here every row has its own composition; give each row "
     "the one it should have"),
    ({"adapters": "Split(intent:2, mood:2)", "head": "mood"},
     "Split(intent@2:2, mood@1:2) covers 4 pieces and the text has 5, special ones included; they must be equal"),
    ({"adapters": ["hi", "mood"]},
     "\"adapters\" is ['hi', 'mood']; write a name or an expression such as \"Stack(a, b)\", in one string"),
    ({"adapters": "Stack(" + ", ".join(["hi"] * 65) + ")"},
     "the composition names 65 adapters; a row may name at most 64"),
    ({"adapters": "Fuse(intent, none)"},
     "Fuse cannot hold none: fusion attends to what its members say, and no adapter says nothing"),
    ({"adapters": "mood", "head": 3}, '"head" is 3; it must be the name of a package that has a head'),
    ({"adapters": "mood", "text_pair": "w1"},
     'the task is classification, which reads one text; leave "text_pair" out or take another head'),
    ({"adapters": "mood", "haed": "x"}, 'unknown key \'haed\': did you mean "head"?'),
    ({"adapters": "mood", "label": "no"},
     'unknown key \'label\': a row has "text", "text_pair", "tokens", "choices", "target", "image", "image_base64", '
     '"max_new_tokens", "adapters", "head"'),
    ({}, 'has no "adapters": say which composition, or "none" for the frozen base with a "head"'),
    ({"adapters": "mood", "tokens": ["w1"]}, 'needs one of "text", "tokens", a list of words, and "image_base64"'),
]  # fmt: skip


@pytest.mark.parametrize(("row", "message"), REFUSALS, ids=lambda value: str(value)[:40])
def test_what_is_wrong_with_a_row_is_said(planner: Planner, row: dict[str, Any], message: str) -> None:
    assert refusal(planner, {"text": text(3), **row}) == ("invalid", message)


def test_all_problems_of_a_row_are_said_at_once(planner: Planner) -> None:
    assert refusal(planner, {"txt": "a", "text_pair": "b"}) == (
        "invalid",
        'unknown key \'txt\': did you mean "text"?; has no "adapters": say which composition, or "none" for the frozen '
        'base with a "head"; needs one of "text", "tokens", a list of words, and "image_base64"; '
        '"text_pair" goes with "text"',
    )
    assert refusal(planner, "intent") == (
        "invalid",
        'a row is an object such as {"text": ..., "adapters": ...}, this is str',
    )


def test_a_text_may_fill_the_limit_exactly(planner: Planner) -> None:
    assert plan_one(planner, text=text(62), adapters="mood").length == 64
    assert refusal(planner, {"text": text(63), "adapters": "mood"})[0] == "too_long"


def test_a_row_of_python_may_hold_a_block() -> None:
    assert read_adapters(Stack("hi", "mood")) == Stack("hi", "mood")
    assert read_adapters(None) is None


def test_every_key_is_accepted_somewhere() -> None:
    check_row({"text": "a", "text_pair": "b", "adapters": "x", "head": "y"})
    check_row({"tokens": ["a"], "adapters": "x"})
    check_row({"text": "a", "target": "b", "max_new_tokens": 3, "adapters": "x"})
    check_row({"image_base64": "aGk=", "adapters": "x"})
    check_row({"image": b"hi", "adapters": "x"})
    assert set(KEYS) == {
        "text", "text_pair", "adapters", "head", "tokens", "choices", "target",
        "max_new_tokens", "image", "image_base64",
    }  # fmt: skip
    with pytest.raises(GraftworkError, match="unknown key '3'"):
        check_row({3: 1, "text": "a", "adapters": "x"})
