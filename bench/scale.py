"""What one server carries: simulated actors that ship long rollouts as fast as they can, and a learner that takes all.

``python -m bench.scale [--actors 1 10 100 1000 3000] [--seconds 10] [--tokens 8192]``. Every simulated actor has its
own connection, consumer and heartbeat, and makes the product's own calls: claim a task, ship a group (8 rollouts). The
learner issues tasks, reads and decodes groups, and acknowledges them behind a window. All actors share one process and
the learner is another, so on two cores it is these, rather than the server, that set the rate: beside it stand the
share of a core that both used, and the server's CPU seconds per gigabyte that came in.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from bench.scale_load import RUN, TOKEN
from cli.embedded import EmbeddedServer
from common.server import connect, load_functions
from common.streams import Streams

MB: Final = 1e6
LONGEST_S: Final = 120.0
"""For thousands of connections to be made, beside the measured seconds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 10, 100, 1000, 3000])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--tokens", type=int, default=8192, help="of one rollout")
    parser.add_argument("--group", type=int, default=8, help="rollouts of one group")
    parser.add_argument("--window", type=int, default=64, help="groups that the learner has not acknowledged")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    report([measure(count, arguments) for count in arguments.actors], arguments)


def measure(count: int, arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, EmbeddedServer(Path(folder)) as server:
        client = connect(server.url)
        load_functions(client)
        streams = Streams(client, RUN, recycles=False)
        streams.create_groups()
        streams.take_fence(1, TOKEN)
        before = _cpu_seconds(client)
        learner = _start("learner", server.url, arguments.seconds, count, arguments)
        actors = _answer(_start("actors", server.url, arguments.seconds, count, arguments), arguments.seconds)
        consumed = _answer(learner, arguments.seconds)
        used = _cpu_seconds(client) - before
        info: Any = client.info()
    return {
        "actors": count,
        "rollouts_per_s": actors["groups"] * arguments.group / actors["seconds"],
        "mb_per_s": actors["groups"] * actors["group_bytes"] / MB / actors["seconds"],
        "group_mb": actors["group_bytes"] / MB,
        "ship_ms_p50": actors["ship_ms_p50"],
        "ship_ms_p99": actors["ship_ms_p99"],
        "intake_groups_per_s": consumed["groups"] / consumed["seconds"],
        "cpu_shares": {"actors": actors["cpu_share"], "learner": consumed["cpu_share"]},
        "server_cpu_s_per_gb": used / (actors["groups"] + count) / actors["group_bytes"] * 1e9,
        "server_mb": consumed["server_bytes"] / MB,
        "server_peak_mb": info["used_memory_peak"] / MB,
        "unacked_groups": consumed["unacked"],
    }


def _start(side: str, url: str, seconds: float, count: int, arguments: argparse.Namespace) -> subprocess.Popen[str]:
    sizes = ["--actors", count, "--tokens", arguments.tokens, "--group", arguments.group, "--window", arguments.window]
    command = [sys.executable, "-m", "bench.scale_load", side, url, str(seconds), *map(str, sizes)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _answer(process: subprocess.Popen[str], seconds: float) -> dict[str, Any]:
    output, _ = process.communicate(timeout=seconds + LONGEST_S)
    if process.returncode:
        raise SystemExit(f"a side of the benchmark ended with exit code {process.returncode}")
    answer: dict[str, Any] = json.loads(output)
    return answer


def _cpu_seconds(client: Any) -> float:
    info = client.info("cpu")
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


def report(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    title = f"groups of {arguments.group} rollouts of {arguments.tokens} tokens, {rows[0]['group_mb']:.2f} MB each"
    columns = ["actors", "rollouts/s", "MB/s", "ship ms p50 / p99", "learner reads groups/s"]
    table = Table(
        *columns, "core share: actors / learner", "server CPU s/GB", "server MB, un-acked groups", title=title
    )
    for row in rows:
        cpu = " / ".join(f"{share:.2f}" for share in row["cpu_shares"].values())
        server = f"{row['server_cpu_s_per_gb']:.1f}"
        rates = [f"{row['rollouts_per_s']:.0f}", f"{row['mb_per_s']:.0f}"]
        ship = f"{row['ship_ms_p50']:.1f} / {row['ship_ms_p99']:.1f}" if row["ship_ms_p50"] is not None else "-"
        memory = f"{row['server_mb']:.0f} (peak {row['server_peak_mb']:.0f}), {row['unacked_groups']}"
        table.add_row(str(row["actors"]), *rates, ship, f"{row['intake_groups_per_s']:.0f}", cpu, server, memory)
    Console(width=150).print(table)
    print(json.dumps({"rows": rows, "tokens": arguments.tokens, "group": arguments.group, "window": arguments.window}))


if __name__ == "__main__":
    main()
