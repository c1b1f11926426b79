"""A verifier or an engine that fails is never a reward of 0: from the prompt through actor, recycler and learner."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from actors.actor import Actor
from actors.engine import Generated, Request
from actors.verifiers.pool import VerifierPool
from cli.audit import audit
from common.codec import decode
from common.messages import ChatMessage, Completion, Task
from common.settings import Settings
from common.streams import Streams
from common.templates import load_templates
from common.weights import WeightStore
from learner.checkpoint import CheckpointStore
from learner.prompts.records import Prompt
from learner.prompts.source import PromptSource
from learner.quota import Quota
from learner.samples import to_samples
from learner.start import Parts, assemble, take_over
from recycler.loop import RecyclerLoop
from recycler.reservoir import Reservoir

VERIFIER = """
def verify(completion, answer):
    if "raise" in completion:
        raise RuntimeError("the grader is down")
    if "nan" in completion:
        return float("nan")
    if "odd" in completion:
        return "no number"
    return answer in completion
"""
ANSWERS = {
    "contrast": ("\\boxed{right}", "\\boxed{wrong}", "raise", "odd"),
    "only right is known": ("\\boxed{right}", "raise", "nan", "odd"),  # errors counted as 0 would make a contrast
    "only wrong is known": ("\\boxed{wrong}", "raise", "nan", "odd"),
    "nothing is known": ("raise", "nan", "odd", "raise"),
}


class Engine:
    """Answers each question as ``ANSWERS`` says; raises while ``out_of_memory``."""

    policy_version = -1
    out_of_memory = False

    def __init__(self) -> None:
        self._added: list[Request] = []

    @property
    def groups_in_flight(self) -> int:
        return len(self._added)

    def tokenize(self, messages) -> np.ndarray:
        [question] = [index for index, name in enumerate(ANSWERS) if name in messages[-1].text]
        return np.array([question], dtype=np.int32)

    def add(self, request: Request) -> None:
        self._added.append(request)

    def step(self) -> list[Generated]:
        if self.out_of_memory:
            raise RuntimeError("out of memory")
        done, self._added = self._added, []
        return [Generated(request=one, completions=self._answers(int(one.prompt_token_ids[0]))) for one in done]

    def _answers(self, question: int) -> tuple[Completion, ...]:
        return tuple(
            Completion(
                token_ids=np.array([index], dtype=np.int32),
                logprobs=np.array([-1.0], dtype=np.float32),
                spans=((self.policy_version, 0),),
                finish_reason="stop",
                text=text,
            )
            for index, text in enumerate(list(ANSWERS.values())[question])
        )

    def forget(self) -> None:
        self._added.clear()

    def apply(self, files, policy_version: int) -> None:
        self.policy_version = policy_version


class NoTraining:
    """The learner's engine, of which only a checkpoint is asked."""

    policy_version = 1

    def write_checkpoint(self, folder: Path) -> None:
        (folder / "weights").touch()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        run={"name": "test", "dir": str(tmp_path)},
        sampling={"group_size": 4},
        learner={"groups_per_step": 4},
        staleness={"max_staleness": 1},
    )


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", 2)


@pytest.fixture
def learner(streams: Streams, settings: Settings, store: CheckpointStore) -> Parts:
    records = [
        Prompt(
            index=index,
            question=name,
            messages=(ChatMessage.user(name),),
            answer="right",
            verifier="python:grader_that_fails:verify",
        )
        for index, name in enumerate(ANSWERS)
    ]
    prompts, templates = PromptSource(records, seed=0, shuffle=False, epochs=1), load_templates("default")
    taken = take_over(streams, store, prompts, templates, settings)
    return assemble(taken, streams, store, prompts, templates, settings, stopping=lambda: False)


@pytest.fixture
def verifiers(tmp_path: Path) -> Iterator[VerifierPool]:
    (tmp_path / "grader_that_fails.py").write_text(VERIFIER)
    pool = VerifierPool(workers=1, timeout_s=20.0, memory_mb=512, python_path=[tmp_path])
    yield pool
    pool.close()


