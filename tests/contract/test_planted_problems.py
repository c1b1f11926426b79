"""Ten planted problems, each on the real server with the real loops: `spark status` names the cause in plain words.

The sentences are those of docs/operations.md. Time is a clock of the test's where seconds would have to pass.
"""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from operations_table import documented

from actors.actor import Actor
from actors.engine import Generated, Request
from actors.verifiers.pool import InlineVerifier, VerifierPool
from chaos.disks import filled, small_disk
from chaos.prompts import BOMB
from chaos.rows import CannotRun
from cli.rundir import RunDirectory
from cli.status import UNHEALTHY, status
from common.consumer import Consumer
from common.errors import WeightsError
from common.heartbeat import Heartbeat
from common.keys import ACTORS, LEARNER
from common.messages import ChatMessage, Completion, Rollout, RolloutGroup, Task, Verdict, uid_of
from common.messages import Sampling as TaskSampling
from common.settings import Metrics, Recycler, Sampling, Settings
from common.streams import Streams
from common.templates import load_templates
from common.watchdog import Watchdog
from common.weights import WeightStore
from learner.checkpoint import CheckpointStore, State
from learner.figures import disk_figures
from learner.heartbeat import Heartbeat as LearnerHeartbeat
from learner.intake import Intake
from learner.issuer import Issuer
from learner.judge_alarms import JudgeAlarms
from learner.judge_panel import JudgePanel
from learner.prompts.records import Prompt
from learner.prompts.source import PromptSource
from learner.quota import Quota
from learner.shelf import Shelf
from learner.uid_ledger import UidLedger
from recycler.loop import RecyclerLoop
from recycler.reservoir import Reservoir

TABLE = documented()
TESTS = Path(__file__).parents[1]
NO_PROGRESS_S = 100.0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Engine:
    """Finishes every group at once, with a right and a wrong answer. Weights that say ``misfit`` do not fit."""

    finishes: bool = True
    suffix: str = ""
    policy_version: int = -1
    running: list[Request] = field(default_factory=list)

    @property
    def groups_in_flight(self) -> int:
        return len(self.running)

    def tokenize(self, messages):
        return np.array([1, 2], dtype=np.int32)

    def add(self, request: Request) -> None:
        self.running.append(request)

    def step(self) -> list[Generated]:
        done = self.running if self.finishes else []
        self.running = [] if self.finishes else self.running
        return [Generated(request=request, completions=self._completions()) for request in done]

    def _completions(self) -> tuple[Completion, ...]:
        return tuple(completion(f"\\boxed{{{answer}}}{self.suffix}", self.policy_version) for answer in (2, 3))

    def forget(self) -> None:
        self.running.clear()

    def apply(self, files, policy_version: int) -> None:
        if any(Path(file).read_bytes() == b"misfit" for file in files):
            raise WeightsError("another model's")
        self.policy_version = policy_version


class Choosy(Engine):
    """Loads no weights but the first."""

    def apply(self, files, policy_version: int) -> None:
        if policy_version > 0:
            raise WeightsError("its disk does not answer")
        super().apply(files, policy_version)


def completion(text: str, version: int) -> Completion:
    return Completion(
        token_ids=np.array([5, 2], dtype=np.int32),
        logprobs=np.array([-1.0, -1.0], dtype=np.float32),
        spans=((version, 0),),
        finish_reason="stop",
        text=text,
    )


@dataclass
class Stage:
    """A run with its folder, and the members that a test puts into it."""

    run: Any
    tmp_path: Path
    capsys: pytest.CaptureFixture[str]
    clock: Clock = field(default_factory=Clock)
    max_staleness: int = 1

    def __post_init__(self) -> None:
        self.settings = Settings.model_validate(
            {
                "run": {"name": "test", "dir": str(self.tmp_path), "no_progress_s": NO_PROGRESS_S},
                "staleness": {"max_staleness": self.max_staleness},
            }
        )
        self.directory = RunDirectory(self.settings)
        self.directory.create()
        self.store = WeightStore(self.tmp_path / "weights")

    def actor(self, name: str = "actor-0", engine: Engine | None = None, verifying: Any = None) -> Actor:
        streams, clock = self.run.streams, self.clock
        return Actor(
            name,
            streams,
            engine or Engine(),
            verifying or InlineVerifier(),
            max_staleness=self.max_staleness,
            groups_in_flight=4,
            lease_s=60.0,
            max_deliveries=5,
            heartbeat=Heartbeat(streams, name, "actor", Watchdog(NO_PROGRESS_S, clock), clock),
            clock=clock,
        )

    def publish(self, version: int, content: bytes = b"good") -> Path:
        manifest = self.store.publish(1, version, version - 1, lambda folder: _write(folder, content))
        self.run.streams.publish(manifest)
        return Path(manifest.uri) / "m"

    def pass_time(self, seconds: float, *actors: Actor, step_s: float = 5.0) -> None:
        for _ in range(round(seconds / step_s)):
            self.clock.now += step_s
            for actor in actors:
                actor.tick()

    def status(self) -> tuple[int, list[dict[str, Any]]]:
        """Exit code and findings of the command."""
        self.capsys.readouterr()
        code = 0
        try:
            status(self.directory.path, as_json=True)
        except SystemExit as end:
            code = int(end.code or 0)
        return code, json.loads(self.capsys.readouterr().out)["findings"]

    def says(self, problem: str, code: int) -> dict[str, Any]:
        """Of a planted problem, what the documents promise; and the command ends with ``code``."""
        ended, findings = self.status()
        told = [finding for finding in findings if TABLE[problem].fits(finding)]
        assert told, "\n".join(f"{finding['cause']}\n  do: {finding['do']}" for finding in findings)
        assert ended == code, findings
        return told[0]


