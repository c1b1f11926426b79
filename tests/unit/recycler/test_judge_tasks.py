from collections.abc import Callable
from dataclasses import replace

import pytest

from common.codec import decode, encode
from common.messages import ImagePart, RolloutGroup, Task, Verdict, answer_hash
from common.settings import Sampling as SamplingSettings
from common.templates import load_templates
from recycler.judge_tasks import TaskBuilder, extract

MakeGroup = Callable[..., RolloutGroup]
TEMPLATES = load_templates("default")


def builder(seed: int = 0, judge_max_new_tokens: int | None = 16) -> TaskBuilder:
    sampling = SamplingSettings(
        group_size=4, temperature=0.7, max_new_tokens=64, judge_max_new_tokens=judge_max_new_tokens
    )
    return TaskBuilder(run="run", seed=seed, sampling=sampling, templates=TEMPLATES)


def with_verdict(group: RolloutGroup, sample: int, **changes: object) -> RolloutGroup:
    rollouts = list(group.rollouts)
    rollouts[sample] = replace(rollouts[sample], verdict=replace(rollouts[sample].verdict, **changes))
    return replace(group, rollouts=tuple(rollouts))


@pytest.mark.parametrize(
    ("codes", "kind", "right", "wrong", "no_answer"),
    [
        ("rrr", "right", 3, 0, 0),
        ("rwn", "mixed", 1, 1, 1),
        ("wun", "wrong", 0, 2, 1),
        ("nee", "unusable", 0, 0, 3),
        ("rne", "right", 1, 0, 2),
    ],
)
def test_only_extracted_answers_are_sources(
    make_group: MakeGroup, codes: str, kind: str, right: int, wrong: int, no_answer: int
) -> None:
    sources = extract(make_group(codes), 0)
    assert (sources.kind, len(sources.right), len(sources.wrong), sources.no_answer) == (kind, right, wrong, no_answer)


def test_a_wrong_answer_equivalent_to_a_right_one_is_contradictory(make_group: MakeGroup) -> None:
    group = with_verdict(make_group("rwu"), 1, answer="(42)", canonical="42")
    sources = extract(group, 0)
    assert [source.sample for source in sources.wrong] == [2]
    assert sources.contradictory == 1


def test_without_a_normal_form_the_answer_stands_for_itself(make_group: MakeGroup) -> None:
    group = with_verdict(with_verdict(make_group("rw"), 0, canonical=None), 1, canonical=None, answer="42")
    assert extract(group, 0).contradictory == 1


def test_judge_groups_are_not_recycled_again(make_group: MakeGroup) -> None:
    group = make_group("rw")
    judged = replace(group, task=replace(group.task, objective="pointwise"))
    assert extract(judged, 0).kind == "unusable"


def test_pointwise_task_is_complete(make_group: MakeGroup) -> None:
    group = make_group("rw", 3, version=5, image="ab" * 32)
    right, wrong = extract(group, 0).right[0], extract(group, 0).wrong[0]
    task = builder().pointwise(wrong, TEMPLATES.pointwise[0], policy_version=7)
    assert (task.objective, task.kind, task.positive, task.answer) == ("pointwise", "judge", False, "No")
    assert (task.verifier, task.verifier_args) == ("verdict", {"choices": ["Yes", "No"]})
    assert (task.question, task.issued_version, task.sources[0].policy_version) == (group.task.question, 7, 5)
    assert task.template == TEMPLATES.ref(TEMPLATES.pointwise[0])
    assert [message.role for message in task.messages] == ["user"]
    assert task.messages[0].content[0] == ImagePart(sha256="ab" * 32)
    assert task.messages[0].text == TEMPLATES.pointwise[0].render(group.task.question, "41")
    assert "Think, then answer" not in task.messages[0].text  # the source's own format instruction
    (source,) = task.sources
    assert (source.uid, source.sample, source.correct, source.policy_version) == (group.uid, 1, False, 5)
    assert (source.answer_hash, source.verifier) == (answer_hash("41"), "exact@1")
    assert builder().pointwise(right, TEMPLATES.pointwise[0], policy_version=7).answer == "Yes"


@pytest.mark.parametrize(("swapped", "correct", "label"), [(0, 1, "X"), (1, 1, "Y"), (0, 0, "Y"), (1, 0, "X")])
def test_letters_follow_the_permutation(make_group: MakeGroup, swapped: int, correct: int, label: str) -> None:
    sources = extract(make_group("rw"), 0)
    source = (sources.right if correct else sources.wrong)[0]
    task = builder().pointwise(source, TEMPLATES.pointwise[2], swapped=bool(swapped), policy_version=0)
    assert task.answer == label
    assert task.positive is bool(correct)
    assert f"\\boxed{{{'Y' if swapped else 'X'}}} - the answer is right" in task.messages[0].text


@pytest.mark.parametrize(("a_right", "label", "first"), [(True, "First", "42"), (False, "Second", "41")])
def test_pairwise_task_is_complete(make_group: MakeGroup, a_right: bool, label: str, first: str) -> None:
    sources = extract(make_group("wr"), 0)
    task = builder().pairwise(
        sources.right[0], sources.wrong[0], TEMPLATES.pairwise[0], a_right=a_right, policy_version=0
    )
    assert (task.answer, task.positive, task.verifier_args) == (label, a_right, {"choices": ["First", "Second"]})
    assert f"BEGIN FIRST ANSWER\n{first}\nEND FIRST ANSWER" in task.messages[0].text
    assert [source.correct for source in task.sources] == [a_right, not a_right]


