"""Engines of the learner put through the same experiments: ``python -m engine_lab JOB.json`` for DeepSpeed's.

Every experiment starts from fresh engines and leaves what it found in ``OUT/NAME/``: reports.json, logprobs.json,
weights, a checkpoint and an export. A job's ranks are started once for all of them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from tiny_llama import VOCABULARY

from common import log
from common.errors import SettingsError
from common.messages import Objective
from common.settings import Settings
from learner.engine import Engine
from learner.packing import Microbatch, pack
from learner.samples import Sample

BUDGET: Final = 24
"""Tokens per microbatch: the batches below make 5, 1 and 4 of them, so that two ranks never have equally many."""
LEARNER: Final[dict[str, Any]] = {
    "lr": 1e-2,
    "warmup_steps": 2,
    "lr_schedule": "linear",
    "max_steps": 10,
    "grad_clip": 1.0,
    "tokens_per_microbatch": BUDGET,
    "weight_decay": 0.1,
    "device": "cpu",
}
OPEN: Final = 1000
WARNINGS: Final = ("-W", "error::UserWarning", "-W", "error::FutureWarning")
"""As strict as pytest is with its own process, but for what other packages deprecate of themselves."""
Experiment = Callable[[Engine, Path, Path], None]


def sample(rng: np.random.Generator, prompt: int, tokens: int, objective: Objective, staleness: int) -> Sample:
    return Sample(
        objective=objective,
        prompt_token_ids=rng.integers(3, VOCABULARY, prompt).astype(np.int32),
        token_ids=rng.integers(3, VOCABULARY, tokens).astype(np.int32),
        behaviour_logprobs=(-3.0 * rng.random(tokens)).astype(np.float32),
        advantage=float(rng.normal()),
        staleness=staleness,
    )


def batch(number: int) -> list[Microbatch]:
    """Batch 0 has all objectives, 1 is a single sample, 2 and up are others like the first."""
    rng = np.random.default_rng(number)
    shapes: list[tuple[int, int, Objective]] = [(4, 5, "solve"), (2, 9, "solve"), (7, 1, "pointwise")]
    shapes += [(3, 2, "pairwise"), (6, 6, "reflect"), (5, 12, "solve"), (3, 17, "reflect"), (8, 8, "solve")]
    shapes = shapes[:1] if number == 1 else shapes[number % 3 :]
    return pack([sample(rng, p, t, o, i % 3) for i, (p, t, o) in enumerate(shapes)], BUDGET)


def poisoned() -> list[Microbatch]:
    """A batch whose gradient is not finite."""
    found = batch(3)
    found[0].advantages_S[:] = np.inf
    return found


def written(write: Callable[[Path], None], folder: Path) -> None:
    folder.mkdir(parents=True)
    write(folder)


def refusal(attempt: Callable[[], None]) -> str:
    """What it raises, in words."""
    try:
        attempt()
    except (OSError, SettingsError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def keep(folder: Path, name: str, found: Any) -> None:
    (folder / name).write_text(json.dumps(found))


def train(engine: Engine, out: Path, _given: Path) -> None:
    """Three steps, a checkpoint after the second; then the third again from the checkpoint."""
    keep(out, "logprobs.json", [np.asarray(found).tolist() for found in engine.old_logprobs(batch(0))])
    written(engine.write_weights, out / "weights-0")
    written(engine.write_checkpoint, out / "checkpoint-0")
    reports = [engine.step(batch(0)), engine.step(batch(1))]
    written(engine.write_checkpoint, out / "checkpoint-2")
    reports.append(engine.step(batch(2)))
    nowhere = out / "nowhere" / "at-all"
    attempts = [lambda: engine.write_weights(nowhere), lambda: engine.write_checkpoint(nowhere)]
    keep(out, "refusals.json", [refusal(attempt) for attempt in attempts])
    written(engine.write_weights, out / "weights-3")
    written(engine.export, out / "export")
    engine.read_checkpoint(out / "checkpoint-2", 2)
    reports.append(engine.step(batch(2)))
    written(engine.write_weights, out / "weights-again")
    keep(out, "reports.json", reports)


def with_samples(engine: Engine, old: Any) -> dict[str, float]:
    """The report of a step, and what every sample added to its loss."""
    report, losses = engine.step(batch(0), old), engine.sample_losses
    assert losses is not None
    return {**report, **{f"sample_{place}": float(loss) for place, loss in enumerate(losses)}}


def recompute(engine: Engine, out: Path, _given: Path) -> None:
    """Two updates on one batch, both with the log-probs from before the first."""
    old = engine.old_logprobs(batch(0))
    keep(out, "reports.json", [with_samples(engine, old), with_samples(engine, old)])
    written(engine.write_weights, out / "weights")


def skip(engine: Engine, out: Path, _given: Path) -> None:
    """A step, one that must be skipped, and the weights around it."""
    reports = [engine.step(batch(0))]
    written(engine.write_checkpoint, out / "before")
    reports.append(engine.step(poisoned()))
    written(engine.write_checkpoint, out / "after")
    reports.append(engine.step(batch(2)))
    written(engine.write_weights, out / "weights")
    keep(out, "reports.json", reports)


def strange(engine: Engine, out: Path, given: Path) -> None:
    """A checkpoint of another model. Of several ranks it ends the job, as any error of rank 0 does but a full disk."""
    keep(out, "refusals.json", [refusal(lambda: engine.read_checkpoint(given, 2))])


def exploded(engine: Engine, out: Path, _given: Path) -> None:
    """A step with a finite gradient and a rate beyond float32. It ends a job of several ranks."""
    keep(out, "refusals.json", [refusal(lambda: engine.step(batch(0)))])


def resume(engine: Engine, out: Path, given: Path) -> None:
    """The third step of ``train`` from somebody else's checkpoint."""
    engine.read_checkpoint(given, 2)
    keep(out, "reports.json", [engine.step(batch(2))])
    written(engine.write_weights, out / "weights")


