"""A job of ranks with an engine that needs no model: ``python -m rank_job SETTINGS.json PLAN``.

Rank 0 starts the others as the learner does and prints what it got. PLAN: ``fail`` (on rank 1), ``wait`` (rank 0, for a
line on its standard input), ``disk`` (that, then rank 0's disk is full, and in the end it exits with code 143), ``use``
(other settings before the last step).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from common import log
from common.live import with_values
from common.settings import Settings
from learner.packing import Microbatch, empty_microbatch
from learner.ranks.children import Children, settings_from_parent, start_ranks
from learner.ranks.follower import follow
from learner.ranks.leader import RankFailed, leading
from learner.ranks.place import Place, place_of


class SumEngine:
    """Its step is a sum over ranks: what every rank adds is its rank plus the tokens that it was sent."""

    def __init__(self, plan: str, place: Place) -> None:
        self.policy_version = 0
        self._plan = plan
        self._rank = place.rank
        self._bonus = 0.0

    def use(self, settings: Settings) -> None:
        self._bonus = settings.loss.solve_weight

    def old_logprobs(self, microbatches: Sequence[Microbatch]) -> Sequence[Any]:
        return [self._sum(len(batch.token_ids_T)) for batch in microbatches]

    def step(self, microbatches: Sequence[Microbatch], old: Sequence[Any] | None = None) -> dict[str, float]:
        if self._plan == "fail" and self._rank == 1:
            raise ValueError("planted")
        total = self._sum(self._bonus + self._rank + sum(len(batch.token_ids_T) for batch in microbatches))
        self.policy_version += 1
        return {"sum": total}

    def write_weights(self, folder: Path) -> None:
        total = self._sum(1)
        if self._rank == 0:
            if self._plan == "disk":
                raise OSError("No space left on device")
            (folder / "weights").write_text(str(total))

    def write_checkpoint(self, folder: Path) -> None:
        self.write_weights(folder)

    def read_checkpoint(self, folder: Path, policy_version: int) -> None:
        self.policy_version = int(self._sum(policy_version)) // dist.get_world_size()

    def export(self, folder: Path) -> None:
        self.write_weights(folder)

    def _sum(self, value: float) -> float:
        total = torch.tensor([float(value)])
        dist.all_reduce(total)
        return float(total)


def lead(settings: Settings, place: Place, plan: str) -> None:
    with leading(
        settings, start_ranks(settings, place), "gloo", lambda _settings, placed: SumEngine(plan, placed)
    ) as engine:
        print("ready", flush=True)
        if plan in ("wait", "disk"):
            sys.stdin.readline()
        try:
            engine.write_weights(settings.run.dir)
        except OSError as error:
            print(f"disk: {error}", flush=True)
        batch = empty_microbatch()
        print(engine.old_logprobs([batch, batch]), flush=True)
        print(engine.step([batch], [torch.zeros(0)]), engine.policy_version, flush=True)
        if plan == "use":
            engine.use(with_values(settings, {"loss.solve_weight": 100.0}))
        engine.read_checkpoint(settings.run.dir, 7)
        print(engine.step([batch, batch]), engine.policy_version, flush=True)
        if plan == "disk":
            sys.exit(143)


def main() -> None:
    path, plan = Path(sys.argv[1]), sys.argv[2]
    settings = Settings.model_validate_json(path.read_text())
    place = place_of(os.environ, settings.learner.processes)
    name = f"rank-{place.rank}.log"
    log.configure(file=settings.run.dir / name, rank=place.rank)
    if place.is_first:
        Children.command = (sys.executable, "-m", "rank_job", str(path), plan)
        try:
            lead(settings, place, plan)
        except RankFailed as error:
            print(f"spark: {error}", file=sys.stderr)
            sys.exit(error.exit_code)
        return
    if not os.environ.get("BY_LAUNCHER"):
        settings = settings_from_parent()
    sys.exit(follow(settings, place, "gloo", lambda _settings, placed: SumEngine(plan, placed)))


if __name__ == "__main__":
    main()
