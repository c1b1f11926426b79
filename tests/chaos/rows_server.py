"""Rows 6-12: the server killed, cut off from power, emptied, full, unreachable, or heard in part."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Final

from chaos.disks import filled, small_disk
from chaos.rig import Rig
from chaos.rows import SYNCHRONOUS, Done, calm_chain, check, lines_with, row, stop_and_audit
from common.errors import WipedServer

BACK_S: Final = 5.0
"""How long members may take to go on once the server is there again, on a machine that has nothing else to do."""
PATIENCE: Final = 6.0
"""Factor on that for a busy machine; beyond it the row fails."""
MOST_LOST_S: Final = 1.0
"""A run is older than what a power cut takes: one that loses its very first second has to be begun anew."""
LEARNER_REPLIES: Final = (
    "spark_issue",
    "spark_settle",
    "spark_trim",
    "spark_report",
    "spark_publish",
    "spark_adopt",
    "XREADGROUP",
    "HGETALL",
    "XREVRANGE",
    "GET",
)
START_REPLIES: Final = ("spark_take_fence", "spark_settle", "spark_raise_id", "XGROUP", "FUNCTION")
ACTOR_REPLIES: Final = ("spark_transfer", "spark_set_idle", "spark_heartbeat", "XREADGROUP", "XPENDING", "XREVRANGE")
RECYCLER_REPLIES: Final = ("spark_transfer", "spark_report", "spark_heartbeat", "XREADGROUP", "HGETALL")


class MostLost(random.Random):
    """A power cut that takes all it may."""

    def randint(self, a: int, b: int) -> int:
        return min(a, b)


@row(6, "kill -9 server", "all members go on by themselves; 0 lost, 0 twice", ci=True)
def killed_server(folder: Path) -> Done:
    with Rig(folder) as rig:
        rig.start()
        rig.steps(3)
        pids = {name: member.process.pid for name, member in rig.members.items()}
        for _ in range(3):
            rig.server.kill()
            rig.server.start()
            rig.steps(2, BACK_S * PATIENCE)
        check(pids == {name: member.process.pid for name, member in rig.members.items()}, "a member was replaced")
        return Done(times=3, items=stop_and_audit(rig).items)


@row(7, "power cut of the server: half a second of its log torn off", "0 lost, 0 twice")
def power_cut(folder: Path) -> Done:
    draw, lost = random.Random(7), 0
    with Rig(folder) as rig:
        rig.start()
        for _ in range(3):
            rig.steps(8)
            rig.rest(MOST_LOST_S)
            lost += rig.server.cut_power(draw)
            rig.server.start()
        rig.steps(3)
        return Done(times=3, note=f"{lost} bytes lost", items=stop_and_audit(rig).items)


@row(7, "power cut of the whole machine", "the run goes on; 0 lost, 0 twice", ci=True)
def power_cut_of_everything(folder: Path) -> Done:
    lost = 0
    with Rig(folder) as rig:
        rig.start()
        for _ in range(2):
            rig.steps(10)
            rig.rest(MOST_LOST_S)
            for member in rig.members.values():
                member.kill()
            lost += rig.server.cut_power(MostLost())
            rig.server.start()
        rig.steps(5)
        return Done(times=2, note=f"{lost} bytes lost", items=stop_and_audit(rig).items)


@row(8, "FLUSHALL", "learner ends with 4 and says what to do; with --rebuild the run goes on; 0 twice", ci=True)
def emptied_server(folder: Path) -> Done:
    with Rig(folder) as rig:
        rig.start()
        rig.steps(7)
        rig.paused.add("learner")
        rig.client.flushall()
        for _ in range(2):  # the one that runs, and one that is started
            learner = rig.members["learner"]
            rig.until(lambda learner=learner: not learner.alive, "the end of the learner")
            code, words = learner.process.returncode, learner.last_words()
            check(code == WipedServer.exit_code and "--rebuild" in words, f"it ended with {code}: {words}")
            rig.spawn("learner", "learner")
        rig.until(lambda: not rig.members["learner"].alive, "the end of the third")
        rig.extra["learner"] = ["--set", "redis.rebuild=true"]
        rig.spawn("learner", "learner")
        rig.paused.clear()
        rig.steps(5)
        return Done(times=1, note=words.removeprefix("spark: ")[:60], items=stop_and_audit(rig).items)


@row(9, "server at maxmemory", "producers pause, consumers drain, the run goes on; no NOGROUP")
def full_memory(folder: Path) -> Done:
    with Rig(folder) as rig:
        rig.start()
        for _ in range(2):
            rig.steps(3)
            before = len(_pauses(rig))
            memory: Any = rig.client.info("memory")
            rig.client.config_set("maxmemory", int(memory["used_memory"] * 0.8))
            rig.until(lambda before=before: len(_pauses(rig)) > before, "a producer that pauses")
            rig.client.config_set("maxmemory", 0)
        rig.steps(3)
        return Done(times=2, items=stop_and_audit(rig).items)


@row(10, "the disk of the server's log is full", "it pauses and heals; nobody is restarted")
def full_log_disk(folder: Path) -> Done:
    with small_disk(folder / "disk", megabytes=48), Rig(folder / "run", server_folder=folder / "disk") as rig:
        rig.start()
        rig.steps(3)
        pids = {name: member.process.pid for name, member in rig.members.items()}
        with filled(folder / "disk"):
            rig.until(lambda: _refuses_writes(rig), "a server that refuses writes")
            rig.rest(3.0)
        rig.steps(3, BACK_S * PATIENCE)
        check(pids == {name: member.process.pid for name, member in rig.members.items()}, "a member was replaced")
        return Done(times=1, items=stop_and_audit(rig).items)


@row(11, "partition: a black hole before each role in turn", "goes on by itself once it heals; 0 lost, 0 twice")
def partition(folder: Path) -> Done:
    with Rig(folder) as rig:
        rig.start()
        for proxy in rig.proxies.values():
            rig.steps(3)
            proxy.hold()
            rig.rest(5.0)  # longer than the sockets' 3 s: calls fail, and are repeated
            proxy.hold(False)
            rig.steps(2, BACK_S * PATIENCE)
        return Done(times=len(rig.proxies), items=stop_and_audit(rig).items)


@row(12, "lost replies to every command of learner and actor", "weights as of an undisturbed run")
def lost_replies(folder: Path) -> Done:
    slow = {
        f"actor-{index}": ["--pause-s", "0.02"] for index in range(2)
    }  # so that the run lasts as long as the faults
    with Rig(folder / "lossy", *SYNCHRONOUS, actors=2, roles=("learner", "actor"), extra=slow) as rig:
        rig.proxies["learner"].lose("spark_begin")  # said once in a run, at its first start
        rig.start()
        lost = _lost(rig, "learner", "spark_begin")
        rig.steps(1)
        lost += _lose_each(rig, "actor", ACTOR_REPLIES) + _lose_each(rig, "learner", LEARNER_REPLIES)
        for marker in START_REPLIES:
            rig.proxies["learner"].lose(marker)
            rig.members["learner"].kill()
            lost += _lost(rig, "learner", marker)
        rig.steps(1)
        truth, (_, steps) = stop_and_audit(rig), rig.version()
    calm = calm_chain(folder / "calm", *SYNCHRONOUS, f"learner.max_steps={steps}")
    check(truth.chain == calm, f"other weights than those of an undisturbed run: {truth}")
    return Done(times=lost, note=f"{steps} steps, the same bit for bit", items=truth.items)


@row(12, "lost replies to every command of the recycler", "no judge task is lost or made twice")
def lost_replies_of_the_recycler(folder: Path) -> Done:
    with Rig(folder) as rig:
        rig.start()
        rig.steps(2)
        lost = _lose_each(rig, "recycler", RECYCLER_REPLIES)
        rig.steps(2)
        return Done(times=lost, items=stop_and_audit(rig).items)


def _lose_each(rig: Rig, role: str, markers: tuple[str, ...]) -> int:
    lost = 0
    for marker in markers:
        rig.proxies[role].lose(marker, 2)
        lost += _lost(rig, role, marker)
    return lost


def _lost(rig: Rig, role: str, marker: str) -> int:
    """Wait until the replies that were to be lost are; how many."""
    proxy = rig.proxies[role]
    before = proxy.lost
    wanted = proxy.losses
    rig.until(lambda: proxy.losses == 0, f"replies to {marker} of the {role}")
    return max(proxy.lost - before, wanted)


def _pauses(rig: Rig) -> list[str]:
    """Log lines of producers that wait for room."""
    logs = rig.directory.logs
    events = {"learner": "issuer.paused", "actor-0": "actor.paused", "actor-1": "actor.paused"}
    return [line for name, event in events.items() for line in lines_with(logs / f"{name}.log", event)]


def _refuses_writes(rig: Rig) -> bool:
    info: Any = rig.client.info("persistence")
    return bool(info["aof_last_write_status"] != "ok")
