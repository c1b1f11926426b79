"""The live display: figures from metrics, time that is left, lines for a log, and the screen at 80 columns."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from rich.console import Console

from cli.progress import (
    Progress,
    bar,
    cell,
    figures,
    left,
    mean_of,
    members_line,
    per_second,
    plain_line,
    seconds_left,
    starting,
    waiting_share,
)
from cli.report.history import STEP, Row
from cli.status import CHECK
from common.settings import Learner, Settings

SETTINGS = Settings(learner=Learner(max_steps=120))


def row(step: int, **more: float) -> dict[str, float]:
    base = {STEP: float(step), "groups/solve": 6.0, "groups/pairwise": 4.0, "samples": 80.0, "staleness": 1.0}
    times = {"seconds/wait_for_groups": 0.5, "seconds/step": 1.5}
    return {**base, **times, "reward/solve": step / 100, **more}


def rows(count: int) -> list[Row]:
    return [row(step) for step in range(1, count + 1)]


def shown(renderable: object, width: int = 80) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def test_measures() -> None:
    steps = [{"judge/tpr": 0.5, **row(1)}, row(2), {"judge/tpr": 1.0, **row(3)}]
    assert mean_of("judge/tpr")(steps) == 0.75
    assert mean_of("judge/tnr")(steps) is None
    assert per_second("groups/")(steps) == 5.0
    assert per_second("samples")(steps) == 40.0
    assert waiting_share(steps) == 0.25
    paused = [row(1), {**row(2), "seconds/paused": 60.0}, row(3)]
    assert per_second("samples")(paused) == 40.0
    assert waiting_share(paused) == 0.25
    assert seconds_left(paused, 13) == pytest.approx(20.0)
    assert per_second("samples")([{STEP: 1.0}]) is None
    assert waiting_share([]) is None
    assert cell(None, ".2f") == "-"


@pytest.mark.parametrize(("updates", "expected"), [(1, 220.0), (2, 100.0)])
def test_the_time_that_is_left_follows_the_pace(updates: int, expected: float) -> None:
    paced = [row(step * updates) for step in range(1, 11)]  # 2 s a batch
    assert seconds_left(paced, 120) == pytest.approx(expected)


def test_there_is_no_pace_before_the_second_step() -> None:
    assert seconds_left(rows(1), 120) is None
    assert left(rows(1), 120) == ""


def test_only_the_last_steps_make_the_pace() -> None:
    slow = [row(step, **{"seconds/step": 1000.0}) for step in range(1, 10)]
    assert seconds_left([*slow, *(row(step) for step in range(10, 31))], 120) == pytest.approx(180.0)


@pytest.mark.parametrize(("steps", "text"), [(30, "0:00 left"), (40, "0:20 left"), (1830, "1 h 00 min left")])
def test_time_for_people(steps: int, text: str) -> None:
    assert left(rows(30), steps) == text


def test_a_plain_line_shows_what_there_is() -> None:
    line = plain_line([*rows(39), row(40, **{"judge/tpr": 0.5})], 120)
    assert line == "step 40/120  solve 0.35  tpr 0.50  staleness 1.0  5 groups/s"


def test_the_start_names_what_is_awaited() -> None:
    text = starting({"server": "", "learner": "", "actor-0": "generating"})
    assert text == "starting: server, learner, actor-0 generating; waiting for the first optimizer step"
    assert members_line({}) == ""


def test_the_table_has_the_last_step_and_the_mean() -> None:
    text = shown(figures(rows(30)))
    solve = next(line for line in text.splitlines() if line.startswith("solve"))
    assert solve.split()[:3] == ["solve", "0.30", "0.26"]
    assert "learner waits" in text
    assert "25%" in text
    pairwise = next(line for line in text.splitlines() if line.startswith("pairwise"))
    assert pairwise.split()[1:3] == ["-", "-"]


@pytest.mark.parametrize("width", [80, 60])
def test_everything_fits(width: int, tmp_path: Path) -> None:
    names = ("reward/pointwise", "judge/tpr", "judge/tnr", "reward/pairwise", "reflect/fixed", "reflect/kept")
    full = [{**row(step), **dict.fromkeys(names, 1.0), "kl": 1e-6, "content_staleness": 10.0} for step in range(1, 31)]
    progress = Progress(SETTINGS, tmp_path, console=Console(), states=dict)
    lines = shown(progress.view(full), width).splitlines()
    assert all(len(line) <= width for line in lines)
    assert "30/120 steps" in lines[0]
    assert "3:00 left" in lines[0]
    if width == 80:
        assert not any("…" in line for line in lines)


def test_a_long_name_leaves_room_for_the_bar() -> None:
    text = shown(bar("a-very-long-name-of-a-run-that-never-ends", rows(30), 120))
    assert "30/120 steps" in text
    assert "…" in text
    assert text.count("\n") == 1


def watch(progress: Progress, until: Callable[[], bool]) -> None:
    """Runs the display until ``until``; it is asked by the display's own calls of ``states``."""

    async def main() -> None:
        task = asyncio.create_task(progress.watch())
        while not until():
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(asyncio.wait_for(main(), 30))


