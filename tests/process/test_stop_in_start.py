"""A process that is told to stop while it still starts ends, whatever it waits for there."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from run_harness import DEMO, command, environment, until
from tiny_models import save_tiny_model

from common.server import Client, connect, load_functions

SOON_S = 30.0
"""Far below the ten minutes that every wait below would last otherwise, and far above what a loaded machine needs."""
SLOW = """
import threading
from pathlib import Path
Path({reached!r}).touch()
threading.Event().wait(600)
"""
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def begin(url: str, role: str, *settings: str) -> subprocess.Popen[bytes]:
        overrides = [part for setting in ("redis.give_up_s=600", *settings) for part in ("--set", setting)]
        with (tmp_path / "stderr").open("wb") as output:
            process = subprocess.Popen(
                command(role, str(DEMO), *overrides),
                cwd=tmp_path,
                env={**environment(), "SPARK_REDIS__URL": url},
                stdout=output,
                stderr=output,
            )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def nowhere() -> Iterator[str]:
    """A port that is taken and answers to nobody."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"redis://127.0.0.1:{bound.getsockname()[1]}"


def log_of(folder: Path, member: str) -> str:
    path = folder / "runs" / "demo" / "logs" / f"{member}.log"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


@pytest.mark.parametrize(
    ("role", "member", "number", "exit_code"),
    [
        ("actor", "actor-0", signal.SIGTERM, 0),
        ("actor", "actor-0", signal.SIGINT, 0),
        ("recycler", "recycler", signal.SIGTERM, 0),
        ("learner", "learner", signal.SIGTERM, 143),
    ],
)
def test_while_no_server_answers(
    role: str, member: str, number: signal.Signals, exit_code: int, begin: Start, nowhere: str, tmp_path: Path
) -> None:
    process = begin(nowhere, role)
    until(lambda: "server.away" in log_of(tmp_path, member), "a process that found no server")
    process.send_signal(number)
    assert process.wait(SOON_S) == exit_code
    assert "process.stopped_in_its_start" in log_of(tmp_path, member)
    assert (tmp_path / "stderr").read_text() == ""


@pytest.fixture
def emptied(server_url: str) -> Iterator[Client]:
    client = connect(server_url)
    client.flushall()
    client.function_flush()
    yield client
    client.close()


def test_while_the_learner_has_installed_no_functions(begin: Start, emptied: Client, server_url: str) -> None:
    process = begin(server_url, "actor")
    until(lambda: any(c["cmd"] == "function|list" for c in emptied.client_list()), "an actor that looks for functions")
    process.terminate()
    assert process.wait(SOON_S) == 0


def test_while_the_model_loads(
    begin: Start, emptied: Client, server_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model with code of its own, which takes its time."""
    load_functions(emptied)
    folder = save_tiny_model("llama", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "slow", "auto_map": {"AutoConfig": "slow.SlowConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "slow.py").write_text(SLOW.format(reached=str(tmp_path / "reached")))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    process = begin(server_url, "actor", f"model.path={folder}", "model.trust_remote_code=true")
    until((tmp_path / "reached").exists, "an actor that loads its model")
    process.terminate()
    assert process.wait(SOON_S) == 0