def _write(folder: Path, content: bytes) -> None:
    (folder / "m").write_bytes(content)


@pytest.fixture
def stage(
    run, tmp_path: Path, server_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Stage:
    monkeypatch.setenv("SPARK_REDIS__URL", server_url)
    for place in ("actors.actor.IDLE_BLOCK_MS", "recycler.loop.BLOCK_MS", "learner.intake.BLOCK_MS"):
        monkeypatch.setattr(place, 0)  # an idle server wakes its blocked clients late
    monkeypatch.setattr(Streams, "wait_for_weights", lambda self, block_ms: None)
    return Stage(run, tmp_path, capsys)


def test_the_table_has_the_problems_that_are_planted_here() -> None:
    """Ten, in the order of the tests below."""
    assert list(TABLE) == [
        "dead actor",
        "wedged recycler",
        "corrupt weights",
        "judge collapse",
        "full Redis",
        "poison task",
        "slow verifier",
        "stale actor",
        "learner starved",
        "disk full",
    ]


def test_a_dead_actor(stage: Stage) -> None:
    stage.publish(0)
    dies, lives = stage.actor("actor-0", Engine(finishes=False)), stage.actor("actor-1")
    stage.run.issue("a", "b", "c")
    stage.pass_time(5.0, dies)
    stage.pass_time(5.0, lives)
    stage.run.streams.client.delete(stage.run.streams.keys.heartbeat("actor-0"))  # it has lived out its time
    found = stage.says("dead actor", UNHEALTHY)
    assert found["subject"] == "actor-0"
    assert "; 3 tasks held there: free" in found["cause"]
    assert "1 other actor takes over" in found["cause"]


def test_a_wedged_recycler(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """It hangs in a call; its watchdog speaks for it."""
    monkeypatch.setattr("cli.causes.learner.LATE_S", 0.0)
    hangs, go_on = threading.Event(), threading.Event()

    class Hanging(Reservoir):
        def add(self, entry_id: str, group: RolloutGroup) -> bool:
            hangs.set()
            assert go_on.wait(30)
            return super().add(entry_id, group)

    reservoir = Hanging(Recycler(), Sampling(group_size=2), load_templates("default"), run="test", seed=0)
    heartbeat = Heartbeat(stage.run.streams, "recycler", "recycler", Watchdog(NO_PROGRESS_S, stage.clock), stage.clock)
    loop = RecyclerLoop(stage.run.streams, reservoir, content_bound=4, heartbeat=heartbeat, clock=stage.clock)
    loop.tick()
    stage.publish(0)
    actor = stage.actor()
    stage.run.issue("a")
    stage.pass_time(10.0, actor)
    wedged = threading.Thread(target=loop.tick, daemon=True)
    wedged.start()
    try:
        assert hangs.wait(30)
        stage.run.issue("b", "c", "d")
        stage.pass_time(250.0, actor)
        heartbeat.watchdog.look()
        found = stage.says("wedged recycler", UNHEALTHY)
    finally:
        go_on.set()
        wedged.join(30)
    assert "does not take the 3 groups before it" in found["cause"]
    _, findings = stage.status()
    assert "recycler" not in [f["subject"] for f in findings if f["code"] == "stalled"]  # said once, not twice


def test_corrupt_weights(stage: Stage) -> None:
    stage.publish(0)
    actor = stage.actor()
    stage.pass_time(5.0, actor)
    file = stage.publish(1)
    file.chmod(0o600)
    file.write_bytes(b"goof")  # as long as before
    stage.pass_time(10.0, actor)
    found = stage.says("corrupt weights", UNHEALTHY)
    assert "policy version 1 do not load at actor-0, which keeps version 0" in found["cause"]
    stage.publish(2)
    stage.pass_time(10.0, actor)
    _, findings = stage.status()
    assert "corrupt_weights" not in {finding["code"] for finding in findings}


def test_a_collapsed_judge(stage: Stage) -> None:
    """It says that everything is right. Panel, alarm and sign of life are the learner's own."""
    panel = JudgePanel(Metrics(alarm_window=8))
    alarms, heartbeat = JudgeAlarms(panel, Metrics(alarm_window=8)), LearnerHeartbeat(stage.run.streams, 1)
    for number in range(16):
        panel.arrived(judged(number, positive=number % 2 == 0, says="yes"), 0)
    panel.take_news()
    heartbeat.note(judge=panel.shown, alarms=alarms.look())
    heartbeat.beat("updating", 3)
    found = stage.says("judge collapse", UNHEALTHY)
    assert "rejects 0% of wrong answers (newest 8 tasks)" in found["cause"]


def judged(number: int, *, positive: bool, says: str) -> RolloutGroup:
    task = Task(
        uid=uid_of("judge", number),
        objective="pointwise",
        messages=(ChatMessage.user("Is 2 right?"),),
        question="1+1",
        answer="yes" if positive else "no",
        verifier="choice",
        sampling=TaskSampling(n=2, max_new_tokens=4),
        positive=positive,
    )
    right = says == task.answer
    verdict = Verdict(status="ok", reward=float(right), verifier="choice@1", answer=says, canonical=says)
    rollouts = tuple(Rollout(completion=completion(says, 0), verdict=verdict) for _ in range(2))
    return RolloutGroup(
        task=task,
        prompt_token_ids=np.array([1], dtype=np.int32),
        rollouts=rollouts,
        actor="actor-0",
        weights_epoch=1,
        generated_at=0.0,
    )


def test_a_full_redis(stage: Stage) -> None:
    stage.run.streams.client.config_set("maxmemory", 1)
    try:
        stage.says("full Redis", UNHEALTHY)
    finally:
        stage.run.streams.client.config_set("maxmemory", 0)
    _, findings = stage.status()
    assert "redis_full" not in {finding["code"] for finding in findings}


def test_a_poison_task(stage: Stage) -> None:
    """Whoever works on it dies. It is told while it still goes round, and when it is given up."""
    stage.publish(0)
    actor = stage.actor("actor-0")
    stage.run.issue("a")
    tasks = stage.run.tasks
    [first] = Consumer(stage.run.streams, ACTORS, "dies-0", [tasks]).claim(1)
    for death in range(1, 5):
        stage.run.streams.hand_back(tasks, ACTORS, f"dies-{death - 1}", [first.id])
        [again] = stage.run.streams.read_expired(ACTORS, f"dies-{death}", tasks, 1000, 1)
    assert again.deliveries == 5
    _, findings = stage.status()
    suspect = next(finding for finding in findings if finding["code"] == "suspect_task")
    assert "looks like poison: it has been delivered 5 times (at most 5)" in suspect["cause"]
    stage.run.streams.hand_back(tasks, ACTORS, "dies-4", [first.id])
    stage.pass_time(70.0, actor)
    found = stage.says("poison task", code=0)
    assert "delivered 5 times without a result" in found["cause"]


@pytest.fixture
def slow_pool() -> Iterator[VerifierPool]:
    pool = VerifierPool(workers=1, timeout_s=60.0, memory_mb=2048, python_path=[TESTS])
    yield pool
    pool.close()


def test_a_slow_verifier(stage: Stage, slow_pool: VerifierPool) -> None:
    """Real verifier processes, and a verifier that does not come to an end."""
    stage.publish(0)
    actor = stage.actor("actor-0", Engine(suffix=BOMB), slow_pool)
    issue_with(stage, "python:chaos.verifiers:patient", "a", "b")
    stage.pass_time(30.0, actor)
    found = stage.says("slow verifier", code=0)
    assert "2 groups are finished but for them" in found["cause"]


def issue_with(stage: Stage, verifier: str, *uids: str) -> None:
    tasks = [
        Task(
            uid=uid,
            objective="solve",
            messages=(ChatMessage.user("1+1"),),
            question="1+1",
            answer="2",
            verifier=verifier,
            sampling=TaskSampling(n=2, max_new_tokens=4),
        )
        for uid in uids
    ]
    assert stage.run.streams.issue(stage.run.token, stage.run.streams.cursor() or 0, tasks) == len(uids)


def test_a_stale_actor(stage: Stage) -> None:
    """One of two has no way to the new weights."""
    stage.publish(0)
    left_behind, other = stage.actor("actor-0", Choosy()), stage.actor("actor-1")
    stage.pass_time(5.0, left_behind, other)
    for version in range(1, 4):
        stage.publish(version)
        stage.pass_time(10.0, left_behind, other)
    found = stage.says("stale actor", UNHEALTHY)
    assert found["subject"] == "actor-0"
    assert "its weights are version 0, version 3 is out, the bound is 1" in found["cause"]
    assert found["cause"].endswith("its disk does not answer")
    _, findings = stage.status()
    assert "corrupt_weights" not in {finding["code"] for finding in findings}


def test_a_starved_learner(stage: Stage) -> None:
    """Its one actor is too slow. It waits in the real intake, and tells how long."""
    stage.publish(0)
    actor = stage.actor("actor-0", Engine(finishes=False))
    heartbeat = LearnerHeartbeat(stage.run.streams, 1, Watchdog(NO_PROGRESS_S, stage.clock), stage.clock)
    rounds = iter(range(12))

    def stopping() -> bool:
        stage.pass_time(5.0, actor)
        return next(rounds, None) is None

    intake = waiting_intake(stage, stopping, heartbeat.beat)
    assert intake.take(Quota(policy=4, judge=0), 0) is None
    found = stage.says("learner starved", code=0)
    assert "1 actor holds 4 tasks and " in found["cause"]


@dataclass
class Held:
    token: str

    def hold(self, call):
        return call()


def waiting_intake(stage: Stage, stopping: Callable[[], bool], beat: Any) -> Intake:
    streams, keys = stage.run.streams, stage.run.streams.keys
    settings = Settings(
        run={"name": "test"}, sampling={"group_size": 2}, learner={"groups_per_step": 4, "judge_share": 0.0}
    )
    records = [
        Prompt(index=i, question="q", messages=(ChatMessage.user("q"),), answer="2", verifier="exact") for i in range(9)
    ]
    issuer = Issuer(
        streams,
        Held(stage.run.token),
        PromptSource(records, seed=0, shuffle=False, epochs=None),
        load_templates("default"),
        settings,
        cursor=0,
        returned=Consumer(streams, LEARNER, "learner-e1", [keys.returned]),
    )
    consumer = Consumer(streams, LEARNER, "learner-e1", [keys.rollouts("judge"), keys.rollouts("policy")])
    return Intake(
        streams,
        issuer,
        Shelf(streams, issuer, settings, consumer=consumer, ended=UidLedger(), clock=stage.clock),
        settings,
        guard=lambda: None,
        stopping=stopping,
        beat=beat,
        watchdog=Watchdog(NO_PROGRESS_S, stage.clock),
        clock=stage.clock,
    )


def test_a_full_disk(
    run, tmp_path: Path, server_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A small disk of its own, full to the last byte: no checkpoint can be written there."""
    monkeypatch.setenv("SPARK_REDIS__URL", server_url)
    try:
        with small_disk(tmp_path / "disk", megabytes=64) as disk:
            stage = Stage(run, disk, capsys)
            folder = stage.directory.path
            heartbeat = LearnerHeartbeat(run.streams, 1, figures=partial(disk_figures, folder))
            heartbeat.beat("waiting for policy groups", 3)
            _, findings = stage.status()
            assert "disk_full" not in {finding["code"] for finding in findings}
            with filled(disk):
                with pytest.raises(OSError, match="space") as full:
                    save_checkpoint(folder / "checkpoints")
                assert full.value.errno == errno.ENOSPC
                heartbeat.beat("updating", 3)
                found = stage.says("disk full", UNHEALTHY)
            assert "0 B free" in found["cause"]
    except CannotRun as reason:
        pytest.skip(str(reason))


def save_checkpoint(folder: Path) -> None:
    state = State(epoch=1, policy_version=3, cursor=0, endings=(), ended=UidLedger())
    CheckpointStore(folder, kept=2).save(state, lambda to: _write(to, bytes(1 << 20)))


def test_people_read_the_same_sentences_as_programs(stage: Stage) -> None:
    beat = {"role": "learner", "state": "updating", "alarms": ["the judge accepts all"], "waiting_share": 0.75}
    stage.run.streams.heartbeat("learner", beat, ttl_s=300)
    code, findings = stage.status()
    assert (code, [finding["severity"] for finding in findings]) == (UNHEALTHY, ["problem", "warning"])
    with pytest.raises(SystemExit) as ended:
        status(stage.directory.path, as_json=False)
    assert ended.value.code == UNHEALTHY
    text = stage.capsys.readouterr().out
    for finding in findings:
        assert f"{finding['severity'].upper()}: {finding['cause']}\n  do: {finding['do']}\n" in text
