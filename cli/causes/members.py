"""What may be wrong with any member: it is gone, dies again and again, or stands still."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

from cli.causes.finding import Finding, names, several, span
from cli.folder_facts import Death
from cli.plain import plain
from cli.services import services
from cli.snapshot import Snapshot
from cli.status import is_stalled
from common.heartbeat import TTL_S
from common.records import lives

OFTEN: Final = 3
"""Deaths in an hour that are more than an accident."""
FOR_LEARNER: Final = (
    "wait_for_room",
    "wait_for_tasks",
    "wait_for_weights",
    "load_weights",
    "ship",
    "issue_judge_tasks",
)
"""Stages in which a member waits for the learner."""
WAITS: Final = ("wait_for_groups", *FOR_LEARNER)
"""Stages in which a member waits for another one."""
LONG: Final = 2.0
"""A stall of so many times run.no_progress_s is no long step any more."""


def expected(s: Snapshot) -> dict[str, str]:
    """Member -> role, of those that `spark up` would start."""
    return {member: service.role for service in services(s.settings) for member in service.members()}


def gone(s: Snapshot, role: str) -> list[str]:
    """Members of a role that fell silent, as far as somebody misses them. Who said farewell is not missed.

    One that was started by hand under a name of its own may have been taken away on purpose: then it holds nothing.
    """
    mine, held = expected(s), {lease.owner for lease in s.leases}
    roles = {name: mine.get(name, "actor") for name, beat in s.members.items() if beat is None}
    return [name for name, its in roles.items() if its == role and (name in mine or name in held)]


def ended(s: Snapshot, member: str) -> bool:
    """It said farewell, and nobody has started it again."""
    beat = s.members.get(member)
    return beat is not None and not lives(beat)


def not_running(who: Collection[str], role: str) -> str:
    be = "is" if len(who) == 1 else "are"
    return f"{names(who)} {be} not running: no sign of life for more than {TTL_S[role]:.0f} s"


def died(s: Snapshot, who: Collection[str]) -> str:
    """What the supervisor saw of their ends; empty when it saw nothing."""
    deaths = [death for death in s.folder.deaths if death.member in who]
    return f"; {how_often(deaths)}" if deaths else ""


def how_often(deaths: list[Death]) -> str:
    last = deaths[-1]
    words = f": {plain(last.last_words, 160)}" if last.last_words else ""
    return (
        f"`spark up` saw {several(len(deaths), 'death')} in the last hour, the last one {span(last.ago_s)} ago with "
        f"exit code {last.exit_code}{words}"
    )


def members(s: Snapshot) -> Iterator[Finding]:
    yield from _dies_again(s)
    yield from _stalled(s)


def _dies_again(s: Snapshot) -> Iterator[Finding]:
    for member in dict.fromkeys(death.member for death in s.folder.deaths):
        deaths = [death for death in s.folder.deaths if death.member == member]
        if len(deaths) >= OFTEN:
            yield Finding(
                severity="problem",
                code="dies_again",
                subject=member,
                cause=f"{plain(member, 40)} dies again and again: {how_often(deaths)}",
                do=f"logs/{plain(member, 40)}.stderr and .log of the run say why; `spark up` gives up after a while",
            )


def stuck_on_learner(s: Snapshot) -> dict[str, float]:
    """Members that stand still until the learner does something, and for how many seconds."""
    standing = {member: beat for member, beat in s.members.items() if lives(beat) and is_stalled(beat)}
    return {member: float(beat["stalled_s"]) for member, beat in standing.items() if beat["stage"] in FOR_LEARNER}


def is_long(s: Snapshot, stalled_s: float) -> bool:
    """A stall that is a problem."""
    return stalled_s > LONG * s.settings.run.no_progress_s


def _stalled(s: Snapshot) -> Iterator[Finding]:
    for member, beat in s.members.items():
        if beat is None or not is_stalled(beat):
            continue
        seconds, stage = float(beat["stalled_s"]), str(beat["stage"])
        waits = plain(f"waits for {beat['waits_for']}; unblocked by {beat['unblocked_by']}", 400)
        yield Finding(
            severity="problem" if is_long(s, seconds) else "warning",
            code="stalled",
            subject=member,
            cause=f"{plain(member, 40)} stands still for {span(seconds)} in {plain(stage, 40)}; {waits}",
            do=f"look at whom it names; `stalled` in logs/{plain(member, 40)}.log says the call it hangs in, if any",
            symptom=stage in WAITS,
        )
