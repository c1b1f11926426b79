"""`spark tail`: what is on the streams, what the learner consumed, and what the processes say; one line each."""

from __future__ import annotations

import contextlib
import difflib
import itertools
import json
import os
import select
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text

from cli.plain import plain
from cli.rundir import RunDirectory, open_run, server_of
from cli.status import streams_of
from cli.tail_rows import GAP, Cell, Row, dead_row, group_row, log_row, metrics_row, task_row, weights_row
from cli.tail_sources import ArchiveSource, EventSource, LineSource, Source, StreamSource, live_event
from cli.wording import clock
from common.archive import FOLDER
from common.entries import Entries
from common.errors import SettingsError

STREAMS: Final = {
    "tasks": ("tasks:policy", "tasks:judge"),
    "tasks:policy": ("tasks:policy",),
    "tasks:judge": ("tasks:judge",),
    "rollouts": ("rollouts:policy", "rollouts:judge"),
    "rollouts:policy": ("rollouts:policy",),
    "rollouts:judge": ("rollouts:judge",),
    "returned": ("returned",),
    "weights": ("weights",),
    "dead": ("dead",),
}
"""What a user may say -> streams."""
ALIASES: Final = {"tp": "tasks:policy", "tj": "tasks:judge", "rp": "rollouts:policy", "rj": "rollouts:judge"}
OTHERS: Final = ("groups", "metrics", "events", "logs")
KNOWN: Final = (*STREAMS, *ALIASES, *OTHERS)
FILTERS: Final = {
    **dict.fromkeys(("tasks", "tasks:policy", "tasks:judge", "returned", "dead"), ("objective", "uid")),
    **dict.fromkeys(("rollouts", "rollouts:policy", "rollouts:judge", "groups"), ("objective", "actor", "uid")),
    **dict.fromkeys(("weights", "metrics"), ()),
    "events": ("uid",),
    "logs": ("actor", "uid"),
}
"""What the lines of each can be chosen by."""
WAIT_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which lines."""

    objective: str | None = None
    actor: str | None = None
    uid: str | None = None

    def __call__(self, row: Row) -> bool:
        return row.matches(self.objective, self.actor, self.uid)


def tail(path: Path, what: str, *, most: int, follow: bool, as_json: bool, wanted: Wanted) -> None:
    """Print the newest ``most`` lines, the newest last; with ``follow`` also those that come, until Ctrl-C.

    Raises SettingsError for something that cannot be looked at, or not be chosen from like this.
    """
    if str(path) in KNOWN and what not in KNOWN:
        raise SettingsError(f"RUN comes first: `spark tail {what} {path}`")
    name, run = _named(what, wanted), open_run(path)
    newest: list[Row] = []
    printer = Printer(as_json=as_json)
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt), _opened(run, name) as source:
        newest = list(itertools.islice(filter(wanted, source.newest()), most))
        for row in reversed(newest):
            printer.show(row)
        printer.flush()
        if follow:
            _refuse_without_server(run, name)
            while not printer.reader_left():
                for row in filter(wanted, source.more(WAIT_S)):
                    printer.show(row)
                printer.flush()
    if not newest and not follow:
        print(f"spark: nothing to show of {name}{_stranger(run, name, wanted.actor) or _hint(name)}", file=sys.stderr)
    printer.close()


def _named(what: str, wanted: Wanted) -> str:
    name = ALIASES.get(what, what)
    if name not in KNOWN:
        near = difflib.get_close_matches(what, KNOWN, 1)
        raise SettingsError(
            f"nothing is called {what!r}{f'; did you mean {near[0]!r}?' if near else ';'} "
            f"`spark tail` knows {', '.join((*STREAMS, *OTHERS))}"
        )
    for field in ("objective", "actor", "uid"):
        if getattr(wanted, field) is not None and field not in FILTERS[name]:
            others = ", ".join(other for other, fields in FILTERS.items() if field in fields)
            raise SettingsError(f"--{field} chooses nothing from {name}: its lines have none; those of {others} have")
    return name


def _stranger(run: RunDirectory, name: str, actor: str | None) -> str:
    """Says so when nobody of that name is known; processes that log elsewhere are known to the server only."""
    if actor is None:
        return ""
    known = {path.stem for path in run.logs.glob("*.log")}
    if name in STREAMS:
        with streams_of(run) as streams:
            known |= streams.members().keys()
    if name != "logs":
        known = {member for member in known if member not in ("learner", "recycler", "server", "up")}
    if not known or actor in known:
        return ""
    return f": no {plain(actor, 40)!r} is known; there are {', '.join(map(plain, sorted(known)))}"


def _hint(name: str) -> str:
    if name in STREAMS and name not in ("weights", "dead"):
        return "; entries leave a stream when all have read them, and `groups` shows what the learner consumed"
    return ""


@contextlib.contextmanager
def _opened(run: RunDirectory, name: str) -> Iterator[Source]:
    if name == "metrics":
        yield LineSource(run.path, run.metrics.name, metrics_row)
    elif name == "logs":
        yield LineSource(run.logs, "*.log", log_row)
    elif name == "groups":
        yield ArchiveSource(run.path / FOLDER)
    else:
        with streams_of(run) as streams:
            entries = Entries(streams.client, run.settings.run.name)
            if name == "events":
                yield EventSource(StreamSource(entries, {entries.keys.events: live_event}), run.path / "events")
            else:
                yield _of_streams(entries, name)


def _of_streams(entries: Entries, name: str) -> StreamSource:
    keys = entries.keys
    rows = {
        "tasks:policy": (keys.tasks("policy"), task_row),
        "tasks:judge": (keys.tasks("judge"), task_row),
        "rollouts:policy": (keys.rollouts("policy"), group_row),
        "rollouts:judge": (keys.rollouts("judge"), group_row),
        "returned": (keys.returned, task_row),
        "weights": (keys.weights, weights_row),
        "dead": (keys.dead, dead_row),
    }
    return StreamSource(entries, dict(rows[stream] for stream in STREAMS[name]))


def _refuse_without_server(run: RunDirectory, name: str) -> None:
    """Its data were read by a server that must not stay: it would keep the run from being started."""
    if (name in STREAMS or name == "events") and server_of(run) is None:
        raise SettingsError(f"the server of run {run.settings.run.name} is not up, so nothing more comes to {name}")


class Printer:
    """Lines for a person, cut to the width of a terminal and coloured there; or JSON lines."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._console = Console(highlight=False, soft_wrap=False)

    def show(self, row: Row) -> None:
        if self._as_json:
            print(json.dumps(row.full()))
            return
        width = self._console.width if self._console.is_terminal else None
        text = Text(GAP).join(Text(words, style) for words, style in _cells(row, width))
        if self._console.is_terminal:
            self._console.print(text, no_wrap=True, overflow="ellipsis", crop=True)
        else:
            print(text.plain)

    def flush(self) -> None:
        sys.stdout.flush()

    def reader_left(self) -> bool:
        """Whoever read our output through a pipe has closed it."""
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLERR)
        return any(event & select.POLLERR for _, event in poll.poll(0))

    def close(self) -> None:
        """What could not be written to a closed pipe is dropped: Python would complain of it at exit."""
        try:
            self.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _cells(row: Row, width: int | None) -> list[Cell]:
    if row.at is None:
        return row.fitting(width)
    at = clock(row.at, time.time())
    return [(at, "dim"), *row.fitting(None if width is None else width - len(at) - len(GAP))]
