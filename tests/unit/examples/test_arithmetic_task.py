"""The demo's problems and its run file."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path

import arithmetic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.settings_sources import load_settings
from learner.prompts import open_prompts

SEEDS = st.integers(0, 2**32)


@given(seed=SEEDS, held_out=st.booleans())
def test_answers_are_right_and_totals_stay_in_range(seed: int, held_out: bool) -> None:
    for record in arithmetic.prompts(5, seed, held_out):
        start, *operations = record["prompt"].split()
        assert len(operations) == 4
        totals = [int(start)]
        for operation in operations:
            sign, operand = operation[0], int(operation[1:])
            assert sign in "+-"
            assert 1 <= operand <= 9
            totals.append(totals[-1] + operand if sign == "+" else totals[-1] - operand)
        assert all(0 <= total <= 19 for total in totals)
        assert record["answer"] == str(totals[-1])


def test_running_totals_of_one_problem() -> None:
    problem = arithmetic.Problem(7, ("+8", "-6", "+2", "-2"))
    assert problem.question == "7 +8 -6 +2 -2"
    assert problem.totals == (15, 9, 11, 9)
    assert problem.answer == 9


@given(seed=SEEDS, held_out=st.booleans())
def test_a_question_is_bare(seed: int, held_out: bool) -> None:
    for record in arithmetic.prompts(5, seed, held_out):
        assert re.fullmatch(r"\d+( [+-][1-9]){4}", record["prompt"])
        assert set(record) == {"prompt", "answer", "verifier"}
        assert record["verifier"] == "exact"


@given(seed=SEEDS, held_out=st.booleans(), size=st.integers(1, 50))
def test_questions_are_unique_and_depend_on_the_arguments_alone(seed: int, held_out: bool, size: int) -> None:
    records = arithmetic.prompts(size, seed, held_out)
    assert len({record["prompt"] for record in records}) == size
    assert records == arithmetic.prompts(size, seed, held_out)
    assert records[: size // 2] == arithmetic.prompts(size // 2, seed, held_out) if size > 1 else True


def test_splits_are_disjoint_and_of_the_stated_share() -> None:
    train = {record["prompt"] for record in arithmetic.prompts(8192, 0)}
    held_out = {record["prompt"] for record in arithmetic.prompts(4096, 0, held_out=True)}
    assert not train & held_out
    rng = random.Random(0)
    drawn = [arithmetic._any_problem(rng).question for _ in range(8000)]
    assert 0.11 < sum(map(arithmetic.is_held_out, drawn)) / len(drawn) < 0.14


def test_the_split_never_changes() -> None:
    # the shipped base was warmed up on this split: another hash would leak held-out questions into training
    assert arithmetic.stable_hash("") == 2166136261 >> 3
    assert arithmetic.stable_hash("7 +8 -6 +2 -2") == 171310264
    first = [record["prompt"] for record in arithmetic.prompts(3, 0, held_out=True)]
    code = "import arithmetic; print(*(r['prompt'] for r in arithmetic.prompts(3, 0, True)), sep='\\n')"
    folder = Path(arithmetic.__file__).parent
    other = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout.splitlines() == first


@pytest.mark.parametrize("size", [0, -1, 20_001])
def test_impossible_sizes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"size={size}"):
        arithmetic.prompts(size, 0)


def test_run_file_opens_disjoint_prompts(demo: Path) -> None:
    settings = load_settings(demo / "run.toml")
    train = open_prompts(settings.prompts, settings.run.python_path, settings.run.seed)
    evaluation = settings.prompts.model_copy(update={"source": settings.eval.prompts, "args": settings.eval.args})
    held_out = open_prompts(evaluation, settings.run.python_path, settings.eval_seed)
    assert len(held_out) >= settings.eval.draws
    assert len(train) >= 2 * settings.learner.max_steps * settings.learner.groups_per_step
    assert not {prompt.question for prompt in train} & {prompt.question for prompt in held_out}
    assert {prompt.verifier for prompt in train} == {"exact"}
    assert settings.run.name == "demo"
    assert Path(settings.model.path) == demo / "base"


def test_limits_of_the_run_file_fit_the_model(demo: Path) -> None:
    sampling = load_settings(demo / "run.toml").sampling
    control, labels, question = 3, 3, 5  # bos, user, assistant; reflect, reasoning:, question:
    longest_prompt = control + labels + question + sampling.max_new_tokens
    assert longest_prompt + sampling.max_new_tokens <= 64
    worked, verdict, boxed = 4, 2, 4
    assert worked + boxed <= sampling.max_new_tokens
    assert worked + verdict + boxed <= (sampling.judge_max_new_tokens or 0)
