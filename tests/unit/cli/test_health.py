"""Diagnosis: nothing is said of a healthy run; causes come before consequences; every rule has a border."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import snapshots as on_stage
from snapshots import HEALTHY, actor, learner, lease, ledger, letter, queue, row, with_members

from cli.causes.finding import names, several, size, span
from cli.causes.places import LEAST_FREE
from cli.folder_facts import Death, Disk, Ending, FolderFacts, Saved
from cli.health import diagnose, healthy
from cli.snapshot import Snapshot, steering_of
from common.observer import Announced, Dead

STALL = {"stage": "wait_for_groups", "waits_for": "4 groups", "unblocked_by": "actors"}


def codes(snapshot: Snapshot) -> dict[str, str]:
    """Code -> severity, in order."""
    return {finding.code: finding.severity for finding in diagnose(snapshot)}


def folder(**more: Any) -> FolderFacts:
    return replace(HEALTHY.folder, **more)


def test_a_healthy_run_has_no_findings() -> None:
    assert diagnose(HEALTHY) == []
    assert healthy([])


# -- members --------------------------------------------------------------------------------------------------


def test_a_dead_actor_is_told_with_what_it_held_and_who_takes_over() -> None:
    dead = replace(with_members(actor_1=None), leases=(lease("actor-1"), lease("actor-1", 1), lease("actor-0", 2)))
    [finding] = diagnose(dead)
    assert (finding.severity, finding.subject) == ("problem", "actor-1")
    assert "; 2 tasks held there: free" in finding.cause
    assert "1 other actor takes over" in finding.cause
    assert "held" not in diagnose(replace(dead, leases=()))[0].cause
    nobody = replace(with_members(dead, actor_0=None), queues=(queue("tasks:policy", "actors", undelivered=7),))
    [finding, *_] = diagnose(nobody)
    assert "actor-0, actor-1 are not running" in finding.cause
    assert "no other one is there to take over, and 7 more tasks wait" in finding.cause


def test_an_actor_that_was_taken_away_on_purpose_is_not_missed() -> None:
    gone = with_members(host7=None)
    assert codes(gone) == {}
    assert codes(replace(gone, leases=(lease("host7"),))) == {"dead_actor": "problem"}


def test_the_supervisor_tells_how_a_child_died() -> None:
    deaths = tuple(
        Death(member="actor-1", exit_code=-9, ago_s=100.0 - 10 * n, last_words="out of\x1b[2J memory") for n in range(3)
    )
    fell = replace(with_members(actor_1=None), folder=folder(deaths=deaths))
    found = {finding.code: finding for finding in diagnose(fell)}
    assert list(found) == ["dead_actor", "dies_again"]
    assert (
        "`spark up` saw 3 deaths in the last hour, the last one 80 s ago with exit code -9" in found["dead_actor"].cause
    )
    assert "\x1b" not in found["dies_again"].cause  # what a process said must not steer a terminal
    assert codes(replace(HEALTHY, folder=folder(deaths=deaths[:2]))) == {}


@pytest.mark.parametrize(("stalled_s", "severity"), [(130.0, "warning"), (239.0, "warning"), (241.0, "problem")])
def test_a_stall_becomes_a_problem_when_it_lasts(stalled_s: float, severity: str) -> None:
    assert codes(with_members(actor_0=actor(stalled_s=stalled_s, **{**STALL, "stage": "generate"}))) == {
        "stalled": severity
    }


def test_what_may_be_a_consequence_comes_after_the_cause_and_as_a_warning() -> None:
    stalled = with_members(learner=learner(stalled_s=500.0, **STALL))
    assert codes(stalled) == {"stalled": "problem"}
    assert codes(with_members(stalled, actor_0=None, actor_1=None)) == {"dead_actor": "problem", "stalled": "warning"}


def test_a_dead_learner() -> None:
    assert codes(with_members(learner=None)) == {"dead_learner": "problem"}
    members = {name: beat for name, beat in HEALTHY.members.items() if name != "learner"}
    assert codes(replace(HEALTHY, members=members)) == {"no_learner": "warning"}


FAREWELL = {"state": "stopped"}


def test_who_said_farewell_is_not_missed() -> None:
    assert codes(with_members(actor_1={"role": "actor", **FAREWELL})) == {}
    alone = with_members(learner={"role": "learner", **FAREWELL})
    assert codes(alone) == {"no_learner": "warning"}
    assert "it was stopped, or its prompts are used up" in diagnose(alone)[0].cause
    assert codes(with_members(recycler={"role": "recycler", **FAREWELL})) == {"no_recycler": "warning"}
    ended = replace(HEALTHY, members={name: {"role": name[:5], **FAREWELL} for name in HEALTHY.members})
    assert codes(ended) == {"stopped": "note"}  # not by `spark up`, whose ending the folder would tell
    assert codes(replace(ended, members={**ended.members, "actor-1": None})) == {"down": "problem"}
    assert codes(replace(ended, members={**ended.members, "passer-by": None})) == {"stopped": "note"}


def test_a_learner_that_nobody_has_heard_of_is_told_before_its_sign_of_life_ends() -> None:
    assert codes(replace(HEALTHY, heard_s={"learner": 149.0})) == {}
    assert codes(replace(HEALTHY, heard_s={"learner": 151.0})) == {"silent_learner": "warning"}


def hung(silent_s: float, stalled_s: float, stage: str = "wait_for_tasks") -> Snapshot:
    """The learner's process was stopped while it waited; the actors wait for its next tasks."""
    waiting = actor(stalled_s=stalled_s, **{**STALL, "stage": stage})
    before = learner(state="waiting for policy groups", state_s=60.0, waiting_share=0.9)
    stopped = with_members(actor_0=waiting, actor_1=waiting, learner=before)
    return replace(stopped, heard_s={"learner": silent_s})


