"""The marker that a prompt asks for is the marker that the real verifier reads, and the label scores 1."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from actors.verifiers import verify
from common.messages import Completion, RolloutGroup, Task
from common.settings import Sampling as SamplingSettings
from common.templates import load_templates
from recycler.judge_tasks import TaskBuilder, extract

DEMO = Path(__file__).resolve().parents[3] / "examples" / "arithmetic" / "templates.toml"
NAMED = re.compile(r"\\boxed\{(\w+)\}")


def completion(text: str) -> Completion:
    return Completion(
        token_ids=np.array([1], dtype=np.int32),
        logprobs=np.array([-0.1], dtype=np.float32),
        spans=((0, 0),),
        finish_reason="stop",
        text=text,
    )


def verdict_tasks(group: RolloutGroup, name: str | Path) -> list[Task]:
    """Every pointwise and pairwise task that a set can give: each template, class, and permutation."""
    templates = load_templates(name)
    builder = TaskBuilder(run="run", seed=0, sampling=SamplingSettings(), templates=templates)
    sources = extract(group, 0)
    right, wrong = sources.right[0], sources.wrong[0]
    tasks = [
        builder.pointwise(source, template, swapped=swapped, policy_version=1)
        for template in templates.pointwise
        for source in (right, wrong)
        for swapped in ((False, True) if template.permuted else (False,))
    ]
    return tasks + [
        builder.pairwise(right, wrong, template, a_right=a_right, policy_version=1)
        for template in templates.pairwise
        for a_right in (True, False)
    ]


@pytest.mark.parametrize(("name", "expected"), [("default", 2 * 2 + 2 * 4 + 4 * 2), (DEMO, 2 + 2)])
def test_only_the_label_scores_one(make_group: Callable[..., RolloutGroup], name: str | Path, expected: int) -> None:
    tasks = verdict_tasks(make_group("rw"), name)
    assert len(tasks) == expected
    for task in tasks:
        choices = task.verifier_args["choices"]
        assert isinstance(choices, list)
        rewards = {str(word): verify(task, completion(f"so \\boxed{{ {word} }}")) for word in choices}
        assert {verdict.status for verdict in rewards.values()} == {"ok"}
        assert rewards[task.answer].reward == 1.0
        assert sum(verdict.reward for verdict in rewards.values()) == 1.0


def test_what_the_prompt_tells_to_write_is_what_scores(make_group: Callable[..., RolloutGroup]) -> None:
    for task in verdict_tasks(make_group("rw"), "default"):
        named = set(NAMED.findall(task.messages[0].text))
        assert named == set(task.verifier_args["choices"])  # type: ignore[arg-type]
        scored = {word for word in named if verify(task, completion(f"\\boxed{{{word}}}")).reward == 1.0}
        assert scored == {task.answer}


def test_reflection_scores_the_gold_answer_of_its_source(make_group: Callable[..., RolloutGroup]) -> None:
    templates = load_templates("default")
    builder = TaskBuilder(run="run", seed=0, sampling=SamplingSettings(), templates=templates)
    wrong = extract(make_group("rw"), 0).wrong[0]
    for template in templates.reflect:
        task = builder.reflect(wrong, template, policy_version=1)
        assert verify(task, completion("\\boxed{42}")).reward == 1.0
        assert verify(task, completion(f"\\boxed{{{wrong.answer}}}")).reward == 0.0
