import sys
from pathlib import Path

import numpy as np
import pytest

from actors.verifiers import BUILT_IN, check_scorable, resolve, verdict_of, verify
from actors.verifiers.base import Args
from common.errors import SettingsError
from common.messages import Completion, Sampling, Task

FUNCTIONS = """
def share(completion, answer, scale=1.0):
    return scale * (answer in completion)

def flag(completion, answer):
    return answer in completion

def silent(completion, answer):
    return None

def broken(completion, answer):
    raise KeyError("secret")

def too_much(completion, answer):
    return 1.5

def not_a_number(completion, answer):
    return float("nan")

def words(completion, answer):
    return "good"
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"user_verifiers_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    return name


@pytest.mark.parametrize(("wrong", "near"), [("exakt", "exact"), ("maths", "math"), ("reasoning_gym", "reasoning-gym")])
def test_unknown_verifier_names_the_nearest(wrong: str, near: str) -> None:
    with pytest.raises(SettingsError, match=f"'{wrong}' is unknown; did you mean {near}"):
        resolve(wrong)
    assert near in (check_scorable("9", wrong, {}) or "")
    verdict = verdict_of(wrong, "\\boxed{9}", "9", {})
    assert (verdict.status, verdict.reward) == ("error", 0.0)


def test_verdicts_carry_name_and_version() -> None:
    for name, verifier in BUILT_IN.items():
        assert verdict_of(name, "", "9", {}).verifier == f"{name}@{verifier.version}"


def test_verify_a_task() -> None:
    task = Task(
        uid="u",
        objective="solve",
        messages=(),
        question="4+5",
        answer="9",
        verifier="exact",
        sampling=Sampling(n=2, max_new_tokens=8),
    )
    completion = Completion(
        token_ids=np.array([1], np.int32),
        logprobs=np.array([-1.0], np.float32),
        spans=((0, 0),),
        finish_reason="stop",
        text="15 9 11 9 \\boxed{ 9 }",
    )
    verdict = verify(task, completion)
    assert verdict.correct
    assert verdict.answer == "9"


def test_user_function(module: str) -> None:
    verdict = verdict_of(f"python:{module}:share", "it is 9, \\boxed{nine}", "9", {"scale": 0.25})
    assert (verdict.status, verdict.reward, verdict.answer) == ("ok", 0.25, "nine")
    assert not verdict.correct
    name, _, version = verdict.verifier.partition("@")
    assert name == f"python:{module}:share"
    assert len(version) == 8
    assert verdict_of(f"python:{module}:flag", "9", "9", {}).reward == 1.0
    assert verdict_of(f"python:{module}:silent", "9", "9", {}).status == "no_answer"


@pytest.mark.parametrize(
    ("function", "detail"),
    [
        ("broken", "KeyError: 'secret'"),
        ("too_much", "1.5"),
        ("not_a_number", "nan"),
        ("words", "'good'"),
        ("shar", "share"),
    ],
)
def test_failing_user_function_is_an_error(module: str, function: str, detail: str) -> None:
    verdict = verdict_of(f"python:{module}:{function}", "9", "9", {})
    assert (verdict.status, verdict.reward) == ("error", 0.0)
    assert detail in verdict.detail


def test_user_function_is_checked_before_the_run(module: str) -> None:
    assert check_scorable("9", f"python:{module}:share", {"scale": 2}) is None
    assert "unexpected" in (check_scorable("9", f"python:{module}:share", {"scal": 2}) or "")
    assert "MODULE" in (check_scorable("9", "python:only_module", {}) or "")
    assert "does not say what it takes; wrap it" in (check_scorable("9", "python:builtins:max", {}) or "")
    assert "python_path" in (check_scorable("9", "python:no_such_module_here:f", {}) or "")


def test_reasoning_gym_scores_with_its_data_set() -> None:
    args: Args = {"task": "basic_arithmetic", "entry": {"question": "5 - 3 - 6", "metadata": {}}}
    assert check_scorable("-4", "reasoning-gym", args) is None
    right = verdict_of("reasoning-gym", "\\boxed{-4}", "-4", args)
    wrong = verdict_of("reasoning-gym", "\\boxed{17}", "-4", args)
    assert (right.status, right.reward, right.answer) == ("ok", 1.0, "-4")
    assert (wrong.status, wrong.correct) == ("ok", False)
    assert verdict_of("reasoning-gym", "-4", "-4", args).status == "no_answer"
    assert "no_such" in (check_scorable("9", "reasoning-gym", {"task": "no_such"}) or "")
    assert "entry" in (check_scorable("9", "reasoning-gym", {"task": "basic_arithmetic", "entry": 3}) or "")


def test_missing_reasoning_gym_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(SettingsError, match=r"pip install -e '\.\[reasoning-gym\]'"):
        resolve("reasoning-gym").warm_up()
    assert "pip install" in (check_scorable("9", "reasoning-gym", {"task": "basic_arithmetic"}) or "")