def test_a_hung_learner_is_the_cause_of_the_stalls_that_wait_for_it() -> None:
    assert codes(hung(130.0, 121.0)) == {"silent_learner": "warning", "stalled": "warning"}
    found = diagnose(hung(250.0, 241.0))
    assert [(finding.code, finding.severity) for finding in found] == [
        ("silent_learner", "problem"),
        ("stalled", "warning"),
        ("stalled", "warning"),
    ]
    assert "has not been heard of for 4 min, and actor-0, actor-1 wait for it: it hangs" in found[0].cause
    assert next(iter(codes(hung(250.0, 241.0, stage="generate")))) == "stalled"  # not the learner's matter
    assert codes(hung(9.0, 121.0)) == {"starved_learner": "warning", "stalled": "warning"}  # it has just spoken


def test_a_learner_that_is_silent_is_not_called_starved() -> None:
    waiting = with_members(learner=learner(state="waiting for policy groups", state_s=60.0, waiting_share=0.9))
    assert codes(replace(waiting, heard_s={"learner": 9.0})) == {"starved_learner": "warning"}
    assert codes(replace(waiting, heard_s={"learner": 11.0})) == {}


@pytest.mark.parametrize(
    ("beat", "starved"),
    [
        ({"waiting_share": 0.49}, False),
        ({"waiting_share": 0.5}, True),
        ({"state": "waiting for policy groups", "state_s": 29.0}, False),
        ({"state": "waiting for policy groups", "state_s": 31.0}, True),
        ({"state": "updating", "state_s": 31.0}, False),
    ],
)
def test_a_starved_learner(beat: dict[str, Any], starved: bool) -> None:
    assert codes(with_members(learner=learner(**beat))) == ({"starved_learner": "warning"} if starved else {})


def test_why_a_learner_starves() -> None:
    starved = with_members(learner=learner(waiting_share=0.9))
    ahead = "2 actors wait for tasks as well (holding 2, with room for 32): staleness.max_staleness = 1 allows no more"
    assert ahead in diagnose(starved)[0].cause
    busy = replace(starved, leases=tuple(lease("actor-0", number) for number in range(16)))
    assert "2 actors hold 16 tasks and 0 more wait: too slow, or too few" in diagnose(busy)[0].cause
    late = replace(starved, queues=(queue("tasks:policy", "actors", undelivered=5),))
    assert "2 actors hold 2 tasks and 5 more wait" in diagnose(late)[0].cause


