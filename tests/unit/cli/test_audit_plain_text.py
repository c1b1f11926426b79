"""Foreign text cannot steer a terminal, whatever is in it."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.plain import MOST_MARKS, plain


@given(st.text(alphabet=st.characters(), max_size=60))
def test_what_is_shown_is_one_line_of_printable_characters(text: str) -> None:
    shown = plain(text)
    assert shown.isprintable()
    shown.encode()  # not even half a surrogate pair
    assert plain(shown) == shown


@given(st.text(alphabet=st.characters(categories=["L", "N", "P"]), max_size=60))
def test_ordinary_text_is_shown_as_it_is(text: str) -> None:
    assert plain(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a b", "a b"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\x9b31m", "\\x9b31m"),
        ("a\nb\r\t\0\x7f", "a\\nb\\r\\t\\x00\\x7f"),
        ("\u202eabc\u2066", "\\u202eabc\\u2066"),
        ("\ud800", "\\ud800"),
        ("[bold]:bomb:", "[bold]:bomb:"),
        ("¿qué? 漢字", "¿qué? 漢字"),
    ],
)
def test_characters_that_act_are_written_out(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_a_tower_of_marks_is_taken_down() -> None:
    shown = plain("e" + "\u0301" * 50)
    assert sum(unicodedata.combining(character) > 0 for character in shown) == MOST_MARKS


def test_long_text_is_cut_and_says_how_long_it_was() -> None:
    assert plain("x" * 30, 10) == "x" * 10 + " ... (30 characters)"
    assert plain("x" * 10, 10) == "x" * 10
