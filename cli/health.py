"""Diagnosis in plain words: from a snapshot of a run to findings, the gravest first. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from cli.causes.actors import actors
from cli.causes.finding import Finding, names
from cli.causes.learner import learner, recycler
from cli.causes.members import gone, members
from cli.causes.places import ledger, places
from cli.causes.work import work
from cli.plain import plain
from cli.snapshot import Snapshot
from common.heartbeat import TTL_S
from common.steering import Mode

RULES: Final[tuple[Callable[[Snapshot], Iterator[Finding]], ...]] = (
    places,
    learner,
    actors,
    recycler,
    work,
    members,
)
GRAVITY: Final = {"problem": 0, "warning": 1, "note": 2}
FELL: Final = ("down", "not_started")
"""Of a run that should be there, and is not."""
REPORT: Final = "the report is report.html in its folder"
NO_REPORT: Final = (
    "there is no report yet: `spark up` writes it after its evaluation; if that failed (logs/eval.stderr) or nothing "
    "runs, `spark up RUN/config.toml` evaluates again, and `spark report RUN` writes a report without"
)
GO_ON: Final[Mapping[Mode, str]] = {
    "paused": "`spark resume RUN` lets it go on",
    "draining": "wait: it ends when all in flight is trained; `spark resume RUN` calls the drain off",
    "drained": "its members are ending; then `spark up RUN/config.toml` goes on from there",
}
SAYS_ALL: Final = ("wedged_recycler", "silent_learner", "stale_actor")
"""Findings that say all that the stall of the same member would."""


def diagnose(snapshot: Snapshot) -> list[Finding]:
    """What is wrong, the gravest first, causes before what may be their consequences. Empty when all is well."""
    found = [*ledger(snapshot)]
    if over := _over(snapshot):
        why = [finding for finding in places(snapshot) if finding.severity == "problem"]
        return in_order([*found, *(why if over.code in FELL else []), over, *work(snapshot)])
    found += [finding for rule in RULES for finding in rule(snapshot)]
    if held := snapshot.held:
        found.append(_note("held", f"the run is {plain(held, 120)}", GO_ON[snapshot.steering.mode]))
    return in_order(_without_echoes(found))


def healthy(findings: Iterable[Finding]) -> bool:
    """Nobody has to act now."""
    return not any(finding.severity == "problem" for finding in findings)


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: (GRAVITY[finding.severity], finding.symptom))


def _without_echoes(found: list[Finding]) -> list[Finding]:
    """A stall that another finding explains is not said twice; other consequences of a problem are only warnings."""
    told = {finding.subject for finding in found if finding.code in SAYS_ALL}
    kept = [finding for finding in found if not (finding.code == "stalled" and finding.subject in told)]
    if all(finding.symptom or finding.severity != "problem" for finding in kept):
        return kept
    return [replace(finding, severity="warning") if finding.symptom else finding for finding in kept]


def _over(s: Snapshot) -> Finding | None:
    """A run that reached its end, or of which nothing runs: whether it was stopped, or fell."""
    version, steps = s.policy_version, s.settings.learner.max_steps
    reached = f"at policy version {version} of {steps}"
    finished = f"the run is finished: it ended {reached}"
    if s.running and version >= steps and not s.living("learner"):  # `spark up` ends the others; else a user does
        return _note("finished", f"{finished}; {names(s.running)} may be stopped", "nothing is left for them to do")
    if s.running:
        return None
    if s.folder.ending == "finished" or version >= steps:
        return _note("finished", finished, REPORT if s.folder.report else NO_REPORT)
    if s.folder.ending == "drained":
        return _note("drained", f"the run was drained {reached}", "`spark up RUN/config.toml` goes on from there")
    if s.folder.ending == "stopped" or (s.members and not any(gone(s, role) for role in TTL_S)):
        return _note("stopped", f"the run was stopped {reached}", "`spark up RUN/config.toml` goes on from there")
    if not s.members:
        return _note("not_started", "nothing of the run has come up yet", "logs/ in its folder says how far it is")
    return Finding(
        severity="problem",
        code="down",
        subject="run",
        cause=f"nothing of the run is running, and nobody stopped it: it fell {reached}",
        do="logs/up.log and logs/*.stderr in its folder say why; `spark up RUN/config.toml` goes on from its newest "
        "checkpoint",
    )


def _note(code: str, cause: str, do: str) -> Finding:
    return Finding(severity="note", code=code, subject="run", cause=cause, do=do)
