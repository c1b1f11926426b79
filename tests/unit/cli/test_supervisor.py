"""The supervisor with small stand-ins for the real processes: a package `cli` of the test's own, in its own folder."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from cli import supervisor as module
from cli.services import Service
from cli.supervisor import Supervisor
from common.errors import SettingsError, SparkError

SERVICES = (
    Service(role="learner", replicas=1, stops=3),
    Service(role="recycler", replicas=1, stops=2),
    Service(role="actor", replicas=2, stops=1),
)
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


def run(tmp_path: Path) -> bool:
    supervisor = Supervisor(SERVICES, tmp_path / "config.toml", tmp_path / "logs", dict(os.environ))
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


def test_an_actor_that_ends_by_itself_is_started_again(tmp_path: Path) -> None:
    ends_once = (
        "import os\nif not os.path.exists('ended-' + role):\n    open('ended-' + role, 'w').close()\n    sys.exit(0)"
    )
    script(tmp_path, WHEN_OTHERS_RUN, ends_once + WORKS_UNTIL_TOLD)
    assert run(tmp_path) is True
    assert (tmp_path / "ended-actor").exists()
