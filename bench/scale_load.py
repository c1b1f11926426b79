"""One side of ``bench.scale``: ``python -m bench.scale_load actors|learner URL SECONDS ...`` prints one JSON line.

Both sides make the calls of the product (``common.streams``), without a model: an actor's groups are there at once.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from common.codec import decode, encode
from common.keys import ACTORS, LEARNER
from common.messages import (
    ChatMessage,
    Completion,
    Rollout,
    RolloutGroup,
    Sampling,
    Task,
    Verdict,
    uid_of,
)
from common.server import connect
from common.streams import Delivery, Ending, Product, Streams

RUN: Final = "scale"
TOKEN: Final = "1:bench"
VOCABULARY: Final = 150_000
BYTES_PER_TOKEN: Final = 4
HEARTBEAT_S: Final = 5.0
TTL_S: Final = 30.0
TASKS_AHEAD: Final = 64
READ_COUNT: Final = 16
LONGEST_START_S: Final = 90.0
"""Until the first group comes: thousands of actors connect before."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=("actors", "learner"))
    parser.add_argument("url")
    parser.add_argument("seconds", type=float)
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--window", type=int, default=64)
    arguments = parser.parse_args()
    print(json.dumps(actors(arguments) if arguments.side == "actors" else learner(arguments)))


# -- what actors do --------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class SimulatedActor:
    """A connection of its own, a consumer of its own; one task claimed and one group shipped in each turn."""

    name: str
    streams: Streams
    group: RolloutGroup
    beaten: float = float("-inf")
    shipped: int = 0

    def turn(self) -> float | None:
        """Seconds that shipping took; None when there was no task."""
        keys = self.streams.keys
        if time.monotonic() - self.beaten > HEARTBEAT_S:
            self.beaten = time.monotonic()
            self.streams.heartbeat(self.name, {"role": "actor", "state": "generating"}, TTL_S)
        claimed = self.streams.read_new(ACTORS, self.name, [keys.tasks("policy")], 1, None)
        if not claimed:
            return None
        task = decode(Task, claimed[0].payload)
        product = Product.of(task.uid, replace(self.group, task=task, actor=self.name))
        started = time.perf_counter()
        self.streams.transfer(keys.tasks("policy"), ACTORS, keys.rollouts("policy"), [(claimed[0].id, [product])])
        self.shipped += 1
        return time.perf_counter() - started


def actors(arguments: argparse.Namespace) -> dict[str, Any]:
    group = sample_group(arguments.tokens, arguments.group)
    members = [
        SimulatedActor(f"actor-{i}", Streams(connect(arguments.url), RUN), group) for i in range(arguments.actors)
    ]
    seconds: list[float] = []
    for member in members:  # connected, and once round, before the clock starts
        member.turn()
    for member in members:
        member.shipped = 0
    started, cpu_started = time.monotonic(), time.process_time()
    while time.monotonic() - started < arguments.seconds:
        took = [member.turn() for member in members]
        seconds += [one for one in took if one is not None]
    elapsed, cpu = time.monotonic() - started, time.process_time() - cpu_started
    return {
        "groups": sum(member.shipped for member in members),
        "seconds": elapsed,
        "cpu_share": cpu / elapsed,
        "group_bytes": len(encode(group)),
        "ship_ms_p50": 1000 * float(np.quantile(seconds, 0.5)) if seconds else None,
        "ship_ms_p99": 1000 * float(np.quantile(seconds, 0.99)) if seconds else None,
    }


# -- what the learner does ------------------------------------------------------------------------------


def learner(arguments: argparse.Namespace) -> dict[str, Any]:
    """Issues tasks, reads and decodes groups, and acknowledges the oldest beyond the un-acked window."""
    streams = Streams(connect(arguments.url), RUN, recycles=False)
    keys, window = streams.keys, deque[Delivery]()
    prompts = streams.cursor() or 0
    groups = 0
    started, cpu_started, first = time.monotonic(), time.process_time(), float("inf")
    while time.monotonic() < min(started + LONGEST_START_S, first + arguments.seconds):
        if streams.backlog(keys.tasks("policy"), ACTORS).undelivered < arguments.actors + TASKS_AHEAD:
            prompts = streams.issue(TOKEN, prompts, [task(prompts + i, arguments) for i in range(TASKS_AHEAD)])
        for delivery in streams.read_new(LEARNER, "learner", [keys.rollouts("policy")], READ_COUNT, 10):
            decode(RolloutGroup, delivery.payload)
            groups += 1
            first = min(first, time.monotonic())
            window.append(replace(delivery, payload=b""))
        if over := len(window) - arguments.window:
            _settle(streams, [window.popleft() for _ in range(max(over, 0))])
    elapsed, cpu = time.monotonic() - first, time.process_time() - cpu_started
    held = len(window)
    memory = int(streams.client.info("memory")["used_memory"])
    return {"groups": groups, "seconds": elapsed, "cpu_share": cpu / elapsed, "unacked": held, "server_bytes": memory}


def _settle(streams: Streams, deliveries: list[Delivery]) -> None:
    if not deliveries:
        return
    endings = [Ending(stream=d.stream, id=d.id, uid=d.uid, outcome="trained", kind="policy") for d in deliveries]
    streams.settle(TOKEN, LEARNER, 0, endings)
    for stream in (streams.keys.rollouts("policy"), streams.keys.tasks("policy")):
        streams.trim(stream)


# -- what travels ---------------------------------------------------------------------------------------


def task(index: int, arguments: argparse.Namespace) -> Task:
    return Task(
        uid=uid_of("scale", index),
        objective="solve",
        messages=(ChatMessage.user(f"question {index}"),),
        question=f"question {index}",
        answer="1",
        verifier="exact",
        sampling=Sampling(n=arguments.group, max_new_tokens=arguments.tokens),
    )


def sample_group(tokens: int, samples: int) -> RolloutGroup:
    """Random token ids, log-probs and text: nothing in it compresses better than real ones would."""
    rng = np.random.default_rng(0)
    arguments = argparse.Namespace(group=samples, tokens=tokens)
    rollouts = tuple(_rollout(rng, tokens) for _ in range(samples))
    return RolloutGroup(
        task=task(0, arguments),
        prompt_token_ids=rng.integers(0, VOCABULARY, 256).astype(np.int32),
        rollouts=rollouts,
        actor="actor-0",
        weights_epoch=1,
        generated_at=0.0,
    )


def _rollout(rng: np.random.Generator, tokens: int) -> Rollout:
    letters = rng.integers(97, 123, tokens * BYTES_PER_TOKEN).astype(np.uint8)
    completion = Completion(
        token_ids=rng.integers(0, VOCABULARY, tokens).astype(np.int32),
        logprobs=-rng.random(tokens).astype(np.float32),
        spans=((0, 0),),
        finish_reason="length",
        text=letters.tobytes().decode("ascii"),
    )
    return Rollout(completion=completion, verdict=Verdict(status="ok", reward=1.0, verifier="exact@1"))


if __name__ == "__main__":
    main()
