"""`spark status`: where every issued task is, and whether the ledger balances."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cli.embedded import EmbeddedServer
from cli.rundir import RunDirectory, open_run, server_of
from common.errors import SettingsError
from common.messages import OUTCOMES
from common.records import Ledger
from common.server import check_server, connect
from common.streams import Streams


def status(run: Path, *, as_json: bool) -> None:
    """Print the ledger and the members; exits with 1 when the ledger does not balance."""
    run_directory = open_run(run)
    with streams_of(run_directory) as streams:
        ledger, members, progress = streams.conservation(), streams.members(), streams.progress()
    if as_json:
        stalls = {member: in_words(beat) for member, beat in members.items() if is_stalled(beat)}
        print(json.dumps({"ledger": as_dict(ledger), "members": members, "stalls": stalls, "progress": progress}))
    else:
        _print(run_directory.settings.run.name, ledger, members, progress)
    if not ledger.balanced:
        sys.exit(1)


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


def in_words(beat: Mapping[str, Any] | None, *, seconds: bool = True) -> str:
    """What a member does; of a stalled one where, what it waits for and who should end the wait."""
    if beat is None:
        return "not running"
    if not is_stalled(beat):
        return str(beat.get("state", "alive"))
    duration = f" for {beat['stalled_s']:.0f} s" if seconds else ""
    return f"stalled{duration} in {beat['stage']}; waits for {beat['waits_for']}; unblocked by {beat['unblocked_by']}"


def _print(name: str, ledger: Ledger, members: dict[str, Any], progress: dict[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title=f"Ledger of run {name} at policy version {progress.get('policy_version', '-')}")
    table.add_column("groups")
    for column in ("issued", "trained", "filtered", "stale", "dead", "in flight", "balances"):
        table.add_column(column, justify="right", no_wrap=True)
    for kind, counts in ledger.kinds.items():
        cells = [str(counts[name]) for name in ("issued", *OUTCOMES, "in_flight")]
        table.add_row(kind, *cells, "yes" if ledger.balances(kind) else "[red]NO[/red]")
    console.print(table)
    for member, beat in members.items():
        version = f", policy version {beat['policy_version']}" if beat and "policy_version" in beat else ""
        style = "bold red" if is_stalled(beat) else None
        console.print(
            f"{member}: {in_words(beat)}{version}", style=style, markup=False, highlight=False, soft_wrap=True
        )
