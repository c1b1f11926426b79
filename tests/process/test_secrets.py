"""A password is in the environment or in a file of its owner's, and nowhere that others look."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from run_harness import DEMO, spark

from cli.embedded import EmbeddedServer
from cli.rundir import RunDirectory, open_run
from cli.services import services
from common.server import connect
from common.settings_sources import load_settings

PASSWORD = "hunter2-hunter2"
ROLES = [["actor", "--name", "actor-0"], ["recycler"], ["learner"]]


@pytest.fixture
def locked_server(tmp_path: Path) -> Iterator[str]:
    """Address of a TCP server that asks for a password, which is another one."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = {"appendonly": "no", "bind": "127.0.0.1"}
    with EmbeddedServer(tmp_path / "server", options=options) as server:
        with closing(connect(server.url)) as client:
            client.config_set("port", port)
            client.config_set("requirepass", "another one")
        yield f"127.0.0.1:{port}"


def run_role(arguments: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    role, *rest = arguments
    overrides = ["--set", f"run.dir={folder / 'runs'}", "--set", "redis.give_up_s=1"]
    return spark(role, str(DEMO), *rest, *overrides, cwd=folder, **environment)


def files_with(text: str, folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


@pytest.mark.parametrize("arguments", ROLES, ids=lambda arguments: arguments[0])
def test_a_refused_password_is_not_told(locked_server: str, tmp_path: Path, arguments: list[str]) -> None:
    result = run_role(arguments, tmp_path, SPARK_REDIS__URL=f"redis://actor:{PASSWORD}@{locked_server}")
    assert result.returncode == 3
    assert "refuses these credentials" in result.stderr
    assert PASSWORD not in result.stderr + result.stdout
    assert files_with(PASSWORD, tmp_path) == []


def test_a_password_in_a_url_that_is_none_is_not_told(tmp_path: Path) -> None:
    result = run_role(ROLES[0], tmp_path, SPARK_REDIS__URL=f"redis://actor:{PASSWORD}/x@host:1")
    assert result.returncode == 3
    assert "redis.url is no server address" in result.stderr
    assert PASSWORD not in result.stderr + result.stdout


def test_an_unreachable_server_is_named_without_the_password(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    result = run_role(ROLES[0], tmp_path, SPARK_REDIS__URL_FILE=str(secret_file(tmp_path, port)))
    assert result.returncode == 3
    assert f"no server answers at 127.0.0.1:{port}" in result.stderr
    assert PASSWORD not in result.stderr + result.stdout
    assert [path.name for path in files_with(PASSWORD, tmp_path)] == ["secret"]


def secret_file(folder: Path, port: int) -> Path:
    path = folder / "secret"
    path.write_text(f"redis://actor:{PASSWORD}@127.0.0.1:{port}\n")
    return path


def test_a_run_directory_and_its_command_lines_hold_no_password(tmp_path: Path) -> None:
    """The file with the password is named in config.toml; what it says is not."""
    settings = load_settings(DEMO, [f"run.dir={tmp_path}", f"redis.url_file={secret_file(tmp_path, 1)}"])
    assert PASSWORD in settings.redis.url.get_secret_value()
    run = RunDirectory(settings)
    run.create()
    assert files_with(PASSWORD, run.path) == []
    assert PASSWORD in open_run(run.path).settings.redis.url.get_secret_value()
    for service in services(settings):
        for member in service.members():
            assert PASSWORD not in " ".join(service.arguments(member, str(run.config)))
