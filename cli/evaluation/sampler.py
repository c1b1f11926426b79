"""Tasks in, scored groups out: generation and verification of one stage of an evaluation, and what it cost."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import structlog

from actors.engine import Engine, Generated, Request
from actors.verifying import PendingVerdicts, Verifying
from common.errors import SparkError, TaskError
from common.messages import Rollout, RolloutGroup, Task, Verdict

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What was generated. Tokens are counted per completion; a group's prompt is read once for all of them."""

    completions: int = 0
    sampled_tokens: int = 0
    prompt_tokens: int = 0
    refused: int = 0
    """Tasks the engine can never generate from, because their prompt is too long. They count as wrong."""
    verifier_failures: int = 0
    """Completions whose verifier failed or timed out. They count as nothing."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(Cost)})

    def __sub__(self, other: Cost) -> Cost:
        return Cost(**{f.name: getattr(self, f.name) - getattr(other, f.name) for f in fields(Cost)})


def cost_of(groups: Sequence[RolloutGroup | None]) -> Cost:
    """The cost of groups that were generated (None: refused)."""
    generated = [group for group in groups if group is not None]
    rollouts = [rollout for group in generated for rollout in group.rollouts]
    return Cost(
        completions=len(rollouts),
        sampled_tokens=sum(len(rollout.completion.token_ids) for rollout in rollouts),
        prompt_tokens=sum(len(group.prompt_token_ids) for group in generated),
        refused=len(groups) - len(generated),
        verifier_failures=sum(not rollout.verdict.scored for rollout in rollouts),
    )


class Sampler:
    """Runs tasks through an engine it owns alone. ``cost`` grows with every call."""

    def __init__(self, engine: Engine, verifying: Verifying, *, tokens_per_batch: int) -> None:
        self.cost = Cost()
        self._engine = engine
        self._verifying = verifying
        self._tokens_per_batch = tokens_per_batch

    def __call__(self, tasks: Sequence[Task], stage: str) -> list[RolloutGroup | None]:
        """One scored group per task, in their order; None for a task that the engine refuses.

        Raises SparkError when it refuses every one of them.
        """
        refusals: list[TaskError] = []
        done: list[tuple[Generated, PendingVerdicts]] = []
        for batch in batches(self._requests(tasks, refusals), self._tokens_per_batch):
            done += self._generate(batch, tasks, refusals)
        if tasks and not done:
            raise SparkError(f"{stage}: the engine refuses all {len(tasks)} prompts, for example: {refusals[0]}")
        groups: list[RolloutGroup | None] = [None] * len(tasks)
        for generated, pending in done:
            index = int(generated.request.key)
            groups[index] = _group(tasks[index], generated, pending.verdicts())
        self._account(stage, groups)
        return groups

    def _requests(self, tasks: Sequence[Task], refusals: list[TaskError]) -> list[Request]:
        requests = []
        for index, task in enumerate(tasks):
            with _collecting(refusals):
                prompt_token_ids = self._engine.tokenize(task.messages)
                requests.append(Request(key=str(index), prompt_token_ids=prompt_token_ids, sampling=task.sampling))
        return requests

    def _generate(
        self, requests: Sequence[Request], tasks: Sequence[Task], refusals: list[TaskError]
    ) -> list[tuple[Generated, PendingVerdicts]]:
        done = []
        for request in requests:
            with _collecting(refusals):
                self._engine.add(request)
        while self._engine.groups_in_flight:
            for generated in self._engine.step():
                task = tasks[int(generated.request.key)]
                done.append((generated, self._verifying.submit(task, generated.completions)))
        return done

    def _account(self, stage: str, groups: Sequence[RolloutGroup | None]) -> None:
        cost = cost_of(groups)
        self.cost += cost
        if failed := [r.verdict for group in groups if group for r in group.rollouts if not r.verdict.scored]:
            log.warning("evaluation.verifier_failed", stage=stage, failures=len(failed), example=failed[0].detail)
        log.info("evaluation.sampled", stage=stage, completions=cost.completions, refused=cost.refused)


@contextmanager
def _collecting(refusals: list[TaskError]) -> Iterator[None]:
    try:
        yield
    except TaskError as error:
        refusals.append(error)


def batches(requests: Sequence[Request], tokens_per_batch: int) -> Iterator[list[Request]]:
    """Requests of similar prompt lengths together, since shorter ones are padded; a batch holds at least one.

    A batch costs its completions times (its longest prompt + the most new tokens), all of it KV cache.
    """
    batch: list[Request] = []
    rows = most_new = 0
    for request in sorted(requests, key=lambda request: len(request.prompt_token_ids)):
        rows += request.sampling.n
        most_new = max(most_new, request.sampling.max_new_tokens)
        if batch and rows * (len(request.prompt_token_ids) + most_new) > tokens_per_batch:
            yield batch
            batch, rows, most_new = [], request.sampling.n, request.sampling.max_new_tokens
        batch.append(request)
    if batch:
        yield batch


def _group(task: Task, generated: Generated, verdicts: tuple[Verdict, ...]) -> RolloutGroup:
    pairs = zip(generated.completions, verdicts, strict=True)
    return RolloutGroup(
        task=task,
        prompt_token_ids=generated.request.prompt_token_ids,
        rollouts=tuple(Rollout(completion=completion, verdict=verdict) for completion, verdict in pairs),
        actor="evaluation",
        weights_epoch=0,
        generated_at=0.0,
    )


def drawn_once(task: Task, temperature: float | None = None) -> Task:
    """The same task, answered once; at ``temperature`` if one is given (0: the most likely tokens)."""
    sampling = replace(task.sampling, n=1)
    return replace(task, sampling=sampling if temperature is None else replace(sampling, temperature=temperature))


def seed_of(*parts: str | int) -> int:
    """63 bits that depend on all parts."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
