"""What it costs to hand weights on: from ``publish`` to the first token sampled with them, on one host.

``python -m bench.weights [--sizes 10 100 1000] [--engine transformers] [--parts updates store differences]``. Seconds
per update by size and transport, with an actor that generates in another process; the store alone (publish and fetch)
against a plain copy of the same bytes in memory; how much a difference is of the whole after real optimizer steps.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.random_llama import MB, save_random_llama
from bench.weight_rig import TRANSPORTS, Update, Weights, settings_of, updates
from bench.weight_sizes import size_of_differences
from cli.train import shared_memory_freed
from common.weights import WeightStore
from common.weights_source import WeightSource

UPDATES: Final = {10: 60, 100: 30, 1000: 8}
REPEATS: Final = 5
RATES: Final = (1e-6, 1e-5)
PARTS: Final = ("updates", "store", "differences")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000], help="MB of float32 weights")
    parser.add_argument("--engine", choices=("transformers", "vllm"), default="transformers")
    parser.add_argument("--transports", nargs="+", choices=list(TRANSPORTS), default=list(TRANSPORTS))
    parser.add_argument("--updates", type=int, help=f"per size and transport; default: {UPDATES}")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    results: dict[str, Any] = {"engine": arguments.engine, "load_1min": os.getloadavg()[0]}
    if "updates" in arguments.parts:
        results["updates"] = measure_updates(arguments)
    if "store" in arguments.parts:
        results["store"] = measure_stores(arguments)
    if "differences" in arguments.parts:
        results["differences"] = [{"lr": lr, **asdict(size_of_differences(lr))} for lr in RATES]
    report(results)
    print(json.dumps({**results, "reference": "a plain copy of the same bytes in memory", "repeats": REPEATS}))


# -- from publish to the first token ----------------------------------------------------------------------------


def measure_updates(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for megabytes in arguments.sizes:
        number = arguments.updates or UPDATES.get(megabytes, 10)
        with tempfile.TemporaryDirectory() as folder:
            model = save_random_llama(Path(folder) / "model", megabytes)
            for index, transport in enumerate(arguments.transports):
                settings = settings_of(Path(folder) / str(index), transport, model, arguments.engine)
                found = updates(settings, megabytes, number)
                rows.append({"mb": megabytes, "transport": transport, **figures(found)})
    return rows


def figures(found: list[Update]) -> dict[str, Any]:
    first_tokens = sorted(update.first_token_s for update in found)
    return {
        "p50_s": statistics.median(first_tokens),
        "p99_s": first_tokens[min(len(first_tokens) - 1, int(0.99 * len(first_tokens)))],
        "publish_p50_s": statistics.median(update.publish_s for update in found),
        "updates": len(found),
    }


# -- the store alone ----------------------------------------------------------------------------------------------


def measure_stores(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    return [
        {"mb": megabytes, "transport": transport, **measure_store(megabytes, transport)}
        for megabytes in arguments.sizes
        for transport in arguments.transports
    ]


def measure_store(megabytes: int, transport: str) -> dict[str, Any]:
    """Medians, in seconds; the copy and the hash are measured beside each of them. The first version is left out."""
    weights = Weights(megabytes)
    source_bytes = np.full(weights.bytes, 7, dtype=np.uint8)  # zeros would all be one page of memory
    copied = np.ones_like(source_bytes)
    seconds: dict[str, list[float]] = {"publish": [], "fetch": [], "memcpy": [], "sha256": []}
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_of(Path(folder), transport)
        store = WeightStore.of(settings)
        with shared_memory_freed(settings), closing(WeightSource.of(settings)) as source:
            for version in range(REPEATS + 1):
                weights.step()

                def publish(version: int = version) -> Any:
                    return store.publish(1, version, version - 1, weights.write_weights)

                publish_s, manifest = timed(publish)
                times = {
                    "publish": publish_s,
                    "fetch": timed(lambda: source.fetch(manifest))[0],  # noqa: B023
                    "memcpy": timed(lambda: np.copyto(copied, source_bytes))[0],
                    "sha256": timed(lambda: hashlib.sha256(source_bytes.data).digest())[0],
                }
                store.remove_older_than(version, epoch=1)
                for name, value in times.items():
                    seconds[name] += [value] if version else []
    medians = {f"{name}_s": statistics.median(values) for name, values in seconds.items()}
    both = medians["publish_s"] + medians["fetch_s"]
    return {**medians, "mb_per_s": weights.bytes / MB / both, "times_memcpy": both / medians["memcpy_s"]}


def timed(act: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = act()
    return time.perf_counter() - started, result


# -- the report ----------------------------------------------------------------------------------------------------


def report(results: dict[str, Any]) -> None:
    console = Console(width=120)
    shown = {
        "updates": f"From publish to the first token of the new version, {results['engine']} engine",
        "store": f"The store alone, median of {REPEATS}",
        "differences": "Size of a difference in bfloat16 after an AdamW step, as a share of the whole",
    }
    for key, title in shown.items():
        if key in results:
            console.print(_table(title, results[key]))


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title)
    for column in rows[0]:
        table.add_column(column.replace("_", " "))
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    return table


if __name__ == "__main__":
    main()
