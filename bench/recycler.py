"""How long the recycler thinks: CPU milliseconds to plan judge tasks from 32 scored groups of 8.

``python -m bench.recycler [--repeats 20]``. The reference is the learner's step of the demo, about 200 ms.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import numpy as np

from bench.runs import DEMO
from common.messages import ChatMessage, Completion, Rollout, RolloutGroup, Sampling, Task, Verdict, uid_of
from common.settings_sources import load_settings
from common.templates import load_templates
from recycler.reservoir import Reservoir

GROUPS = 32
REFERENCE_MS = 200.0


def group(index: int, rng: np.random.Generator) -> RolloutGroup:
    task = Task(
        uid=uid_of("bench", index),
        objective="solve",
        messages=(ChatMessage.user(f"q{index}"),),
        question=f"q{index}",
        answer="1",
        verifier="exact",
        sampling=Sampling(n=8, max_new_tokens=8),
    )
    return RolloutGroup(
        task=task,
        prompt_token_ids=np.array([1], dtype=np.int32),
        rollouts=tuple(rollout(bool(rng.random() < 0.6), sample) for sample in range(8)),
        actor="bench",
        weights_epoch=1,
        generated_at=0.0,
    )


def rollout(right: bool, sample: int) -> Rollout:
    answer = "1" if right else f"{sample + 2}"
    completion = Completion(
        token_ids=np.array([5, 2], dtype=np.int32),
        logprobs=np.array([-1.0, -1.0], dtype=np.float32),
        spans=((0, 0),),
        finish_reason="stop",
        text=f"\\boxed{{{answer}}}",
    )
    verdict = Verdict(status="ok", reward=float(right), verifier="exact@1", answer=answer, canonical=answer)
    return Rollout(completion=completion, verdict=verdict)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    repeats = parser.parse_args().repeats
    settings = load_settings(DEMO)
    templates = load_templates(settings.templates.path)
    spent: list[float] = []
    for seed in range(repeats):
        rng = np.random.default_rng(seed)
        reservoir = Reservoir(settings.recycler, settings.sampling, templates, run="bench", seed=seed)
        for index in range(GROUPS):
            reservoir.add(f"{index + 1}-0", group(index, rng))
        started = time.process_time()
        reservoir.plan(GROUPS, 0)
        spent.append(1000 * (time.process_time() - started))
    median = statistics.median(spent)
    print(
        f"{median:.1f} ms of CPU for {GROUPS} groups, median of {repeats}; a learner step takes about {REFERENCE_MS} ms"
    )
    print(
        json.dumps({"plan_ms": median, "reference": "learner step", "reference_ms": REFERENCE_MS, "repeats": repeats})
    )


if __name__ == "__main__":
    main()
