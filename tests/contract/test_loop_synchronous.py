"""With max_staleness = 0 the whole asynchronous loop is synchronous training, bit for bit.

Issuer, actors, streams, intake, engine and publisher run on the real server; beside them a loop without any of
these. Both end with the same parameters, or one of them did something else than it says.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from actors.actor import Actor
from actors.engine import Request
from actors.transformers_engine import TransformersEngine, load_model
from actors.verifiers import verify
from actors.verifiers.pool import InlineVerifier
from common.keys import LEARNER
from common.messages import Rollout, RolloutGroup, Sampling, Task, uid_of
from common.settings import Settings
from common.settings_sources import load_settings
from common.streams import Streams
from common.templates import load_templates
from learner.advantage import has_contrast
from learner.checkpoint import CheckpointStore
from learner.issuer import _seed, solve_messages
from learner.loop import run as train
from learner.packing import pack
from learner.prompts import open_prompts
from learner.samples import to_samples
from learner.start import assemble, load, take_over
from learner.torch_engine import TorchEngine

RUN_FILE = Path(__file__).parents[2] / "examples" / "arithmetic" / "run.toml"
STEPS, GROUPS = 5, 4
Parameters = dict[str, torch.Tensor]


def settings_of(directory: Path, eta: int) -> Settings:
    overrides = {
        "preset": "grpo",
        "run.name": "sync",
        "run.dir": str(directory),
        "prompts.args.size": 64,
        "staleness.max_staleness": eta,
        "actor.groups_in_flight": 1,  # every group is a batch of its own, so that floating-point sums are the same
        "learner.max_steps": STEPS,
        "learner.groups_per_step": GROUPS,
        "learner.straggler_wait_s": 0.0,
        "learner.checkpoint_every": 2,
    }
    return load_settings(RUN_FILE, [f"{key}={value}" for key, value in overrides.items()])


def parameters(engine: TorchEngine) -> Parameters:
    return {name: parameter.detach().clone() for name, parameter in engine.model.named_parameters()}


def generation(settings: Settings) -> TransformersEngine:
    return TransformersEngine(*load_model(settings.model), groups_per_batch=1, max_prompt_tokens=64)


# -- the reference: no streams, no processes ------------------------------------------------------------------


@dataclass
class Outcome:
    parameters: Parameters
    trained: list[list[str]]
    """Uids of every batch."""
    filtered: int


def plain_loop(settings: Settings, folder: Path) -> Outcome:
    """Generate, verify, skip groups without a contrast, update; one after the other."""
    engine, actor = TorchEngine(settings), generation(settings)
    prompts = open_prompts(settings.prompts, settings.run.python_path, settings.run.seed)
    templates = load_templates(settings.templates.path)
    position, trained, filtered = 0, [], 0
    for version in range(STEPS):
        folder.mkdir(exist_ok=True)
        engine.write_weights(folder)
        actor.apply(list(folder.iterdir()), version)
        groups: list[RolloutGroup] = []
        while len(groups) < GROUPS:
            epoch, index = prompts.order(position)
            position += 1
            prompt = prompts[index]
            task = Task(
                uid=uid_of("sync", index, "solve", templates.ref(templates.solve), epoch),
                objective="solve",
                messages=solve_messages(prompt, templates),
                question=prompt.question,
                answer=prompt.answer,
                verifier=prompt.verifier,
                sampling=Sampling(n=8, max_new_tokens=16, temperature=1.0, seed=_seed(settings.run.seed, epoch, index)),
            )
            group = sampled(actor, task)
            if has_contrast(group):
                groups.append(group)
            else:
                filtered += 1
        groups.sort(key=lambda group: group.uid)
        samples = [sample for group in groups for sample in to_samples(group, 0, "group_norm", 1e-4)]
        engine.step(pack(samples, settings.learner.tokens_per_microbatch))
        trained.append([group.uid for group in groups])
    return Outcome(parameters=parameters(engine), trained=trained, filtered=filtered)


def sampled(actor: TransformersEngine, task: Task) -> RolloutGroup:
    prompt_token_ids = actor.tokenize(task.messages)
    actor.add(Request(key=task.uid, prompt_token_ids=prompt_token_ids, sampling=task.sampling))
    while not (done := actor.step()):
        pass
    return RolloutGroup(
        task=task,
        prompt_token_ids=prompt_token_ids,
        rollouts=tuple(Rollout(completion=c, verdict=verify(task, c)) for c in done[0].completions),
        actor="plain",
        weights_epoch=1,
        generated_at=0.0,
    )


# -- the system ---------------------------------------------------------------------------------------------


def actors_of(streams: Streams, settings: Settings, count: int) -> list[Actor]:
    return [
        Actor(
            f"actor-{index}",
            streams,
            generation(settings),
            InlineVerifier(),
            max_staleness=settings.staleness.max_staleness,
            groups_in_flight=1,
            lease_s=60.0,
            max_deliveries=5,
        )
        for index in range(count)
    ]


def whole_loop(
    streams: Streams, settings: Settings, actors: int, workers: list[Actor] | None = None
) -> tuple[Outcome, list[dict]]:
    """The learner's own loop. Whenever it looks whether to stop, which it does while it waits, the actors tick."""
    workers = workers or actors_of(streams, settings, actors)
    waits = 0

    def actors_work() -> bool:
        nonlocal waits
        waits += 1
        assert waits < 20_000, "the loop makes no progress"
        for worker in workers:
            worker.tick()
        return False

    engine = TorchEngine(settings)
    prompts = open_prompts(settings.prompts, settings.run.python_path, settings.run.seed)
    templates = load_templates(settings.templates.path)
    checkpoints = CheckpointStore(settings.run.directory / "checkpoints", 2)
    taken = take_over(streams, checkpoints, prompts, templates, settings)
    parts = assemble(taken, streams, checkpoints, prompts, templates, settings, stopping=actors_work)
    load(engine, taken)
    intake = parts.intake
    batches: list[list[str]] = []
    take = intake.take

    def watched(quota, version, relieve, tend):
        groups = take(quota, version, relieve, tend)
        batches.append([group.uid for group in groups or ()])
        return groups

    intake.take = watched
    metrics: list[dict] = []
    train(engine, intake, parts.publisher, parts.committer, settings, metrics.append)
    filtered = streams.ledger()["filtered:policy"]
    return Outcome(parameters=parameters(engine), trained=batches, filtered=filtered), metrics


