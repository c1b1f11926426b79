"""The property the judge depends on: for any sequence of groups, over every window of what is emitted."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from itertools import accumulate

from hypothesis import given, settings
from hypothesis import strategies as st

from common.messages import RolloutGroup, Task
from common.templates import Template, load_templates
from recycler.reservoir import Emission, Reservoir

TEMPLATES = load_templates("default")
BY_REF: dict[str, Template] = {TEMPLATES.ref(one): one for one in TEMPLATES.templates}
TOLD_WRONG = {one.family for one in TEMPLATES.reflect if not one.neutral}

steps = st.lists(
    st.tuples(
        st.lists(st.text("rwune", min_size=2, max_size=6), max_size=6),  # groups that arrive
        st.integers(0, 12),  # room
    ),
    max_size=12,
)
settings_of_recycler = st.fixed_dictionaries(
    {
        "max_tasks_per_group": st.integers(1, 5),
        "reservoir_groups": st.integers(4, 30),
        "correct_share": st.sampled_from([0.0, 0.25, 0.5, 1.0]),
        "told_wrong_share": st.sampled_from([0.0, 0.2, 0.5]),
    }
)


def drive(
    reservoir: Reservoir, make_group: Callable[..., RolloutGroup], plan: Iterable[tuple[list[str], int]]
) -> list[Emission]:
    """Feed groups and take plans as the recycler's loop does."""
    emissions: list[Emission] = []
    index = 0
    for version, (arriving, room) in enumerate(plan):
        for codes in arriving:
            reservoir.add(f"{index}-0", make_group(codes, index, version=version))
            index += 1
        emissions += reservoir.expire(version, 4)
        planned = reservoir.plan(room, version)
        assert sum(len(emission.tasks) for emission in planned) <= room
        assert all(emission.tasks for emission in planned)
        emissions += planned
    assert len({emission.entry_id for emission in emissions}) == len(emissions)  # each group is decided once
    assert len(emissions) + len(reservoir) == index
    return emissions


def family(task: Task) -> str:
    return BY_REF[task.template].family


def most(values: Iterable[float]) -> float:
    """The largest absolute sum over any window."""
    sums = [0.0, *accumulate(values)]
    return max(sums) - min(sums)


@settings(max_examples=150, deadline=None)
@given(plan=steps, recycler=settings_of_recycler, seed=st.integers(0, 3))
def test_balance_over_every_window_for_any_groups(
    make_group: Callable[..., RolloutGroup],
    make_reservoir: Callable[..., Reservoir],
    plan: list[tuple[list[str], int]],
    recycler: dict[str, float],
    seed: int,
) -> None:
    emissions = drive(make_reservoir(TEMPLATES, seed, **recycler), make_group, plan)
    tasks = [task for emission in emissions for task in emission.tasks]
    assert len({task.uid for task in tasks}) == len(tasks)
    assert all(len(emission.tasks) <= recycler["max_tasks_per_group"] for emission in emissions)

    streams: defaultdict[tuple[str, str], list[Task]] = defaultdict(list)
    for task in tasks:
        streams[task.objective, family(task)].append(task)
    for (objective, name), stream in streams.items():
        if name in TOLD_WRONG:
            assert not any(task.positive for task in stream)
            continue
        share = recycler["correct_share"] if objective == "reflect" else 0.5
        assert most(bool(task.positive) - share for task in stream) <= 1 + 1e-9
        if objective != "reflect":  # over any window the right verdict is each of its two words as often
            word = sorted(map(str, stream[0].verifier_args["choices"]))[0]  # type: ignore[arg-type]
            assert most((task.answer == word) - 0.5 for task in stream) <= 2 + 1e-9
    told = [family(task) in TOLD_WRONG for task in tasks if task.objective == "reflect"]
    sums = [0.0, *accumulate(one - recycler["told_wrong_share"] for one in told)]
    assert max(here - low for here, low in zip(sums, accumulate(sums, min), strict=True)) <= 1 + 1e-9


@settings(max_examples=60, deadline=None)
@given(plan=steps, seed=st.integers(0, 5))
def test_neither_letter_nor_position_nor_template_predicts_the_class(
    make_group: Callable[..., RolloutGroup],
    make_reservoir: Callable[..., Reservoir],
    plan: list[tuple[list[str], int]],
    seed: int,
) -> None:
    emissions = drive(make_reservoir(TEMPLATES, seed), make_group, plan)
    tasks = [task for emission in emissions for task in emission.tasks]
    letters = [task for task in tasks if family(task) == "letters"]
    cells = Counter((task.positive, task.answer) for task in letters)
    for letter in "XY":
        assert abs(cells[True, letter] - cells[False, letter]) <= 2
    named_first = Counter((task.positive, _first_named(task)) for task in letters)
    for letter in "XY":
        assert abs(named_first[True, letter] - named_first[False, letter]) <= 3
    for objective in ("pointwise", "pairwise"):
        by_template = Counter((task.template, task.positive) for task in tasks if task.objective == objective)
        for template in {template for template, _ in by_template}:
            assert abs(by_template[template, True] - by_template[template, False]) <= 2


def _first_named(task: Task) -> str:
    return task.messages[0].text.split("\\boxed{")[1][0]


def test_letters_are_independent_of_the_class_in_a_long_run(
    make_group: Callable[..., RolloutGroup], make_reservoir: Callable[..., Reservoir]
) -> None:
    emissions = drive(make_reservoir(TEMPLATES), make_group, [(["rrwu"] * 16, 16)] * 50)
    letters = [task for emission in emissions for task in emission.tasks if family(task) == "letters"]
    cells = Counter((task.positive, task.answer, task.template) for task in letters)
    assert len(letters) >= 90
    assert len(cells) == 8
    assert max(cells.values()) - min(cells.values()) <= 1


def test_a_family_whose_class_is_missing_emits_nothing(
    make_group: Callable[..., RolloutGroup], make_reservoir: Callable[..., Reservoir]
) -> None:
    reservoir = make_reservoir(TEMPLATES)
    emissions = drive(reservoir, make_group, [(["rrrr"] * 10, 16), ([], 16), ([], 16)])
    per_family = Counter((task.objective, family(task)) for emission in emissions for task in emission.tasks)
    assert set(per_family.values()) <= {1}
    assert all(task.positive for emission in emissions for task in emission.tasks)
    assert len(reservoir) >= 6  # the rest waits for wrong answers
