"""``make chaos``: the storm and every row of the fault table. The last line is one JSON object.

Exits with 1 when anything was lost or counted twice, when a row failed, or when a process died of something that was
not done to it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from chaos import rows_checkpoint, rows_crowd, rows_data, rows_kills, rows_server
from chaos.rig import Rig
from chaos.rows import ROWS, Result, run_row
from chaos.storm import Report, Storm, verdict

MODULES = (rows_kills, rows_checkpoint, rows_server, rows_data, rows_crowd)
"""Importing them has registered their rows."""

console = Console(width=160)


def main() -> None:
    options = _arguments()
    started = time.monotonic()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="spark-chaos-"))
    console.print(f"everything that is written lies in {folder}")
    results = [] if options.no_rows else [_show(run_row(one, folder / f"row-{at}")) for at, one in enumerate(ROWS)]
    reports = [_storm(folder / f"storm-{seed}", seed, options) for seed in options.seed]
    if results:
        console.print(_table_of_rows(results))
    for report in reports:
        console.print(_table_of_storm(report))
    wrong = [f"row {r.row.number} {r.row.fault}: {r.note}" for r in results if r.verdict == "FAILED"]
    wrong += [line for report in reports for line in verdict(report)]
    for line in wrong:
        console.print(f"[red]{line}[/red]", markup=True)
    print(json.dumps(_summary(results, reports, wrong, time.monotonic() - started)))
    sys.exit(1 if wrong else 0)


def _storm(folder: Path, seed: int, options: argparse.Namespace) -> Report:
    with Rig(folder, actors=options.actors) as rig:
        return Storm(rig, seed, options.pace).run(items=options.items, faults=options.faults)


def _show(result: Result) -> Result:
    row = result.row
    console.print(f"{row.number:2}  {row.fault}: {result.verdict} after {result.seconds:.1f} s", highlight=False)
    return result


def _table_of_rows(results: Sequence[Result]) -> Table:
    table = Table(title="Rows of the fault table")
    for column, options in (
        ("row", {"justify": "right"}),
        ("fault", {}),
        ("passes when", {}),
        ("times", {"justify": "right"}),
        ("items", {"justify": "right"}),
        ("verdict", {}),
        ("note", {}),
    ):
        table.add_column(column, **options)
    for result in sorted(results, key=lambda result: result.row.number):
        row = result.row
        cells = (str(row.number), row.fault, row.passes, str(result.times), str(result.items), result.verdict)
        table.add_row(*cells, result.note)
    return table


def _table_of_storm(report: Report) -> Table:
    title = (
        f"Storm {report.seed}: {report.faults} faults over {report.truth.items} items in {report.seconds:.0f} s; "
        f"{len(report.truth.lost)} lost, {len(report.truth.twice)} twice"
    )
    table = Table(title=title)
    for column in ("fault", "times", "recovery p50 s", "p99 s", "max s"):
        table.add_column(column, justify="left" if column == "fault" else "right")
    for name in sorted(report.struck):
        p50, p99, most = (f"{report.recovery(percent, name):.2f}" for percent in (50, 99, 100))
        table.add_row(name, str(report.struck[name]), p50, p99, most)
    table.add_section()
    p50, p99, most = (f"{report.recovery(percent):.2f}" for percent in (50, 99, 100))
    table.add_row("all", str(report.faults), p50, p99, most)
    return table


def _summary(
    results: Sequence[Result], reports: Sequence[Report], wrong: Sequence[str], seconds: float
) -> dict[str, Any]:
    """All storms and rows together; recovery times of the storms."""
    recoveries = [report.recovery(99) for report in reports]
    passed = [result for result in results if result.verdict == "passed"]
    return {
        "faults": sum(report.faults for report in reports) + sum(result.times for result in passed),
        "items": sum(report.truth.items for report in reports) + sum(result.items for result in passed),
        "lost": sum(len(report.truth.lost) for report in reports),
        "twice": sum(len(report.truth.twice) for report in reports),
        "recovery_p50_s": round(max((report.recovery(50) for report in reports), default=0.0), 3),
        "recovery_p99_s": round(max(recoveries, default=0.0), 3),
        "trained": sum(report.truth.trained for report in reports),
        "seconds": round(seconds, 1),
        "seeds": [report.seed for report in reports],
        "storm_faults": sum(report.faults for report in reports),
        "storm_items": sum(report.truth.items for report in reports),
        "struck": {name: sum(r.struck.get(name, 0) for r in reports) for r in reports for name in sorted(r.struck)},
        "zombies_fenced": sum(report.zombies for report in reports),
        "starts_refused": sum(report.refused for report in reports),
        "replies_lost": sum(report.replies_lost for report in reports),
        "bytes_lost_in_power_cuts": sum(report.bytes_lost for report in reports),
        "rows": {
            kind: sum(result.verdict == kind for result in results) for kind in ("passed", "FAILED", "cannot run")
        },
        "wrong": list(wrong),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--seed", type=int, nargs="+", default=[1], help="one storm for each")
    parser.add_argument("--items", type=int, default=30_000, help="issued groups of a storm, at least")
    parser.add_argument("--faults", type=int, default=1000, help="faults of a storm, at least")
    parser.add_argument("--pace", type=float, default=0.8, help="mean seconds between two faults")
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--no-rows", action="store_true", help="the storm alone")
    parser.add_argument("--folder", type=Path, default=None, help="for runs and logs; default: a new temporary one")
    return parser.parse_args()


if __name__ == "__main__":
    main()
