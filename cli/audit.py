"""`spark audit`: every issued uid ends exactly once, or is in flight in exactly one place; and the uids where not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

from cli.audit_events import read_events
from cli.audit_judge import MEANINGS, Evidence, Findings, Violation, judge
from cli.audit_replay import KINDS
from cli.plain import plain
from cli.rundir import open_run
from cli.status import streams_of
from common.keys import ACTORS, LEARNER
from common.messages import OUTCOMES, Kind
from common.streams import Streams
from learner.checkpoint import CheckpointStore

PASSES: Final = 3
SHOWN: Final = 20
"""Uids of a violation that are printed; ``--json`` has them all."""


def audit_run(path: Path, *, as_json: bool) -> None:
    """Print the findings; exits with 1 when anything is wrong."""
    run = open_run(path)
    with streams_of(run) as streams:
        checkpoints = CheckpointStore(run.path / "checkpoints", run.settings.learner.checkpoints_kept)
        found = audit(streams, run.path / "events", checkpoints)
    if as_json:
        print(json.dumps(as_dict(found)))
    else:
        _print(run.settings.run.name, found)
    if not found.ok:
        sys.exit(1)


def audit(streams: Streams, events_folder: Path, checkpoints: CheckpointStore) -> Findings:
    """What is wrong with a run, which may go on meanwhile: only what three looks in a row have shown is reported.

    Raises ServerError when the server knows nothing of the run, SparkError when another version wrote its events.
    """
    streams.conservation()  # refuses a server without the run before anything else would make its streams anew
    found = judge(look(streams, events_folder, checkpoints))
    for _ in range(PASSES - 1):
        if found.ok:
            break
        found = found.seen_again(judge(look(streams, events_folder, checkpoints)))
    return found


def look(streams: Streams, events_folder: Path, checkpoints: CheckpointStore) -> Evidence:
    """Read everything once, in the order in which work moves on: what moves meanwhile is seen twice, not missed."""
    in_flight = {kind: _in_flight(streams, kind) for kind in KINDS}
    before = streams.ledger()
    events = read_events(streams, events_folder)
    after = streams.ledger()
    saved = checkpoints.newest()
    return Evidence(
        in_flight=in_flight,
        counters=(before, after),
        events=[event.fields for event in events],
        ended=dict(saved.state.ended.items()) if saved else {},
        trained=saved.state.trained if saved else 0,
    )


def _in_flight(streams: Streams, kind: Kind) -> list[str]:
    keys = streams.keys
    uids = streams.unacked(keys.tasks(kind), ACTORS) + streams.unacked(keys.rollouts(kind), LEARNER)
    return uids + streams.unacked(keys.returned, LEARNER) if kind == "policy" else uids


# -- what is printed --------------------------------------------------------------------------------------------


def as_dict(found: Findings) -> dict[str, Any]:
    violations = {
        what: [{"kind": v.kind, "uid": v.uid, "detail": v.detail} for v in found.of(what)]
        for what in MEANINGS
        if found.of(what)
    }
    return {"ok": found.ok, **{kind: dict(counts) for kind, counts in found.kinds.items()}, "violations": violations}


def _print(name: str, found: Findings) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Audit of run {name}")
    table.add_column("groups", no_wrap=True)
    for kind in found.kinds:
        table.add_column(kind, justify="right", no_wrap=True)
    for row in ("issued", *OUTCOMES, "in_flight", "forgotten", "lost", "twice"):
        table.add_row(row.replace("_", " "), *(str(counts[row]) for counts in found.kinds.values()))
    Console(highlight=False).print(table)
    for what, meaning in MEANINGS.items():
        if violations := found.of(what):
            _print_violations(f"{what.replace('_', ' ')} ({meaning})", violations)
    print("every issued uid ends exactly once or is in flight" if found.ok else "THE RUN BREAKS ITS PROMISE")


def _print_violations(title: str, violations: tuple[Violation, ...]) -> None:
    print(f"{title}: {len(violations)}")
    for violation in violations[:SHOWN]:
        print(f"  {violation.kind} {plain(violation.uid)}  {plain(violation.detail)}".rstrip())
    if len(violations) > SHOWN:
        print(f"  and {len(violations) - SHOWN} more; --json has them all")
