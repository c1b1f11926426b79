"""What is refused before a run starts, in one sentence each."""

from __future__ import annotations

import re
import socket

import pytest
import redis

from common.consumer import Consumer
from common.errors import ServerError
from common.keys import ACTORS
from common.server import RETRIABLE, Client, address, check_server, connect, load_functions, loaded
from common.streams import Streams


def one_sentence(error: BaseException) -> bool:
    return "\n" not in str(error) and "Traceback" not in str(error)


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def test_a_good_server_passes(client: Client) -> None:
    check_server(client)
    assert loaded(client)


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_an_evicting_server_is_refused(client: Client, policy: str) -> None:
    client.config_set("maxmemory-policy", policy)
    try:
        with pytest.raises(ServerError, match=rf"{policy}.*config set maxmemory-policy noeviction") as error:
            check_server(client)
        assert one_sentence(error.value)
    finally:
        client.config_set("maxmemory-policy", "noeviction")


def test_an_old_server_is_refused(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "info", lambda *_: {"redis_version": "6.2.14", "maxmemory_policy": "noeviction"})
    with pytest.raises(ServerError, match=r"6\.2\.14 is too old"):
        check_server(client)


def test_an_unreachable_server_is_one_sentence(closed_port: int) -> None:
    with (
        connect(f"redis://user:secret@127.0.0.1:{closed_port}") as client,
        pytest.raises(ServerError, match=f"no server answers at 127.0.0.1:{closed_port}") as error,
    ):
        check_server(client)
    assert one_sentence(error.value)
    assert "secret" not in str(error.value)
    assert error.value.exit_code == 3


def test_a_lost_server_is_given_up_after_the_set_time(closed_port: int) -> None:
    now = 0.0

    def sleep(delay_s: float) -> None:
        nonlocal now
        now += delay_s

    with connect(f"redis://127.0.0.1:{closed_port}") as client:
        streams = Streams(client, "test", give_up_s=60.0, clock=lambda: now, sleep=sleep)
        with pytest.raises(ServerError, match=f"127.0.0.1:{closed_port} has not answered for 60 s") as error:
            streams.progress()
        assert one_sentence(error.value)
        assert 57.0 < now <= 60.0
        with pytest.raises(ServerError, match="has not answered"):
            Consumer(streams, ACTORS, "c", ["s"]).claim(1)


def test_a_loading_server_is_waited_for(streams: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([redis.BusyLoadingError("loading"), redis.ReadOnlyError("read only"), {b"a": b"1"}])
    waits: list[float] = []

    def answer(*_: object) -> object:
        found = next(answers)
        if isinstance(found, Exception):
            raise found
        return found

    patient = Streams(streams.client, "test", sleep=waits.append)
    monkeypatch.setattr(streams.client, "hgetall", answer)
    assert patient.progress() == {"a": "1"}
    assert len(waits) == 2


@pytest.mark.parametrize("url", ["", "localhost:6379", "http://localhost", "redis://u:p/ss@h:1"])
def test_a_url_that_is_none_is_one_sentence_without_its_password(url: str) -> None:
    with pytest.raises(ServerError, match=re.escape("write redis://HOST:PORT")) as error:
        connect(url)
    assert one_sentence(error.value)
    assert "ss@" not in str(error.value)
    assert "'p'" not in str(error.value)


def test_wrong_credentials_are_refused_at_once(proxy, client: Client) -> None:
    """Retrying them for a minute would only hide what is wrong."""
    waits: list[float] = []
    with connect(proxy.url.replace("//", "//nobody:secret@")) as stranger:
        with pytest.raises(ServerError, match="refuses these credentials") as at_start:
            check_server(stranger)
        with pytest.raises(ServerError, match="refuses the credentials") as later:
            Streams(stranger, "test", sleep=waits.append).progress()
    assert waits == []
    for error in (at_start.value, later.value):
        assert one_sentence(error)
        assert "secret" not in str(error)


def test_functions_that_are_not_ours_to_load_are_one_sentence(proxy, client: Client) -> None:
    client.acl_setuser("role", enabled=True, passwords=["+pw"], commands=["+fcall", "+info"])
    try:
        with (
            connect(proxy.url.replace("//", "//role:pw@")) as role,
            pytest.raises(ServerError, match="stream functions"),
        ):
            load_functions(role)
    finally:
        client.acl_deluser("role")


def test_loading_the_functions_again_replaces_them(client: Client) -> None:
    load_functions(client)
    load_functions(client)
    assert client.function_list(library="spark")


def test_redis_py_repeats_nothing_by_itself(client: Client) -> None:
    """It would turn one XADD into eleven."""
    retry = client.connection_pool.make_connection().retry
    assert retry.get_retries() == 0
    assert redis.ConnectionError in RETRIABLE


def test_an_address_has_no_credentials() -> None:
    with connect("redis://user:secret@example.invalid:1234") as client:
        assert address(client) == "example.invalid:1234"
    with connect("unix:///run/spark.sock?password=secret") as client:
        assert address(client) == "/run/spark.sock"
