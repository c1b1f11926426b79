"""The judge panel of planted judges, and its alarms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from common.messages import RolloutGroup, SourceRef, Verdict, VerdictStatus, answer_hash
from common.settings import Metrics
from learner.group_stats import GroupStats
from learner.judge_alarms import JudgeAlarms
from learner.judge_panel import JudgePanel

SMALL = Metrics(judge_window=16, alarm_window=4, min_tpr=0.25, min_tnr=0.25)
TRUE_TRUE_FALSE = (1.0, 1.0, 0.0)


def source(uid: str = "s", answer: str = "42", *, correct: bool = True) -> SourceRef:
    return SourceRef(
        uid=uid,
        sample=0,
        answer_hash=answer_hash(answer),
        policy_version=0,
        weights_epoch=1,
        correct=correct,
        verifier="exact@1",
    )


def showing(group: RolloutGroup, *sources: SourceRef) -> RolloutGroup:
    return replace(group, task=replace(group.task, sources=sources))


def unreadable(group: RolloutGroup, *places: int, status: VerdictStatus = "no_answer") -> RolloutGroup:
    """The same group with verdicts that name no choice, or could not be scored at all."""
    other = Verdict(status=status, reward=0.0, verifier="verdict@1")
    rollouts = [replace(r, verdict=other) if i in places else r for i, r in enumerate(group.rollouts)]
    return replace(group, rollouts=tuple(rollouts))


@pytest.fixture
def judged(make_group):
    def make(index: int, positive: bool, rewards: Sequence[float | None]) -> RolloutGroup:
        return make_group(index, rewards, objective="pointwise", positive=positive)

    return make


@pytest.fixture
def pair(make_group):
    def make(index: int, uid: str, rewards: Sequence[float | None], *, a_right: bool) -> RolloutGroup:
        shown = [source(uid, "42"), source(uid, "41", correct=False)]
        return showing(
            make_group(index, rewards, objective="pairwise", positive=a_right), *(shown if a_right else shown[::-1])
        )

    return make


def fed(groups: Sequence[RolloutGroup], settings: Metrics = SMALL, ages: Sequence[int] | None = None) -> JudgePanel:
    panel = JudgePanel(settings)
    for index, group in enumerate(groups):
        panel.arrived(group, ages[index] if ages else 0)
    return panel


def test_a_judge_that_always_says_yes(judged) -> None:
    panel = fed([judged(i, i % 2 == 0, (1, 1) if i % 2 == 0 else (0, 0)) for i in range(16)])
    found = panel.figures()
    assert (found["balanced_accuracy"], found["auroc"], found["ece"], found["confidence"]) == (0.5, 0.5, 0.5, 1.0)
    panel.take_news()
    assert (panel.shown["tpr"], panel.shown["tnr"]) == (1.0, 0.0)


def test_a_perfect_judge(judged) -> None:
    found = fed([judged(i, i % 2 == 0, (1, 1)) for i in range(16)]).figures()
    assert (found["balanced_accuracy"], found["auroc"], found["ece"], found["confidence"]) == (1.0, 1.0, 0.0, 1.0)


def test_a_judge_that_tosses_a_coin(judged) -> None:
    found = fed([judged(i, i % 2 == 0, (1, 0, 0, 1)) for i in range(16)]).figures()
    assert (found["balanced_accuracy"], found["auroc"]) == (0.5, 0.5)
    assert found["confidence"] == pytest.approx(1 / 3)  # of the six pairs of siblings two agree


def test_unreadable_verdicts_are_wrong_but_no_votes(judged) -> None:
    """As in the balanced accuracy of an evaluation; P(Yes) knows only what was said."""
    groups = [unreadable(judged(i, i % 2 == 0, (1, 1, 1)), 2) for i in range(16)]
    found = fed(groups).figures()
    assert found["balanced_accuracy"] == pytest.approx(2 / 3)
    assert (found["auroc"], found["ece"]) == (1.0, 0.0)


def test_verifier_errors_count_nowhere(judged) -> None:
    failed = unreadable(judged(0, True, (1, 1)), 0, 1, status="error")
    assert fed([failed]).take_news() == {}
    assert fed([judged(0, True, (1, None)), judged(1, False, (None, 1))]).figures()["balanced_accuracy"] == 1.0


def test_calibration_waits_for_enough_tasks(judged) -> None:
    assert set(fed([judged(i, i % 2 == 0, (1, 1)) for i in range(15)]).figures()) == {
        "balanced_accuracy",
        "accuracy/age_0",
    }


def test_the_window_forgets_the_oldest(judged) -> None:
    early = [judged(i, i % 2 == 0, (0, 0)) for i in range(16)]
    late = [judged(16 + i, i % 2 == 0, (1, 1)) for i in range(16)]
    assert fed([*early, *late[:8]]).figures()["balanced_accuracy"] == 0.5
    assert fed([*early, *late]).figures()["balanced_accuracy"] == 1.0


def test_accuracy_by_the_age_of_what_is_judged(judged) -> None:
    groups = [judged(0, True, (1, 1)), judged(1, False, (1, 1)), judged(2, True, (1, 0)), judged(3, False, (0, 0))]
    found = fed([*groups, judged(4, True, (1, 1))], ages=(0, 0, 3, 3, 9)).figures()
    assert (found["accuracy/age_0"], found["accuracy/age_3"]) == (1.0, 0.25)
    assert "accuracy/age_9" not in found  # only right answers of that age: nothing balanced to say


def test_pairs_are_compared_only_where_both_orders_were_judged(pair) -> None:
    one_order = fed([pair(0, "p", TRUE_TRUE_FALSE, a_right=True), pair(1, "q", (1, 1, 1), a_right=False)]).figures()
    assert one_order["pairwise_accuracy"] == pytest.approx(5 / 6)
    assert "swap_consistency" not in one_order

    both = fed([pair(0, "p", TRUE_TRUE_FALSE, a_right=True), pair(1, "p", (1, 0, 0), a_right=False)]).figures()
    assert both["swap_consistency"] == pytest.approx(2 / 9 + 2 / 9)


@pytest.mark.parametrize(("right_first", "wrong_first", "consistency"), [((1, 1), (1, 1), 1.0), ((1, 1), (0, 0), 0.0)])
def test_a_judge_of_answers_is_consistent_and_a_judge_of_places_is_not(pair, right_first, wrong_first, consistency):
    groups = [pair(0, "p", right_first, a_right=True), pair(1, "p", wrong_first, a_right=False)]
    assert fed(groups).figures()["swap_consistency"] == consistency


def test_an_unreadable_verdict_is_consistent_with_none(pair) -> None:
    groups = [pair(0, "p", (0, 0), a_right=True), unreadable(pair(1, "p", (0, 0), a_right=False), 0)]
    assert fed(groups).figures()["swap_consistency"] == 0.5


def test_accepted_master_keys_and_empty_answers(judged) -> None:
    groups = [
        showing(judged(0, False, (0, 1, 1, 1)), source(answer=":", correct=False)),
        showing(judged(1, False, (0, 0, 1, 1)), source(answer="Solution", correct=False)),
        showing(judged(2, False, (0, 1)), source(answer="", correct=False)),
        showing(judged(3, False, (0, 0)), source(answer="41", correct=False)),
        showing(judged(4, True, (1, 1)), source(answer=".")),  # a right answer, however it looks
    ]
    found = fed(groups).figures()
    assert (found["false_positive/master_key"], found["false_positive/empty"]) == (3 / 8, 0.5)


def test_metrics_come_with_the_tasks_that_changed_them(judged, make_group) -> None:
    stats = GroupStats(SMALL)
    stats.arrived(judged(0, True, (1, 0)), 2)
    stats.arrived(judged(1, False, (1, 1)), 2)
    found = stats.take()
    assert (found["judge/tpr"], found["judge/tnr"], found["judge/balanced_accuracy"]) == (0.5, 1.0, 0.75)
    assert found["judge/accuracy/age_2"] == 0.75
    stats.arrived(make_group(2))
    assert not [name for name in stats.take() if name.startswith("judge/")]
    assert stats.judge.shown["balanced_accuracy"] == 0.75


# -- alarms ---------------------------------------------------------------------------------------------------


def test_an_alarm_is_said_once_when_raised_and_once_when_over(judged) -> None:
    panel = JudgePanel(SMALL)
    alarms = JudgeAlarms(panel, SMALL)
    standing = []
    with capture_logs() as said:
        for index, rejects in enumerate([1, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1]):
            panel.arrived(judged(index, False, (rejects, rejects)), 0)
            standing.append(len(alarms.look()))
    assert standing == [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0]
    assert [(event["event"], event["rate"], event["value"]) for event in said] == [
        ("judge.alarm", "tnr", 0.0),
        ("judge.alarm_over", "tnr", 0.5),
    ]


def test_an_alarm_at_its_bound_does_not_flicker(judged) -> None:
    """One of four rejected is the bound of 25 %: no reason to raise it, and none to call it over."""
    panel = fed([judged(i, False, (i == 0,)) for i in range(4)])
    assert JudgeAlarms(panel, SMALL).look() == []
    alarms = JudgeAlarms(panel, SMALL)
    panel.arrived(judged(4, False, (0,)), 0)
    assert len(alarms.look()) == 1
    panel.arrived(judged(5, False, (1,)), 0)
    assert len(alarms.look()) == 1


def test_what_an_alarm_says(judged) -> None:
    panel = fed([judged(i, i % 2 == 0, (0, 0) if i % 2 == 0 else (1, 1)) for i in range(8)])
    assert JudgeAlarms(panel, SMALL).look() == [
        "the judge accepts 0% of right answers (newest 4 tasks), metrics.min_tpr is 25%: it rejects nearly everything"
    ]
    mute = fed([unreadable(judged(i, False, (0, 0, 0, 0)), 0, 1, 2) for i in range(4)])
    assert JudgeAlarms(mute, SMALL).look() == [
        "the judge rejects 0% of wrong answers (newest 4 tasks), metrics.min_tnr is 25%: "
        "75% of its verdicts name none of the choices"
    ]


def test_no_alarm_before_enough_tasks_and_none_when_switched_off(judged) -> None:
    few = fed([judged(i, False, (0, 0)) for i in range(3)])
    assert JudgeAlarms(few, SMALL).look() == []
    off = Metrics(judge_window=16, alarm_window=4, min_tnr=0.0)
    assert JudgeAlarms(fed([judged(i, False, (0, 0)) for i in range(4)], off), off).look() == []


def test_a_rare_class_is_watched_however_many_of_the_other_come(judged) -> None:
    rare = [judged(i, False, (0, 0)) for i in range(4)]
    assert len(JudgeAlarms(fed([*rare, *(judged(9 + i, True, (1, 1)) for i in range(40))]), SMALL).look()) == 1