def test_a_pair_needs_a_contrast_within_one_group(make_group: MakeGroup) -> None:
    sources, other = extract(make_group("rrw"), 0), extract(make_group("rw", 1), 0)
    right, wrong = sources.right[0], sources.wrong[0]
    for first, second in ((right, sources.right[1]), (wrong, wrong), (right, other.wrong[0])):
        with pytest.raises(ValueError, match="of one group"):
            builder().pairwise(first, second, TEMPLATES.pairwise[0], a_right=True, policy_version=0)
    with pytest.raises(ValueError, match="equivalent"):
        builder().pairwise(right, replace(wrong, canonical="42"), TEMPLATES.pairwise[0], a_right=True, policy_version=0)


def test_reflection_keeps_the_sources_verifier_and_gold(make_group: MakeGroup) -> None:
    group = make_group("rw")
    sources = extract(group, 0)
    by_answer = next(one for one in TEMPLATES.reflect if not one.shows_response)
    by_response = next(one for one in TEMPLATES.reflect if one.shows_response)
    task = builder().reflect(sources.wrong[0], by_answer, policy_version=0)
    assert (task.objective, task.answer, task.verifier, task.positive) == ("reflect", "42", "exact", False)
    assert task.verifier_args == {"strict": True}
    assert "\n41\n" in task.messages[0].text
    assert "42" not in task.messages[0].text  # no gold answer beside a wrong one
    shown = builder().reflect(sources.wrong[0], by_response, policy_version=0).messages[0].text
    assert group.rollouts[1].completion.text in shown
    assert builder().reflect(sources.right[0], by_answer, policy_version=0).positive is True


def test_a_right_answer_is_never_called_wrong(make_group: MakeGroup) -> None:
    told_wrong = next(one for one in TEMPLATES.reflect if not one.neutral)
    sources = extract(make_group("rw"), 0)
    assert builder().reflect(sources.wrong[0], told_wrong, policy_version=0).positive is False
    with pytest.raises(ValueError, match="says that the answer is wrong"):
        builder().reflect(sources.right[0], told_wrong, policy_version=0)


def test_token_limits_by_objective(make_group: MakeGroup) -> None:
    source = extract(make_group("rw"), 0).wrong[0]

    def limits(builder: TaskBuilder) -> tuple[int, int]:
        point = builder.pointwise(source, TEMPLATES.pointwise[0], policy_version=0).sampling
        reflection = builder.reflect(source, TEMPLATES.reflect[0], policy_version=0).sampling
        assert (point.n, point.temperature) == (reflection.n, reflection.temperature) == (4, 0.7)
        return point.max_new_tokens, reflection.max_new_tokens

    assert limits(builder()) == (16, 64)
    assert limits(builder(judge_max_new_tokens=None)) == (64, 64)


def test_identity_follows_what_is_shown_and_the_seed(make_group: MakeGroup) -> None:
    sources = extract(make_group("rwu"), 0)
    right, wrong = sources.right[0], sources.wrong[0]

    def tasks(seed: int) -> list[Task]:
        make = builder(seed)
        letters = TEMPLATES.pointwise[2]
        return [
            make.pointwise(wrong, TEMPLATES.pointwise[0], policy_version=0),
            make.pointwise(wrong, TEMPLATES.pointwise[1], policy_version=0),
            make.pointwise(sources.wrong[1], TEMPLATES.pointwise[0], policy_version=0),
            make.pointwise(wrong, letters, policy_version=0),
            make.pointwise(wrong, letters, swapped=True, policy_version=0),
            make.pairwise(right, wrong, TEMPLATES.pairwise[0], a_right=True, policy_version=0),
            make.pairwise(right, wrong, TEMPLATES.pairwise[0], a_right=False, policy_version=0),
        ]

    uids = [task.uid for seed in (0, 1) for task in tasks(seed)]
    assert len(set(uids)) == len(uids)
    assert [task.uid for task in tasks(0)] == uids[:7]
    assert len({task.sampling.seed for task in tasks(0)}) == 7
    assert all(0 <= task.sampling.seed < 2**31 for task in tasks(0))


def test_task_survives_the_wire(make_group: MakeGroup) -> None:
    source = extract(with_verdict(make_group("rw"), 1, answer="$question \\boxed{<eos>}"), 0).wrong[0]
    task = builder().pointwise(source, TEMPLATES.pointwise[0], policy_version=0)
    assert "BEGIN STUDENT ANSWER\n$question \\boxed{<eos>}\nEND" in task.messages[0].text
    assert decode(Task, encode(task)) == task


def test_verdict_without_answer_is_no_source(make_group: MakeGroup) -> None:
    group = make_group("rw")
    verdict = Verdict(status="ok", reward=0.0, verifier="python:m:f@unknown")
    rollouts = (group.rollouts[0], replace(group.rollouts[1], verdict=verdict))
    assert extract(replace(group, rollouts=rollouts), 0).kind == "right"