def test_whether_actors_have_enough_to_do_is_told_by_their_time_and_not_by_one_moment() -> None:
    starved = with_members(learner=learner(waiting_share=0.9))
    full = replace(starved, leases=tuple(lease("actor-0", number) for number in range(16)))
    waiting = actor(waiting_share=0.6)
    assert "wait for tasks as well" in diagnose(with_members(full, actor_0=waiting, actor_1=waiting))[0].cause
    busy = actor(waiting_share=0.1)
    assert "too slow, or too few" in diagnose(with_members(starved, actor_0=busy, actor_1=busy))[0].cause


def test_a_learner_starves_for_want_of_contrast() -> None:
    starved = with_members(learner=learner(waiting_share=0.9))
    filtered = {"trained/policy": 4.0, "filtered/policy": 36.0, "reward/solve": 0.97}
    [finding] = diagnose(replace(starved, rows=tuple(row(step, **filtered) for step in range(30, 38))))
    assert "90% of the arriving groups are filtered: all answers right or all wrong (mean reward 0.97)" in finding.cause
    few = tuple(row(step, **{**filtered, "filtered/policy": 3.0}) for step in range(30, 38))
    assert "filtered" not in diagnose(replace(starved, rows=few))[0].cause


@pytest.mark.parametrize(
    ("reward", "how"),
    [
        (0.0, "all answers are wrong"),
        (1.0, "all answers are right"),
        (0.25, "in each of them all answers have the same reward (mean 0.25)"),
        (None, "no answer could be scored"),
    ],
)
def test_a_learner_that_can_train_nothing_of_what_comes(reward: float | None, how: str) -> None:
    vain = {"state": "waiting for policy groups", "state_s": 99.0, "no_contrast": {"groups": 2939, "reward": reward}}
    [finding] = diagnose(with_members(learner=learner(**vain)))
    assert (finding.code, finding.severity) == ("no_contrast", "problem")
    assert finding.cause == (
        f"the learner finds nothing to train: 2,939 groups without contrast in a row, none trained: {how}"
    )


def test_a_run_that_a_user_holds_is_well() -> None:
    from common.steering import Steering

    waiting = learner(state="waiting for policy groups", state_s=999.0)
    held = with_members(learner=waiting)
    text = Steering(mode="paused", by="ann", since=1.0).to_json()
    assert codes(replace(held, steering=steering_of({"steering": text}))) == {"held": "note"}
    [note] = diagnose(replace(held, steering=steering_of({"steering": text})))
    assert note.do == "`spark resume RUN` lets it go on"
    drained = Steering(mode="drained", by="ann", since=1.0)
    [note] = diagnose(replace(HEALTHY, steering=drained))
    assert "spark up RUN/config.toml" in note.do
    assert "resume" not in note.do
    unreadable = steering_of({"steering": "not json"})
    assert codes(replace(held, steering=unreadable)) == {"starved_learner": "warning"}


def test_a_recycler_that_does_not_take_what_waits() -> None:
    late = (queue("rollouts:policy", "recycler", undelivered=9, oldest_s=31.0),)
    assert codes(replace(HEALTHY, queues=late)) == {"wedged_recycler": "problem"}
    assert codes(replace(HEALTHY, queues=(replace(late[0], oldest_undelivered_s=29.0),))) == {}
    paused = with_members(recycler={"role": "recycler", "state": "paused: the server is full"})
    assert codes(replace(paused, queues=late)) == {}
    assert codes(replace(with_members(recycler=None), queues=late)) == {"dead_recycler": "problem"}


# -- weights and verdicts ---------------------------------------------------------------------------------------


def test_an_actor_behind_the_bound_is_stale_only_when_newer_weights_are_there_for_a_while() -> None:
    assert codes(with_members(actor_1=actor(35, behind_s=11.0))) == {"stale_actor": "problem"}
    stalled = actor(35, behind_s=500.0, stalled_s=500.0, **{**STALL, "stage": "load_weights"})
    assert codes(with_members(actor_1=stalled)) == {"stale_actor": "problem"}  # said once, not twice
    assert codes(with_members(actor_1=actor(36, behind_s=11.0))) == {}  # within the bound
    assert codes(with_members(actor_1=actor(35, behind_s=9.0))) == {}
    other_line = replace(HEALTHY, weights=Announced(epoch=2, version=30, age_s=60.0))
    behind = with_members(other_line, actor_1=actor(37, behind_s=60.0), actor_0=actor(30, epoch=2))
    assert codes(behind) == {"stale_actor": "problem"}