def once(engine: Engine, out: Path, _given: Path) -> None:
    """One step, and the checkpoints around it."""
    written(engine.write_checkpoint, out / "fresh")
    keep(out, "reports.json", [engine.step(batch(0))])
    written(engine.write_weights, out / "weights")
    written(engine.write_checkpoint, out / "checkpoint")


def exported(engine: Engine, out: Path, given: Path) -> None:
    once(engine, out, given)
    written(engine.export, out / "export")


VARIANTS: Final[dict[str, tuple[Experiment, dict[str, Any]]]] = {
    "train": (train, {}),
    "recompute": (recompute, {"loss": {"kind": "tis", "kl_coef": 0.5, "old_logprobs": "recomputed"}}),
    "clip": (once, {"learner": {"grad_clip": 0.01}}),
    "skip": (skip, {}),
    "resume": (resume, {}),
    "recomputed_activations": (once, {"learner": {"gradient_checkpointing": True}}),
    "half": (
        exported,
        {"learner": {"precision": "bfloat16"}, "model": {"dtype": "bfloat16"}, "loss": {"kl_coef": 0.5}},
    ),
    "untied": (once, {"model": "untied"}),
    "strange": (strange, {"model": "untied"}),
    "exploded": (exploded, {"learner": {"lr": 1e60}}),
}


def settings_of(variant: str, models: dict[str, str], **learner: Any) -> Settings:
    """``models``: paths of ``tied`` and ``untied``."""
    changes = VARIANTS[variant][1]
    of_model = changes.get("model", {})
    model = {"path": models[of_model]} if isinstance(of_model, str) else {"path": models["tied"], **of_model}
    return Settings(
        model=model, loss=changes.get("loss", {}), learner={**LEARNER, **learner, **changes.get("learner", {})}
    )


def experiment(variant: str, engine: Engine, out: Path, given: Path) -> None:
    folder = out / variant
    folder.mkdir(parents=True)
    VARIANTS[variant][0](engine, folder, given)


class Switching:
    """DeepSpeed's engine of one variant after another, on every rank: ``read_checkpoint`` of ``OPEN`` + i opens one."""

    def __init__(self, job: dict[str, Any], place: Any) -> None:
        self.policy_version = 0
        self._job = job
        self._place = place
        self._engine: Any = None

    def read_checkpoint(self, folder: Path, policy_version: int) -> None:
        if policy_version < OPEN:
            self._engine.read_checkpoint(folder, policy_version)
            return
        from learner import zero
        from learner.deepspeed_engine import DeepSpeedEngine

        zero.PERSISTENT_ELEMENTS, zero.BUCKET_ELEMENTS = 100, 5_000  # of models of 100,000: all kinds of gathers happen
        variant = self._job["variants"][policy_version - OPEN]
        self._engine = DeepSpeedEngine(settings_of(variant, self._job["models"], **self._job["learner"]), self._place)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def run(path: Path) -> None:
    """All experiments of a job, on all of its ranks."""
    from learner.ranks.children import Children, settings_from_parent, start_ranks
    from learner.ranks.follower import follow
    from learner.ranks.group import Backend
    from learner.ranks.leader import leading
    from learner.ranks.place import place_of

    job = json.loads(path.read_text())
    out = Path(job["out"])
    place = place_of(os.environ, job["processes"])
    backend: Backend = "nccl" if job["learner"].get("device") == "cuda" else "gloo"
    log.configure(file=out / "lab.log", rank=place.rank)
    if not place.is_first:
        sys.exit(follow(settings_from_parent(), place, backend, lambda _settings, placed: Switching(job, placed)))
    Children.command = (sys.executable, *WARNINGS, "-m", "engine_lab", str(path))
    with leading(
        Settings(), start_ranks(Settings(), place), backend, lambda _settings, placed: Switching(job, placed)
    ) as engine:
        for number, variant in enumerate(job["variants"]):
            engine.read_checkpoint(out, OPEN + number)
            experiment(variant, engine, out, Path(job["given"]))


if __name__ == "__main__":
    run(Path(sys.argv[1]))
