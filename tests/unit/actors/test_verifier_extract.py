import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.verifiers.extract import boxed

# printable and not, but no backslash and no brace: those come from the recursion, balanced
PLAIN = st.text(st.characters(exclude_characters="\\{}", codec="utf-8"), max_size=12)
BALANCED = st.recursive(
    PLAIN,
    lambda inner: st.one_of(
        st.builds("{{{}}}".format, inner),
        st.builds("\\frac{{{}}}{{{}}}".format, inner, inner),
        st.builds("\\{{{}\\}}".format, inner),
        st.builds("{}{}".format, inner, inner),
    ),
    max_leaves=6,
)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("15 9 11 9 \\boxed{ 9 }", "9"),
        ("\\boxed {9}", "9"),
        ("\\boxed{54}. wait, \\boxed{45}", "45"),  # D1: neither the first nor the span of both
        ("\\boxed{45} so {45}", "45"),
        ("\\boxed{45} and then \\boxed{4", "45"),
        ("\\boxed{4", None),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{\\{1,2\\}}", "\\{1,2\\}"),
        ("\\boxed{[0, 1\\}}", "[0, 1\\}"),
        ("\\boxed{\\boxed{5}}", "5"),
        ("\\\\boxed{5}", "5"),
        ("} } \\boxed{5} } {", "5"),
        ("{ \\boxed{5}", "5"),
        ("\\boxed{a\nb}", "a\nb"),
        ("\\boxed{}", ""),
        ("\\box{Yes}", None),
        ("\\fbox{Yes}", None),
        ("boxed{9}", None),
        ("no box", None),
        ("", None),
    ],
)
def test_boxed(text: str, answer: str | None) -> None:
    assert boxed(text) == answer


@given(before=PLAIN, content=BALANCED, after=PLAIN)
def test_round_trip(before: str, content: str, after: str) -> None:
    assert boxed(f"\\boxed{{other}} {before}\\boxed{{{content}}}{after}") == content.strip()


@given(st.text("\\boxed{} a", max_size=60))
def test_answer_is_a_balanced_part_of_the_text(text: str) -> None:
    answer = boxed(text)
    if answer is not None:
        assert answer in text
        assert boxed(f"\\boxed{{{answer}}}") is not None


def test_time_is_linear_in_boxes_that_never_close() -> None:
    start = time.process_time()
    assert boxed("\\boxed{" * 100_000) is None
    assert time.process_time() - start < 2.0  # a scan per box would take hours