def write(path: Path, steps: range) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(row(step)) + "\n" for step in steps)


def test_a_log_gets_one_line_each_ten_steps_and_the_last(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=False, record=True)
    asked: list[bool] = []

    def states() -> Mapping[str, str]:
        asked.append(True)
        return {"actor-0": "generating"}

    settings = Settings(learner=Learner(max_steps=24))
    write(tmp_path / "metrics.jsonl", range(1, 25))
    watch(Progress(settings, tmp_path, console=console, states=states), lambda: bool(asked))
    lines = console.export_text().splitlines()
    assert lines[0] == "starting: server, learner, recycler, actor-0, actor-1; waiting for the first optimizer step"
    assert [line.split()[1] for line in lines[1:]] == ["10/24", "20/24", "24/24"]


def test_what_came_last_is_shown_when_the_display_ends(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True, record=True)
    asked: list[bool] = []

    def states() -> Mapping[str, str]:
        if not asked:
            write(
                tmp_path / "metrics.jsonl", range(1, 8)
            )  # after the first look at the file, so only the last one sees it
        asked.append(True)
        return {"recycler": "waiting"}

    watch(Progress(SETTINGS, tmp_path, console=console, states=states), lambda: bool(asked))
    assert "7/120 steps" in console.export_text()


def test_without_judging_no_recycler_is_awaited(tmp_path: Path) -> None:
    settings = Settings(learner=Learner(judge_share=0.0))
    text = shown(Progress(settings, tmp_path, console=Console(), states=dict).view())
    assert "learner" in text
    assert "recycler" not in text


def test_a_resumed_learner_replaces_its_steps(tmp_path: Path) -> None:
    progress = Progress(SETTINGS, tmp_path, console=Console(), states=dict)
    progress.view(rows(30))
    text = shown(progress.view([row(21, **{"reward/solve": 0.99})]))
    assert "21/120 steps" in text
    assert "0.99" in text


def test_a_failing_look_at_the_processes_surfaces(tmp_path: Path) -> None:
    def states() -> Mapping[str, str]:
        raise RuntimeError("server is gone")

    console = Console(file=io.StringIO(), force_terminal=False)
    with pytest.raises(RuntimeError, match="server is gone"):
        asyncio.run(Progress(SETTINGS, tmp_path, console=console, states=states).watch())


STALL = "stalled in wait_for_groups; waits for 4 policy groups; unblocked by actors"


def test_a_stalled_member_has_a_line_of_its_own(tmp_path: Path) -> None:
    progress = Progress(SETTINGS, tmp_path, console=Console(), states=dict)
    progress._members = {"learner": STALL, "actor-0": "generating"}
    text = shown(progress.view(rows(3)), width=100)
    assert "learner stalled, actor-0 generating" in text
    assert f"learner {STALL}" in text


VAIN = "finds nothing to train; 2,939 groups without contrast in a row, none trained: all answers are wrong"


def test_a_learner_that_finds_nothing_to_train_is_told_before_the_first_step(tmp_path: Path) -> None:
    progress = Progress(SETTINGS, tmp_path, console=Console(), states=dict)
    progress._members = {"learner": VAIN, "actor-0": "generating"}
    lines = shown(progress.view(), width=300).splitlines()
    assert lines == [
        "starting: learner finds nothing to train, actor-0 generating; waiting for the first optimizer step",
        f"learner {VAIN}; {CHECK}",
    ]
    assert f"learner {VAIN}; {CHECK}" in shown(progress.view(rows(3)), width=300)


def test_a_log_gets_one_line_when_nothing_can_be_trained(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=300, force_terminal=False, record=True)
    progress = Progress(SETTINGS, tmp_path, console=console, states=dict)
    for state in (VAIN, VAIN.replace("2,939", "3,051")):
        progress._members = {"learner": state}
        progress.print_lines([])
    assert console.export_text().splitlines() == [f"learner {VAIN}; {CHECK}"]


def test_a_log_gets_one_line_when_a_member_stalls(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200, force_terminal=False, record=True)
    progress = Progress(SETTINGS, tmp_path, console=console, states=dict)
    elsewhere = "stalled in update; waits for the optimizer step; unblocked by itself"
    for state in (STALL, STALL.replace("4", "5"), "updating", STALL, elsewhere):
        progress._members = {"learner": state}
        progress.print_lines([])
    assert console.export_text().splitlines() == [f"learner {said}" for said in (STALL, STALL, elsewhere)]


def test_a_display_without_room_for_its_lines_ends_nothing(tmp_path: Path) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    progress = Progress(SETTINGS, tmp_path, console=Console(file=Full(), force_terminal=False), states=dict)
    progress.print_lines(rows(10))
