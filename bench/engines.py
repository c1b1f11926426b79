"""What the actor's loop costs: tokens per second through it, against its engine driven bare by an offline batch.

``python -m bench.engines [--engines transformers vllm] [--groups 48] [--repeats 3]``. All arms of an engine get the
same prompts (8 to 64 tokens), sampling and number of sequences at once; completions have mixed lengths (geometric, mean
73, at most 256). Arms take turns, so that a busy machine slows all of them; figures are medians. Beside each ratio of
tokens per second stands that of tokens per CPU second, which depends less on what else the machine does.

- ``bare``: the engine alone, all groups queued at once. vLLM: its LLMEngine, without ours around it.
- ``loop``: the actor on a real server: claim, tokenize, generate, verify, ship. Tasks were queued beforehand.
- ``keep``: the loop with new weights every second, the KV cache of running completions kept.
- ``recompute``: the loop with new weights every 5 s, the KV cache recomputed: on a CPU that costs the compute of all
  tokens in flight, so the figure to look at is seconds per update. A tenth of the time goes at ten times that period.
- ``peer``: Hugging Face ``generate`` on a batch of the transformers engine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from bench.engine_arms import Timed

ENGINES: Final = ("transformers", "vllm")
UPDATE_EVERY_S: Final = {"keep": 1.0, "recompute": 5.0}
REFERENCE: Final = {"loop": "bare", "keep": "loop", "recompute": "loop"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--groups", type=int, default=48, help="of 8 completions, in each measurement")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(dir="/dev/shm") as weights:
        results = {name: measure(name, Path(folder), Path(weights), arguments) for name in arguments.engines}
    report(results, arguments)


def measure(name: str, folder: Path, weights: Path, arguments: argparse.Namespace) -> dict[str, list[Timed]]:
    from bench.engine_arms import Bench

    bench = Bench(name, folder, weights)
    arms: dict[str, Callable[[int], Timed]] = {
        "bare": bench.bare,
        "loop": bench.loop,
        **{kv: partial(bench.loop, update_every_s=s, kv_on_update=kv) for kv, s in UPDATE_EVERY_S.items()},
    }
    if name == "transformers":
        arms["peer"] = bench.peer
    results: dict[str, list[Timed]] = {arm: [] for arm in arms}
    try:
        for run in arms.values():
            run(4)  # what first steps compile and allocate is not measured
        for repeat in range(arguments.repeats):
            for arm in arms if repeat % 2 == 0 else reversed(arms):
                results[arm].append(arms[arm](arguments.groups))
    finally:
        bench.close()
    return results


def report(results: dict[str, dict[str, list[Timed]]], arguments: argparse.Namespace) -> None:
    title = f"{arguments.groups} groups of 8, median of {arguments.repeats}"
    table = Table("engine", "arm", "tokens/s", "over", "ratio", "ratio per CPU second", "s/update", title=title)
    figures = {engine: figures_of(arms) for engine, arms in results.items()}
    for engine, found in figures.items():
        for arm, rate in found["tokens_per_s"].items():
            ratios = [f"{found[name][arm]:.3f}" if arm in REFERENCE else "" for name in ("ratios", "cpu_ratios")]
            cost = f"{found['seconds_per_update'][arm]:.2f}" if arm in UPDATE_EVERY_S else ""
            table.add_row(engine, arm, f"{rate:.0f}", REFERENCE.get(arm, ""), *ratios, cost)
    Console(width=120).print(table)
    counts = {"groups": arguments.groups, "repeats": arguments.repeats, "update_every_s": UPDATE_EVERY_S}
    print(json.dumps({**figures, "reference": REFERENCE, **counts}))


def figures_of(arms: dict[str, list[Timed]]) -> dict[str, Any]:
    rates = {arm: [run.tokens / run.seconds for run in runs] for arm, runs in arms.items()}
    cpu_rates = {arm: [run.tokens / run.cpu_s for run in runs] for arm, runs in arms.items()}
    return {
        "tokens_per_s": {arm: statistics.median(values) for arm, values in rates.items()},
        "ratios": _ratios(rates),
        "cpu_ratios": _ratios(cpu_rates),
        "seconds_per_update": {arm: _cost(arms[arm], statistics.median(rates["loop"])) for arm in UPDATE_EVERY_S},
        "runs": rates,
        "tokens": {arm: [run.tokens for run in runs] for arm, runs in arms.items()},
    }


def _cost(runs: list[Timed], tokens_per_s: float) -> float:
    """Seconds that an update takes from generation at that rate; median over the runs."""
    return statistics.median((run.seconds - run.tokens / tokens_per_s) / max(run.updates, 1) for run in runs)


def _ratios(rates: dict[str, list[float]]) -> dict[str, float]:
    """Of medians, each arm over its reference."""
    return {arm: statistics.median(rates[arm]) / statistics.median(rates[over]) for arm, over in REFERENCE.items()}


if __name__ == "__main__":
    main()
