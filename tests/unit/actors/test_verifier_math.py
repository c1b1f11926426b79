import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.verifiers import check_scorable, verdict_of
from actors.verifiers.math_answers import MAX_DEPTH

CORPUS: list[dict[str, Any]] = json.loads(Path(__file__).with_name("verifier_math_corpus.json").read_text("utf-8"))


def judge(box: str, gold: str) -> Any:
    return verdict_of("math", f"so \\boxed{{{box}}}", gold, {})


@pytest.mark.parametrize("case", CORPUS, ids=[f"{case['gold']} vs {case['answer']}"[:60] for case in CORPUS])
def test_corpus(case: dict[str, Any]) -> None:
    verdict = judge(case["answer"], case["gold"])
    assert (verdict.status, verdict.correct) == ("ok", case["correct"]), verdict
    assert verdict.answer == case["answer"]
    assert check_scorable(case["gold"], "math", {}) is None


def test_equal_canonical_forms_have_equal_rewards() -> None:
    by_canonical = defaultdict(set)
    for case in CORPUS:
        for text in (case["gold"], case["answer"]):
            by_canonical[judge(text, text).canonical].add(text)
    alike = [texts for texts in by_canonical.values() if len(texts) > 1]
    assert len(alike) >= 8
    for gold in ("5", "5 cm", "5 km", "8", "1/2", "12", "1,2", "x=8", "no solution", "square"):
        for texts in alike:
            assert len({judge(text, gold).reward for text in texts}) == 1, (gold, texts)


def test_every_answer_equals_itself() -> None:
    for text in {case[side] for case in CORPUS for side in ("gold", "answer")}:
        assert judge(text, text).correct, text


@given(answer=st.integers(-(10**30), 10**30), gold=st.integers(-20, 20), near=st.booleans())
def test_integers_need_no_algebra(answer: int, gold: int, near: bool) -> None:
    answer = answer % 41 - 20 if near else answer
    verdict = judge(f"{answer:+}", str(gold))
    assert verdict.canonical == str(answer)
    assert verdict.correct == (answer == gold)


def test_number_too_long_to_print() -> None:
    assert judge("2^{100000}", "2^{100000}").correct
    assert not judge("2^{100000}", "2^{100001}").correct


def test_deep_nesting_is_refused_before_it_costs_time() -> None:
    verdict = judge("(" * 1990 + "1" + ")" * 1990, "1")
    assert (verdict.status, verdict.reward) == ("ok", 0.0)
    assert judge("\\frac{1}{1+" * MAX_DEPTH + "0" + "}" * MAX_DEPTH, "\\frac{46368}{75025}").correct  # Fibonacci


@pytest.mark.parametrize("gold", ["", "  ", "\\frac{", "1/0", "x" * 5000])
def test_gold_that_cannot_be_read(gold: str) -> None:
    assert check_scorable(gold, "math", {}) is not None