def equal(one: Parameters, other: Parameters) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch) -> None:
    """Everything runs in one thread: there is nobody to wait for."""
    monkeypatch.setattr("actors.actor.IDLE_BLOCK_MS", 0)
    monkeypatch.setattr("learner.intake.BLOCK_MS", 0)
    monkeypatch.setattr(Streams, "wait_for_weights", lambda self, block_ms: None)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("plain")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return plain_loop(settings_of(folder, eta=0), folder / "weights")
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("actors", [1, 2])
def test_without_staleness_the_parameters_are_those_of_a_plain_loop(streams, tmp_path, reference, actors) -> None:
    settings = settings_of(tmp_path, eta=0)
    found, metrics = whole_loop(streams, settings, actors)
    assert found.trained == reference.trained
    assert equal(found.parameters, reference.parameters)
    assert found.filtered == reference.filtered > 0  # so the refill was part of it
    assert not equal(found.parameters, parameters(TorchEngine(settings)))
    assert [step["staleness_before"] for step in metrics] == [0.0] * STEPS


def test_nothing_is_lost_and_all_is_acknowledged_at_the_end(streams, tmp_path, reference) -> None:
    whole_loop(streams, settings_of(tmp_path, eta=0), actors=1)
    ledger = {name: count for name, count in streams.ledger().items() if count}
    assert ledger == {
        "issued:policy": STEPS * GROUPS + reference.filtered,
        "trained:policy": STEPS * GROUPS,
        "filtered:policy": reference.filtered,
    }
    assert streams.backlog(streams.keys.rollouts("policy"), LEARNER).total == 0


def test_with_overlap_the_parameters_are_others(streams, tmp_path, reference) -> None:
    """Guards the equality above: with eta = 1 the next batch is sampled before the update of this one."""
    found, metrics = whole_loop(streams, settings_of(tmp_path, eta=1), actors=1)
    assert not equal(found.parameters, reference.parameters)
    assert max(step["staleness_before"] for step in metrics) == 1.0


# -- killed anywhere ------------------------------------------------------------------------------------------


class Killed(BaseException):
    """kill -9: nothing catches it."""


def dying(streams: Streams, at: int, *, replied: bool, monkeypatch) -> None:
    """The process ends at its ``at``-th call to the server: before it is made, or when the server has done it."""
    calls, retry = 0, streams._retry

    def counted(call, **options):
        nonlocal calls
        calls += 1
        if calls == at and not replied:
            raise Killed
        answer = retry(call, **options)
        if calls == at:
            raise Killed
        return answer

    monkeypatch.setattr(streams, "_retry", counted)


@pytest.mark.parametrize("survivors", [False, True], ids=["all killed", "learner killed"])
@pytest.mark.parametrize("seed", range(5))
def test_killed_anywhere_and_resumed_the_parameters_are_the_same(
    streams, tmp_path, reference, monkeypatch, survivors, seed
) -> None:
    """With a checkpoint every second step some steps are made again: of the same prompts, sampled by the same weights.

    Actors that survive hold weights of the lost line, and prompts that it issued ahead.
    """
    settings, rng = settings_of(tmp_path, eta=0), random.Random(seed)
    of_actors = Streams(streams.client, streams.keys.run)
    actors = actors_of(of_actors, settings, 2)
    kills = 0
    for _ in range(3):
        with monkeypatch.context() as context:
            dies = streams if survivors else rng.choice([streams, of_actors])
            dying(dies, rng.randint(5, 60), replied=rng.random() < 0.5, monkeypatch=context)
            try:
                whole_loop(streams, settings, 2, actors)
            except Killed:
                kills += 1
                actors = actors if survivors else actors_of(of_actors, settings, 2)
    found, _ = whole_loop(streams, settings, 2, actors)
    assert kills
    assert equal(found.parameters, reference.parameters)
    ledger = streams.ledger()
    assert ledger["trained:policy"] == STEPS * GROUPS
    assert ledger["filtered:policy"] == reference.filtered
    assert streams.conservation().balanced
