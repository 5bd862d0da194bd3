import itertools
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftwork.tasks.words import Words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("12/4, M.G. Road!", ["12", "/", "4", ",", "M", ".", "G", ".", "Road", "!"]),
        ("don't", ["don", "'", "t"]),
        ("order_id #4711", ["order_id", "#", "4711"]),
        ("मेरा पैकेज नहीं आया।", ["मेरा", "पैकेज", "नहीं", "आया", "।"]),  # vowel signs are no letters to Python
        ("என் பெயர்", ["என்", "பெயர்"]),
        (
            "a\u200db ❤\ufe0fok",
            ["a\u200db", "❤\ufe0f", "ok"],
        ),  # joiners and variation selectors belong to what they follow
        ("one\ttwo\nthree\u00a0four\x00five", ["one", "two", "three", "four", "five"]),
        ("", []),
        (" \t ", []),
    ],
)
def test_a_text_splits_by_the_stated_rule(text: str, words: list[str]) -> None:
    assert Words.of_text(text).tokens == words


@given(st.text())
def test_words_cover_everything_but_space_in_order(text: str) -> None:
    spans = Words.of_text(text).spans
    assert all(start < end for start, end in spans)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    inside = {place for start, end in spans for place in range(start, end)}
    separators = {place for place, c in enumerate(text) if unicodedata.category(c) in ("Zs", "Zl", "Zp", "Cc")}
    assert inside | separators == set(range(len(text)))
    assert not inside & separators


@given(st.lists(st.text(max_size=5), max_size=6))
def test_given_words_stay_as_they_are(tokens: list[str]) -> None:
    words = Words.of_tokens(tokens)
    assert words.tokens == tokens
    assert words.text == " ".join(tokens)


@given(st.text(alphabet="aB9 .,-_/\u093e\u0930"))
def test_splitting_is_stable(text: str) -> None:
    """A text put together from its own words has the same words."""
    tokens = Words.of_text(text).tokens
    assert Words.of_text(" ".join(tokens)).tokens == tokens
