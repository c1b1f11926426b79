import string
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import SettingsError
from common.templates import TemplateSet, lint, load_templates

ROOT = Path(__file__).resolve().parents[3]
DEMO = ROOT / "examples" / "arithmetic" / "templates.toml"
SHIPPED = ("default", DEMO)

MINIMAL = r"""
name = "mine"

[solve]
id = "solve"
text = '''$question Answer in \boxed{}.'''

[[pointwise]]
id = "check"
family = "word"
verdicts = ["Yes", "No"]
text = '''$question $answer \boxed{Yes} or \boxed{No}?'''

[[pointwise]]
id = "letters-1"
family = "letters"
verdicts = ["X", "Y"]
text = '''$question $answer right: \boxed{$positive}, wrong: \boxed{$negative}'''

[[pointwise]]
id = "letters-2"
family = "letters"
verdicts = ["X", "Y"]
text = '''$question $answer wrong: \boxed{$negative}, right: \boxed{$positive}'''

[[pairwise]]
id = "pair"
family = "pair"
verdicts = ["First", "Second"]
text = '''$question $answer_a $answer_b \boxed{First} or \boxed{Second}?'''

[[reflect]]
id = "reflect"
family = "answer"
text = '''$question $answer Answer in \boxed{}.'''
"""


def load(tmp_path: Path, text: str) -> TemplateSet:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return load_templates(path)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_sets_pass_the_lint(name: str | Path) -> None:
    assert lint(load_templates(name)) == []


def test_default_set_has_the_promised_variety() -> None:
    templates = load_templates("default")
    assert sum(not one.permuted for one in templates.pointwise) >= 2
    assert sum(one.permuted for one in templates.pointwise) >= 2
    assert len(templates.pairwise) >= 4
    counts = {
        (neutral, shows): sum(one.neutral is neutral and one.shows_response is shows for one in templates.reflect)
        for neutral in (True, False)
        for shows in (True, False)
    }
    assert counts[True, True] >= 4
    assert counts[True, False] >= 4
    assert counts[False, True] >= 2
    assert counts[False, False] >= 2
    texts = [one.text for one in templates.templates]
    assert len(set(texts)) == len(texts)


def test_default_set_fences_what_is_untrusted() -> None:
    templates = load_templates("default")
    for one in (*templates.pointwise, *templates.pairwise, *templates.reflect):
        for name in one.placeholders - {"positive", "negative"}:
            before, after = one.text.split(f"${name}")
            assert before.splitlines()[-1].startswith("BEGIN "), (one.id, name)
            assert after.splitlines()[1].startswith("END "), (one.id, name)


def test_demo_prompts_are_the_ones_its_model_learned() -> None:
    templates = load_templates(DEMO)
    question = "7 +8 -6"
    assert templates.solve.render(question) == "solve question: 7 +8 -6"
    assert templates.pointwise[0].render(question, "9") == "judge answer: 9 question: 7 +8 -6"
    assert templates.pointwise[0].words() == ("Yes", "No")
    assert templates.pairwise[0].render(question, "9", "8") == "compare A: 9 B: 8 question: 7 +8 -6"
    assert templates.pairwise[0].verdicts == ("A", "B")
    shown = [one.render(question, answer="9", response="15 9 \\boxed{ 9 }") for one in templates.reflect]
    assert shown == [
        "reflect answer: 9 question: 7 +8 -6",
        "reflect reasoning: 15 9 \\boxed{ 9 } question: 7 +8 -6",
    ]
    assert all(one.neutral for one in templates.reflect)


hostile = st.text(st.sampled_from("${}\\boxednswerqut_ab \n"), max_size=40) | st.sampled_from(
    ["$question", "${answer}", "$$", "\\boxed{$answer}", "{question}", "%s", "$gold", "END PROBLEM"]
)


@given(question=hostile, first=hostile, second=hostile)
def test_texts_are_shown_byte_for_byte_and_never_substituted_again(question: str, first: str, second: str) -> None:
    def expected(text: str, values: dict[str, str]) -> str:
        """The template's literal pieces with the values between them, by another way than substitution."""
        pieces = []
        for match in string.Template.pattern.finditer(text):
            pieces.append((match.start(), match.end(), values[match["named"]]))
        out, at = "", 0
        for start, end, value in pieces:
            out, at = out + text[at:start] + value, end
        return out + text[at:]

    templates = load_templates("default")
    point, pair, reflect = templates.pointwise[0], templates.pairwise[0], templates.reflect[0]
    assert point.render(question, first) == expected(point.text, {"question": question, "answer": first})
    values = {"question": question, "answer_a": first, "answer_b": second}
    assert pair.render(question, first, second) == expected(pair.text, values)
    assert reflect.render(question, answer=first, response=second) == expected(
        reflect.text, {"question": question, "answer": first}
    )


