"""What may be wrong with the work itself: tasks that kill or die, and a judge that has stopped to judge."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cli.causes.finding import Finding, several
from cli.plain import plain
from cli.snapshot import Snapshot

SUSPECT: Final = 3
"""Deliveries of one entry that are no accident. Not more than that of any actor's lease can run out in a busy run."""


GIVEN_UP: Final = "wait: it goes to the dead letters with its reason; look at why actors die or fail meanwhile"
NOBODY_GIVES_UP: Final = (
    "look at why actors died or failed: no actor is running, and only one can put it into the dead letters, with its "
    "reason, should the run go on"
)


def work(s: Snapshot) -> Iterator[Finding]:
    yield from _judge(s)
    yield from _suspects(s)
    yield from _dead(s)


def _judge(s: Snapshot) -> Iterator[Finding]:
    for beat in s.living("learner").values():
        for alarm in beat.get("alarms", ()):
            yield Finding(
                severity="problem",
                code="judge_alarm",
                subject="judge",
                cause=plain(str(alarm), 300),
                do="look at the judge panel of `spark top` and the report; lower learner.judge_share, or go back to a "
                "checkpoint from before",
            )


def _suspects(s: Snapshot) -> Iterator[Finding]:
    most = s.settings.redis.max_deliveries
    suspects = [lease for lease in s.leases if lease.deliveries >= min(SUSPECT, most)]
    if suspects:
        worst = max(suspects, key=lambda lease: lease.deliveries)
        yield Finding(
            severity="warning",
            code="suspect_task",
            subject=worst.stream,
            cause=f"entry {worst.id} of {worst.stream} looks like poison: it has been delivered {worst.deliveries} "
            f"times (at most {most}) without a result, now to {plain(worst.owner, 40)}; "
            f"{several(len(suspects), 'such task')}",
            do=GIVEN_UP if s.living("actor") else NOBODY_GIVES_UP,
        )


def _dead(s: Snapshot) -> Iterator[Finding]:
    newest = s.dead.newest
    if newest is None:
        return
    yield Finding(
        severity="warning",
        code="dead_letters",
        subject="dead letters",
        cause=f"{several(s.dead.count, 'poison task')} in the dead letters; the newest, of "
        f"{plain(newest.stream.rpartition('}:')[2], 40)}, gave up after "
        f"{several(newest.deliveries, 'delivery', 'deliveries')}: {plain(newest.reason, 200)}",
        do=f"`spark dead show RUN {newest.id}` shows it; mend the cause, then `spark dead retry RUN --all`",
    )
