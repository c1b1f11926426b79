"""``python -m simulation``: schedules of a whole run under faults, each in a few milliseconds of real time.

A failing seed replays exactly: ``python -m simulation --seed N --trace`` prints all that happens in it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Final

from simulation.campaign import SHOWN, Summary, campaign, traced
from simulation.planted import BUGS

TOLD_S: Final = 15.0


def main() -> None:
    options = _arguments()
    if options.seed is not None:
        sys.exit(_one(options))
    sys.exit(_many(options))


def _one(options: argparse.Namespace) -> int:
    result, trace = traced(options.seed, options.planted)
    if options.trace:
        print("\n".join(trace))
    print(f"seed {result.seed}: {result.scenario}")
    print(f"{result.commands} commands, {result.virtual_s:.1f} virtual s, faults {dict(result.faults)}")
    for violation in result.violations:
        print(f"VIOLATION: {violation}")
    print("no violation" if not result.violations else f"{len(result.violations)} violations")
    return 1 if result.violations else 0


def _many(options: argparse.Namespace) -> int:
    started = told = time.monotonic()
    summary = Summary()
    seeds = range(options.first, options.first + options.schedules)
    for summary in campaign(seeds, options.processes, options.planted):
        if time.monotonic() - told > TOLD_S:
            told = time.monotonic()
            failed = [result.seed for result in summary.failed[:SHOWN]]
            print(
                f"{summary.schedules} schedules, {told - started:.0f} s, failed {failed}", file=sys.stderr, flush=True
            )
    _print(summary, time.monotonic() - started)
    return 1 if summary.failed else 0


def _print(summary: Summary, seconds: float) -> None:
    for result in summary.failed[:SHOWN]:
        print(f"seed {result.seed}: {result.scenario}, faults {dict(result.faults)}")
        for violation in result.violations:
            print(f"  {violation}")
        print(f"  replay: python -m simulation --seed {result.seed} --trace")
    rows: list[tuple[str, object]] = [
        ("schedules", summary.schedules),
        ("items (uids issued)", summary.items),
        ("commands to the server", summary.commands),
        ("virtual hours", round(summary.virtual_s / 3600, 1)),
        ("faults", sum(summary.faults.values())),
        *((f"  {name.replace('_', ' ')}", count) for name, count in summary.faults.most_common()),
        ("processes that ended", sum(summary.outcomes.values())),
        *((f"  {name}", count) for name, count in summary.outcomes.most_common()),
        ("violations", sum(len(result.violations) for result in summary.failed)),
        ("seconds", round(seconds, 1)),
        ("schedules per minute", round(60 * summary.schedules / seconds)),
    ]
    for name, value in rows:
        print(f"{name:32}{value:>14}")
    figures = {
        "schedules": summary.schedules,
        "items": summary.items,
        "faults": dict(summary.faults),
        "violations": sum(len(result.violations) for result in summary.failed),
        "failed_seeds": [result.seed for result in summary.failed],
        "seconds": round(seconds, 1),
        "schedules_per_minute": round(60 * summary.schedules / seconds),
    }
    print(json.dumps(figures))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="simulation", description=__doc__)
    parser.add_argument("--schedules", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, default=None, help="this schedule alone")
    parser.add_argument("--trace", action="store_true", help="with --seed: print all that happens")
    parser.add_argument("--planted", choices=sorted(BUGS), default=None, help="with this bug in the code under test")
    return parser.parse_args()


if __name__ == "__main__":
    main()
