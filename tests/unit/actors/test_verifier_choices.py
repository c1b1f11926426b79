import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from actors.verifiers import check_scorable, verdict_of
from actors.verifiers.base import MAX_ANSWER_CHARS, Args
from actors.verifiers.choices import choices_of
from common.messages import Verdict

YES_NO: Args = {"choices": ["Yes", "No"]}
A_B: Args = {"choices": ["A", "B"]}
FORMATS = [
    "{}",
    "({})",
    "{}.",
    "{}. 97",
    "\\text{{({})}}",
    "\\textbf{{{}}}",
    "{})",
    "({}) 97",
    "{}: 97",
    "**{}**",
    "${}$",
]
BOXABLE = st.text(st.characters(exclude_characters="\\{}", codec="utf-8"), max_size=20)


def judge(verifier: str, box: str, answer: str, args: Args | None = None) -> Verdict:
    return verdict_of(verifier, f"thinking \\boxed{{{box}}}", answer, args or {})


@pytest.mark.parametrize(
    "form", [*FORMATS, "Option {}", "Answer: {}", "The answer is ({})", "\\text{{{}. 97}}", "（{}）"]
)
@pytest.mark.parametrize("letter", ["C", "c"])
def test_formatting_does_not_change_a_choice(form: str, letter: str) -> None:  # D2
    verdict = judge("choice", form.format(letter), "C")
    assert (verdict.status, verdict.reward, verdict.canonical) == ("ok", 1.0, "C")
    assert judge("choice", form.format(letter), "B").reward == 0.0
    assert judge("choice", "C", form.format(letter)).reward == 1.0  # gold answers come in all formats, too


@pytest.mark.parametrize(
    "box", ["97", "A or B", "A, B", "AB", "(A)(B)", "A. B", "A) and B)", "K", "cat", "not A", "A dog"]
)
def test_no_or_two_choices_are_no_answer(box: str) -> None:
    verdict = judge("choice", box, "A")
    assert (verdict.status, verdict.reward, verdict.answer) == ("no_answer", 0.0, None)


def test_option_text_may_hold_letters() -> None:
    assert judge("choice", "B. a dog", "B").reward == 1.0
    assert judge("choice", "(B) a", "B").status == "no_answer"  # names A as well


def test_letters_of_the_task() -> None:
    assert judge("choice", "K", "K", {"choices": ["J", "K"]}).reward == 1.0
    assert judge("choice", "A", "K", {"choices": ["J", "K"]}).status == "no_answer"


@pytest.mark.parametrize(
    ("box", "args", "choice"),
    [  # D4
        ("yes", YES_NO, "Yes"),
        ("NO.", YES_NO, "No"),
        ("Yes, it holds", YES_NO, "Yes"),
        ("\\text{Yes}", YES_NO, "Yes"),
        ("A: Correct", A_B, "A"),
        ("(A)", A_B, "A"),
        ("Answer A", A_B, "A"),
        ("answer: b", A_B, "B"),
        ("The better answer is B", A_B, "B"),
        ("B - more careful", A_B, "B"),
        ("incorrect", {"choices": ["correct", "incorrect"]}, "incorrect"),
    ],
)
def test_verdicts_are_read_tolerantly(box: str, args: Args, choice: str) -> None:
    verdict = judge("verdict", box, choice, args)
    assert (verdict.status, verdict.reward, verdict.canonical, verdict.answer) == ("ok", 1.0, choice, box)
    other = next(name for name in choices_of(args, ()) if name != choice)
    assert judge("verdict", box, other, args).reward == 0.0


@pytest.mark.parametrize(
    "box", ["Yes and No", "Yes/No", "Yes. No.", "maybe", "not yes", "54", ":", "yesterday", "Yes, no doubt"]
)
def test_other_verdicts_are_no_answer(box: str) -> None:
    assert judge("verdict", box, "Yes", YES_NO).status == "no_answer"