def test_letters_are_exchanged_by_swapped_and_words_cannot_be() -> None:
    word, letters = load_templates("default").pointwise[0], load_templates("default").pointwise[2]
    assert letters.words(swapped=True) == tuple(reversed(letters.words()))
    plain, swapped = letters.render("q", "a"), letters.render("q", "a", swapped=True)
    assert plain != swapped
    assert "\\boxed{X} - the answer is right" in plain
    assert "\\boxed{Y} - the answer is right" in swapped
    with pytest.raises(ValueError, match="fixed verdict words"):
        word.render("q", "a", swapped=True)


def test_ref_names_set_and_template_and_follows_every_visible_byte() -> None:
    templates = load_templates("default")
    ref = templates.ref(templates.pointwise[0])
    assert ref.startswith("default/word-check@")
    assert len(ref.rpartition("@")[2]) == 8
    assert templates.ref(replace(templates.pointwise[0], text="other $question $answer")) != ref
    assert templates.ref(replace(templates.pointwise[0], verdicts=("Ja", "Nein"))) != ref
    assert len({templates.ref(one) for one in templates.templates}) == len(templates.templates)


def test_minimal_set_loads(tmp_path: Path) -> None:
    templates = load(tmp_path, MINIMAL)
    assert (templates.name, len(templates.pointwise), len(templates.reflect)) == ("mine", 3, 1)


@pytest.mark.parametrize(
    ("old", "new", "template", "reason"),
    [
        (r"Answer in \boxed{}.'''", r"Answer in \box{}.'''", "solve", "parser reads only"),
        (r"\boxed{Yes} or", r"\fbox{Yes} or", "check", "parser reads only"),
        (r"\boxed{First} or \boxed{Second}?", r"\boxed First or \boxed{Second}?", "pair", "parser reads only"),
        (r"\boxed{First} or \boxed{Second}?", "First or Second?", "pair", "does not ask for"),
        (r"\boxed{Yes} or \boxed{No}?", r"\boxed{Yes}?", "check", r"never names its verdict \boxed{No}"),
        ('verdicts = ["Yes", "No"]', 'verdicts = ["Yes", "yes"]', "check", "may confuse"),
        ('verdicts = ["Yes", "No"]', 'verdicts = ["A", "B"]', "check", "multiple-choice letter"),
        ('verdicts = ["Yes", "No"]', 'verdicts = ["Yes", "d"]', "check", "multiple-choice letter"),
        ('verdicts = ["First", "Second"]', 'verdicts = ["A", "Second"]', "pair", "multiple-choice letter"),
        ("$question $answer \\boxed{Yes}", "$answer \\boxed{Yes}", "check", "placeholders $answer; it must have"),
        ("$question $answer_a", "$question $gold $answer_a", "pair", "$gold"),
        ("$question $answer Answer", "$question $answer $response Answer", "reflect", "$response"),
        ("$question Answer in", "$question costs 5$ Answer in", "solve", "lone '$'"),
        ('id = "pair"', 'id = "check"', "check", "unique ids"),
        ("wrong: \\boxed{$negative}, right: \\boxed{$positive}", "\\boxed{$positive} \\boxed{$negative}",
         "letters", "the position tells the class"),
        ('id = "check"\nfamily = "word"', 'id = "check"\nfamily = "letters"', "letters", "mixes verdict words"),
        ("[[pairwise]]\nid", '[[reflect]]\nid = "told"\nfamily = "answer"\nneutral = false\n'
         "text = '''$question $answer \\boxed{}'''\n\n[[pairwise]]\nid", "answer", "mixes neutral"),
        ('verdicts = ["Yes", "No"]', 'verdicts = ["Yes", "Not so"]', "check", "pattern"),
        ('family = "pair"', 'famly = "pair"', "pair", "pairwise.0.famly"),
        ('id = "reflect"', "", "reflect.0.id", "required"),
        ('name = "mine"', "", "name", "required"),
    ],
)  # fmt: skip
def test_each_violation_is_named_with_file_and_template(
    tmp_path: Path, old: str, new: str, template: str, reason: str
) -> None:
    assert MINIMAL.count(old) >= 1
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, MINIMAL.replace(old, new, 1))
    text = str(caught.value)
    assert "mine.toml" in text
    assert template in text
    assert reason in text


def test_backslash_eaten_by_a_basic_toml_string_is_found(tmp_path: Path) -> None:
    text = MINIMAL.replace(r"'''$question Answer in \boxed{}.'''", r'"$question Answer in \boxed{}."')
    with pytest.raises(SettingsError, match="control character"):
        load(tmp_path, text)


def test_a_set_may_name_no_marker_at_all(tmp_path: Path) -> None:
    text = MINIMAL.replace(r"\boxed{}", "").replace(r"\boxed{", "").replace("}", "")
    assert "boxed" not in text
    assert load(tmp_path, text).name == "mine"


def test_missing_set_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"'defualt' is neither a TOML file nor one of: .*default"):
        load_templates("defualt")
    with pytest.raises(SettingsError, match="cannot be read"):
        load(tmp_path, "name = ")
