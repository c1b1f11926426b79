"""The stages of an evaluation against an engine that answers from a script."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from actors.engine import Generated, Request
from actors.verifiers.pool import InlineVerifier, PendingVerdicts
from cli.evaluation.answer_pool import Item, Shown, collect, contrast, read_pool, sources_of, write_pool
from cli.evaluation.asking import Asking, draw, open_asking, open_held_out, outcome_of
from cli.evaluation.judging import measure_pairwise, measure_pointwise
from cli.evaluation.reflection import measure_reflection
from cli.evaluation.run import measure
from cli.evaluation.sampler import Sampler, batches, cost_of
from cli.evaluation.scaling import Scaling, scale
from common.errors import SettingsError, SparkError, TaskError
from common.messages import ChatMessage, Completion, RolloutGroup, Sampling, Task, Verdict
from common.settings import Eval, Settings
from common.settings import Sampling as SamplingSettings
from common.templates import PairwiseTemplate, PointwiseTemplate, ReflectTemplate, SolveTemplate, TemplateSet
from learner.prompts import Prompt

TEMPLATES = TemplateSet(
    name="scripted",
    solve=SolveTemplate(id="solve", text="solve $question"),
    pointwise=(PointwiseTemplate(id="judge", family="w", verdicts=("Yes", "No"), text="judge $answer of $question"),),
    pairwise=(PairwiseTemplate(id="pair", family="p", text="pair A: $answer_a B: $answer_b of $question"),),
    reflect=(
        ReflectTemplate(id="ra", family="a", text="reflect on $answer of $question"),
        ReflectTemplate(id="rr", family="r", text="reflect through <$response> of $question"),
        ReflectTemplate(id="rw", family="x", text="you were wrong with $answer of $question", neutral=False),
    ),
)
LETTERS = replace(
    TEMPLATES,
    pointwise=(
        PointwiseTemplate(
            id="l1", family="l", verdicts=("X", "Y"), text="judge $positive $negative $answer of $question"
        ),
        PointwiseTemplate(
            id="l2", family="l", verdicts=("X", "Y"), text="judge, $negative $positive $answer of $question"
        ),
    ),
)
ASKING = Asking(templates=TEMPLATES, sampling=SamplingSettings(max_new_tokens=8, max_prompt_tokens=60), seed=5)
GOLD = "42"
Script = Callable[[str, int], str]
"""(prompt, sample) -> the boxed content; empty: no box at all; "boom": the verifier fails."""


def prompt(index: int = 0) -> Prompt:
    question = f"q{index}"
    return Prompt(index=index, question=question, messages=(ChatMessage.user(question),), answer=GOLD, verifier="exact")


def completion(text: str, tokens: int = 3) -> Completion:
    return Completion(
        token_ids=np.ones(tokens, dtype=np.int32),
        logprobs=np.full(tokens, -1.0, dtype=np.float32),
        spans=((0, 0),),
        finish_reason="stop",
        text=text,
    )


class ScriptedEngine:
    """Every completion has three tokens. ``seen`` keeps (prompt, sampling) in the order of generation."""

    policy_version = 0

    def __init__(self, script: Script) -> None:
        self.seen: list[tuple[str, Sampling]] = []
        self._script = script
        self._waiting: list[Request] = []

    @property
    def groups_in_flight(self) -> int:
        return len(self._waiting)

    def tokenize(self, messages: Sequence[ChatMessage]) -> NDArray[np.int32]:
        return np.array([ord(character) for character in messages[-1].text], dtype=np.int32)

    def add(self, request: Request) -> None:
        if len(request.prompt_token_ids) > 60:
            raise TaskError("prompt too long")
        self._waiting.append(request)

    def step(self) -> list[Generated]:
        return [self._generated(self._waiting.pop())]

    def apply(self, files: Sequence[Path], policy_version: int) -> None:
        raise NotImplementedError

    def _generated(self, request: Request) -> Generated:
        text = "".join(map(chr, request.prompt_token_ids.tolist()))
        self.seen.append((text, request.sampling))
        said = [self._script(text, sample) for sample in range(request.sampling.n)]
        texts = [f"so \\boxed{{{word}}}" if word else "I do not know" for word in said]
        return Generated(request=request, completions=tuple(map(completion, texts)))


class FragileVerifier(InlineVerifier):
    """Fails on "boom" as a verifier that hangs does."""

    def submit(self, task: Task, completions: Sequence[Completion]) -> PendingVerdicts:
        if any("boom" in completion.text for completion in completions):
            return Failed()
        return super().submit(task, completions)


class Failed:
    def done(self) -> bool:
        return True

    def verdicts(self) -> tuple[Verdict, ...]:
        return (Verdict(status="timeout", reward=0.0, verifier="exact@1", detail="killed"),)


def scripted(script: Script | dict[str, str]) -> tuple[Sampler, ScriptedEngine]:
    engine = ScriptedEngine((lambda text, _: script[text]) if isinstance(script, dict) else script)
    return Sampler(engine, FragileVerifier(), tokens_per_batch=500), engine


def asked(engine: ScriptedEngine) -> list[str]:
    return [text for text, _ in engine.seen]


# sampling


def test_groups_come_back_in_the_order_of_tasks() -> None:
    sampler, engine = scripted(lambda text, _: text.split()[-1])
    tasks = [ASKING.solve(prompt(10 ** (i % 3)), "x") for i in range(9)]
    groups = sampler(tasks, "x")
    assert [group.rollouts[0].verdict.answer for group in groups if group] == [task.question for task in tasks]
    assert asked(engine) != [f"solve {task.question}" for task in tasks]  # they are generated in another order
    assert sampler.cost == cost_of(groups)
    assert (sampler.cost.completions, sampler.cost.sampled_tokens) == (9, 27)


def test_a_refused_prompt_is_a_wrong_answer_and_counted() -> None:
    sampler, _ = scripted(lambda *_: GOLD)
    long = replace(prompt(1), question="q" * 80, messages=(ChatMessage.user("q" * 80),))
    groups = sampler([ASKING.solve(p, "x") for p in (prompt(0), long)], "x")
    assert [outcome_of(group) for group in groups] == [True, False]
    assert groups[1] is None
    assert sampler.cost.refused == 1
    with pytest.raises(SparkError, match=r"policy: the engine refuses all 1 prompts.*too long"):
        sampler([ASKING.solve(long, "x")], "policy")


def test_a_failed_verifier_is_neither_right_nor_wrong() -> None:
    sampler, _ = scripted({"solve q0": "boom", "solve q1": "7"})
    groups = sampler([ASKING.solve(prompt(i), "x") for i in range(2)], "x")
    assert [outcome_of(group) for group in groups] == [None, False]
    assert sampler.cost.verifier_failures == 1


@given(
    shapes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 8), st.integers(1, 20)), max_size=30),
    limit=st.integers(1, 600),
)
def test_batches_keep_every_request_within_the_limit(shapes: list[tuple[int, int, int]], limit: int) -> None:
    requests = [
        Request(
            key=str(i), prompt_token_ids=np.ones(length, dtype=np.int32), sampling=Sampling(n=n, max_new_tokens=new)
        )
        for i, (length, n, new) in enumerate(shapes)
    ]
    made = list(batches(requests, limit))
    assert sorted(r.key for batch in made for r in batch) == sorted(r.key for r in requests)
    for batch in made:
        longest = max(len(r.prompt_token_ids) for r in batch)
        cost = sum(r.sampling.n for r in batch) * (longest + max(r.sampling.max_new_tokens for r in batch))
        assert cost <= limit or len(batch) == 1


# judging


def item(index: int) -> Item:
    return Item(
        prompt=prompt(index),
        right=Shown(answer="42", canonical="42", response="so \\boxed{42}", verifier="exact@1"),
        wrong=Shown(answer="41", canonical="41", response="so \\boxed{41}", verifier="exact@1"),
    )


def pairs(count: int, asking: Asking = ASKING) -> list:  # type: ignore[type-arg]
    return [sources_of(item(index), asking) for index in range(count)]


def test_pointwise_counts_unreadable_verdicts_as_wrong_in_both_classes() -> None:
    sampler, _ = scripted(
        {
            "judge 42 of q0": "Yes",
            "judge 41 of q0": "No",
            "judge 42 of q1": "",
            "judge 41 of q1": "maybe",
            "judge 42 of q2": "No",
            "judge 41 of q2": "No",
            "judge 42 of q3": "Yes",
            "judge 41 of q3": "Yes",
        }
    )
    figures = measure_pointwise(sampler, ASKING, pairs(4))
    assert (figures["tpr"].value, figures["tnr"].value, figures["pointwise"].value) == (0.5, 0.5, 0.5)
    assert figures["unparsed"].value == 0.25
    assert (figures["tpr"].n, figures["pointwise"].n) == (4, 8)


def test_letters_are_exchanged_in_equal_shares_and_templates_take_turns() -> None:
    asking = replace(ASKING, templates=LETTERS)
    sampler, engine = scripted(lambda text, _: "X")
    figures = measure_pointwise(sampler, asking, pairs(8, asking))
    openings = Counter(text.split("4")[0] for text in asked(engine))
    assert openings == {"judge X Y ": 4, "judge Y X ": 4, "judge, Y X ": 4, "judge, X Y ": 4}
    assert figures["tpr"].value == figures["tnr"].value == 0.5  # a letter alone tells nothing


def test_every_pair_is_asked_in_both_orders() -> None:
    sampler, engine = scripted(lambda *_: "A")
    figures = measure_pairwise(sampler, ASKING, pairs(3))
    expected = [f"pair A: {a} B: {b} of q{i}" for i in range(3) for a, b in ((42, 41), (41, 42))]
    assert sorted(asked(engine)) == sorted(expected)
    assert figures["pairwise"].value == 0.5
    assert figures["position_bias"].value == 0.5


def test_a_judge_of_answers_is_right_in_both_orders() -> None:
    sampler, _ = scripted(lambda text, _: "A" if "A: 42" in text else "B")
    figures = measure_pairwise(sampler, ASKING, pairs(3))
    assert figures["pairwise"].value == figures["swap_consistency"].value == 1.0


# reflection


def test_fix_and_break_are_averaged_over_forms_and_only_neutral_templates_ask() -> None:
    def script(text: str, _: int) -> str:
        if text.startswith("solve"):
            return GOLD if text == "solve q0" else "7"
        if text.startswith("reflect on"):
            return GOLD  # by the answer: everything ends right
        return "41" if "41" in text else "no idea"  # by the response: wrong ones are copied, right ones are lost

    sampler, engine = scripted(script)
    figures = measure_reflection(sampler, ASKING, pairs(4), [prompt(i) for i in range(4)])
    values = {name: figure.value for name, figure in figures.items()}
    assert values == {
        "resolve": 0.25,
        "fix_answer": 1.0,
        "break_answer": 0.0,
        "fix_response": 0.0,
        "break_response": 1.0,
        "fix": 0.5,
        "break": 0.5,
    }
    assert figures["fix"].n == 8
    assert not any("you were wrong" in text for text in asked(engine))


# test-time scaling


def run_scaling(script: Script | dict[str, str], count: int = 1, rounds: int = 2) -> tuple[Scaling, ScriptedEngine]:
    sampler, engine = scripted(script)
    prompts = [prompt(i) for i in range(count)]
    first = sampler([ASKING.solve(p, "policy") for p in prompts], "policy")
    return scale(sampler, ASKING, prompts, first, rounds), engine


def test_an_accepted_answer_is_settled() -> None:
    scaling, engine = run_scaling({"solve q0": "41", "judge 41 of q0": "Yes"})
    assert scaling.rounds == ((False,), (False,), (False,))
    assert asked(engine) == ["solve q0", "judge 41 of q0"]
    assert scaling.cost.sampled_tokens == 6


@pytest.mark.parametrize("said", ["", "perhaps"])
def test_an_unreadable_verdict_keeps_the_answer(said: str) -> None:
    scaling, engine = run_scaling({"solve q0": GOLD, "judge 42 of q0": said})
    assert scaling.rounds == ((True,), (True,), (True,))
    assert asked(engine) == ["solve q0", "judge 42 of q0"]


def test_a_rejected_answer_is_reflected_on_and_judged_again() -> None:
    def script(text: str, _: int) -> str:
        if text.startswith("judge"):
            return "Yes" if "42" in text else "No"
        return "41" if text == "solve q0" else GOLD

    scaling, engine = run_scaling(script, rounds=3)
    assert scaling.rounds == ((False,), (True,), (True,), (True,))
    assert asked(engine) == ["solve q0", "judge 41 of q0", "reflect on 41 of q0", "judge 42 of q0"]
    assert (scaling.fixed, scaling.broken) == (1, 0)
    assert scaling.cost.completions == 4


def test_verdicts_are_greedy_and_answers_are_sampled() -> None:
    _, engine = run_scaling(lambda text, _: "No" if text.startswith("judge") else "41")
    temperatures = {text.split()[0]: sampling.temperature for text, sampling in engine.seen}
    assert temperatures == {"solve": 1.0, "judge": 0.0, "reflect": 1.0}


def test_a_missing_answer_is_solved_again_not_judged() -> None:
    said = iter(["", "", GOLD])
    scaling, engine = run_scaling(lambda *_: next(said))
    assert asked(engine) == ["solve q0"] * 3
    assert scaling.rounds == ((False,), (False,), (True,))
    assert scaling.fixed == 1
    seeds = {sampling.seed for _, sampling in engine.seen}
    assert len(seeds) == 3  # the same seed would give the same silence


def test_a_reflection_without_an_answer_replaces_nothing() -> None:
    scaling, engine = run_scaling(lambda text, _: {"s": GOLD, "j": "No", "r": ""}[text[0]])
    assert scaling.rounds == ((True,), (True,), (True,))
    assert [text.split()[0] for text in asked(engine)] == ["solve", "judge", "reflect", "judge", "reflect"]
    assert len({sampling.seed for text, sampling in engine.seen if text.startswith("reflect")}) == 2


def test_fixed_and_broken_are_counted_by_round() -> None:
    def script(text: str, _: int) -> str:
        if text.startswith("judge"):
            return "No"
        if text.startswith("solve"):
            return GOLD if text == "solve q0" else "41"
        return "41" if "42" in text else GOLD  # every reflection changes sides

    scaling, _ = run_scaling(script, count=2)
    assert scaling.rounds == ((True, False), (False, True), (True, False))
    assert (scaling.fixed, scaling.broken) == (2, 2)


def test_a_failed_verifier_leaves_the_prompt_out_of_every_round() -> None:
    def script(text: str, _: int) -> str:
        if text.startswith("judge"):
            return "No"
        return "boom" if text.startswith("reflect") and "q1" in text else "41"

    scaling, engine = run_scaling(script, count=2)
    assert scaling.rounds == ((False, None), (False, None), (False, None))
    assert sum("q1" in text for text in asked(engine)) == 3  # nothing more is spent on it
    assert scaling.fixed == scaling.broken == 0


def test_without_rounds_the_first_answer_stands() -> None:
    scaling, engine = run_scaling({"solve q0": GOLD}, rounds=0)
    assert scaling.rounds == ((True,),)
    assert len(engine.seen) == 1


@given(data=st.data())
def test_a_perfect_judge_never_breaks_an_answer(data: st.DataObject) -> None:
    said = st.sampled_from(["42", "41", "7", ""])

    def script(text: str, _: int) -> str:
        if text.startswith("judge"):
            return "Yes" if text.startswith("judge 42") else "No"
        return data.draw(said)

    scaling, engine = run_scaling(script, count=3, rounds=3)
    assert scaling.broken == 0
    assert [sum(map(bool, outcomes)) for outcomes in scaling.rounds] == sorted(
        sum(map(bool, outcomes)) for outcomes in scaling.rounds
    )
    assert sum(map(bool, scaling.rounds[-1])) == sum(map(bool, scaling.rounds[0])) + scaling.fixed
    assert scaling.cost.sampled_tokens == 3 * len(engine.seen)


# the answer pool


def solved(codes: dict[int, list[str]]) -> Script:
    return lambda text, sample: codes[int(text.removeprefix("solve q"))][sample]


def group_of(answers: list[str]) -> RolloutGroup:
    sampler, _ = scripted(solved({0: answers}))
    (group,) = sampler([ASKING.solve(prompt(), "pool", n=len(answers))], "pool")
    assert group is not None
    return group


def test_only_prompts_with_a_right_and_a_wrong_answer_are_used() -> None:
    codes = {0: ["42", "42"], 1: ["41", "7"], 2: ["", "42"], 3: ["42", "41"], 4: ["", ""], 5: ["7", "42"]}
    sampler, _ = scripted(solved(codes))
    pool = collect(sampler, ASKING, map(prompt, range(6)), size=9, samples=2, model="m")
    assert [(i.prompt.index, i.right.answer, i.wrong.answer) for i in pool.items] == [(3, "42", "41"), (5, "42", "7")]
    assert pool.items[1].wrong.response == "so \\boxed{7}"
    assert pool.header.tried == 6


def test_collecting_stops_at_the_wanted_size() -> None:
    sampler, _ = scripted(lambda _, sample: ["42", "41"][sample])
    pool = collect(sampler, ASKING, map(prompt, range(1000)), size=3, samples=2, model="m")
    assert len(pool.items) == pool.header.tried == 3
    assert sampler.cost.completions < 2000


def test_a_pool_without_items_is_an_error_that_says_why() -> None:
    sampler, _ = scripted(lambda *_: "42")
    with pytest.raises(SettingsError, match=r"m: none of 4 held-out prompts.*in 2 samples"):
        collect(sampler, ASKING, map(prompt, range(4)), size=3, samples=2, model="m")


def test_the_shown_answers_are_drawn_from_all_samples() -> None:
    group = group_of(["42", "1", "2", "3", "4"])
    wrong = {found.wrong.answer for seed in range(40) if (found := contrast(prompt(), group, seed))}
    assert wrong == {"1", "2", "3", "4"}
    assert contrast(prompt(), group, 0) == contrast(prompt(), group, 0)


def test_a_pool_survives_its_file_and_is_frozen(tmp_path: Path) -> None:
    sampler, _ = scripted(lambda _, sample: ["42", "line\u2028one\r"][sample])
    pool = collect(sampler, ASKING, map(prompt, range(3)), size=3, samples=2, model="m")
    path = tmp_path / "new" / "pool.jsonl"
    write_pool(pool, path)
    assert read_pool(path) == pool
    assert [file.name for file in path.parent.iterdir()] == ["pool.jsonl"]
    with pytest.raises(SettingsError, match="is frozen"):
        write_pool(pool, path)


def test_a_broken_pool_file_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "pool.jsonl"
    with pytest.raises(SettingsError, match=r"pool\.jsonl cannot be read: No such file"):
        read_pool(path)
    sampler, _ = scripted(lambda _, sample: ["42", "41"][sample])
    write_pool(collect(sampler, ASKING, map(prompt, range(2)), size=2, samples=2, model="m"), path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], lines[2][:-9]]))
    with pytest.raises(SettingsError, match="line 3"):
        read_pool(path)
    path.write_text(lines[0])
    with pytest.raises(SettingsError, match="holds no answers"):
        read_pool(path)


# prompts and templates


def settings_of(tmp_path: Path, **evaluation: object) -> Settings:
    lines = [f'{{"prompt": "q{i}", "answer": "42", "verifier": "exact"}}' for i in range(5)]
    path = tmp_path / "held_out.jsonl"
    path.write_text("\n".join(lines))
    return Settings(eval=Eval.model_validate({"prompts": str(path)} | evaluation))


def test_prompts_are_drawn_by_the_seed_without_repeats_until_they_run_out(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    drawn = [[p.question for p in draw(open_held_out(settings, seed), 5)] for seed in range(5)]
    assert all(sorted(questions) == [f"q{i}" for i in range(5)] for questions in drawn)
    assert len({tuple(questions) for questions in drawn}) > 1
    twice = list(draw(open_held_out(settings, 0), 10))
    assert len({p.question for p in twice}) == 5
    assert len({ASKING.solve(p, "x").sampling.seed for p in twice}) == 10


def test_without_held_out_prompts_or_templates_it_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"eval\.prompts is empty"):
        open_held_out(Settings(), 0)
    told_only = replace(TEMPLATES, reflect=TEMPLATES.reflect[2:])
    with pytest.raises(SettingsError, match="no neutral reflect template"):
        open_asking(Settings(), told_only, 0)
    with pytest.raises(SettingsError, match="no pairwise template"):
        open_asking(Settings(), replace(TEMPLATES, pairwise=()), 0)


# everything together


def test_a_model_that_is_always_right() -> None:
    def script(text: str, _: int) -> str:
        match text.split()[0]:
            case "judge":
                return "Yes" if text.startswith("judge 42") else "No"
            case "pair":
                return "A" if "A: 42" in text else "B"
        return GOLD

    sampler, engine = scripted(script)
    pool_sampler, _ = scripted(lambda _, sample: ["42", "41"][sample])
    pool = collect(pool_sampler, ASKING, map(prompt, range(9)), size=9, samples=2, model="base")
    result = measure(sampler, ASKING, [prompt(i) for i in range(4)], pool, rounds=2, votes=3, model="m")
    summary = result.summary()
    ones = ("policy", "greedy", "pointwise", "tpr", "tnr", "pairwise", "swap_consistency", "fix", "resolve", "tts")
    assert all(summary[name] == 1.0 for name in (*ones, "majority", "majority_equal"))
    assert all(summary[name] == 0.0 for name in ("break", "tts_fixed", "tts_broken", "tts_gain", "unparsed"))
    assert summary["pool_items"] == summary["draws"] == 4
    # an answer and its verdict: two votes cost as much
    assert (summary["tts_tokens"], summary["majority_equal_votes"], summary["majority_equal_tokens"]) == (6, 2, 6)
    assert (summary["majority_votes"], summary["majority_tokens"]) == (3, 9)
    assert summary["completions"] == sum(sampling.n for _, sampling in engine.seen)
    assert summary["tokens"] == 3 * summary["completions"]
    assert result.pool == pool.digest
    assert all(low <= result.figures[name].value <= high for name, (low, high) in result.intervals().items())
