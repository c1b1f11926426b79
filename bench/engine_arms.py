"""The arms of ``bench.engines``: one engine under a real actor, alone, and beside a peer. Each is timed by itself."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, product
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file

from actors.actor import Actor
from actors.engine import Request
from actors.engines import close_engine, open_engine
from actors.verifiers.pool import InlineVerifier
from bench.small_model import ENDS, save_small_model, small_model
from cli.embedded import EmbeddedServer
from common.messages import ChatMessage, Sampling, Task, WeightManifest
from common.server import connect, load_functions
from common.settings import Settings
from common.streams import Streams
from common.weights import WeightStore

GROUP_SIZE: Final = 8
GROUPS_AT_ONCE: Final = {"transformers": 16, "vllm": 32}
"""vLLM gets more than it has slots for: a sibling that ends makes room for another one at once."""
SEQUENCES: Final = 128
"""Decoded at once by both: a batch of 16 groups, or the slots of vLLM."""
MAX_NEW_TOKENS: Final = 256
NEVER: Final = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    tokens: int
    seconds: float
    cpu_s: float
    """Of this process, which the engine shares with the loop. A busy machine lengthens it less than ``seconds``."""
    updates: int = 0


def timed(generate: Callable[[], int]) -> Timed:
    started, cpu_started = time.perf_counter(), time.process_time()
    tokens = generate()
    return Timed(tokens=tokens, seconds=time.perf_counter() - started, cpu_s=time.process_time() - cpu_started)


class Bench:
    """One engine, one server, one set of tasks."""

    def __init__(self, name: str, folder: Path, weights: Path) -> None:
        path = save_small_model(folder / "model")
        self.name = name
        self.settings = Settings(
            model={"path": str(path)}, actor={"engine": name}, vllm={"max_num_seqs": SEQUENCES, "kv_cache_gib": 0.5}
        )
        self.engine: Any = open_engine(self.settings, groups_per_batch=GROUPS_AT_ONCE["transformers"])
        self._server = EmbeddedServer(folder / name)
        self._server.start()
        self._published = _publish(WeightStore(weights / name))
        self._runs = count()

    def close(self) -> None:
        self._server.stop()
        close_engine(self.engine)

    def bare(self, groups: int) -> Timed:
        """The engine alone. vLLM as an offline batch drives it: everything queued first, results at the end."""
        self._fresh()
        tasks = list(_tasks(groups))
        prompts = [self.engine.tokenize(task.messages) for task in tasks]
        if self.name == "vllm":
            return timed(lambda: _drive_llm(self.engine._llm, [prompt.tolist() for prompt in prompts]))
        requests = [
            Request(key=task.uid, prompt_token_ids=prompt, sampling=task.sampling)
            for task, prompt in zip(tasks, prompts, strict=True)
        ]
        return timed(lambda: _drive_engine(self.engine, requests))

    def loop(self, groups: int, update_every_s: float = NEVER, kv_on_update: str = "recompute") -> Timed:
        """A real actor on a real server, its tasks queued beforehand; weights every ``update_every_s``."""
        self._fresh(kv_on_update)
        client = connect(self._server.url)
        load_functions(client)
        streams = Streams(client, f"bench-{next(self._runs)}")
        streams.create_groups()
        streams.take_fence(1, "1:bench")
        streams.issue("1:bench", 0, list(_tasks(groups)))
        streams.publish(self._manifest(0))
        actor = Actor(
            "actor-0",
            streams,
            self.engine,
            InlineVerifier(),
            max_staleness=10**6,
            groups_in_flight=GROUPS_AT_ONCE[self.name],
            lease_s=60.0,
            max_deliveries=5,
        )
        actor.policy.follow(now=True)
        updating = _Updating(self.engine, lambda version: streams.publish(self._manifest(version)), update_every_s)
        result = timed(lambda: self._tick(actor, streams, groups, updating))
        actor.stop()
        client.close()
        return replace(result, updates=updating.applied)

    def _tick(self, actor: Actor, streams: Streams, groups: int, updating: _Updating) -> int:
        rollouts = streams.keys.rollouts("policy")
        while self.engine.groups_in_flight or streams.client.xlen(rollouts) < groups:
            actor.tick()
            updating.tick()
        return actor._counts["tokens"]

    def peer(self, groups: int) -> Timed:
        """Hugging Face ``generate`` and the log-probs that training needs, on one batch of the transformers engine."""
        self._fresh()
        model, tasks = self.engine.model, list(_tasks(min(groups, GROUPS_AT_ONCE["transformers"])))
        prompts = [self.engine.tokenize(task.messages).tolist() for task in tasks]
        return timed(lambda: _hugging_face(model, prompts))

    def _fresh(self, kv_on_update: str = "recompute") -> None:
        """Version 0 again, nothing cached."""
        self.engine.forget()
        self.engine.kv_on_update = "recompute"
        manifest = self._manifest(0)
        self.engine.apply([Path(manifest.uri) / file.name for file in manifest.files], 0)
        self.engine.kv_on_update = kv_on_update

    def _manifest(self, version: int) -> WeightManifest:
        """Two sets of weights in turn."""
        return replace(self._published[version % 2], version=version)


class _Updating:
    """Announces a version every so many seconds, and counts those that the engine took."""

    def __init__(self, engine: Any, publish: Callable[[int], None], every_s: float) -> None:
        self.applied = 0
        self._engine, self._publish, self._every_s = engine, publish, every_s
        self._published = self._seen = 0
        self._next_at = time.perf_counter() + every_s

    def tick(self) -> None:
        if self._engine.policy_version != self._seen:
            self._seen = self._engine.policy_version
            self.applied += 1
        if time.perf_counter() >= self._next_at:
            self._published += 1
            self._next_at += self._every_s
            self._publish(self._published)


def _tasks(groups: int) -> Iterator[Task]:
    rng = random.Random(0)
    for index in range(groups):
        words = " ".join(f"w{rng.randrange(9, 512)}" for _ in range(rng.randint(8, 64)))
        yield Task(
            uid=f"{index:032x}",
            objective="solve",
            messages=(ChatMessage.user(words),),
            question=words,
            answer="w1",
            verifier="exact",
            sampling=Sampling(n=GROUP_SIZE, max_new_tokens=MAX_NEW_TOKENS, seed=index),
        )


def _publish(store: WeightStore) -> list[WeightManifest]:
    def write(seed: int, folder: Path) -> None:
        tensors = {name: p.detach().contiguous() for name, p in small_model(seed).named_parameters()}
        save_file(tensors, folder / "model.safetensors")

    return [store.publish(1, seed, seed - 1, partial(write, seed)) for seed in (0, 1)]


def _drive_engine(engine: Any, requests: list[Request]) -> int:
    for request in requests:
        engine.add(request)
    tokens = 0
    while engine.groups_in_flight:
        tokens += sum(len(c.token_ids) for one in engine.step() for c in one.completions)
    return tokens


def _drive_llm(llm: Any, prompts: list[list[int]]) -> int:
    """What vLLM's ``LLM.generate`` does, but for the text: that is not made here. Returns the number of tokens."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    from actors.vllm_engine import _seed

    for index, (group, sample) in enumerate(product(range(len(prompts)), range(GROUP_SIZE))):
        sampling = SamplingParams(
            seed=_seed(group, sample),  # the same tokens in all arms
            max_tokens=MAX_NEW_TOKENS,
            logprobs=0,
            ignore_eos=True,
            stop_token_ids=ENDS,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        llm.add_request(str(index), {"type": "token", "prompt_token_ids": prompts[group]}, sampling)
    tokens = 0
    while llm.has_unfinished_requests():
        for output in llm.step():
            tokens += sum(len(completion.token_ids) for completion in output.outputs)
    return tokens


@torch.inference_mode()
def _hugging_face(model: Any, prompts: list[list[int]]) -> int:
    """Useful tokens of one static batch: up to and with the first end token."""
    length = max(map(len, prompts))
    ids = torch.tensor([[0] * (length - len(prompt)) + prompt for prompt in prompts]).repeat_interleave(GROUP_SIZE, 0)
    output = model.generate(
        input_ids=ids,
        attention_mask=(ids != 0).long(),
        do_sample=True,
        top_k=0,
        max_new_tokens=MAX_NEW_TOKENS,
        eos_token_id=ENDS,
        return_dict_in_generate=True,
        output_logits=True,
    )
    new_RT = output.sequences[:, length:]
    logits_RTV = torch.stack(output.logits, dim=1)
    torch.log_softmax(logits_RTV, dim=-1).gather(2, new_RT[..., None])
    ended_RT = torch.isin(new_RT, torch.tensor(ENDS)).long().cumsum(dim=1)
    before_or_at_end_RT = (ended_RT - torch.isin(new_RT, torch.tensor(ENDS)).long()) == 0
    return int(before_or_at_end_RT.sum())