def test_weights_that_load_nowhere_are_the_weights_fault_not_the_actors() -> None:
    bad = {"behind_s": 60.0, "trouble": "m has another SHA-256"}
    nowhere = with_members(actor_0=actor(30, **bad), actor_1=actor(30, **bad))
    [finding] = diagnose(nowhere)
    assert finding.code == "corrupt_weights"
    assert "do not load at actor-0, actor-1, which keep version 30: m has another SHA-256" in finding.cause
    assert codes(with_members(actor_0=actor(30, **bad))) == {"stale_actor": "problem"}


@pytest.mark.parametrize(("waited_s", "slow"), [(4.9, False), (5.1, True)])
def test_a_slow_verifier(waited_s: float, slow: bool) -> None:
    found = codes(with_members(actor_0=actor(unverified=3, unverified_s=waited_s)))
    assert found == ({"slow_verifier": "warning"} if slow else {})


# -- places, work -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("used", "most", "expected"),
    [
        (64, 0, {}),
        (64, 100, {}),
        (66, 100, {"redis_nearly_full": "warning"}),
        (100, 100, {"redis_full": "problem"}),
    ],
)
def test_memory_of_the_server(used: int, most: int, expected: dict[str, str]) -> None:
    assert codes(replace(HEALTHY, server=replace(HEALTHY.server, used_bytes=used, most_bytes=most))) == expected


def test_a_server_that_cannot_write() -> None:
    broken = replace(HEALTHY.server, disk_trouble="its append-only file cannot be written")
    assert codes(replace(HEALTHY, server=broken)) == {"server_disk": "problem"}


def test_the_learner_knows_its_disk_better_than_who_looks() -> None:
    full_here = folder(disk=Disk(free_bytes=0, total_bytes=1 << 30))
    assert codes(replace(HEALTHY, folder=full_here)) == {}
    beat = {name: value for name, value in learner().items() if name != "disk_free_mb"}
    assert codes(replace(with_members(learner=beat), folder=full_here)) == {"disk_full": "problem"}


@pytest.mark.parametrize(
    ("free", "size_bytes", "expected"),
    [
        (LEAST_FREE - (1 << 20), 1, {"disk_full": "problem"}),
        (LEAST_FREE, 1, {"disk_low": "warning"}),
        (8 << 30, 3 << 30, {"disk_low": "warning"}),
        (5 << 30, 3 << 30, {"disk_full": "problem"}),
        (2 << 30, 1 << 20, {}),
    ],
)
def test_a_disk_must_hold_two_checkpoints(free: int, size_bytes: int, expected: dict[str, str]) -> None:
    low = with_members(learner=learner(disk_free_mb=free >> 20))
    saved = Saved(policy_version=20, age_s=1.0, size_bytes=size_bytes)
    assert codes(replace(low, folder=folder(saved=saved))) == expected


def test_checkpoints_that_fail() -> None:
    late = replace(HEALTHY, progress={"policy_version": "81"})
    assert codes(late) == {"no_checkpoint": "problem"}
    assert codes(replace(HEALTHY, progress={"policy_version": "80"})) == {}
    full = with_members(late, learner=learner(disk_free_mb=0))
    assert codes(full) == {"disk_full": "problem", "no_checkpoint": "warning"}


