"""The screen of `spark top`: it fits, what is grave is never cut off, and the figures are the right ones."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console
from snapshots import HEALTHY, NOW, actor, learner, ledger, row, with_members

from cli.dashboard.frame import View, frame
from cli.dashboard.panels import endings, judge_line, staleness_line
from cli.dashboard.rates import NOTHING, rates, staleness_shares
from cli.health import diagnose
from cli.snapshot import Snapshot
from common.observer import Announced
from common.steering import Steering

PAUSED = Steering(mode="paused", by="root@a-host-of-a-long-name", since=NOW)
MANY = {f"host-{number:02}": actor() for number in range(30)}


def later(snapshot: Snapshot = HEALTHY, seconds: float = 10.0, **members: Any) -> Snapshot:
    """The same run some seconds on."""
    server = replace(snapshot.server, now_ms=snapshot.server.now_ms + int(seconds * 1000))
    return replace(with_members(snapshot, **members), server=server)


def drawn(snapshot: Snapshot | None, width: int, height: int, trouble: str = "") -> list[str]:
    """Lines as they stand on the screen, without blanks at the end of the last ones."""
    view = View(
        run="demo",
        now=NOW,
        snapshot=snapshot,
        findings=diagnose(snapshot) if snapshot else (),
        rates=rates(HEALTHY, later(snapshot)) if snapshot else NOTHING,
        trouble=trouble,
        since_s=12.0,
    )
    console = Console(width=width, height=height, file=io.StringIO(), record=True, force_terminal=True, highlight=False)
    console.print(frame(view, width, height))
    return console.export_text().rstrip("\n").split("\n")


# -- rates --------------------------------------------------------------------------------------------------------


def test_rates_are_differences_of_what_was_said_by_when_it_was_said() -> None:
    faster = actor(groups=500, tokens=31_000, waited_s=13.0)
    newer = replace(later(seconds=10.0, actor_0=faster), heard_s={"actor-0": 1.0, "actor-1": 1.5})
    older = replace(HEALTHY, heard_s={"actor-0": 0.0, "actor-1": 1.5})
    newer = replace(newer, ledger=ledger(issued=150, in_flight=70))
    found = rates(older, newer)
    pace = found.actors["actor-0"]
    assert pace.groups_s == pytest.approx(100 / 9)  # the older heartbeat was sent a second later
    assert pace.waits == pytest.approx(3 / 9)
    assert found.actors["actor-1"].groups_s == 0.0
    assert found.generate.tokens_s == pytest.approx(6000 / 9)
    assert found.issue.groups_s == 5.0
    assert found.train.groups_s == pytest.approx(15.0)  # 30 groups in 2 s
    assert found.steps_s == pytest.approx(0.5)


def test_an_actor_that_was_started_again_has_no_rate() -> None:
    assert rates(HEALTHY, later(actor_0=actor(groups=3, rollouts=24))).actors.keys() == {"actor-1"}
    assert rates(None, HEALTHY).actors == {}
    assert rates(HEALTHY, HEALTHY).issue.groups_s is None
    assert rates(None, replace(HEALTHY, rows=())).train.groups_s is None


def test_what_is_filtered_has_a_rate_of_its_own() -> None:
    rows = tuple(row(step, **{"filtered/policy": 90.0, "filtered/judge": 10.0}) for step in range(28, 38))
    assert rates(None, replace(HEALTHY, rows=rows)).filtered.groups_s == pytest.approx(50.0)
    assert rates(None, HEALTHY).filtered.groups_s == 0.0


def test_a_run_that_stands_still_has_no_pace_of_training() -> None:
    paused = replace(HEALTHY, steering=PAUSED)
    late = replace(HEALTHY, weights=Announced(epoch=1, version=37, age_s=10.5))
    for still in (paused, late):
        found = rates(None, still)
        assert (found.train.groups_s, found.filtered.groups_s, found.steps_s) == (None, None, None)
    slow_rows = tuple({**row(step), "elapsed_s": 60.0 * step} for step in range(28, 38))
    assert rates(None, replace(late, rows=slow_rows)).train.groups_s == pytest.approx(0.5)


def test_a_pause_does_not_slow_the_pace_after_it() -> None:
    rows = [row(step) for step in range(28, 38)]
    after = [*rows[:-1], {**rows[-1], "elapsed_s": rows[-1]["elapsed_s"] + 60.0, "seconds/paused": 60.0}]
    assert rates(None, replace(HEALTHY, rows=tuple(after))).steps_s == pytest.approx(0.5)


def test_staleness_is_a_share_of_tokens() -> None:
    assert staleness_shares(HEALTHY.rows) == {0: 0.25, 1: 0.75}
    assert staleness_shares([row(1, **{"tokens/staleness_x": 5.0})]) == {0: 0.25, 1: 0.75}
    assert staleness_shares([]) == {}
    assert staleness_line(HEALTHY.rows) == "0 ▃ 25%   1 ▆ 75%"


# -- frames -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (119, 60), (130, 40), (160, 50), (220, 60)])
@pytest.mark.parametrize("members", [{}, MANY, {"actor_0": None, "actor_1": None, "learner": None, **MANY}])
def test_every_frame_fits_and_has_every_panel(width: int, height: int, members: dict[str, Any]) -> None:
    lines = drawn(with_members(**members), width, height)
    assert len(lines) < height  # the cursor stands on the last one
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for part in (
        "version 37/120",
        "q leaves",
        "version  waits  leases  groups/s  tokens/s",
        "checkpoint v20 12 s ago",
        "generate",
        "steps/s",
        "rollouts:policy -> recycler",
        "recycler ",
        "waiting for room",
        "tpr 0.80" if width < 120 else "tpr",
        "40 in flight",
        "75%",
    ):
        assert part in text, part


def test_a_small_screen_cuts_nothing_off() -> None:
    lines = drawn(HEALTHY, 80, 24)
    assert not [line for line in lines if "…" in line]
    assert "healthy: nothing is wrong" in lines
    assert [line.split()[0] for line in lines if line.startswith("actor-")] == ["actor-0", "actor-1"]


def test_the_gravest_finding_stands_in_full_on_a_small_screen_and_what_is_left_out_is_said() -> None:
    alarms = [f"alarm {number} " + "of many words " * 5 for number in range(9)]
    lines = drawn(with_members(actor_0=None, learner=learner(alarms=alarms)), 80, 24)
    text = " ".join(line.strip() for line in lines)
    grave = diagnose(with_members(actor_0=None, learner=learner(alarms=alarms)))[0]
    assert grave.cause in text
    assert "there is more: spark status RUN" in text
    assert len(lines) < 24


def test_on_a_small_screen_members_in_trouble_come_first_and_the_rest_is_summed_up() -> None:
    trouble = {"host-25": actor(stalled_s=500.0, stage="generate", waits_for="x", unblocked_by="y"), "actor_1": None}
    lines = drawn(with_members(**{**MANY, **trouble}), 80, 24)
    rows = lines[next(n for n, line in enumerate(lines) if line.startswith("member")) :]
    assert rows[3].startswith("actor-1")
    assert "NOT RUNNING" in rows[3]
    assert any("more" in line for line in rows)
    tall = drawn(with_members(**{**MANY, **trouble}), 80, 60)
    assert any("STALLED 8 min: generate" in line for line in tall)


def test_a_paused_run_leaves_names_and_figures_on_a_small_screen() -> None:
    held = PAUSED.held
    idle = actor(state=held, groups=500)
    paused = with_members(actor_0=idle, actor_1=idle, learner=learner(state=held))
    lines = drawn(replace(paused, steering=PAUSED), 80, 24)
    members = [line for line in lines if line.startswith(("member", "learner", "recycler", "actor-"))]
    assert [line.split()[0] for line in members] == ["member", "learner", "recycler", "actor-0", "actor-1"]
    assert members[0].split()[-2:] == ["groups/s", "tokens/s"]
    assert members[3].split()[1] == "paused"
    assert members[3].split()[-2:] == ["10.0", "0"]
    assert f"NOTE: the run is {held}" in " ".join(line.strip() for line in lines)


@pytest.mark.parametrize("state", ["waiting for policy groups", "of many words " * 5])
def test_a_long_state_leaves_room_for_the_name_and_the_figures(state: str) -> None:
    busy = actor(groups=500, tokens=30_000)
    long_name = {"host-of-a-long-name": busy}
    lines = drawn(with_members(actor_0=busy, learner=learner(state=state), **long_name), 80, 24)
    assert any(line.startswith("learner ") for line in lines)
    assert next(line for line in lines if line.startswith("member")).endswith("groups/s  tokens/s")
    assert next(line for line in lines if line.startswith("actor-0 ")).endswith("10.0       500")
    assert len(lines) < 24


def test_before_the_first_weights_an_actor_has_no_version() -> None:
    lines = drawn(with_members(actor_0=actor(-1, state="waiting for weights")), 80, 24)
    assert next(line for line in lines if line.startswith("actor-0")).split()[4] == "none"


def test_a_wide_screen_says_what_to_do() -> None:
    text = "\n".join(drawn(with_members(actor_0=None), 160, 50))
    assert "do: `spark up` starts it again once its process has ended" in text
    assert "versions stale: share of tokens" in text


def test_a_server_that_is_away_is_said_with_what_was_known() -> None:
    lines = drawn(HEALTHY, 80, 24, trouble="no server answers at there")
    text = " ".join(line.strip() for line in lines)
    assert "NO SERVER for 12 s, trying again: no server answers at there." in text
    assert "What follows was known at" in text
    assert "version 37/120" in text
    first = drawn(None, 80, 24, trouble="no server answers at there")
    assert "NO SERVER" in first[1]
    assert "q leaves" in drawn(None, 80, 24)[0]


def test_foreign_text_cannot_steer_the_terminal() -> None:
    evil = "\x1b[2J\x1b[31mgone\n"
    hostile = with_members(
        actor_0=actor(trouble=evil, behind_s=60.0, state=evil),
        learner=learner(state=evil, alarms=[evil], judge={evil: 0.5}),
        **{evil: actor(state=evil)},
    )
    for size in ((80, 24), (160, 50)):
        assert "\x1b[2J" not in "\n".join(drawn(hostile, *size))


def test_the_judge_line_keeps_whole_figures() -> None:
    figures = {"judge/balanced_accuracy": 0.75, "tpr": 0.8, "tnr": 0.7, "zeta": 0.1}
    seen = with_members(learner=learner(judge=figures))
    assert judge_line(seen, 80) == "accuracy 0.75  tpr 0.80  tnr 0.70  zeta 0.10"
    assert judge_line(seen, 24) == "accuracy 0.75  tpr 0.80"
    measured = replace(with_members(learner=learner(judge={})), rows=(row(1, **{"judge/tnr": 0.25}),))
    assert judge_line(measured, 80) == "tpr 0.80  tnr 0.25"


def test_where_the_issued_tasks_are() -> None:
    assert endings(HEALTHY, 80) == "200 = 120 trained, 40 filtered, 0 stale, 0 dead, 40 in flight"
    assert "202 ARE NOT 120" in endings(replace(HEALTHY, ledger=ledger(issued=101)), 80)
    many = replace(HEALTHY, ledger=ledger(issued=1_250_000, trained=1_249_960))
    assert endings(many, 65) == "2.5M = 2.5M trained, 40 filtered, 0 stale, 0 dead, 40 in flight"
