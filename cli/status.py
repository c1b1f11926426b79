"""`spark status`: where every issued task is, who does what, and what is wrong in plain words."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cli.embedded import EmbeddedServer
from cli.rundir import RunDirectory, open_run, server_of
from common.errors import ServerError, SettingsError, WipedServer
from common.messages import OUTCOMES
from common.records import Ledger
from common.server import check_server, connect
from common.streams import Streams

if TYPE_CHECKING:
    from rich.console import Console

    from cli.causes.finding import Finding
    from cli.snapshot import Snapshot

UNBALANCED: Final = 1
"""Exit code when the ledger does not balance."""
UNHEALTHY: Final = 6
"""Exit code when a finding is a problem."""
IN_VAIN: Final = "finds nothing to train"
CHECK: Final = "check the verifier, the answers of the prompts, and whether the prompts are too hard or too easy"
"""What to do about it."""
PATIENCE_S: Final = 10.0
"""For a server of a run's own that goes down, or comes up."""
AGAIN_S: Final = 0.25
STYLES: Final = {"problem": "bold red", "warning": "yellow", "note": "dim"}


def status(run: Path, *, as_json: bool) -> None:
    """Print ledger, members and findings; exits with UNBALANCED or UNHEALTHY when something is wrong."""
    from cli.health import diagnose, healthy

    seen = look(open_run(run))
    findings = diagnose(seen)
    if as_json:
        print(json.dumps(_as_json(seen, findings)))
    else:
        _print(seen, findings)
    if not seen.ledger.balanced:
        sys.exit(UNBALANCED)
    if not healthy(findings):
        sys.exit(UNHEALTHY)


def look(run: RunDirectory, *, patience_s: float = PATIENCE_S, sleep: Callable[[float], None] = time.sleep) -> Snapshot:
    """One look at a run, up or not. Raises ServerError.

    A server of its own may be on its way down or up, while nobody else may open its data: looked for again, until it
    answers, or has given its data free, or ``patience_s`` have passed.
    """
    from cli.snapshot import Looker

    give_up_at = time.monotonic() + patience_s
    while True:
        try:
            with streams_of(run) as streams:
                return Looker(run, streams).look()
        except ServerError as error:
            for_good = isinstance(error, WipedServer) or bool(run.settings.redis.url.get_secret_value())
            if for_good or time.monotonic() >= give_up_at:
                raise
        sleep(AGAIN_S)


@contextmanager
def streams_of(run: RunDirectory) -> Iterator[Streams]:
    """Streams of a run. One whose embedded server is down is read from its data, by a server that ends again."""
    url = server_of(run)
    if url:
        client = connect(url)
        check_server(client)
        yield Streams(client, run.settings.run.name)
    elif run.server_data.is_dir():
        with EmbeddedServer(run.server_data) as server:
            client = connect(server.url)
            yield Streams(client, run.settings.run.name)
    else:
        raise SettingsError(f"{run.path} has no server data, and redis.url is empty; set SPARK_REDIS__URL")


def as_dict(ledger: Ledger) -> dict[str, Any]:
    return {**{str(kind): dict(counts) for kind, counts in ledger.kinds.items()}, "balanced": ledger.balanced}


def is_stalled(beat: Mapping[str, Any] | None) -> bool:
    return beat is not None and "stalled_s" in beat


def version_of(beat: Mapping[str, Any]) -> str:
    """The policy version that a member has; it says -1 before it has any."""
    version = int(beat.get("policy_version", -1))
    return str(version) if version >= 0 else "none"


def in_vain(beat: Mapping[str, Any]) -> str:
    """Of a learner that nothing comes to which it could train, what does come; else empty."""
    if "no_contrast" not in beat:
        return ""
    groups, reward = beat["no_contrast"]["groups"], beat["no_contrast"]["reward"]
    how = {None: "no answer could be scored", 0.0: "all answers are wrong", 1.0: "all answers are right"}.get(
        reward, f"in each of them all answers have the same reward (mean {reward or 0.0:.2f})"
    )
    return f"{groups:,} groups without contrast in a row, none trained: {how}"


def in_words(beat: Mapping[str, Any] | None, *, seconds: bool = True) -> str:
    """What a member does; of a stalled one where, what it waits for and who should end the wait."""
    if beat is None:
        return "not running"
    if not is_stalled(beat):
        vain = in_vain(beat)
        return f"{IN_VAIN}; {vain}" if vain else str(beat.get("state", "alive"))
    duration = f" for {beat['stalled_s']:.0f} s" if seconds else ""
    return f"stalled{duration} in {beat['stage']}; waits for {beat['waits_for']}; unblocked by {beat['unblocked_by']}"


def _as_json(seen: Snapshot, findings: Sequence[Finding]) -> dict[str, Any]:
    from cli.health import healthy

    return {
        "ledger": as_dict(seen.ledger),
        "members": dict(seen.members),
        "stalls": {member: in_words(beat) for member, beat in seen.members.items() if is_stalled(beat)},
        "progress": dict(seen.progress),
        "steering": {"mode": seen.steering.mode, "values": seen.steering.values},
        "findings": [finding.as_dict() for finding in findings],
        "healthy": healthy(findings) and seen.ledger.balanced,
    }


def _print(seen: Snapshot, findings: Sequence[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table

    from cli.steer import values_in_words

    console = Console()
    version = seen.progress.get("policy_version", "-")
    table = Table(title=f"Ledger of run {seen.settings.run.name} at policy version {version}")
    table.add_column("groups")
    for column in ("issued", "trained", "filtered", "stale", "dead", "in flight", "balances"):
        table.add_column(column, justify="right", no_wrap=True)
    for kind, counts in seen.ledger.kinds.items():
        cells = [str(counts[name]) for name in ("issued", *OUTCOMES, "in_flight")]
        table.add_row(kind, *cells, "yes" if seen.ledger.balances(kind) else "[red]NO[/red]")
    console.print(table)
    for member, beat in seen.members.items():
        version = f", policy version {version_of(beat)}" if beat and "policy_version" in beat else ""
        _line(console, f"{member}: {in_words(beat)}{version}", "bold red" if is_stalled(beat) else None)
    for line in values_in_words(seen.steering):
        _line(console, line, None)
    _print_findings(console, findings)


def _print_findings(console: Console, findings: Sequence[Finding]) -> None:
    """Each with its cause, and what to do about it in the line below."""
    if not findings:
        _line(console, "healthy: nothing is wrong", "green")
    for finding in findings:
        _line(console, f"{finding.severity.upper()}: {finding.cause}", STYLES[finding.severity])
        _line(console, f"  do: {finding.do}", None)


def _line(console: Console, text: str, style: str | None) -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
