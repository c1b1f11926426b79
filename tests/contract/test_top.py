"""`spark top` on the real server: it only reads, says when the server is away, and goes on when it is back."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from rich.console import Console
from run_harness import ROOT, command, environment

from cli.embedded import EmbeddedServer
from cli.rundir import RunDirectory
from cli.snapshot import Looker
from cli.status import look
from cli.top import Watch, print_once, top
from common.errors import ServerError
from common.observer import Observer
from common.server import connect, load_functions
from common.settings import Settings
from common.streams import Streams

DEADLINE_S = 60.0
ALTERNATE_ON, ALTERNATE_OFF = "\x1b[?1049h", "\x1b[?1049l"


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    settings = Settings.model_validate({"run": {"name": "test", "dir": str(tmp_path)}})
    found = RunDirectory(settings)
    found.create()
    return found


def serve(directory: RunDirectory) -> EmbeddedServer:
    return EmbeddedServer(directory.server_data, options={"appendonly": "yes"})


def prepare(url: str) -> None:
    with closing(connect(url)) as client:
        load_functions(client)
        streams = Streams(client, "test")
        streams.create_groups()
        streams.heartbeat("actor-0", {"role": "actor", "state": "generating"}, ttl_s=15)


def written(streams: Streams) -> list[bytes]:
    """Everything on the server, byte for byte."""
    return [streams.client.dump(key) for key in sorted(streams.client.keys())]


def test_looking_changes_nothing(run, directory: RunDirectory) -> None:
    run.issue("a", "b")
    before = written(run.streams)
    calls = run.streams.client.info("commandstats").keys()
    Looker(directory, run.streams).look()
    assert written(run.streams) == before
    new = {name.removeprefix("cmdstat_") for name in run.streams.client.info("commandstats").keys() - calls}
    assert not new & {"xadd", "set", "hset", "sadd", "xreadgroup", "xclaim", "xack", "xgroup|create"}


def test_an_observer_never_makes_a_group_that_is_missing(run, directory: RunDirectory) -> None:
    run.streams.client.delete(run.judge_rollouts)
    watch = Watch(directory)
    watch._looker = Looker(directory, run.streams)
    watch.look()
    assert "knows nothing of run test" in watch.view.trouble
    with pytest.raises(Exception, match="has lost streams of run test"):
        Observer(run.streams.client, "test").queues(0)
    assert not run.streams.client.exists(run.judge_rollouts)


def test_top_survives_a_restart_of_the_server(directory: RunDirectory) -> None:
    watch = Watch(directory)
    watch.look()
    assert "is not up" in watch.view.trouble
    with serve(directory) as server:
        prepare(server.url)
        watch.look()
        assert watch.view.trouble == ""
        assert watch.view.snapshot is not None
        assert watch.view.snapshot.members["actor-0"]["state"] == "generating"
    watch.look()
    assert "has not answered" in watch.view.trouble
    assert watch.view.snapshot is not None  # what was known stays on the screen
    with serve(directory):  # at another address
        watch.look()
        assert watch.view.trouble == ""
    watch.close()


def test_one_frame_for_a_ticket(directory: RunDirectory) -> None:
    console = Console(file=io.StringIO(), width=80, record=True)
    waits: list[float] = []
    with serve(directory) as server:
        prepare(server.url)
        watch = Watch(directory)
        print_once(watch, console, waits.append)
        watch.close()
    text = console.export_text()
    assert "actor-0" in text
    assert "the learner has not come up yet" in text
    assert len(waits) == 1
    assert "\x1b" not in console.file.getvalue()  # no colours in a file


# -- a run whose server went away ---------------------------------------------------------------------------------


def codes(watch: Watch) -> list[str]:
    assert watch.view.trouble == ""
    return [finding.code for finding in watch.view.findings]


def test_of_a_run_that_ended_top_says_so_as_status_does(directory: RunDirectory) -> None:
    watch = Watch(directory)
    with serve(directory) as server:
        prepare(server.url)
        watch.look()
    directory.summary.write_text('{"finished": false}', encoding="utf-8")
    watch.look()
    assert codes(watch) == ["stopped"]
    assert watch.view.snapshot is not None
    assert watch.view.snapshot.running == []
    later = Watch(directory)  # it never saw the server
    later.recall()
    later.look()
    assert codes(later) == ["stopped"]
    with serve(directory):  # it goes on
        later.look()
        assert "stopped" not in codes(later)
    later.close()


def test_one_frame_without_a_server_tells_the_caller(directory: RunDirectory, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        top(directory.path, once=True)
    assert ended.value.code == 3
    assert "NO SERVER" in capsys.readouterr().out
    with serve(directory) as server:
        prepare(server.url)
    directory.summary.write_text('{"finished": true}', encoding="utf-8")
    top(directory.path, once=True)
    shown = capsys.readouterr().out
    assert "the run is finished" in shown
    assert "NO SERVER" not in shown


def test_status_looks_again_at_a_run_whose_server_goes_down(directory: RunDirectory) -> None:
    server = serve(directory)
    server.start()
    prepare(server.url)
    assert server._process is not None
    server._process.kill()
    server._process.wait()
    looks: list[float] = []

    def goes_down(seconds: float) -> None:
        looks.append(seconds)
        server.stop()

    assert "actor-0" in look(directory, sleep=goes_down).members
    assert len(looks) == 1
    with serve(directory) as held:
        assert held._process is not None
        held._process.kill()
        held._process.wait()
        with pytest.raises(ServerError, match="another process keeps a server"):
            look(directory, patience_s=0.0)


# -- in a terminal ------------------------------------------------------------------------------------------------


class Terminal:
    """`spark top` in a pseudo-terminal of 80x24."""

    def __init__(self, directory: RunDirectory) -> None:
        self.screen, self.inside = pty.openpty()
        termios.tcsetwinsize(self.inside, (24, 80))
        self.before = termios.tcgetattr(self.inside)
        self.shown = ""
        self.process = subprocess.Popen(
            command("top", str(directory.path)),
            stdin=self.inside,
            stdout=self.inside,
            stderr=self.inside,
            env={**environment(), "TERM": "xterm"},
            cwd=ROOT,
            start_new_session=True,
        )

    def until(self, seen: str) -> None:
        give_up_at = time.monotonic() + DEADLINE_S
        while seen not in self.shown:
            assert time.monotonic() < give_up_at, f"waited for {seen!r} in vain: {self.shown[-2000:]}"
            if select.select([self.screen], [], [], 0.2)[0]:
                self.shown += os.read(self.screen, 65536).decode(errors="replace")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.screen)
        os.close(self.inside)


@pytest.fixture
def terminal(directory: RunDirectory) -> Iterator[Terminal]:
    with serve(directory) as server:
        prepare(server.url)
        opened = Terminal(directory)
        yield opened
        opened.close()


@pytest.mark.parametrize(
    "leave",
    [
        lambda t: os.write(t.screen, b"q"),
        lambda t: t.process.send_signal(signal.SIGINT),
    ],
    ids=["q", "Ctrl-C"],
)
def test_the_terminal_is_as_it_was_when_top_is_left(terminal: Terminal, leave: Callable[[Terminal], object]) -> None:
    terminal.until(ALTERNATE_ON)
    terminal.until("generating")
    assert termios.tcgetattr(terminal.inside) != terminal.before  # single keys
    leave(terminal)
    terminal.until(ALTERNATE_OFF)
    assert terminal.process.wait(DEADLINE_S) == 0
    assert termios.tcgetattr(terminal.inside) == terminal.before
