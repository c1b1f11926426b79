"""Ranks as real processes: they obey rank 0, end with it, and it ends with them. Then a whole run on two of them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from run_harness import DEMO, ROOT, Up, command, environment, processes_of, spark, steps_of, until

from common.settings import Settings

DEADLINE_S = 120.0
LOOPBACK = "0100007F"
"""127.0.0.1, as /proc/net/tcp writes it."""
NOTICED_S = 60.0
"""Within this a rank has noticed that another is gone; the vigil alone takes about 8 s on an idle machine."""


class Job:
    """A ``rank_job`` in the background. ``environ``: what a launcher sets, if it was started by one."""

    def __init__(self, folder: Path, processes: int, plan: str, **environ: str) -> None:
        self.folder = folder
        settings = Settings(run={"dir": str(folder)}, learner={"engine": "deepspeed", "processes": processes})
        path = folder / "settings.json"
        path.write_text(settings.model_dump_json(exclude={"redis"}))
        paths = os.pathsep.join(str(ROOT / part) for part in (".", "tests", "tests/helpers"))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rank_job", str(path), plan],
            env={**environment(), "PYTHONPATH": paths, **environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ranks(self) -> list[int]:
        """Pids of the ranks that rank 0 has started."""
        return children_of(self.process.pid)

    def until_ready(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n", self.process.stderr.read() if self.process.stderr else ""

    def end(self, given: str | None = None) -> tuple[int, str, str]:
        """Exit code, standard output and error."""
        out, err = self.process.communicate(given, timeout=DEADLINE_S)
        return self.process.returncode, out, err

    def events(self, rank: int) -> list[dict[str, Any]]:
        path = self.folder / f"rank-{rank}.log"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    started: list[Job] = []

    def start(processes: int, plan: str, **environ: str) -> Job:
        started.append(Job(tmp_path, processes, plan, **environ))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.end()


def children_of(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def is_alive(pid: int) -> bool:
    """Whether it runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def listening(pid: int) -> list[str]:
    """Addresses that a process listens on, in the hexadecimal form of /proc/net."""
    sockets = {os.readlink(descriptor) for descriptor in Path(f"/proc/{pid}/fd").iterdir()}
    tables = [Path(f"/proc/{pid}/net/{name}").read_text().splitlines() for name in ("tcp", "tcp6")]
    lines = [line.split() for table in tables for line in table]
    return [line[1].split(":")[0] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in sockets]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def launched(rank: int, port: int) -> dict[str, str]:
    """What a launcher of two ranks sets."""
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    return {**place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def test_ranks_do_what_rank_0_says_whatever_signals_come_and_a_full_disk_leaves_them_in_step(
    job: Callable[..., Job],
) -> None:
    running = job(3, "disk")
    running.until_ready()
    ranks = running.ranks()
    for number in (signal.SIGTERM, signal.SIGINT):  # of a launcher that stops all; the others leave that to rank 0
        os.kill(ranks[0], number)
    code, out, err = running.end("go on\n")
    assert code == 143, err
    assert out.splitlines() == [
        "disk: No space left on device",
        "[6.0, 6.0]",
        "{'sum': 9.0} 1",  # 0 + 1 + 2 for the ranks, and 3 times the 2 tokens of a microbatch
        "{'sum': 15.0} 8",
    ]
    assert err == ""
    for rank in (1, 2):
        assert [event["event"] for event in running.events(rank)] == ["rank.ready", "rank.stopped"]
        assert {event["rank"] for event in running.events(rank)} == {rank}
    assert not any(map(is_alive, ranks))


def test_settings_that_change_live_reach_every_rank(job: Callable[..., Job]) -> None:
    code, out, err = job(3, "use").end()
    assert code == 0, err
    assert out.splitlines()[-1] == "{'sum': 315.0} 8"  # 15, and the 100 of each rank's settings


def test_an_error_on_one_rank_ends_all_with_its_reason(job: Callable[..., Job]) -> None:
    running = job(3, "fail")
    running.until_ready()
    ranks = running.ranks()
    code, _, err = running.end()
    assert code == 1
    assert err == "spark: rank 1 failed: ValueError: planted; no rank can go on without it\n"
    assert "ValueError: planted" in next(e["exception"] for e in running.events(1) if e["event"] == "rank.failed")
    assert not any(map(is_alive, ranks))


def test_rank_0_ends_when_another_one_dies_though_it_waits_for_something_else(job: Callable[..., Job]) -> None:
    running = job(3, "wait")
    running.until_ready()
    ranks = running.ranks()
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    until(lambda: running.process.poll() is not None, "the end of rank 0", NOTICED_S)
    code, _, err = running.end()
    assert code == 1
    assert err.startswith("spark: rank ")
    assert err.endswith(" ended with SIGKILL; no rank can go on without it\n")
    until(lambda: not any(map(is_alive, ranks)), "the end of the last rank", NOTICED_S)


def test_ranks_listen_on_the_loopback_and_none_outlives_a_rank_0_that_was_killed(job: Callable[..., Job]) -> None:
    running = job(3, "wait")
    running.until_ready()
    ranks = running.ranks()
    addresses = [address for pid in (running.process.pid, *ranks) for address in listening(pid)]
    assert set(addresses) == {LOOPBACK}
    running.process.kill()
    until(lambda: not any(map(is_alive, ranks)), "the end of the ranks", NOTICED_S)


def test_ranks_of_a_launcher_obey_and_notice_that_rank_0_is_gone(job: Callable[..., Job]) -> None:
    port = free_port()
    other = job(1, "wait", BY_LAUNCHER="1", **launched(1, port))
    first = job(1, "wait", BY_LAUNCHER="1", **launched(0, port))
    first.until_ready()
    assert first.ranks() == []
    first.process.kill()
    until(lambda: other.process.poll() is not None, "the end of rank 1", NOTICED_S)
    code, _, _ = other.end()
    assert code == 1
    said = [event for event in other.events(1) if event["event"] in ("rank.ended", "ranks.failed")]
    assert said
    assert "gone" in str(said[0])


def log_of_learner(run: Path) -> list[dict[str, Any]]:
    path = run / "logs" / "learner.log"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_the_command_of_the_learner_takes_its_rank_from_a_launcher(server_url: str, tmp_path: Path) -> None:
    """Rank 0 waits for actors that never come; both are told to stop, as Slurm and Kubernetes do."""
    port = free_port()
    words = command("learner", str(DEMO), "--set", "learner.engine=deepspeed", "--set", 'eval.prompts=""')
    ranks = [
        subprocess.Popen(
            words,
            cwd=tmp_path,
            env={**environment(), **launched(rank, port), "SPARK_REDIS__URL": server_url},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        run = tmp_path / "runs" / "demo"
        until(lambda: any(event["event"] == "learner.started" for event in log_of_learner(run)), "a learner")
        for process in reversed(ranks):
            process.send_signal(signal.SIGTERM)
        errors = [process.communicate(timeout=DEADLINE_S)[1] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
            process.communicate()
    assert [process.returncode for process in ranks] == [143, 143], errors
    events = log_of_learner(run)
    assert {event.get("rank") for event in events if event["event"] == "rank.ready"} == {1}
    assert [event.get("rank") for event in events if event["event"] == "learner.stopped"] == [None]
    assert [event.get("rank") for event in events if event["event"] == "rank.stopped"] == [1]


def test_a_run_on_two_ranks_survives_the_death_of_one_and_goes_on_with_another_engine(
    start: Callable[..., Up], tmp_path: Path
) -> None:
    small = ("redis.lease_s=10", "actor.count=1")
    on_two = ("learner.engine=deepspeed", "learner.processes=2", "learner.zero_stage=3", *small)
    up = start("learner.max_steps=100000", *on_two)
    until(lambda: len(steps_of(up.run)) >= 3, "three steps")
    first = processes_of(up.run)["learner"]
    [rank] = children_of(first)
    assert b"learner.ranks" in Path(f"/proc/{rank}/cmdline").read_bytes()
    assert b"SPARK_REDIS__URL" not in Path(f"/proc/{rank}/environ").read_bytes()  # only rank 0 needs the credentials
    os.kill(rank, signal.SIGKILL)
    learner = until(lambda: processes_of(up.run).get("learner", first) != first, "a new learner")
    reached = len(steps_of(up.run))
    until(lambda: len(steps_of(up.run)) >= reached + 3, "three steps after the kill")
    learner = processes_of(up.run)["learner"]
    [rank] = children_of(learner)
    up.interrupt()
    assert up.wait() == 0, up.output.read_text()
    assert not is_alive(learner)
    assert not is_alive(rank)
    assert "exit_code=-9" not in up.output.read_text()
    steps = steps_of(up.run)
    assert steps == list(range(1, len(steps) + 1))
    events = log_of_learner(up.run)
    assert {event.get("rank") for event in events if event["event"] == "rank.ready"} == {1}
    assert [event["rank"] for event in events if event["event"] == "rank.stopped"] == [1]  # told to, the second time
    assert "rank 1 ended with SIGKILL" in (up.run / "logs" / "learner.stderr").read_text()

    resumed = start(f"learner.max_steps={len(steps) + 2}", *small)  # plain torch
    assert resumed.wait() == 0, resumed.output.read_text()
    assert steps_of(up.run) == list(range(1, len(steps) + 3))
    assert (up.run / "export" / "model.safetensors").is_file()
    audit = spark("audit", str(up.run), cwd=tmp_path)
    assert audit.returncode == 0, audit.stdout
    assert json.loads((up.run / "summary.json").read_text())["ledger"]["balanced"] is True
