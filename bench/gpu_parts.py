"""The measurements of ``bench.gpu``: ``python -m bench.gpu_parts PART JOB.json``, one process for each.

So every part has the whole GPU, gives it back, and takes no other part with it when it fails. The same code runs on a
CPU with the shape ``tiny``, which is how it is tested.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from actors.engine import Request
from actors.engines import close_engine, open_engine
from bench.learner import samples
from bench.random_llama import SHAPES, config_like, random_llama, save
from common.codec import decode, encode
from common.messages import Completion, Sampling, WeightManifest
from common.settings import Settings
from common.weights import WeightStore, verified
from learner.packing import pack
from learner.tensor_files import write_tensors

KV: Final = ("recompute", "keep")
LEARNERS: Final[dict[str, dict[str, Any]]] = {
    "packed": {},
    "padded": {"packing": False},
    "packed, activations recomputed": {"gradient_checkpointing": True},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is measured, and how much of it."""

    folder: Path
    shape: str
    device: str = "cuda"
    repeats: int = 3
    groups: int = 64
    """Of a measurement of generation."""
    siblings: int = 8
    prompt_tokens: int = 256
    new_tokens: int = 256
    sequences: int = 256
    """vLLM decodes so many at once; the transformers engine half of them, in one batch."""
    update_every_s: float = 1.0
    learner_tokens: int = 65_536
    """Of one optimizer step."""
    microbatch_tokens: int = 8192

    @property
    def dtype(self) -> str:
        return "bfloat16" if self.device == "cuda" else "float32"  # a CPU's bfloat16 is an emulation

    def write(self, path: Path) -> None:
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        path.write_text(json.dumps({**values, "folder": str(self.folder)}), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Job:
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**values, "folder": Path(values["folder"])})

    def settings(self, **sections: Any) -> Settings:
        return Settings(model={"path": str(self.folder / "model"), "dtype": self.dtype}, **sections)


def main() -> None:
    part, path, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1 if not torch.cuda.is_available() else torch.get_num_threads())
    out.write_text(json.dumps(PARTS[part](Job.read(path))), encoding="utf-8")


# -- the model ------------------------------------------------------------------------------------------------


def make_model(job: Job) -> dict[str, Any]:
    """The model's directory and two published versions of its weights, seeds 0 and 1; the second's seconds."""
    store = WeightStore(job.folder / "weights")
    for seed in (0, 1):
        model = random_llama(config_like(job.shape), seed, job.device).to(getattr(torch, job.dtype))
        if seed == 0:
            save(model, job.folder / "model")
        tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
        started = time.perf_counter()
        manifest = store.publish(1, seed, seed - 1, lambda folder, of=tensors: write_tensors(of, folder, "model"))
        publish_s = time.perf_counter() - started
        (job.folder / f"manifest-{seed}").write_bytes(encode(manifest))
        del model, tensors
    size = sum(file.size for file in manifest.files)
    return {"parameters": SHAPES[job.shape].parameters, "published_bytes": size, "publish_s": publish_s}


def manifests(job: Job) -> list[WeightManifest]:
    return [decode(WeightManifest, (job.folder / f"manifest-{seed}").read_bytes()) for seed in (0, 1)]


# -- generation, and updates in the middle of it --------------------------------------------------------------


class Updating:
    """Applies one of two sets of weights in turn, under ever higher versions, every ``every_s``.

    Less often where an update takes more than half of that: generation would get nowhere.
    """

    def __init__(self, engine: Any, files: Sequence[Sequence[Path]], every_s: float) -> None:
        self.apply_s: list[float] = []
        self.first_token_s: list[float] = []
        """From the same start to the end of the first step under the new weights."""
        self._engine, self._files, self._every_s = engine, files, every_s
        self._version = 0
        self._started = self._stepped = time.perf_counter()

    def start(self) -> None:
        self._started = self._stepped = time.perf_counter()

    def apply_if_due(self) -> bool:
        now = time.perf_counter()
        if now - self._started < self._every_s or now - self._stepped < self._every_s / 2:
            return False
        self.start()
        self._version += 1
        self._engine.apply(self._files[self._version % 2], self._version)
        self.apply_s.append(time.perf_counter() - self._started)
        return True

    def stepped(self) -> None:
        self._stepped = time.perf_counter()
        self.first_token_s.append(self._stepped - self._started)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Generation:
    seconds: float
    completions: list[Completion] = field(default_factory=list)

    @property
    def tokens_per_s(self) -> float:
        return sum(len(completion.token_ids) for completion in self.completions) / self.seconds


def generate(engine: Any, job: Job, groups: int, updating: Updating | None = None) -> Generation:
    """All groups queued at once, stepped to the end."""
    completions: list[Completion] = []
    started = time.perf_counter()
    if updating:
        updating.start()
    for request in requests(job, groups):
        engine.add(request)
    while engine.groups_in_flight:
        updated = updating is not None and updating.apply_if_due()
        for generated in engine.step():
            completions.extend(generated.completions)
        if updating and updated:
            updating.stepped()
    return Generation(seconds=time.perf_counter() - started, completions=completions)


