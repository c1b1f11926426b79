"""`spark top`: a run on one screen, as it goes. Only reads; a server that is away is waited for."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.live import Live

from cli.causes.finding import Finding
from cli.dashboard.frame import View, frame
from cli.dashboard.keys import END, Pressed, keys
from cli.dashboard.rates import NOTHING, Rates, rates
from cli.embedded import EmbeddedServer
from cli.folder_facts import read_folder
from cli.health import diagnose
from cli.rundir import RunDirectory, open_run, server_of
from cli.snapshot import Looker, Snapshot
from cli.status import look as look_once
from common.errors import ServerAway, ServerError
from common.process import until_told_to_stop
from common.records import STOPPED
from common.server import Client, check_server, connect
from common.streams import Streams

LOOK_S: Final = 1.0
WINDOW: Final = 10
"""Looks that a rate is taken over. Heartbeats come every 2 s."""
KEY_S: Final = 0.25
GIVE_UP_S: Final = 2.0
SECOND_LOOK_S: Final = 4.5
"""With ``--once``: two looks so far apart tell how fast the run is."""
LEAVE: Final = frozenset({"q", "Q", END})


@dataclass(slots=True)
class Watch:
    """Looks at a run. What it knows is replaced as a whole, so another thread may read it at any time."""

    run: RunDirectory
    view: View = field(init=False)
    clock: Callable[[], float] = time.time
    failure: Exception | None = None
    """A mistake of our own that ended the looking."""
    _history: deque[Snapshot] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _looker: Looker | None = None
    _client: Client | None = None
    _away_since: float | None = None

    def __post_init__(self) -> None:
        name = self.run.settings.run.name
        self.view = View(run=name, now=self.clock(), snapshot=None, findings=(), rates=NOTHING)

    def recall(self) -> None:
        """Of a run that ended before: what is in its data. They are opened once, and not while the screen is drawn."""
        if self._ended():
            seen = look_once(self.run)
            self._show(seen, diagnose(seen), NOTHING)

    def look(self) -> None:
        """Look once. A server that is away is told in the view, and looked for anew the next time."""
        try:
            seen = self._connected().look()
        except ServerError as error:
            if self.view.snapshot is not None and self._ended():
                self._over(self.view.snapshot)
            else:
                self._lost(str(error))
            return
        self._away_since = None
        older = self._history[0] if self._history else None
        self._history.append(seen)
        self._show(seen, diagnose(seen), rates(older, seen))

    @property
    def connected(self) -> bool:
        return self._looker is not None

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
        self._client = self._looker = None

    def _connected(self) -> Looker:
        """Raises ServerError. An embedded server that was started anew may listen elsewhere."""
        if self._looker is None:
            url = server_of(self.run)
            if url is None:
                raise ServerAway(f"the server of {self.run.path} is not up; `spark up {self.run.config}` starts it")
            self._client = connect(url)
            check_server(self._client)
            streams = Streams(self._client, self.run.settings.run.name)
            self._looker = Looker(self.run, streams, give_up_s=GIVE_UP_S)
        return self._looker

    def _ended(self) -> bool:
        """The run came to an end in order, and its own server went with it: nobody is missed."""
        served = bool(self.run.settings.redis.url.get_secret_value()) or EmbeddedServer.url_of(self.run.server_data)
        return not served and bool(read_folder(self.run, self.clock()).ending)

    def _over(self, last: Snapshot) -> None:
        """What was seen last, with how it ended as the folder says."""
        self._away_since = None
        self.close()
        self._history.clear()
        members = {name: {**beat, "state": STOPPED} if beat else None for name, beat in last.members.items()}
        seen = replace(last, members=members, folder=read_folder(self.run, last.at))
        self._show(seen, diagnose(seen), NOTHING)

    def _lost(self, why: str) -> None:
        now = self.clock()
        self._away_since = now if self._away_since is None else self._away_since
        self.close()
        self._history.clear()
        before = self.view
        self.view = View(
            run=before.run,
            now=now,
            snapshot=before.snapshot,
            findings=before.findings,
            rates=NOTHING,
            trouble=why,
            since_s=now - self._away_since,
        )

    def _show(self, seen: Snapshot, findings: list[Finding], pace: Rates) -> None:
        self.view = View(run=self.view.run, now=seen.at, snapshot=seen, findings=findings, rates=pace)


def top(run: Path, *, once: bool) -> None:
    """Show until told to leave; with ``once`` print one frame, and exit as ServerAway where there is no server."""
    watch = Watch(open_run(run))
    console = Console(highlight=False)
    try:
        watch.recall()
        if once:
            print_once(watch, console)
            if watch.view.trouble:
                sys.exit(ServerAway.exit_code)
        else:
            show(watch, console)
    finally:
        watch.close()


def print_once(watch: Watch, console: Console, sleep: Callable[[float], None] = time.sleep) -> None:
    """As high as it gets: a file is not cut off."""
    watch.look()
    if watch.connected:
        sleep(SECOND_LOOK_S)
        watch.look()
    height = console.height if console.is_terminal else max(console.height, 50)
    console.print(frame(watch.view, console.width, height))


def show(watch: Watch, console: Console) -> None:
    """The whole screen, until q, Ctrl-C or SIGTERM; the terminal is restored whatever ends it."""
    leaving = threading.Event()
    looking = threading.Thread(target=_look_on, args=(watch, leaving), name="looker", daemon=True)
    with until_told_to_stop() as stopping, keys() as pressed:
        looking.start()
        try:
            with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
                _draw(watch, live, pressed, stopping)
        finally:
            leaving.set()
    looking.join(KEY_S)  # it may be waiting for a server that is away, and nobody waits for that


def _look_on(watch: Watch, leaving: threading.Event) -> None:
    while not leaving.is_set():
        try:
            watch.look()
        except Exception as error:  # noqa: BLE001 - raised where the screen is drawn
            watch.failure = error
            return
        leaving.wait(LOOK_S)


def _draw(watch: Watch, live: Live, pressed: Pressed, stopping: Callable[[], bool]) -> None:
    """A new frame whenever there is something new, or the window has another size."""
    drawn: object = None
    while not stopping():
        size = live.console.size
        if drawn != (watch.view, size):
            drawn = (watch.view, size)
            live.update(frame(watch.view, size.width, size.height), refresh=True)
        if LEAVE & set(pressed(KEY_S)):
            return
        if watch.failure is not None:
            raise watch.failure
