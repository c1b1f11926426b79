"""What ``bench.weights`` measures with: a learner that only publishes, and an actor in another process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file

from bench.random_llama import config_of, random_llama
from cli.rundir import RunDirectory, child_environment
from cli.train import prepare, server, shared_memory_freed
from common.errors import SparkError
from common.settings import Settings
from common.weights import WeightStore
from learner.publisher import Publisher

MOVED: Final = 50
"""One element in so many changes its lowest bit from version to version."""
ANCHOR_EVERY: Final = 32

TRANSPORTS: Final[dict[str, dict[str, Any]]] = {
    "shared memory": {"shared_memory": True},
    "differences": {"shared_memory": True, "anchor_every": ANCHOR_EVERY},
    "URL (file)": {"shared_memory": True, "url": "file://{folder}/shared"},
}


class Weights:
    """As the publisher sees an engine: versions of one set of float32 tensors."""

    def __init__(self, megabytes: int) -> None:
        model = random_llama(config_of(megabytes))
        self.policy_version = 0
        self.tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def step(self) -> None:
        self.policy_version += 1
        for tensor in self.tensors.values():
            tensor.view(torch.int32).view(-1)[self.policy_version % MOVED :: MOVED] ^= 1

    def write_weights(self, folder: Path) -> None:
        save_file(self.tensors, folder / "model.safetensors")


def settings_of(folder: Path, transport: str, model: Path | None = None, engine: str = "transformers") -> Settings:
    weights = {key: _filled(value, folder) for key, value in TRANSPORTS[transport].items()}
    return Settings(
        run={"name": "bench", "dir": folder},
        model={"path": str(model or "")},
        actor={"engine": engine},
        vllm={"max_model_len": 128, "max_num_seqs": 8, "kv_cache_gib": 0.25},
        weights=weights,
    )


def _filled(value: Any, folder: Path) -> Any:
    return value.format(folder=folder) if isinstance(value, str) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    publish_s: float
    """Until the manifest is announced."""
    first_token_s: float
    """Until the actor has sampled a token with these weights; from the same start."""


def updates(settings: Settings, megabytes: int, number: int) -> list[Update]:
    """Publish ``number`` versions, each when the actor generates with the one before."""
    run, weights = RunDirectory(settings), Weights(megabytes)
    run.create()
    with shared_memory_freed(settings), server(run) as (url, _):
        publisher = Publisher(prepare(settings, url), WeightStore.of(settings), epoch=1, kept=1)
        with actor(run, url) as first_tokens:
            publisher.publish(weights)
            next(first_tokens)
            return [_update(publisher, weights, first_tokens) for _ in range(number)]


def _update(publisher: Publisher, weights: Weights, first_tokens: Iterator[tuple[int, float]]) -> Update:
    weights.step()
    started = time.monotonic()
    publisher.publish(weights)
    published = time.monotonic()
    version, at = next(first_tokens)
    if version != weights.policy_version:
        raise SparkError(f"the actor generates with version {version}, published was {weights.policy_version}")
    return Update(publish_s=published - started, first_token_s=at - started)


@contextmanager
def actor(run: RunDirectory, url: str) -> Iterator[Iterator[tuple[int, float]]]:
    """An actor in another process; yields (version, when its first token was there) as they come."""
    with (run.path / "actor.log").open("wb") as log_file:
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.weight_actor", str(run.config)],
            stdout=subprocess.PIPE,
            stderr=log_file,
            env=child_environment(url) | {"OMP_NUM_THREADS": "1"},
            text=True,
        )
    try:
        yield _first_tokens(process, run.path / "actor.log")
    finally:
        process.terminate()
        process.wait()


def _first_tokens(process: subprocess.Popen[str], log_file: Path) -> Iterator[tuple[int, float]]:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith('{"version"'):  # an engine may print, too
            said = json.loads(line)
            yield int(said["version"]), float(said["at"])
    raise SparkError(f"the actor has ended: {log_file.read_text(encoding='utf-8')[-2000:]}")
