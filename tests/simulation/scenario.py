"""What a schedule is a run of: a small run, so that a hundred thousand of them take half an hour."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal

from common.settings import Actor, Learner, Redis, Run, Sampling, Settings, Staleness
from common.templates import TemplateSet, load_templates
from learner.prompts import PromptSource
from learner.prompts.records import prompt_from_record

PROMPTS: Final = 48
"""Few: some runs begin a second epoch, whose uids are others."""
RUN: Final = "simulated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    actors: int = 2
    steps: int = 4
    groups: int = 2
    eta: int = 0
    judge_share: float = 0.0
    mixing: Literal["joint", "alternate"] = "joint"
    checkpoint_every: int = 2
    groups_in_flight: int = 2
    max_deliveries: int = 50
    slow: bool = False
    """A group is generated for so long that leases are renewed meanwhile."""

    @property
    def recycles(self) -> bool:
        return self.judge_share > 0

    @property
    def exact(self) -> bool:
        """Its final weights depend on the prompts alone: every batch is sampled by the weights that it trains."""
        return self.eta == 0 and not self.recycles

    @classmethod
    def draw(cls, draw: random.Random) -> Scenario:
        eta = draw.choice((0, 0, 0, 1, 2, 4))
        judge = draw.random() < (0.3 if eta == 0 else 0.6)
        alternate = eta == 0 and judge and draw.random() < 0.5
        return cls(
            actors=draw.choice((1, 1, 2, 2)),
            steps=4 if alternate else draw.choice((2, 2, 3)),
            groups=draw.choice((1, 1, 2, 2)),
            eta=eta,
            judge_share=0.5 if judge else 0.0,
            mixing="alternate" if alternate else "joint",
            checkpoint_every=draw.choice((1, 2, 3)),
            groups_in_flight=draw.choice((1, 2, 3)),
            slow=draw.random() < 0.1,
        )


@cache
def settings_of(scenario: Scenario, folder: Path, *, rebuild: bool = False) -> Settings:
    run = Run(name=RUN, dir=folder, no_progress_s=1e9)
    redis = Redis(lease_s=3.0, give_up_s=8.0, rebuild=rebuild, max_deliveries=scenario.max_deliveries)
    learner = Learner(
        max_steps=scenario.steps,
        groups_per_step=scenario.groups,
        judge_share=scenario.judge_share,
        mixing=scenario.mixing,
        checkpoint_every=scenario.checkpoint_every,
        straggler_wait_s=1.0,
        refill=16.0,
    )
    return Settings.model_construct(  # without files and environment, which would take a fifth of the time
        run=run,
        redis=redis,
        sampling=Sampling(group_size=2, max_new_tokens=4),
        staleness=Staleness(max_staleness=scenario.eta),
        actor=Actor(count=scenario.actors, groups_in_flight=scenario.groups_in_flight),
        learner=learner,
    )


@cache
def prompts() -> PromptSource:
    draw = random.Random(0)
    pairs = [(draw.randrange(100), draw.randrange(100)) for _ in range(PROMPTS)]
    records = [{"prompt": f"{a}+{b}", "answer": str(a + b)} for a, b in pairs]
    found = [prompt_from_record(each, index=i, verifier="exact", where="") for i, each in enumerate(records)]
    return PromptSource(found, seed=0)


@cache
def templates() -> TemplateSet:
    return load_templates("default")
