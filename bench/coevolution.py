"""Does recycling train a judge that plain RLVR does not? All arms from one base, by the real processes.

``python -m bench.coevolution --seeds 3 [--base DIR] [--folder DIR]``. ``--base``: another base than the shipped one,
such as ``examples/arithmetic/warm_up.py`` makes. One unit of training is what the miniature called a step: 32 prompts
in two updates. Here a batch is 16 prompts with a contrast and one update, so 60 such steps are 120. Groups without a
contrast are replaced, so arms differ in samples; ``grpo_equal_samples`` draws about as many as ``spark`` does (22
prompts a batch, found by interpolation), and all counts are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from bench.runs import Run, run_demo

ARMS: Final[dict[str, list[str]]] = {
    "grpo": ["learner.judge_share=0.0"],
    "grpo_equal_samples": ["learner.judge_share=0.0", "learner.groups_per_step=22"],
    "spark": [],
    # The preset at the demo's scale; its template set has no text that says that an answer is wrong.
    "spark_original": [
        "preset=spark_original",
        "sampling.max_new_tokens=16",
        "learner.groups_per_step=32",
        "learner.updates_per_batch=2",
        "learner.lr=3e-4",
        "recycler.told_wrong_share=0.0",
    ],
}
FIGURES: Final = ("policy", "pointwise", "tpr", "tnr", "pairwise", "fix", "break", "tts_r0", "tts", "majority")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60, help="steps of 32 prompts in two updates")
    parser.add_argument("--draws", type=int, default=2048)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--base", type=Path, help="model directory; the shipped base if left out")
    parser.add_argument("--folder", type=Path, help="keep the runs here; finished ones are not run again")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        results = {
            arm: [measure(arm, seed, folder, arguments) for seed in range(arguments.seeds)] for arm in arguments.arms
        }
    report(results, arguments)


def measure(arm: str, seed: int, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One run and its evaluation on a seed of its own. Kept in ``FOLDER/RUN/result.json``."""
    name = f"{arm}-{seed}"
    kept = folder / name / "result.json"
    if kept.is_file():
        return dict(json.loads(kept.read_text(encoding="utf-8")))
    scale = 4 if arm == "spark_original" else 2  # optimizer steps per step of 32 prompts
    overrides = [*ARMS[arm], f"learner.max_steps={arguments.steps * scale}", f"run.seed={seed}"]
    if arguments.base:
        overrides.append(f"model.path={json.dumps(str(arguments.base))}")
    run = run_demo(name, folder, overrides)
    result = {**evaluated(run, folder, seed, arguments.draws), **counted(run)}
    kept.write_text(json.dumps(result), encoding="utf-8")
    print(
        json.dumps(
            {"arm": arm, "seed": seed, **{k: result[k] for k in ("policy", "pointwise", "tpr", "tnr", "pairwise")}}
        )
    )
    return result


def evaluated(run: Run, folder: Path, seed: int, draws: int) -> dict[str, Any]:
    """Figures on held-out prompts; all arms of a seed judge the same frozen answers of the base model."""
    from cli.evaluation import build_pool, evaluate

    settings = run.directory.settings
    pool = folder / f"pool-{seed}.jsonl"
    if not pool.exists():
        build_pool(settings, settings.model.path, pool, draws, seed=100 + seed)
    export = str(run.directory.export)
    rounds, votes = settings.eval.rounds, settings.eval.votes
    result = evaluate(settings, export, pool_path=pool, draws=draws, seed=100 + seed, rounds=rounds, votes=votes)
    return {**result.summary(), "intervals": result.intervals()}


def counted(run: Run) -> dict[str, Any]:
    staleness = [step["staleness_max"] for step in run.steps if "staleness_max" in step]
    return {
        "samples": run.samples,
        "updates": run.steps[-1]["policy_version"],
        "wall_s": round(run.trained.wall_s, 1),
        "ledger_balances": run.trained.ledger.balanced,
        "staleness_max": max(staleness, default=0),
        "dropped": sum(counts["dropped_stale"] for counts in run.trained.ledger.kinds.values()),
    }


def report(results: Mapping[str, Sequence[Mapping[str, Any]]], arguments: argparse.Namespace) -> None:
    columns = (*FIGURES, "samples", "updates", "wall_s")
    table = Table(
        title=f"{arguments.steps} steps, mean (sd) of {arguments.seeds} seeds, {arguments.draws} draws each, %"
    )
    table.add_column("arm")
    for column in columns:
        table.add_column(column, justify="right")
    for arm, runs in results.items():
        table.add_row(arm, *(_cell(column, [run[column] for run in runs]) for column in columns))
    Console(width=200).print(table)
    print(
        json.dumps(
            {
                "arms": results,
                "seeds": arguments.seeds,
                "draws": arguments.draws,
                "reference": "grpo",
                "bars": bars(results),
            }
        )
    )


def bars(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, bool]:
    """The bars of the miniature, for the arms that were run: means over seeds unless the name says every seed."""
    met: dict[str, bool] = {}
    if "spark" in results and "grpo" in results:
        spark, grpo = results["spark"], results["grpo"]
        met["policy >= grpo - 0.03"] = _mean(spark, "policy") >= _mean(grpo, "policy") - 0.03
        met["pointwise >= 0.78"] = _mean(spark, "pointwise") >= 0.78
        met["pointwise >= grpo + 0.10"] = _mean(spark, "pointwise") >= _mean(grpo, "pointwise") + 0.10
        met["tpr, tnr >= 0.65 on every seed"] = all(min(run["tpr"], run["tnr"]) >= 0.65 for run in spark)
        met["pairwise >= 0.68"] = _mean(spark, "pairwise") >= 0.68
        met["pairwise >= grpo + 0.05"] = _mean(spark, "pairwise") >= _mean(grpo, "pairwise") + 0.05
        met["fix >= 0.85, break <= 0.13"] = _mean(spark, "fix") >= 0.85 and _mean(spark, "break") <= 0.13
        met["tts >= round 0 on every seed"] = all(run["tts"] >= run["tts_r0"] for run in spark)
    if "spark_original" in results:
        met["spark_original's tnr collapses below 0.5"] = _mean(results["spark_original"], "tnr") < 0.5
    return met


def _mean(runs: Sequence[Mapping[str, Any]], key: str) -> float:
    return statistics.fmean(run[key] for run in runs)


def _cell(column: str, values: list[float]) -> str:
    if column in ("samples", "updates", "wall_s"):
        return f"{statistics.fmean(values):,.0f}"
    deviation = f" ({100 * statistics.stdev(values):.1f})" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.1f}{deviation}"


if __name__ == "__main__":
    main()