@pytest.fixture
def make_actor(streams: Streams, verifiers: VerifierPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("actors.actor.IDLE_BLOCK_MS", 0)
    monkeypatch.setattr("learner.intake.BLOCK_MS", 0)
    monkeypatch.setattr("recycler.loop.BLOCK_MS", 0)
    monkeypatch.setattr(Streams, "wait_for_weights", lambda self, block_ms: None)
    streams.publish(WeightStore(tmp_path / "weights").publish(1, 0, -1, lambda folder: (folder / "m").touch()))

    def make(name: str, *, lease_s: float = 0.2) -> tuple[Actor, Engine]:
        engine = Engine()
        options = {"max_staleness": 1, "groups_in_flight": 4, "max_deliveries": 3}
        return Actor(name, streams, engine, verifiers, lease_s=lease_s, **options), engine

    return make


def uid_by_question(streams: Streams) -> dict[str, str]:
    rows = streams.client.xrange(streams.keys.tasks("policy"))
    tasks = [decode(Task, fields[b"m"]) for _, fields in rows]
    return {task.question: task.uid for task in tasks}


def test_what_could_not_be_verified_is_in_no_sample_no_contrast_and_no_judge_task(
    streams, settings, store, learner, make_actor
) -> None:
    actor, _ = make_actor("actor-0")
    uids: dict[str, str] = {}

    def work() -> None:
        uids.update(uid_by_question(streams))
        actor.tick()

    groups = learner.intake.take(Quota(policy=4, judge=0), 0, tend=lambda: work() is None)
    assert [group.uid for group in groups] == [uids["contrast"]]
    samples = [sample for group in groups for sample in to_samples(group, 0, "group_norm", 0.0)]
    assert [(int(sample.token_ids[0]), sample.advantage) for sample in samples] == [(0, 1.0), (1, -1.0)]
    metrics = learner.intake.shelf.stats.take()
    assert metrics["reward/solve"] == pytest.approx(2 / 4)  # right, wrong, right, wrong: of what was verified
    assert metrics["verifier_errors"] == 8

    learner.committer.save(NoTraining())
    [letter] = streams.dead_letters()
    assert letter.uid == uids["nothing is known"]
    assert letter.reason.startswith("verifier python:grader_that_fails:verify@")
    ledger = {name: count for name, count in streams.ledger().items() if count}
    assert ledger == {"issued:policy": 4, "trained:policy": 1, "filtered:policy": 2, "dead:policy": 1}
    assert audit(streams, settings.run.directory / "events", store).violations == ()

    streams.report_progress(judge_granted=100)
    reservoir = Reservoir(settings.recycler, settings.sampling, load_templates("default"), run="test", seed=0)
    recycler = RecyclerLoop(streams, reservoir, content_bound=9)
    recycler.tick()
    recycler.tick()
    rows = streams.client.xrange(streams.keys.tasks("judge"))
    shown = {(source.uid, source.sample) for _, fields in rows for source in decode(Task, fields[b"m"]).sources}
    verified = {(uids["contrast"], 0), (uids["contrast"], 1)}
    verified |= {(uids["only right is known"], 0), (uids["only wrong is known"], 0)}
    assert shown
    assert shown <= verified


def test_an_engine_that_fails_ends_its_actor_and_another_one_answers(streams, learner, make_actor, wait_until) -> None:
    learner.intake._admission.admit(Quota(policy=4, judge=0), streams.ledger(), 0)
    uids = uid_by_question(streams)
    broken, engine = make_actor("broken")
    engine.out_of_memory = True
    with pytest.raises(RuntimeError, match="out of memory"):
        [broken.tick() for _ in range(3)]
    assert streams.client.xlen(streams.keys.rollouts("policy")) == 0
    assert streams.ledger()["dead:policy"] == 0
    other, _ = make_actor("other")

    def answered() -> bool:
        other.tick()
        return streams.client.xlen(streams.keys.rollouts("policy")) == 3 and streams.ledger()["dead:policy"] == 1

    wait_until(answered)
    assert [letter.uid for letter in streams.dead_letters()] == [uids["nothing is known"]]
    assert streams.conservation().balanced