def requests(job: Job, groups: int) -> list[Request]:
    rng = np.random.default_rng(0)
    vocabulary = SHAPES[job.shape].vocabulary
    return [
        Request(
            key=str(index),
            prompt_token_ids=rng.integers(1, vocabulary, job.prompt_tokens).astype(np.int32),
            sampling=Sampling(n=job.siblings, max_new_tokens=job.new_tokens, seed=index),
        )
        for index in range(groups)
    ]


def generation(name: str, job: Job) -> dict[str, Any]:
    """Tokens per second without updates and with them, and what an update costs."""
    settings = job.settings(
        actor={"engine": name, "device": job.device},
        vllm={"max_num_seqs": job.sequences, "gpu_memory_utilization": 0.8, "kv_cache_gib": 0.25},
    )
    published = manifests(job)
    started = time.perf_counter()
    files = [verified(manifest) for manifest in published]
    verify_s = (time.perf_counter() - started) / len(files)
    engine: Any = open_engine(settings, groups_per_batch=max(1, job.sequences // 2 // job.siblings))
    try:
        engine.apply(files[0], 0)
        generate(engine, job, 1)  # what first steps compile and allocate is not measured
        rate = statistics.median(generate(engine, job, job.groups).tokens_per_s for _ in range(job.repeats))
        updates = {kv: with_updates(engine, job, files, kv, rate) for kv in KV}
    finally:
        close_engine(engine)
    return {"tokens_per_s": rate, "verify_s": verify_s, "update": updates}


def with_updates(engine: Any, job: Job, files: Sequence[Sequence[Path]], kv: str, rate: float) -> dict[str, Any]:
    """``rate``: tokens per second without updates. Raises RuntimeError when spans do not tell of the updates."""
    engine.kv_on_update = kv
    engine.apply(files[0], 0)
    updating = Updating(engine, files, job.update_every_s)
    runs = [generate(engine, job, job.groups, updating) for _ in range(job.repeats)]
    if not updating.apply_s:
        raise RuntimeError(f"generation took less than {job.update_every_s} s, so there was no update: use more groups")
    check_spans([completion for run in runs for completion in run.completions], len(updating.apply_s))
    with_them = statistics.median(run.tokens_per_s for run in runs)
    return {
        "updates": len(updating.apply_s),
        "apply_s": statistics.median(updating.apply_s),
        "first_token_s": statistics.median(updating.first_token_s),
        "tokens_per_s": with_them,
        "of_no_update": with_them / rate,
    }


def check_spans(completions: Sequence[Completion], versions: int) -> None:
    """Every version sampled something. (That versions rise along a completion, ``Completion`` itself checks.)"""
    sampled = {version for completion in completions for version, _ in completion.spans}
    if sampled != set(range(versions + 1)):
        raise RuntimeError(f"{versions} updates were made, but spans name the versions {sorted(sampled)}")


# -- the learner ----------------------------------------------------------------------------------------------


def learner(job: Job) -> dict[str, Any]:
    """Tokens per second of an optimizer step, its peak memory, and the seconds of writing weights."""
    return {arm: learner_steps(job, **changes) for arm, changes in LEARNERS.items()}


def learner_steps(job: Job, **changes: Any) -> dict[str, Any]:
    from learner.torch_engine import TorchEngine

    fields = {"lr": 1e-6, "warmup_steps": 0, "device": job.device, "tokens_per_microbatch": job.microbatch_tokens}
    settings = job.settings(learner={**fields, "precision": job.dtype, **changes})
    on_gpu = job.device == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    engine = TorchEngine(settings)
    made = samples(job.learner_tokens, SHAPES[job.shape].vocabulary)
    batch, tokens = pack(made, job.microbatch_tokens), sum(map(len, made))
    seconds = [step_s(engine, batch) for _ in range(job.repeats + 1)][1:]
    rate = tokens / statistics.median(seconds)
    folder = job.folder / "trained"
    folder.mkdir(exist_ok=True)
    started = time.perf_counter()
    engine.write_weights(folder)
    found = {
        "tokens": tokens,
        "tokens_per_s": rate,
        "tflop_per_s": 6 * SHAPES[job.shape].parameters * rate / 1e12,
        "write_weights_s": time.perf_counter() - started,
    }
    if on_gpu:
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    del engine
    gc.collect()  # the engine is in a cycle, and the next one needs its memory
    if on_gpu:
        torch.cuda.empty_cache()
    return found


def step_s(engine: Any, batch: Any) -> float:
    """A step ends with its metrics on the host, so nothing is left in the device's queue."""
    started = time.perf_counter()
    if engine.step(batch)["skipped"]:
        raise RuntimeError("the gradient of a random batch is not finite: the step was skipped, not measured")
    return time.perf_counter() - started


PARTS: Final = {
    "model": make_model,
    "transformers": partial(generation, "transformers"),
    "vllm": partial(generation, "vllm"),
    "learner": learner,
}

if __name__ == "__main__":
    main()
