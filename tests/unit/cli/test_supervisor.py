"""The supervisor with small stand-ins for the real processes: a package `cli` of the test's own, in its own folder."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from cli import supervisor as module
from cli.services import ROLES, Service
from cli.supervisor import Deaths, Supervisor
from common.errors import Fenced, ServerError, SettingsError, SparkError, TooManyDead, WipedServer

SERVICES = tuple(Service(kind=role, replicas=2 if role.scales else 1) for role in ROLES)
WORKS_UNTIL_TOLD = """
import signal, sys
from pathlib import Path
def stop(*_):
    with Path("stopped").open("a") as file:
        file.write(role + "\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
Path("started-" + role).touch()
while True:
    signal.pause()
"""


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cli").mkdir()
    (tmp_path / "cli" / "__init__.py").touch()  # or the installed package of that name would win
    monkeypatch.chdir(tmp_path)  # `python -m cli` looks here first
    monkeypatch.setattr(module, "LONGEST_DELAY_S", 0.01)


def script(tmp_path: Path, learner: str, others: str = WORKS_UNTIL_TOLD) -> None:
    text = f"import sys\nrole = sys.argv[1]\nif role == 'learner':\n{_indented(learner)}\nelse:\n{_indented(others)}\n"
    (tmp_path / "cli" / "__main__.py").write_text(text, encoding="utf-8")


def _indented(text: str) -> str:
    return "\n".join("    " + line for line in (text.strip() or "pass").splitlines())


async def _watch() -> None:
    await asyncio.Event().wait()


def run(tmp_path: Path, say: Callable[[str], None] = lambda _line: None) -> bool:
    supervisor = Supervisor(SERVICES, tmp_path / "config.toml", tmp_path / "logs", dict(os.environ), say=say)
    return asyncio.run(supervisor.run(_watch))


WHEN_OTHERS_RUN = """
from pathlib import Path
import time
give_up_at = time.monotonic() + 30
while not (Path("started-actor").exists() and Path("started-recycler").exists()):
    assert time.monotonic() < give_up_at
    time.sleep(0.01)
"""


def test_ends_when_the_learner_has_finished_and_stops_actors_before_the_recycler(tmp_path: Path) -> None:
    script(tmp_path, WHEN_OTHERS_RUN)
    assert run(tmp_path) is True
    stopped = (tmp_path / "stopped").read_text().split()
    assert stopped[-1] == "recycler"
    assert set(stopped[:-1]) == {"actor"}


def test_a_mistake_in_the_settings_ends_the_run_with_the_childs_own_words(tmp_path: Path) -> None:
    script(tmp_path, "print('spark: model.path is empty', file=sys.stderr)\nsys.exit(2)")
    with pytest.raises(SettingsError, match=r"learner ended with exit code 2: model\.path is empty"):
        run(tmp_path)


def test_a_child_that_keeps_dying_is_given_up_with_a_reason(tmp_path: Path) -> None:
    script(tmp_path, "open('tries', 'a').write('x')\nraise ValueError('no luck')")
    with pytest.raises(SparkError, match=r"learner died 6 times in a row.*exit code 1: ValueError: no luck"):
        run(tmp_path)
    assert (tmp_path / "tries").read_text() == "x" * (module.MOST_RESTARTS + 1)


def test_a_child_that_dies_once_is_started_again(tmp_path: Path) -> None:
    script(tmp_path, "import os\nif not os.path.exists('once'):\n    open('once', 'w').close()\n    os._exit(7)")
    assert run(tmp_path) is True
    assert (tmp_path / "once").exists()


def test_whoever_watches_is_told_of_a_death(tmp_path: Path) -> None:
    said: list[str] = []
    dies_once = "import os\nif not os.path.exists('once'):\n    open('once', 'w').close()\n    sys.exit('no luck')"
    script(tmp_path, dies_once)
    run(tmp_path, said.append)
    [line] = [line for line in said if line.startswith("learner")]
    assert line.startswith("learner died with exit code 1: no luck; its log is ")
    assert line.endswith("learner.log; it starts again in 0 s")


def test_words_that_cannot_be_read_end_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk lets no file be opened: the child has died, and is tried again like any other."""
    monkeypatch.setattr(Supervisor, "_stderr", lambda self, child: tmp_path / "nowhere" / child.member)
    said: list[str] = []
    with pytest.raises(SparkError, match=r"died 6 times in a row.*what it said cannot be read"):
        run(tmp_path, said.append)
    assert said


def test_an_actor_that_ends_by_itself_is_started_again(tmp_path: Path) -> None:
    ends_once = (
        "import os\nif not os.path.exists('ended-' + role):\n    open('ended-' + role, 'w').close()\n    sys.exit(0)"
    )
    script(tmp_path, WHEN_OTHERS_RUN, ends_once + WORKS_UNTIL_TOLD)
    assert run(tmp_path) is True
    assert (tmp_path / "ended-actor").exists()


# -- when it is over ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [SettingsError, WipedServer, TooManyDead, Fenced])
def test_what_a_restart_cannot_mend_ends_the_run_at_once_and_says_where_to_read_more(
    tmp_path: Path, error: type[SparkError]
) -> None:
    script(
        tmp_path,
        f"open('tries', 'a').write('x')\nprint('spark: so it is', file=sys.stderr)\nsys.exit({error.exit_code})",
    )
    with pytest.raises(
        error, match=rf"learner ended with exit code {error.exit_code}: so it is; its log is .*learner\.log"
    ):
        run(tmp_path)
    assert (tmp_path / "tries").read_text() == "x"


def test_a_server_that_cannot_be_reached_is_tried_again(tmp_path: Path) -> None:
    script(tmp_path, f"sys.exit({ServerError.exit_code})")
    with pytest.raises(ServerError, match="learner died 6 times in a row"):
        run(tmp_path)


def test_a_child_that_was_killed_is_not_quoted_with_the_words_of_an_earlier_life(tmp_path: Path) -> None:
    first = "print('spark: what the first life said', file=sys.stderr)\nsys.stderr.flush()\nos.kill(os.getpid(), 9)"
    later = "os.kill(os.getpid(), 9)"
    again = f"import os\nif not os.path.exists('once'):\n    open('once', 'w').close()\n{_indented(first)}\n{later}"
    script(tmp_path, again)
    with pytest.raises(SparkError, match="SIGKILL, perhaps for want of memory: it said nothing"):
        run(tmp_path)


def test_deaths_in_a_row_wait_longer_each_time_and_come_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_DELAY_S", 10.0)
    deaths = Deaths()
    assert [deaths.another(lived_s=1.0, now=0.0) for _ in range(6)] == [1.0, 2.0, 4.0, 8.0, 10.0, None]
    assert deaths.in_words(0.0) == "died 6 times in a row"


def test_a_long_life_starts_the_row_anew() -> None:
    deaths = Deaths()
    for _ in range(5):
        deaths.another(lived_s=1.0, now=0.0)
    assert deaths.another(lived_s=module.STEADY_S + 1, now=0.0) is not None
    assert deaths.in_a_row == 1


def test_a_child_that_dies_of_the_same_again_and_again_is_given_up_however_long_it_lives() -> None:
    deaths, lived_s = Deaths(), module.STEADY_S + 1
    ends = [deaths.another(lived_s=lived_s, now=number * 90.0) for number in range(21)]
    assert ends[-1] is None
    assert None not in ends[:-1]
    assert deaths.in_words(20 * 90.0) == "died 21 times in an hour"
    rarely = Deaths()
    assert None not in [rarely.another(lived_s=lived_s, now=number * 200.0) for number in range(200)]


DEAF = """
import signal, time
from pathlib import Path
signal.signal(signal.SIGTERM, signal.SIG_IGN)
Path("started-" + role).touch()
while True:
    time.sleep(0.1)
"""


def test_a_child_that_does_not_stop_is_killed_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STOP_S", 0.2)
    script(tmp_path, WHEN_OTHERS_RUN, DEAF)
    with capture_logs() as said:
        assert run(tmp_path) is True
    killed = {event["member"]: event["log"] for event in said if event["event"] == "up.child_killed"}
    assert killed["recycler"].endswith("recycler.log")
    assert killed.keys() & {"actor-0", "actor-1"}  # one of them may have been too young to be deaf


FAILS_TO_STOP = """
import signal, sys
from pathlib import Path
def stop(*_):
    print("spark: could not hand back", file=sys.stderr)
    sys.exit(3)
signal.signal(signal.SIGTERM, stop)
Path("started-" + role).touch()
while True:
    signal.pause()
"""


def test_a_child_that_fails_while_it_stops_is_named(tmp_path: Path) -> None:
    script(tmp_path, WHEN_OTHERS_RUN, FAILS_TO_STOP)
    with capture_logs() as said:
        assert run(tmp_path) is True
    ends = {event["member"]: event["end"] for event in said if event["event"] == "up.child_failed_to_stop"}
    assert ends.keys() & {"actor-0", "actor-1"}
    assert "exit code 3: could not hand back" in ends["recycler"]


def test_a_child_that_cannot_be_started_has_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_args: object, **_options: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(module.asyncio, "create_subprocess_exec", refuse)
    with capture_logs() as said, pytest.raises(SparkError, match="died 6 times in a row"):
        run(tmp_path)
    assert "Cannot allocate memory" in next(e["reason"] for e in said if e["event"] == "up.child_not_started")


LEAVES_A_WORKER = """
import os, subprocess, sys
if not os.path.exists("worker"):
    worker = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    with open("worker.tmp", "w") as file:
        file.write(str(worker.pid))
    os.rename("worker.tmp", "worker")
    os.kill(os.getpid(), 9)
"""


def test_what_a_killed_child_leaves_running_is_ended(tmp_path: Path) -> None:
    script(tmp_path, LEAVES_A_WORKER)
    assert run(tmp_path) is True
    stat = Path(f"/proc/{(tmp_path / 'worker').read_text()}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"  # nobody may have reaped it


# -- the run's own server -------------------------------------------------------------------------------------


class Server:
    """Dies as often as it is told to."""

    log_file = Path("server.log")

    def __init__(self, deaths: int) -> None:
        self.left = deaths
        self.starts = 0

    @property
    def exit_code(self) -> int | None:
        return -9 if self.left else None

    def start(self) -> None:
        self.left -= 1
        self.starts += 1
        if not self.left:
            Path("server-lives").touch()


WHEN_THE_SERVER_LIVES = """
from pathlib import Path
import time
give_up_at = time.monotonic() + 30
while not Path("server-lives").exists():
    assert time.monotonic() < give_up_at
    time.sleep(0.01)
"""


def run_with(server: Server, tmp_path: Path, say: Callable[[str], None] = lambda _line: None) -> bool:
    paths = tmp_path / "config.toml", tmp_path / "logs"
    supervisor = Supervisor(SERVICES, *paths, dict(os.environ), server, say=say)  # type: ignore[arg-type]
    return asyncio.run(supervisor.run(_watch))


def test_a_server_that_died_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SERVER_LOOK_S", 0.01)
    script(tmp_path, WHEN_THE_SERVER_LIVES)
    server, said = Server(3), []
    assert run_with(server, tmp_path, said.append) is True
    assert server.starts == 3
    told = [line for line in said if "server" in line]
    assert len(told) == 3
    assert told[0].startswith("the embedded server died with SIGKILL")


def test_a_server_that_keeps_dying_is_given_up_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SERVER_LOOK_S", 0.01)
    script(tmp_path, WORKS_UNTIL_TOLD)
    with pytest.raises(ServerError, match=r"server died 6 times in a row, the last time SIGKILL.*server\.log"):
        run_with(Server(99), tmp_path)
