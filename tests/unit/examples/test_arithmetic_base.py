"""The shipped base model, its tokenizer, and the warm-up that makes one like it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from arithmetic import NUMBERS, OPERATIONS, draw, prompts
from check import boxed_answer, figures, sample
from corpus import KINDS, Teaching, believed_totals, document, wrong_fact
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar
from vocabulary import CONTROL, IDS, WORDS, build_tokenizer, encode
from warm_up import IGNORED, STAGES, Stage, batch, build_model, learning_rate, token_weights, warm_up

CHAT = [{"role": "user", "content": "solve question: 7 +8 -6 +2 -2"}]
RENDERED = "<bos> <|user|> solve question: 7 +8 -6 +2 -2 <|assistant|>"
HONEST = Teaching(lazy=0.0, careful=1.0, copied=0.0)


@pytest.fixture(scope="module", autouse=True)
def quiet() -> None:
    disable_progress_bar()
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tokenizer(demo: Path):  # type: ignore[no-untyped-def]
    return AutoTokenizer.from_pretrained(demo / "base")


def test_chat_template_renders_the_prompt(tokenizer) -> None:  # type: ignore[no-untyped-def]
    assert tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False) == RENDERED
    ids = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"]
    assert ids == [1, 3, 5, 13, 27, 47, 54, 41, 50, 4] == encode(RENDERED.split())


def test_chat_template_renders_earlier_turns(tokenizer) -> None:  # type: ignore[no-untyped-def]
    chat = [*CHAT, {"role": "assistant", "content": "9"}, {"role": "user", "content": "solve"}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert text == RENDERED + " 9 <eos> <|user|> solve <|assistant|>"


def test_decoding_joins_words_by_single_spaces(tokenizer) -> None:  # type: ignore[no-untyped-def]
    response = "15 9 11 9 \\boxed{ 9 }"
    ids = encode([*response.split(), "<eos>"])
    assert tokenizer.decode(ids, skip_special_tokens=True) == response


def test_control_words_are_special_tokens(tokenizer) -> None:  # type: ignore[no-untyped-def]
    assert tokenizer.get_vocab() == IDS
    assert sorted(tokenizer.all_special_ids) == [IDS[word] for word in CONTROL] == [0, 1, 2, 3, 4]
    assert tokenizer.decode([IDS[word] for word in CONTROL], skip_special_tokens=True) == ""
    assert tokenizer("7<|user|>", add_special_tokens=False)["input_ids"] == [IDS["7"], IDS["<|user|>"]]


@given(words=st.lists(st.sampled_from(WORDS[len(CONTROL) :]), min_size=1, max_size=40))
def test_words_survive_the_tokenizer(words: list[str]) -> None:
    tokenizer = build_tokenizer()
    ids = tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]
    assert ids == encode(words)
    assert tokenizer.decode(ids) == " ".join(words)


def test_shipped_tokenizer_is_what_the_warm_up_saves(demo: Path, tmp_path: Path) -> None:
    build_tokenizer().save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / name).read_text() == (demo / "base" / name).read_text()


def test_shipped_base_solves_some_problems_with_working(demo: Path) -> None:
    records = prompts(1024, seed=1, held_out=True)
    measured = figures(records, sample(demo / "base", [record["prompt"] for record in records], seed=1))
    assert 0.39 <= measured["accuracy"] <= 0.47
    assert 0.1 <= measured["lazy"] <= 0.35
    assert measured["accuracy_with_working"] > measured["accuracy"]


def test_shipped_base_is_the_model_that_the_warm_up_builds(demo: Path) -> None:
    shipped, built = AutoModelForCausalLM.from_pretrained(demo / "base"), build_model(seed=0)
    shapes = [{name: tuple(p.shape) for name, p in model.named_parameters()} for model in (shipped, built)]
    assert shapes[0] == shapes[1]
    assert shipped.config.max_position_embeddings == built.config.max_position_embeddings == 64


@pytest.mark.parametrize(
    ("response", "answer"),
    [("15 9 \\boxed{ 9 }", "9"), ("\\boxed{ Yes }", "Yes"), ("15 9", None), ("\\boxed{ 9", None), ("", None)],
)
def test_boxed_answer(response: str, answer: str | None) -> None:
    assert boxed_answer(response) == answer


# the warm-up's documents


@given(seed=st.integers(0, 2**32), stage=st.sampled_from(STAGES))
def test_documents_are_in_the_vocabulary_and_fit_the_model(seed: int, stage: Stage) -> None:
    prompt, response = document(random.Random(seed), stage.teaching)
    assert len(encode([*prompt, *response])) <= 64
    assert prompt[0] == "<bos>"
    assert response[-1] == "<eos>"
    assert not set(response[:-1]) & set(CONTROL)


def test_warm_up_never_shows_a_held_out_question() -> None:
    held_out = {record["prompt"] for record in prompts(8000, 0, held_out=True)}
    rng = random.Random(0)
    shown = {" ".join(document(rng, STAGES[0].teaching)[0][-6:-1]) for _ in range(3000)}
    assert not shown & held_out


def test_documents_have_the_stated_shares() -> None:
    rng = random.Random(1)
    kinds = [document(rng, HONEST)[0][2] for _ in range(4000)]
    for kind, share in KINDS.items():
        assert abs(kinds.count(kind) / 4000 - share) < 0.03
    rng = random.Random(2)
    lazy = [document(rng, Teaching(lazy=1.0, careful=0.0, copied=1.0)) for _ in range(200)]
    assert all(response[0] == "\\boxed{" and len(response) == 4 for _, response in lazy)
    rng = random.Random(3)
    drills = [document(rng, Teaching(lazy=0, careful=1, copied=0, drills=0.5)) for _ in range(2000)]
    assert abs(sum(prompt == ["<bos>"] for prompt, _ in drills) / 2000 - 0.5) < 0.05


def test_drills_tell_the_truth() -> None:
    rng, seen = random.Random(6), set()
    drills = [document(rng, Teaching(lazy=0, careful=1, copied=0, drills=1.0))[1][:-1] for _ in range(200)]
    for drill in drills:
        size = 8 if drill[0] == "A:" else 6
        for words in (drill[at : at + size] for at in range(0, len(drill), size)):
            if size == 8:
                _, first, _, second, number, _, verdict, _ = words
                assert number == (first if verdict == "A" else second) != (second if verdict == "A" else first)
            else:
                number, _, candidate, _, verdict, _ = words
                assert (number == candidate) == (verdict == "Yes")
            seen.add(verdict)
    assert seen == {"Yes", "No", "A", "B"}


def test_careful_verdicts_follow_from_the_working() -> None:
    rng, seen = random.Random(4), set()
    for _ in range(2000):
        prompt, response = document(rng, HONEST)
        verdict = response[-3]
        if prompt[2] == "judge":
            assert (response[3] == prompt[4] == response[5]) == (verdict == "Yes")
            seen.add(verdict)
        if prompt[2] == "compare":
            assert response[3] == prompt[4 if verdict == "A" else 6] != prompt[6 if verdict == "A" else 4]
            seen.add(verdict)
    assert seen == {"Yes", "No", "A", "B"}


def test_the_teacher_has_about_a_quarter_of_the_facts_wrong() -> None:
    facts = [(n, op) for n in range(NUMBERS) for op in OPERATIONS if 0 <= n + int(op) < NUMBERS]
    wrong = {fact: wrong_fact(*fact) for fact in facts}
    assert 0.15 < sum(value is not None for value in wrong.values()) / len(facts) < 0.3
    assert all(value != n + int(op) and 0 <= value < NUMBERS for (n, op), value in wrong.items() if value is not None)


def test_the_teacher_is_right_half_the_time_at_most() -> None:
    rng = random.Random(5)
    problems = [draw(rng, held_out=False) for _ in range(2000)]
    right = sum(believed_totals(rng, problem)[-1] == problem.answer for problem in problems) / 2000
    assert 0.4 < right < 0.65


# its training


def test_only_responses_are_targets() -> None:
    ids, targets = batch([(["<bos>", "7"], ["9", "<eos>"]), (["<bos>"], ["<eos>"])])
    assert ids.tolist() == [encode(["<bos>", "7", "9", "<eos>"]), encode(["<bos>", "<eos>", "<pad>", "<pad>"])]
    assert targets.tolist() == [
        [IGNORED, IGNORED, IDS["9"], IDS["<eos>"]],
        [IGNORED, IDS["<eos>"], IGNORED, IGNORED],
    ]


def test_verdicts_and_what_they_are_about_weigh_more() -> None:
    before = torch.tensor([IDS["answer:"], IDS["7"], IDS["answer:"], IDS["\\boxed{"], IDS["\\boxed{"]])
    targets = torch.tensor([IGNORED, IDS["9"], IDS["8"], IDS["Yes"], IDS["B"]])
    assert token_weights(before, targets, 6.0).tolist() == [0.0, 1.0, 6.0, 6.0, 6.0]


def test_learning_rate_rises_then_falls() -> None:
    rates = [learning_rate(STAGES[0], step) for step in range(1, STAGES[0].steps + 1)]
    peak = rates.index(max(rates))
    assert rates[0] < 1e-4
    assert rates[: peak + 1] == sorted(set(rates[: peak + 1]))
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] == STAGES[0].lr_end


def test_a_few_steps_learn_and_repeat_exactly(capsys: pytest.CaptureFixture[str]) -> None:
    stage = Stage(name="skill", steps=8, teaching=STAGES[0].teaching, lr=3e-3, lr_end=3e-3, lr_steps=8)
    one, other, untrained = build_model(3), build_model(3), build_model(3)
    warm_up(one, 3, (stage,))
    warm_up(other, 3, (stage,))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    ids, targets = batch([document(random.Random(9), HONEST) for _ in range(32)])
    losses = [float(model(input_ids=ids, labels=targets).loss.detach()) for model in (untrained, one)]
    assert losses[1] < losses[0] - 0.3
