"""Rows 1-3, 18, 20, 23, 24: members that die, pause, or are told to stop, at each dangerous point."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from chaos.faults import zombie_learner
from chaos.rig import ROOT, Rig
from chaos.rows import SYNCHRONOUS, Done, audited, calm_chain, check, row, stop_and_audit
from cli.rundir import child_environment
from common.errors import Fenced
from common.keys import ACTORS
from common.staleness import groups_in_flight_allowed

LEARNER_POINTS: Final = (
    "ToyTrainer.step:after:2",
    "CheckpointStore.save:after:1",
    "Streams.settle:after:2",
    "Streams.trim:after:1",
    "CheckpointStore.new_epoch:after:1",
    "Streams.take_fence:after:1",
    "CheckpointStore.record_start:before:1",
    "CheckpointStore.record_start:after:1",
    "Streams.settle:before:1",
    "Streams.settle:after:1",
    "Streams.adopt:after:1",
    "WeightStore.publish:after:2",
    "Streams.publish:after:2",
    "Streams.issue:before:2",
    "Streams.issue:after:2",
    "CheckpointStore.save:before:2",
    "CheckpointStore.save:after:2",
    "Streams.settle:after:3",
    "Streams.trim:before:2",
)
ACTOR_POINTS: Final = (
    "ToyEngine.step:after:2",
    "Streams.transfer:before:2",
    "Streams.transfer:after:2",
    "Streams.read_new:after:2",
    "ToyEngine.apply:after:2",
    "Streams.heartbeat:after:1",
)
RECYCLER_POINTS: Final = (
    "Streams.transfer:before:2",
    "Streams.transfer:after:2",
    "Streams.read_new:after:3",
    "Streams.report_progress:before:2",
    "Streams.report_progress:after:2",
)


@row(1, "kill -9 actor in the middle of a generation", "its tasks are claimed by another within lease + 5 s", ci=True)
def actor_in_mid_generation(folder: Path) -> Done:
    with Rig(folder, actors=2) as rig:
        rig.die_at["actor-0"] = deque(["ToyEngine.step:after:4"])
        rig.paused.add("actor-0")  # it does not come back: only the other can take its tasks
        rig.start()
        rig.until(lambda: not rig.members["actor-0"].alive, "the death of actor-0")
        held = _held(rig, "actor-0")
        check(held, "actor-0 died without a task in its hands")
        rig.until(lambda: not _held(rig, "actor-0"), "its tasks at another", rig.settings.redis.lease_s + 5.0)
        rig.steps(2)
        rig.paused.clear()
        return Done(times=1, note=f"{held} tasks taken over", items=stop_and_audit(rig).items)


@row(2, "kill -9 actor at each point, also between transfer and reply", "weights as of an undisturbed run", ci=True)
def actor_at_each_point(folder: Path) -> Done:
    return _same_weights(folder, "actor-0", ACTOR_POINTS, steps=12)


@row(3, "kill -9 learner between update, save, ack and trim", "weights as of an undisturbed run", ci=True)
def learner_between_update_and_trim(folder: Path) -> Done:
    return _same_weights(folder, "learner", LEARNER_POINTS[:4], steps=12)


@row(3, "kill -9 learner at each point of its start and its loop", "weights as of an undisturbed run")
def learner_at_each_point(folder: Path) -> Done:
    return _same_weights(folder, "learner", LEARNER_POINTS, steps=40)


@row(3, "kill -9 recycler at each point, also between transfer and reply", "no judge task is lost or made twice")
def recycler_at_each_point(folder: Path) -> Done:
    with Rig(folder) as rig:
        rig.die_at["recycler"] = deque(RECYCLER_POINTS)
        rig.start()
        rig.until(lambda: not rig.die_at["recycler"], "the last of its deaths")
        rig.steps(3)
        rig.until(lambda: rig.exits["recycler", -signal.SIGKILL] == len(RECYCLER_POINTS), "its last death")
        rig.steps(3)
        return Done(times=len(RECYCLER_POINTS), items=stop_and_audit(rig).items)


@row(18, "zombie learner", "it ends with 42, and its weights are refused", ci=True)
def fenced_learner(folder: Path) -> Done:
    draw = random.Random(18)
    with Rig(folder) as rig:
        rig.start()
        for _ in range(2):
            rig.steps(3)
            zombie = rig.members["learner"]
            [(_, wake)] = zombie_learner(rig, draw)
            rig.steps(2)
            epoch, _ = rig.version()
            wake()
            rig.until(lambda zombie=zombie: not zombie.alive, "the end of the zombie")
            check(zombie.process.returncode == Fenced.exit_code, f"it ended with {zombie.process.returncode}")
            rig.steps(2)
            rig.until(lambda epoch=epoch: _epochs(rig) == {epoch}, "actors that follow the new epoch alone")
        return Done(times=2, items=stop_and_audit(rig).items)


@row(20, "actor on an orphan line of weights", "it follows the new learner; nothing is lost")
def orphan_line(folder: Path) -> Done:
    with Rig(folder, "learner.checkpoint_every=1000") as rig:
        rig.start()
        for epoch in (2, 3):
            rig.steps(6)
            rig.members["learner"].kill()
            rig.until(lambda epoch=epoch: _epochs(rig) == {epoch}, "actors on the new line")
        rig.steps(3)
        return Done(times=2, items=stop_and_audit(rig).items)


@row(23, "SIGTERM to an actor with work in its hands", "its tasks are claimable at once, not after a lease", ci=True)
def drained_actor(folder: Path) -> Done:
    extra = {"actor-0": ["--steps", "1000000", "--pause-s", "0.01"]}
    with Rig(folder, "redis.lease_s=600", "learner.straggler_wait_s=0.1", actors=2, extra=extra) as rig:
        rig.start()
        rig.until(lambda: _held(rig, "actor-0"), "tasks at actor-0")
        rig.paused.add("actor-0")
        held = _held(rig, "actor-0")
        rig.members["actor-0"].signal(signal.SIGTERM)
        check(rig.members["actor-0"].process.wait(20) == 0, "it did not end well")
        rig.until(lambda: not _held(rig, "actor-0"), "its tasks at another", 20)
        rig.steps(2)
        return Done(times=1, note=f"{held} tasks handed back", items=stop_and_audit(rig).items)


@row(24, "learner dies for good", "actors stop at the cap; `spark status` shows who waits for what")
def learner_gone(folder: Path) -> Done:
    with Rig(folder, "learner.judge_share=0", "run.no_progress_s=2", roles=("learner", "actor")) as rig:
        rig.start()
        rig.steps(4)
        rig.paused.add("learner")
        rig.members["learner"].kill()
        learner = rig.settings.learner
        cap = groups_in_flight_allowed(learner.groups_per_step, 1, rig.settings.staleness.max_staleness)
        rig.until(lambda: _states(rig) == {"stalled"}, "actors that say that they have nothing to do")
        tasks = rig.streams.backlog(rig.streams.keys.tasks("policy"), ACTORS).total
        check(tasks == 0, f"{tasks} tasks are left")
        shown = _status(rig)
        in_flight = shown["ledger"]["policy"]["in_flight"]
        unsettled = learner.checkpoint_every * learner.groups_per_step * 2
        check(in_flight <= cap + unsettled, f"{in_flight} groups in flight, the cap is {cap}")
        said = next(iter(shown["stalls"].values()), "")
        check("learner" in said, f"`spark status` does not name the learner: {shown['stalls']}")
        rig.paused.clear()
        rig.steps(3)
        return Done(times=1, note=f"an actor: {said}", items=stop_and_audit(rig).items)


def _same_weights(folder: Path, member: str, points: Sequence[str], steps: int) -> Done:
    """Die at each point in turn; the run must end with the weights of one that nobody disturbed."""
    settings = (*SYNCHRONOUS, f"learner.max_steps={steps}")
    calm = calm_chain(folder / "calm", *settings)
    with Rig(folder / "killed", *settings, actors=1, roles=("learner", "actor")) as rig:
        rig.die_at[member] = deque(points)
        rig.start()
        rig.to_the_end()
        role = member.partition("-")[0]
        deaths = rig.exits[role, -signal.SIGKILL]
        check(deaths == len(points), f"{deaths} deaths at {len(points)} points; left: {list(rig.die_at[member])}")
        truth = audited(rig)
        check(truth.chain == calm, f"other weights than those of an undisturbed run: {truth}")
        return Done(times=deaths, note="the same bit for bit", items=truth.items)


def _held(rig: Rig, actor: str) -> int:
    """Tasks that an actor has claimed and not finished."""
    found = 0
    for stream in (rig.streams.keys.tasks("policy"), rig.streams.keys.tasks("judge")):
        if rig.client.exists(stream):
            rows: Any = rig.client.xpending_range(stream, ACTORS, "-", "+", 1000, consumername=actor)
            found += len(rows)
    return found


def _beats(rig: Rig) -> list[dict[str, Any]]:
    return [beat for name, beat in rig.streams.members().items() if beat and name.startswith("actor")]


def _epochs(rig: Rig) -> set[int]:
    return {int(beat["epoch"]) for beat in _beats(rig)}


def _states(rig: Rig) -> set[str]:
    return {beat["state"] for beat in _beats(rig)}


def _status(rig: Rig) -> dict[str, Any]:
    command = [sys.executable, "-m", "cli", "status", str(rig.directory.path), "--json"]
    environment = {**child_environment(rig.server.url), "PYTHONPATH": str(ROOT)}
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    check(shown.returncode in (0, 6), shown.stderr)  # 6: it says that somebody has to act
    return dict(json.loads(shown.stdout))