def test_poison_and_alarms() -> None:
    assert codes(replace(HEALTHY, leases=(lease("actor-0", deliveries=2),))) == {}
    assert codes(replace(HEALTHY, leases=(lease("actor-0", deliveries=3),))) == {"suspect_task": "warning"}
    assert diagnose(replace(HEALTHY, leases=(lease("actor-0", deliveries=3),)))[0].do.startswith("wait: it goes to")
    fallen = replace(NOBODY, leases=(lease("actor-0", deliveries=3),))
    suspect = next(finding for finding in diagnose(fallen) if finding.code == "suspect_task")
    assert "no actor is running, and only one can put it into the dead letters" in suspect.do
    [finding] = diagnose(replace(HEALTHY, dead=Dead(count=2, newest=letter("too long\x1b[2J"))))
    assert finding.cause.startswith("2 poison tasks in the dead letters; the newest, of tasks:policy, gave up after 5")
    assert "\x1b" not in finding.cause
    assert codes(with_members(learner=learner(alarms=["a", "b"]))) == {"judge_alarm": "problem"}
    assert len(diagnose(with_members(learner=learner(alarms=["a", "b"])))) == 2


def test_a_ledger_that_does_not_balance_comes_first() -> None:
    wrong = replace(with_members(actor_0=None), ledger=ledger(issued=101))
    assert next(iter(codes(wrong))) == "ledger"


# -- a run that is over -------------------------------------------------------------------------------------------

NOBODY = replace(HEALTHY, members=dict.fromkeys(HEALTHY.members))


@pytest.mark.parametrize(
    ("ending", "version", "expected"),
    [
        ("finished", "37", {"finished": "note"}),
        ("", "120", {"finished": "note"}),
        ("stopped", "37", {"stopped": "note"}),
        ("", "37", {"down": "problem"}),
    ],
)
def test_a_run_of_which_nothing_runs(ending: Ending, version: str, expected: dict[str, str]) -> None:
    over = replace(NOBODY, folder=folder(ending=ending), progress={"policy_version": version})
    assert codes(over) == expected


def test_a_report_is_pointed_to_only_where_there_is_one() -> None:
    over = replace(NOBODY, progress={"policy_version": "120"})
    assert diagnose(over)[0].do == "the report is report.html in its folder"
    [finding] = diagnose(replace(over, folder=folder(report=False)))
    assert "no report yet" in finding.do
    assert "`spark report RUN` writes a report" in finding.do


def test_a_learner_that_reached_the_last_step_is_not_missed() -> None:
    done = replace(with_members(learner=None), progress={"policy_version": "120"})
    [finding] = diagnose(done)
    assert (finding.code, finding.severity) == ("finished", "note")
    assert "actor-0, actor-1" in finding.cause
    assert "dead_learner" in codes(replace(done, progress={"policy_version": "119"}))


def test_who_said_farewell_a_moment_ago_runs_no_more() -> None:
    farewell = dict.fromkeys(HEALTHY.members, None) | {"recycler": {"role": "recycler", "state": "stopped"}}
    stopped = replace(HEALTHY, members=farewell, folder=folder(ending="stopped"))
    assert codes(stopped) == {"stopped": "note"}
    assert codes(replace(stopped, progress={"policy_version": "120"})) == {"finished": "note"}


def test_why_a_run_fell_is_told_too() -> None:
    full = replace(HEALTHY.server, used_bytes=100, most_bytes=100)
    assert codes(replace(NOBODY, server=full)) == {"redis_full": "problem", "down": "problem"}
    assert codes(replace(NOBODY, server=full, folder=folder(ending="stopped"))) == {"stopped": "note"}
    assert codes(replace(HEALTHY, members={})) == {"not_started": "note"}


# -- words --------------------------------------------------------------------------------------------------------


def test_words() -> None:
    assert [span(seconds) for seconds in (0.4, 119.4, 130, 7300)] == ["0 s", "119 s", "2 min", "2 h 02 min"]
    assert [size(count) for count in (0, 512, 2048, 5 << 30, 3 << 40)] == ["0 B", "512 B", "2 kB", "5 GB", "3 TB"]
    assert [several(1, "group"), several(2, "delivery", "deliveries")] == ["1 group", "2 deliveries"]
    assert names(["a", "b", "c", "d", "e", "f"]) == "a, b, c, d and 2 more"


def test_a_snapshot_of_the_tests_is_one_of_the_product() -> None:
    assert on_stage.HEALTHY.living("actor").keys() == {"actor-0", "actor-1"}
