"""What asynchrony buys: trained groups per second, asynchronous (eta 1) against the same work synchronously (eta 0).

``python -m bench.overlap [--steps 60] [--repeats 3]``. Both do the same batches of policy and judge groups by the
same processes; the arms take turns, so that a busy machine slows both. Rates leave out the first ten steps.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from bench.runs import Run, run_demo

ARMS: Final = {
    "synchronous": ["staleness.max_staleness=0", "staleness.max_content_staleness=4", "learner.judge_wait_s=60"],
    "asynchronous": ["staleness.max_staleness=1", "learner.judge_wait_s=0"],
}
WARM_UP: Final = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    results: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(arguments.repeats):
            for arm, overrides in ARMS.items():
                limits = [f"learner.max_steps={arguments.steps}", f"run.seed={repeat}", "learner.lr_schedule=constant"]
                results[arm].append(rates(run_demo(f"{arm}-{repeat}", Path(folder), [*overrides, *limits])))
    report(results, arguments)


def rates(run: Run) -> dict[str, float]:
    steps = run.steps[WARM_UP:]
    seconds = steps[-1]["elapsed_s"] - run.steps[WARM_UP - 1]["elapsed_s"]
    groups = sum(step.get("trained/policy", 0) + step.get("trained/judge", 0) for step in steps)
    return {
        "trained_groups_per_s": groups / seconds,
        "samples_per_s": sum(step["samples"] for step in steps) / seconds,
        "learner_waiting_share": sum(step["seconds/wait_for_groups"] for step in steps) / seconds,
        "judge_groups_per_step": sum(step.get("trained/judge", 0) for step in steps) / len(steps),
        "reward_solve": statistics.fmean(step["reward/solve"] for step in steps[-10:]),
    }


def report(results: dict[str, list[dict[str, float]]], arguments: argparse.Namespace) -> None:
    table = Table(title=f"{arguments.steps} steps, median of {arguments.repeats}")
    names = list(results["synchronous"][0])
    for column in ("arm", *names):
        table.add_column(column)
    medians: dict[str, dict[str, Any]] = {}
    for arm, runs in results.items():
        medians[arm] = {name: statistics.median(run[name] for run in runs) for name in names}
        table.add_row(arm, *(f"{medians[arm][name]:.2f}" for name in names))
    Console(width=140).print(table)
    speed_up = medians["asynchronous"]["trained_groups_per_s"] / medians["synchronous"]["trained_groups_per_s"]
    print(f"asynchronous over synchronous: {speed_up:.2f}x")
    print(json.dumps({"speed_up": speed_up, "reference": "synchronous", **medians, "runs": results}))


if __name__ == "__main__":
    main()
