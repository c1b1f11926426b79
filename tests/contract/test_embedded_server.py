"""The embedded server: which program it takes, that data survive it, that signals to its owner do not reach it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from cli import embedded
from cli.embedded import EmbeddedServer, find_server, server_version
from common.errors import ServerError, SettingsError
from common.server import Client, loaded

ROOT = Path(__file__).parents[2]


def fake_server(folder: Path, name: str, answer: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{answer}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def path_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH, with a shell to run the fakes."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.mark.parametrize(
    ("answer", "version"),
    [
        ("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64", 7),
        ("Valkey server v=9.1.2 sha=00000000:1 malloc=libc bits=64", 9),
        ("Redis server v=6.2.14 sha=00000000:0", 6),
        ("some other program 12.1", 0),
    ],
)
def test_the_version_is_read_from_what_the_program_says(tmp_path: Path, answer: str, version: int) -> None:
    assert server_version(fake_server(tmp_path, "s", answer)) == version


def test_a_program_that_cannot_run_has_no_version(tmp_path: Path) -> None:
    broken = tmp_path / "redis-server"
    broken.write_text("")
    assert server_version(broken) == 0


def test_a_new_server_on_path_comes_first(path_only: Path) -> None:
    fake_server(path_only, "redis-server", "Redis server v=6.2.14")
    new = fake_server(path_only, "valkey-server", "Valkey server v=8.0.1")
    assert find_server() == new


def test_an_old_server_on_path_is_passed_over_for_the_bundled_one(path_only: Path) -> None:
    old = fake_server(path_only, "redis-server", "Redis server v=6.2.14")
    assert find_server() != old
    assert server_version(find_server()) >= 8


def test_without_any_server_one_line_says_what_to_do(path_only: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_server(path_only, "redis-server", "Redis server v=6.2.14")
    monkeypatch.setattr(embedded, "_bundled", lambda: None)
    with pytest.raises(SettingsError, match=r"redis-server has version 6, need 7 or newer; run `pip install") as error:
        find_server()
    assert "\n" not in str(error.value)


def test_data_survive_stop_and_start(data_dir: Path, clients: Callable[[str], Client]) -> None:
    with EmbeddedServer(data_dir) as server:
        client = clients(server.url)
        client.set("kept", "1")
        assert client.config_get("append*", "maxmemory-policy") | {"appenddirname": ""} == {
            "appenddirname": "",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "appendfilename": "appendonly.aof",
            "maxmemory-policy": "noeviction",
        }
    with EmbeddedServer(data_dir) as server:
        assert clients(server.url).get("kept") == b"1"


def test_it_listens_on_a_private_socket_and_nowhere_else(data_dir: Path, clients: Callable[[str], Client]) -> None:
    with EmbeddedServer(data_dir) as server:
        assert clients(server.url).config_get("port") == {"port": "0"}
        folder = Path(server.url.removeprefix("unix://")).parent
        assert folder.stat().st_mode & 0o077 == 0
        assert EmbeddedServer.url_of(data_dir) == server.url
    assert not folder.exists()
    assert EmbeddedServer.url_of(data_dir) is None


def test_a_deep_run_directory_and_a_deep_tmpdir_are_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clients: Callable[[str], Client]
) -> None:
    deep = tmp_path / ("d" * 120) / ("e" * 120)
    deep.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with EmbeddedServer(deep / "data") as server:
        assert loaded(clients(server.url))


def test_it_starts_again_at_the_same_address_after_it_died(data_dir: Path, clients: Callable[[str], Client]) -> None:
    with EmbeddedServer(data_dir) as server:
        url, client = server.url, clients(server.url)
        client.set("kept", "1")
        os.kill(client.info("server")["process_id"], signal.SIGKILL)
        assert server._process is not None
        assert server._process.wait(10) == server.exit_code == -signal.SIGKILL
        server.start()
        assert server.url == url
        assert clients(url).get("kept") == b"1"


def test_a_server_that_cannot_start_says_why_and_leaves_nothing_behind(
    data_dir: Path, clients: Callable[[str], Client]
) -> None:
    with pytest.raises(ServerError, match="ended at once with exit code 1: Bad directive"):
        EmbeddedServer(data_dir, options={"no-such-option": "1"}).start()
    assert EmbeddedServer.url_of(data_dir) is None
    with EmbeddedServer(data_dir) as server:  # the locks are free again
        assert loaded(clients(server.url))


def test_two_owners_of_one_directory_are_refused(data_dir: Path) -> None:
    with EmbeddedServer(data_dir), pytest.raises(ServerError, match="is this run already up"):
        EmbeddedServer(data_dir).start()


OWNER = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
from cli.embedded import EmbeddedServer
from common.server import connect
with EmbeddedServer(Path(sys.argv[1])) as server:
    client = connect(server.url)
    client.set("kept", "1")
    try:
        print(server.url, flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("interrupted, server answers:", client.ping(), flush=True)
    client.close()
"""


def start_owner(data_dir: Path) -> tuple[subprocess.Popen[str], str]:
    """A process, leader of its own group as a shell would make it, that keeps a server."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(data_dir)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert owner.stdout is not None
    return owner, owner.stdout.readline().strip()


def test_ctrl_c_to_the_whole_group_leaves_the_server_to_its_owner(data_dir: Path) -> None:
    owner, _ = start_owner(data_dir)
    os.killpg(owner.pid, signal.SIGINT)
    output, _ = owner.communicate(timeout=30)
    assert output == "interrupted, server answers: True\n"
    assert owner.returncode == 0


def test_a_server_whose_owner_was_killed_is_stopped_and_its_data_taken_over(
    data_dir: Path, clients: Callable[[str], Client]
) -> None:
    owner, orphan_url = start_owner(data_dir)
    owner.kill()
    owner.communicate(timeout=30)
    orphan = clients(orphan_url)
    assert orphan.get("kept") == b"1"  # it lives on
    with EmbeddedServer(data_dir) as server:
        assert not loaded(orphan)
        assert not Path(orphan_url.removeprefix("unix://")).parent.exists()
        assert clients(server.url).get("kept") == b"1"
