"""What telemetry costs: trained groups per second with everything told, against none, and what "none" costs.

``python -m bench.telemetry [--layers 3] [--steps 60] [--repeats 4]``. Full: OTLP to a collector on this host, which
takes what it is sent and drops it, as often as by default; a Prometheus that scrapes every process as often as the one
in infra/; every task traced. Both arms run at the same time, each on half of the cores, which they swap: what else the
machine does slows both. Rates leave out the first ten steps, and all that comes after the first arm has ended. The bar
is 3 %.

What is told of a group does not depend on the model, so the share that it costs does. ``--layers`` of more than the
demo's 3 trains the same model with that many: the new ones hand on what they are given, so answers are the same, and
a group takes as much longer as with a larger model.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from actors.spans import GroupSpans
from bench.runs import DEMO, run_demo
from common.messages import ChatMessage, Sampling, Task, uid_of
from common.telemetry.quiet import QUIET

BAR: Final = 0.03
WARM_UP: Final = 10
BASE: Final = DEMO.parent / "base"
PORT: Final = 29600
PROCESSES: Final = 4
SCRAPE_S: Final = 10.0
"""As infra/prometheus/prometheus.yml has it."""
CALLS: Final = 200_000


class Drop(BaseHTTPRequestHandler):
    """A collector that takes everything and keeps nothing."""

    protocol_version = "HTTP/1.1"
    taken = 0

    def do_POST(self) -> None:
        Drop.taken += len(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Its output is for the figures."""


@contextlib.contextmanager
def watched() -> Iterator[list[str]]:
    """A collector and a Prometheus; yields the settings that tell everything to both."""
    server, over = ThreadingHTTPServer(("127.0.0.1", 0), Drop), threading.Event()
    threads = [threading.Thread(target=server.serve_forever), threading.Thread(target=scrape, args=(over,))]
    for thread in threads:
        thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield [f'telemetry.endpoint="{url}"', f"telemetry.prometheus_port={PORT}"]
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        for thread in threads:
            thread.join()


def scrape(over: threading.Event) -> None:
    while not over.wait(SCRAPE_S):
        for port in range(PORT, PORT + PROCESSES):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=1) as answer:
                answer.read()


def side_by_side(repeat: int, folder: Path, overrides: dict[str, list[str]]) -> dict[str, float]:
    """Arm -> trained groups per second of wall time."""
    arms, cores = sorted(overrides, reverse=repeat % 2 == 1), sorted(os.sched_getaffinity(0))
    half = len(cores) // 2
    runs = {}
    with ExitStack() as stack:
        for arm, mine in zip(arms, (cores[:half], cores[half:]), strict=True):
            context = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(1, context, initializer=os.sched_setaffinity, initargs=(0, mine))
            runs[arm] = stack.enter_context(pool).submit(steps_of, f"{arm}-{repeat}", folder, overrides[arm])
    steps = {arm: run.result() for arm, run in runs.items()}
    end_s = min(rows[-1]["elapsed_s"] for rows in steps.values())
    return {arm: rate([row for row in rows if row["elapsed_s"] <= end_s]) for arm, rows in steps.items()}


def steps_of(name: str, folder: Path, overrides: list[str]) -> list[dict[str, Any]]:
    return run_demo(name, folder, overrides).steps


def rate(steps: list[dict[str, Any]]) -> float:
    seconds = steps[-1]["elapsed_s"] - steps[WARM_UP - 1]["elapsed_s"]
    return float(
        sum(step.get("trained/policy", 0) + step.get("trained/judge", 0) for step in steps[WARM_UP:]) / seconds
    )


def deepened(layers: int, folder: Path) -> list[str]:
    """The setting that trains the demo's model with so many layers, which answers as it does."""
    base = AutoModelForCausalLM.from_pretrained(BASE)
    if layers == base.config.num_hidden_layers:
        return []
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(BASE, num_hidden_layers=layers))
    model.load_state_dict(base.state_dict(), strict=False)
    for layer in model.model.layers[base.config.num_hidden_layers :]:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(BASE).save_pretrained(folder)
    return [f"model.path={json.dumps(str(folder))}"]


def cost_of_off() -> float:
    """Microseconds per group that the parts of a process spend on telemetry that is off."""
    spans = GroupSpans(QUIET)
    task = Task(
        uid=uid_of("bench", 0),
        objective="solve",
        messages=(ChatMessage.user("1+1"),),
        question="1+1",
        answer="2",
        verifier="exact",
        sampling=Sampling(n=8, max_new_tokens=8),
    )
    started = time.process_time()
    for _ in range(CALLS):
        issue = QUIET.traces.issue([task], 0)
        issue.told()
        spans.begun("key")
        spans.generated("key")
        spans.gone("key")
    return 1e6 * (time.process_time() - started) / CALLS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=4)
    arguments = parser.parse_args()
    if arguments.steps <= WARM_UP or len(os.sched_getaffinity(0)) < 2:
        parser.error(f"needs more than {WARM_UP} steps, of which it leaves out the first {WARM_UP}, and two cores")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rates: dict[str, list[float]] = {"off": [], "full": []}
    with tempfile.TemporaryDirectory() as name, watched() as everything:
        folder = Path(name)
        limits = [f"learner.max_steps={arguments.steps}", "learner.lr_schedule=constant"]
        limits += deepened(arguments.layers, folder / "model")
        for repeat in range(arguments.repeats):
            off = [*limits, f"run.seed={repeat}"]
            for arm, found in side_by_side(repeat, folder, {"off": off, "full": [*off, *everything]}).items():
                rates[arm].append(found)
            print(", ".join(f"{arm} {found[-1]:.2f}" for arm, found in rates.items()), "groups/s", flush=True)
    report(rates, arguments)


def report(rates: dict[str, list[float]], arguments: argparse.Namespace) -> None:
    """The overhead is the geometric mean of what pairs lost, in which a core that is slower cancels out."""
    losses = [1 - full / off for full, off in zip(rates["full"], rates["off"], strict=True)]
    overhead, off_us = 1 - statistics.geometric_mean(1 - loss for loss in losses), cost_of_off()
    error = statistics.stdev(losses) / math.sqrt(len(losses))
    table = Table(title=f"trained groups per second, {arguments.layers} layers, {arguments.repeats} repeats")
    for column in ("arm", "median", "lowest", "highest"):
        table.add_column(column)
    for arm, figures in rates.items():
        table.add_row(arm, *(f"{value:.2f}" for value in (statistics.median(figures), min(figures), max(figures))))
    Console(width=100).print(table)
    print(f"full telemetry costs {overhead:.1%} +- {error:.1%}; the bar is {BAR:.0%}")
    told = error <= BAR / 2
    if not told:
        print("the pairs differ too much to tell: run more steps and repeats")
    print(f"off costs {off_us:.2f} us per group; the collector took {Drop.taken / 1e6:.1f} MB")
    print(
        json.dumps(
            {
                "layers": arguments.layers,
                "overhead": overhead,
                "bar": BAR,
                "holds": overhead <= BAR if told else None,
                "off_us_per_group": off_us,
                "reference": "off",
                "standard_error": error,
                "rates": rates,
            }
        )
    )


if __name__ == "__main__":
    main()
