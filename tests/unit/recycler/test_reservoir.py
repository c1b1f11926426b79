import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import SettingsError
from common.messages import RolloutGroup, Task
from common.templates import load_templates
from recycler.reservoir import Emission, Reservoir

DEMO = load_templates(Path(__file__).resolve().parents[3] / "examples" / "arithmetic" / "templates.toml")
MakeGroup = Callable[..., RolloutGroup]
MakeReservoir = Callable[..., Reservoir]


def fill(reservoir: Reservoir, make_group: MakeGroup, groups: list[str], start: int = 0, version: int = 0) -> None:
    for index, codes in enumerate(groups, start):
        assert reservoir.add(f"{index}-0", make_group(codes, index, version=version))


def tasks_of(emissions: list[Emission]) -> list[Task]:
    return [task for emission in emissions for task in emission.tasks]


def classes(tasks: list[Task]) -> Counter[tuple[str, bool | None]]:
    return Counter((task.objective, task.positive) for task in tasks)


def policy_groups(accuracy: float, count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    rates = [rng.betavariate(3 * accuracy, 3 * (1 - accuracy)) for _ in range(count)]
    return ["".join("r" if rng.random() < rate else rng.choice("wwun") for _ in range(8)) for rate in rates]


@pytest.mark.parametrize("accuracy", [0.4, 0.6, 0.8])
def test_a_demo_step_is_filled_as_the_mix_says(
    make_group: MakeGroup, make_reservoir: MakeReservoir, accuracy: float
) -> None:
    reservoir = make_reservoir(DEMO)
    total: Counter[tuple[str, bool | None]] = Counter()
    for step in range(20):
        fill(reservoir, make_group, policy_groups(accuracy, 16, step), 16 * step, step)
        reservoir.expire(step, 4)
        tasks = tasks_of(reservoir.plan(16, step))
        if step:
            assert len(tasks) == 16
        total += classes(tasks)
    for objective, expected in (("pointwise", 80), ("pairwise", 80), ("reflect", 160)):
        right, wrong = total[objective, True], total[objective, False]
        assert abs(right - wrong) <= 2
        assert abs(right + wrong - expected) <= 6


def test_scarce_wrong_answers_limit_the_tasks_but_never_tip_the_classes(
    make_group: MakeGroup, make_reservoir: MakeReservoir
) -> None:
    reservoir = make_reservoir(DEMO)
    tasks: list[Task] = []
    for step in range(20):
        fill(reservoir, make_group, policy_groups(0.95, 16, step), 16 * step, step)
        reservoir.expire(step, 4)
        tasks += tasks_of(reservoir.plan(16, step))
    total = classes(tasks)
    assert 10 * 20 <= len(tasks) <= 16 * 20
    for objective in ("pointwise", "pairwise", "reflect"):
        assert abs(total[objective, True] - total[objective, False]) <= 2


def test_all_tasks_of_a_group_come_with_its_one_ack(make_group: MakeGroup, make_reservoir: MakeReservoir) -> None:
    reservoir = make_reservoir(max_tasks_per_group=4)
    fill(reservoir, make_group, ["rrwu", "rrww"])
    emissions = reservoir.plan(16, 3)
    assert [len(emission.tasks) for emission in emissions] == [4, 4]
    assert len(reservoir) == 0
    assert reservoir.plan(16, 3) == []
    for emission in emissions:
        assert emission.reason == "recycled"
        assert {source.uid for task in emission.tasks for source in task.sources} == {emission.uid}
        assert all(task.issued_version == 3 for task in emission.tasks)


def test_a_rollout_is_not_shown_twice_in_the_same_way(make_group: MakeGroup, make_reservoir: MakeReservoir) -> None:
    reservoir = make_reservoir(max_tasks_per_group=50)
    fill(reservoir, make_group, ["rrww"])
    tasks = tasks_of(reservoir.plan(50, 0))
    shown = Counter((task.objective, task.positive, task.messages[0].text) for task in tasks)
    assert max(shown.values()) == 1
    assert classes(tasks)["pairwise", True] + classes(tasks)["pairwise", False] == 1  # "41" against "42", once
    assert classes(tasks)["pointwise", False] == 1


def test_groups_without_a_task_stay(make_group: MakeGroup, make_reservoir: MakeReservoir) -> None:
    reservoir = make_reservoir()
    fill(reservoir, make_group, ["rw"] * 8)
    emissions = reservoir.plan(3, 0)
    assert len(tasks_of(emissions)) == 3
    assert len(reservoir) == 8 - len(emissions)
    decided = {emission.entry_id for emission in emissions}
    assert all((f"{index}-0" in reservoir) is (f"{index}-0" not in decided) for index in range(8))
    assert reservoir.plan(0, 0) == []
    assert reservoir.plan(-2, 0) == []


def test_freshest_groups_come_first(make_group: MakeGroup, make_reservoir: MakeReservoir) -> None:
    reservoir = make_reservoir(max_tasks_per_group=1)
    for version in (3, 1, 7, 5):
        fill(reservoir, make_group, ["rw", "rw"], start=10 * version, version=version)
    versions = [task.sources[0].policy_version for task in tasks_of(reservoir.plan(4, 8))]
    assert versions == [7, 7, 5, 5]


def test_same_groups_and_settings_give_the_same_tasks_in_any_order_of_arrival(
    make_group: MakeGroup, make_reservoir: MakeReservoir
) -> None:
    groups = list(enumerate(policy_groups(0.6, 24)))

    def run(order: list[tuple[int, str]], seed: int = 0) -> list[Emission]:
        reservoir = make_reservoir(seed=seed)
        for index, codes in order:
            reservoir.add(f"{index}-0", make_group(codes, index))
        return reservoir.plan(8, 1) + reservoir.plan(8, 1)

    assert run(groups) == run(groups[::-1])
    assert {task.uid for task in tasks_of(run(groups))}.isdisjoint(task.uid for task in tasks_of(run(groups, 1)))
    assert [one.entry_id for one in run(groups)] != [one.entry_id for one in run(groups, 1)]


def test_an_entry_read_again_changes_nothing(make_group: MakeGroup, make_reservoir: MakeReservoir) -> None:
    reservoir = make_reservoir()
    assert reservoir.add("1-0", make_group("rw"))
    assert not reservoir.add("1-0", make_group("rw"))
    assert (len(reservoir), reservoir.counts["groups.mixed"]) == (1, 1)


def test_a_group_under_two_entries_is_decided_for_both(make_group: MakeGroup, make_reservoir: MakeReservoir) -> None:
    reservoir = make_reservoir()
    reservoir.add("1-0", make_group("rw"))
    reservoir.add("2-0", make_group("rw"))
    emissions = reservoir.expire(0, 4) + reservoir.plan(8, 0)
    assert [(emission.entry_id, emission.reason) for emission in emissions] == [
        ("2-0", "unusable"),
        ("1-0", "recycled"),
    ]


def test_expired_and_unusable_groups_go_oldest_first(make_group: MakeGroup, make_reservoir: MakeReservoir) -> None:
    reservoir = make_reservoir()
    for entry, version, codes in (("a", 6, "rw"), ("b", 2, "rw"), ("c", 5, "nn"), ("d", 1, "ww"), ("e", 9, "ee")):
        reservoir.add(entry, make_group(codes, ord(entry), version=version))
    dropped = reservoir.expire(10, 4)
    assert [(emission.entry_id, emission.reason) for emission in dropped] == [
        ("d", "expired"),
        ("b", "expired"),
        ("c", "expired"),
        ("e", "unusable"),
    ]
    assert all(emission.tasks == () for emission in dropped)
    assert "a" in reservoir
    assert len(reservoir) == 1


def test_the_bound_itself_is_still_fresh(make_group: MakeGroup, make_reservoir: MakeReservoir) -> None:
    reservoir = make_reservoir()
    reservoir.add("a", make_group("rw", version=6))
    assert reservoir.expire(10, 4) == []
    assert [emission.reason for emission in reservoir.expire(11, 4)] == ["expired"]


def test_overflow_drops_the_oldest_of_the_fullest_kind(make_group: MakeGroup, make_reservoir: MakeReservoir) -> None:
    reservoir = make_reservoir(reservoir_groups=5)
    codes = ["ww", "rr", "rw", "rr", "rr", "rr", "rr", "rw"]
    for index, code in enumerate(codes):
        reservoir.add(str(index), make_group(code, index, version=index))
    dropped = reservoir.expire(8, 100)
    assert [(emission.entry_id, emission.reason) for emission in dropped] == [
        ("1", "overflow"),
        ("3", "overflow"),
        ("4", "overflow"),
    ]
    assert reservoir.kinds == {"right": 2, "mixed": 2, "wrong": 1}
    assert reservoir.expire(8, 100) == []


def test_counts_tell_what_was_held_and_decided(make_group: MakeGroup, make_reservoir: MakeReservoir) -> None:
    reservoir = make_reservoir()
    fill(reservoir, make_group, ["rwne", "rr", "nn"])
    emissions = reservoir.expire(0, 4) + reservoir.plan(16, 0)
    counts = reservoir.counts
    assert (counts["groups.mixed"], counts["groups.right"], counts["groups.unusable"]) == (1, 1, 1)
    assert counts["rollouts.no_answer"] == 4
    assert counts["decided.unusable"] == 1
    assert counts["decided.recycled"] == sum(bool(emission.tasks) for emission in emissions)
    assert sum(count for name, count in counts.items() if name.startswith("tasks.")) == len(tasks_of(emissions))


def test_natural_labels_follow_the_rollouts(make_group: MakeGroup, make_reservoir: MakeReservoir) -> None:
    for accuracy in (0.3, 0.9):
        reservoir = make_reservoir(recipe="natural", mix={"pointwise": 0.5, "pairwise": 0.25, "reflect": 0.25})
        tasks: list[Task] = []
        for step in range(40):
            fill(reservoir, make_group, policy_groups(accuracy, 16, step), 16 * step, step)
            reservoir.expire(step, 4)
            tasks += tasks_of(reservoir.plan(16, step))
        seen = classes(tasks)
        share = seen["pointwise", True] / (seen["pointwise", True] + seen["pointwise", False])
        assert share == pytest.approx(reservoir.right_rate, abs=0.06)
        assert abs(seen["pairwise", True] - seen["pairwise", False]) <= 1
        assert abs(seen["reflect", True] - seen["reflect", False]) <= 2


def test_natural_does_not_wait_for_a_missing_class(make_group: MakeGroup, make_reservoir: MakeReservoir) -> None:
    reservoir = make_reservoir(recipe="natural", mix={"pointwise": 1.0, "pairwise": 0.0, "reflect": 0.0})
    fill(reservoir, make_group, ["rr"] * 12)
    assert classes(tasks_of(reservoir.plan(12, 0))) == {("pointwise", True): 12}


def test_told_wrong_templates_are_capped_and_only_for_wrong_answers(
    make_group: MakeGroup, make_reservoir: MakeReservoir
) -> None:
    templates = load_templates("default")
    told = {templates.ref(one) for one in templates.reflect if not one.neutral}
    reservoir = make_reservoir(told_wrong_share=0.25, mix={"pointwise": 0.0, "pairwise": 0.0, "reflect": 1.0})
    fill(reservoir, make_group, ["rrww"] * 80)
    tasks = tasks_of(reservoir.plan(80, 0))
    assert len(tasks) == 80
    told_tasks = [task for task in tasks if task.template in told]
    assert 19 <= len(told_tasks) <= 21
    assert not any(task.positive for task in told_tasks)
    assert {task.template for task in told_tasks} == told
    neutral = classes([task for task in tasks if task.template not in told])
    assert abs(neutral["reflect", True] - neutral["reflect", False]) <= 2


def test_objectives_without_templates_are_refused_at_start(make_reservoir: MakeReservoir) -> None:
    bare = type(DEMO)(name="bare", solve=DEMO.solve, pointwise=DEMO.pointwise)
    with pytest.raises(SettingsError, match=r"'bare' has no pairwise template.*recycler\.mix\.pairwise"):
        make_reservoir(bare)
    with pytest.raises(SettingsError, match="recipe 'original' needs"):
        make_reservoir(bare, recipe="original")
    only = make_reservoir(bare, mix={"pointwise": 1.0, "pairwise": 0.0, "reflect": 0.0})
    assert only.plan(4, 0) == []


@pytest.mark.parametrize("recipe", ["balanced", "natural", "original"])
def test_32_groups_fill_a_room_of_32(make_group: MakeGroup, make_reservoir: MakeReservoir, recipe: str) -> None:
    reservoir = make_reservoir(recipe=recipe)
    fill(reservoir, make_group, policy_groups(0.6, 32))
    assert len(tasks_of(reservoir.plan(32, 0))) == 32