@pytest.mark.parametrize("verifier", ["exact", "choice", "verdict", "math"])
@pytest.mark.parametrize(
    "text", ["", "no box: A", "\\boxed{}", "\\boxed{A", "\\box{A}", "\\boxed{" + "A" * (MAX_ANSWER_CHARS + 1) + "}"]
)
def test_missing_answer_is_wrong_and_inherits_nothing(verifier: str, text: str) -> None:  # D3, D10, D20
    for gold in ("A", "square"):
        verdict = verdict_of(verifier, text, gold, {"choices": ["A", "square"]})
        assert (verdict.status, verdict.reward, verdict.answer, verdict.canonical) == ("no_answer", 0.0, None, None)
        assert verdict.detail
        assert verdict.scored
        assert not verdict.correct


@pytest.mark.parametrize(
    ("box", "gold", "reward"),
    [
        ("Red  Square ", "red square", 1),
        ("square", "points", 0),
        ("5 cm", "5 km", 0),
        ("1,2", "12", 0),
        ("a b", "ab", 0),
    ],
)
def test_exact(box: str, gold: str, reward: float) -> None:
    verdict = judge("exact", box, gold)
    assert (verdict.status, verdict.reward, verdict.answer) == ("ok", reward, box.strip())


@given(answer=BOXABLE, gold=BOXABLE)
def test_exact_reward_is_equality_of_canonical_forms(answer: str, gold: str) -> None:
    assume(answer.strip() and gold.strip())
    mine, golden = judge("exact", answer, gold), judge("exact", gold, gold)
    assert golden.reward == 1.0
    assert (mine.reward == 1.0) == (mine.canonical == golden.canonical)
    assert mine.reward == judge("exact", gold, answer).reward  # symmetric


@given(st.data())
def test_choice_and_verdict_rewards_are_equality_of_canonical_forms(data: st.DataObject) -> None:
    verifier, args = data.draw(st.sampled_from([("choice", A_B), ("verdict", A_B), ("choice", {})]))
    letters = st.sampled_from(["A", "B"])
    box, gold = (data.draw(st.sampled_from(FORMATS)).format(data.draw(letters)) for _ in range(2))
    mine, golden = judge(verifier, box, gold, args), judge(verifier, gold, gold, args)
    assert (mine.status, golden.reward) == ("ok", 1.0)
    assert (mine.reward == 1.0) == (mine.canonical == golden.canonical)


@given(st.text("ABYesNo(). :,\\text{}", max_size=15))
def test_any_box_names_one_choice_or_none(box: str) -> None:
    for verifier, args in (("choice", A_B), ("verdict", YES_NO)):
        rewards = [judge(verifier, box, gold, args) for gold in choices_of(args, ())]
        assert len({verdict.canonical for verdict in rewards}) == 1  # what was said does not depend on what is right
        assert sum(verdict.reward for verdict in rewards) == float(rewards[0].status == "ok")


@pytest.mark.parametrize(
    ("verifier", "answer", "args", "reason"),
    [
        ("exact", "9", {}, None),
        ("exact", " ", {}, "empty"),
        ("exact", "9" * (MAX_ANSWER_CHARS + 1), {}, "characters"),
        ("choice", "(C)", {}, None),
        ("choice", "97", {}, "'97'"),
        ("choice", "C", A_B, "A, B"),
        ("verdict", "Yes", YES_NO, None),
        ("verdict", "A", YES_NO, "Yes, No"),
        ("verdict", "Yes", {}, "two or more"),
        ("verdict", "Yes", {"choices": ["Yes", "yes"]}, "two or more"),
        ("verdict", "Yes", {"choices": "YesNo"}, "list"),
        ("verdict", "Yes", {"choices": ["Yes", 1]}, "two or more"),
    ],
)
def test_check_scorable(verifier: str, answer: str, args: Args, reason: str | None) -> None:
    found = check_scorable(answer, verifier, args)
    assert found is None if reason is None else reason in (found or "")


def test_unscorable_gold_is_an_error_not_a_wrong_answer() -> None:
    verdict = judge("choice", "A", "97")
    assert verdict.status == "error"
    assert "ValueError" in verdict.detail
