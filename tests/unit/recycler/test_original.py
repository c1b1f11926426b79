"""The recipe ``original`` follows the table of docs/algorithm.md, section 1, step 6."""

from collections import Counter
from collections.abc import Callable

import pytest

from common.messages import RolloutGroup, Task
from common.templates import load_templates
from recycler.reservoir import Reservoir

TEMPLATES = load_templates("default")
SHOWS_RESPONSE = {TEMPLATES.ref(one): one.shows_response for one in TEMPLATES.reflect}
TOLD_WRONG = {TEMPLATES.ref(one): not one.neutral for one in TEMPLATES.reflect}
MakeGroup = Callable[..., RolloutGroup]
MakeReservoir = Callable[..., Reservoir]


@pytest.fixture
def plan_of(make_group: MakeGroup, make_reservoir: MakeReservoir) -> Callable[..., list[Task]]:
    def plan(groups: list[str], room: int, **recycler: object) -> list[Task]:
        reservoir = make_reservoir(TEMPLATES, recipe="original", **recycler)
        for index, codes in enumerate(groups):
            reservoir.add(f"{index}-0", make_group(codes, index))
        emissions = reservoir.plan(room, 1)
        assert len({emission.entry_id for emission in emissions}) == len(emissions)
        return [task for emission in emissions for task in emission.tasks]

    return plan


def of(tasks: list[Task], *objectives: str) -> list[Task]:
    return [task for task in tasks if task.objective in objectives]


def test_all_right_gives_sample_0_and_all_wrong_a_random_one(plan_of: Callable[..., list[Task]]) -> None:
    tasks = plan_of(["rrrr"] * 40 + ["wuwu"] * 40, 160 - 80)
    judged = of(tasks, "pointwise")
    assert len(judged) == 40
    assert {task.sources[0].sample for task in judged if task.positive} == {0}
    assert len({task.sources[0].sample for task in judged if not task.positive}) > 1
    assert not of(tasks, "pairwise")


def test_mixed_groups_give_pairs_seven_times_in_ten(plan_of: Callable[..., list[Task]]) -> None:
    tasks = plan_of(["rrrw"] * 400, 800)
    seen = Counter((task.objective, task.positive) for task in tasks)
    pairs = seen["pairwise", True] + seen["pairwise", False]
    points = seen["pointwise", True] + seen["pointwise", False]
    assert pairs + points == 400
    assert 0.6 < pairs / 400 < 0.8
    assert 0.4 < seen["pairwise", True] / pairs < 0.6  # the order of a pair is random
    assert 0.33 < seen["pointwise", True] / points < 0.67  # the class is drawn first, then a member


def test_reflection_is_on_wrong_answers_only_in_alternating_form(plan_of: Callable[..., list[Task]]) -> None:
    tasks = of(plan_of(["rrww"] * 100, 100, told_wrong_share=1 / 3), "reflect")
    assert len(tasks) == 50
    assert not any(task.positive for task in tasks)
    forms = Counter(SHOWS_RESPONSE[task.template] for task in tasks)
    assert forms[True] == forms[False] == 25
    assert 6 <= sum(TOLD_WRONG[task.template] for task in tasks) <= 28


def test_labels_follow_the_accuracy_of_the_policy(plan_of: Callable[..., list[Task]]) -> None:
    """Defect D8, kept in the baseline on purpose: nothing balances the pointwise labels."""
    groups = ["rrrr"] * 80 + ["rrww"] * 20
    labels = Counter(task.positive for task in of(plan_of(groups, 40), "pointwise"))
    assert labels[True] > 5 * labels[False]


def test_nothing_is_emitted_while_the_room_cannot_be_filled(plan_of: Callable[..., list[Task]]) -> None:
    assert plan_of(["rrww"] * 7, 16) == []
    assert plan_of(["rrrr"] * 50 + ["rrww"] * 7, 16) == []
    assert len(plan_of(["rrww"] * 8, 16)) == 16
    assert len(plan_of(["rrww"] * 8, 15)) == 15
    assert plan_of(["rrww"] * 8, 0) == []


def test_letter_families_are_not_used(plan_of: Callable[..., list[Task]]) -> None:
    answers = {task.answer for task in of(plan_of(["rr"] * 30 + ["ww"] * 30, 60), "pointwise")}
    assert answers == {"Yes", "No"}


def test_a_group_may_give_both_in_its_one_decision(make_group: MakeGroup, make_reservoir: MakeReservoir) -> None:
    reservoir = make_reservoir(TEMPLATES, recipe="original")
    for index in range(8):
        reservoir.add(f"{index}-0", make_group("rrww", index))
    emissions = reservoir.plan(16, 0)
    assert [len(emission.tasks) for emission in emissions] == [2] * 8
    assert len(reservoir) == 0


def test_what_a_group_gives_is_drawn_once(make_group: MakeGroup, make_reservoir: MakeReservoir) -> None:
    def judged(room: int) -> dict[str, str]:
        reservoir = make_reservoir(TEMPLATES, recipe="original")
        for index in range(20):
            reservoir.add(f"{index}-0", make_group("rrww", index))
        tasks = [task for emission in reservoir.plan(room, 0) for task in emission.tasks]
        return {task.sources[0].uid: task.uid for task in of(tasks, "pointwise", "pairwise")}

    few, many = judged(10), judged(40)
    assert few.items() <= many.items()
